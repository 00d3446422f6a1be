"""Types of tensors, as the Open Inference Protocol calls them and as numpy does."""

from __future__ import annotations

import numpy as np

NAMES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
"""The protocol's, by numpy's. BYTES is missing: no port takes texts."""

DTYPES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in NAMES.items()}
"""numpy's, little-endian as on the wire, by the protocol's."""
