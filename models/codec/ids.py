"""How an id enters a port: as it is where the port takes integers, as a one-hot row where it takes floats."""

from __future__ import annotations

import numpy as np

from carousel.models.codec.spec import Array, Ids
from carousel.models.graph import TensorSpec


def takes_ids(port: TensorSpec, count: int) -> bool:
    """Whether a port takes ids below `count`: integers that hold them all, or a row of so many floats."""
    row = port.shape[1:]
    if port.dtype.startswith("float"):
        return row == (count,)
    return port.dtype.startswith(("int", "uint")) and row == () and int(np.iinfo(port.dtype).max) >= count - 1


def enter_ids(ids: Ids, port: Array) -> None:
    """Write ids into a port. <int64>[...] into [...], or as one-hot rows into [..., V]"""
    if port.ndim == ids.ndim:
        port[...] = ids
    else:
        port[...] = 0
        np.put_along_axis(port, ids[..., None], 1, axis=-1)


def below(numbers: Ids, count: int, what: str) -> Ids:
    """The same numbers, held to be at least 0 and below a count.

    Raises:
        ValueError: one is not.
    """
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if wrong.size:
        raise ValueError(f"{what} {wrong.flat[0]} is out of range; allowed are 0 to {count - 1:,}")
    return numbers
