"""A text to learn from and a text to be measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.corpus.files import read_text


@dataclass(frozen=True, slots=True)
class TextCorpus:
    """The two texts, and what identifies them."""

    train: str
    validation: str
    sha256: str
    """Of the unpacked bytes of the training file."""
    validation_sha256: str
    """Of the unpacked bytes of the validation file; of the training file where the validation text is its end."""


def read_corpus(train: str, validation: str, validation_fraction: float) -> TextCorpus:
    """Read the texts; without a validation file, the end of the training text is held out.

    Raises:
        CorpusError: a file is missing, empty, damaged or not UTF-8.
    """
    text, digest = read_text(Path(train), "corpus.train")
    if validation:
        held_out, validation_digest = read_text(Path(validation), "corpus.validation")
        return TextCorpus(text, held_out, digest, validation_digest)
    cut = len(text) - int(len(text) * validation_fraction)
    return TextCorpus(text[:cut], text[cut:], digest, digest)
