"""A checkpoint: one safetensors file, tensors in its body and JSON in its header. Never a pickled object.

One file is one atomic rename: a kill at any moment leaves the previous checkpoint or the next, never half of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from carousel.models.errors import CheckpointError

_HEADER_KEY = "carousel"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by dotted name, and JSON values by name."""

    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors called `<prefix>.<name>`, by name."""
        start = len(prefix) + 1
        return {name[start:]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix + ".")}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint and rename it into place."""
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    content = save(tensors, metadata={_HEADER_KEY: json.dumps(checkpoint.header)})
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: no such file, or not a Carousel checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a safetensors file ({error})") from None
    try:
        header = json.loads(metadata[_HEADER_KEY])
    except (KeyError, ValueError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: is a safetensors file without Carousel's JSON header")
    return Checkpoint(tensors, header)
