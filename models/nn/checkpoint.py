"""A checkpoint: one safetensors file, tensors in its body and JSON in its header. Never a pickled object.

One file is one atomic rename: a kill at any moment leaves the previous checkpoint or the next, never half of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from carousel.models.codec.caption import CaptionCodec
from carousel.models.codec.image import Preprocessing
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.codec.text import TextCodec
from carousel.models.errors import CheckpointError
from carousel.models.features import FrozenEncoder
from carousel.models.nn.captioning import CaptioningModel, CaptioningModelConfig
from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from carousel.models.nn.tracing import TracingModel, TracingModelConfig

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


def load_language_model(checkpoint: Checkpoint) -> tuple[LanguageModel, TextCodec]:
    """The language model in evaluation mode, and its codec.

    Raises:
        CheckpointError: the header names another task, or tensors are missing or of another shape.
    """
    with _whole(checkpoint, "language"):
        model = LanguageModel(LanguageModelConfig.from_json(checkpoint.header["model"]))
        codec = TextCodec.from_json(checkpoint.header["tokenizer"])
        model.load_state_dict(checkpoint.group("model"))
    return model.eval(), codec


def load_tracing_model(checkpoint: Checkpoint) -> tuple[TracingModel, InteractionCodec]:
    """The tracing model in evaluation mode, folded, and its codec.

    Raises:
        CheckpointError: the header names another task, or tensors are missing or of another shape.
    """
    with _whole(checkpoint, "tracing"):
        model = TracingModel(TracingModelConfig.from_json(checkpoint.header["model"]))
        codec = InteractionCodec.from_json(checkpoint.header["skills"])
        model.load_state_dict(checkpoint.group("model"))
        model.fold()
    return model.eval(), codec


def load_captioning_model(checkpoint: Checkpoint) -> tuple[CaptioningModel, CaptionCodec]:
    """The captioning model in evaluation mode, and its codec.

    Raises:
        CheckpointError: the header names another task, or tensors are missing or of another shape.
    """
    encoder = frozen_encoder(checkpoint)
    header = checkpoint.header
    with _whole(checkpoint, "captioning"):
        model = CaptioningModel(CaptioningModelConfig.from_json(header["model"]))
        preprocessing = encoder.preprocessing if encoder else Preprocessing.model_validate(header["preprocessing"])
        text = TextCodec.from_json(header["tokenizer"])
        codec = CaptionCodec(text, preprocessing, header["begin"], header["end"])
        model.load_state_dict(checkpoint.group("model"))
    return model.eval(), codec


def frozen_encoder(checkpoint: Checkpoint) -> FrozenEncoder | None:
    """The extractor that a captioning model's features came from; None where its encoder is its own.

    Raises:
        CheckpointError: the header names another task, or describes no extractor.
    """
    with _whole(checkpoint, "captioning"):
        described = checkpoint.header["encoder"]
        return None if described is None else FrozenEncoder.model_validate(described)


@contextmanager
def _whole(checkpoint: Checkpoint, task: str) -> Iterator[None]:
    """Within the block, whatever the checkpoint lacks becomes one sentence."""
    if checkpoint.header.get("task") != task:
        raise CheckpointError(f"checkpoint is of task {checkpoint.header.get('task')!r}; allowed is {task!r}")
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"checkpoint does not hold a whole {task} model: its header has no {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())  # torch writes one line per tensor
        raise CheckpointError(f"checkpoint does not hold a whole {task} model: {reason}") from None
