"""The validation data that a run measured its weights on, kept beside them in the form in which the model eats it.

Training writes them; export reads them, to measure what a graph of lower precision loses (export/README.md). They never
enter a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

VALIDATION = "validation.safetensors"
"""Lies in the run's directory, beside its checkpoints."""


@dataclass(frozen=True, slots=True)
class ValidationData:
    """Sequences of ids."""

    task: str
    corpus_sha256: str
    """Of the training files, as in the provenance of the run's checkpoints: what links the two."""
    sequences: Sequence[Tensor]
    """A language model's one text, or the attempts of each learner. <int64>[T] each"""
    characters: int = 0
    """How many characters the text has (language)."""


def write_validation(path: Path, data: ValidationData) -> None:
    """Write the data and rename them into place."""
    tensors = {
        "ids": torch.cat([sequence.cpu() for sequence in data.sequences]),
        "lengths": torch.tensor([len(sequence) for sequence in data.sequences]),
    }
    header = {"task": data.task, "corpus_sha256": data.corpus_sha256, "characters": data.characters}
    write_checkpoint(path, Checkpoint(tensors, header))


def read_validation(path: Path) -> ValidationData:
    """Read what `write_validation` wrote.

    Raises:
        CheckpointError: no such file, or another one.
    """
    read = read_checkpoint(path)
    try:
        sequences = torch.split(read.tensors["ids"], read.tensors["lengths"].tolist())
        return ValidationData(sequences=sequences, **read.header)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not hold validation data ({reason})") from None
