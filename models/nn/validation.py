"""The validation data that a run measured its weights on, kept beside them in the form in which the model takes it.

Training writes them; export reads them, to measure what a graph of lower precision loses (export/README.md). They never
enter a bundle.

Axes: N images, K captions of each, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carousel.models.errors import CheckpointError
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

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

    @property
    def count(self) -> int:
        """How many predictions they ask for: all ids but the first of each sequence."""
        return sum(len(sequence) - 1 for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class CaptioningValidationData:
    """Images and what people said of them."""

    corpus_sha256: str
    """As ValidationData's."""
    images: Tensor
    """As the model's `encode` takes them: pixels, or features. <float32>[N, ...]"""
    ids: Tensor
    """What each step takes, the begin token first. <int64>[N, K, T]"""
    targets: Tensor
    """What it should say, the end token last; torch's `ignore_index` where nothing, or a word that the model has not.
    <int64>[N, K, T]"""
    references: Sequence[Sequence[str]]
    """The captions of each image, as BLEU compares them."""

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.images)


def write_validation(path: Path, data: ValidationData | CaptioningValidationData) -> None:
    """Write the data and rename them into place."""
    if isinstance(data, CaptioningValidationData):
        tensors = {"images": data.images, "ids": data.ids, "targets": data.targets}
        header: dict[str, Any] = {
            "task": "captioning",
            "corpus_sha256": data.corpus_sha256,
            "references": data.references,
        }
    else:
        tensors = {
            "ids": torch.cat([sequence.cpu() for sequence in data.sequences]),
            "lengths": torch.tensor([len(sequence) for sequence in data.sequences]),
        }
        header = {"task": data.task, "corpus_sha256": data.corpus_sha256, "characters": data.characters}
    write_checkpoint(path, Checkpoint(tensors, header))


def read_validation(path: Path) -> ValidationData | CaptioningValidationData:
    """Read what `write_validation` wrote.

    Raises:
        CheckpointError: no such file, or another one.
    """
    read = read_checkpoint(path)
    try:
        if "images" in read.tensors:
            corpus, references = read.header["corpus_sha256"], read.header["references"]
            images, ids, targets = (read.tensors[name] for name in ("images", "ids", "targets"))
            return CaptioningValidationData(corpus, images, ids, targets, references)
        sequences = torch.split(read.tensors["ids"], read.tensors["lengths"].tolist())
        return ValidationData(sequences=sequences, **read.header)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not hold validation data ({reason})") from None
