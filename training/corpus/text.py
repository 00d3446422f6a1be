"""A text to learn from and a text to be measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from carousel.models.strict import Strict
from carousel.training.corpus.files import one_line_end, read_text


class CorpusFiles(Strict):
    """UTF-8 texts, plain or .gz."""

    train: str
    validation: str = ""
    """Empty: the last `validation_fraction` of the training text is held out instead."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    line_ends: Literal["lf", "keep"] = "lf"
    """lf: CR LF and a lone CR are read as LF, as prompts and stop strings have it; keep: as they are in the file."""


@dataclass(frozen=True, slots=True)
class TextCorpus:
    """The two texts, and what identifies them."""

    train: str
    validation: str
    sha256: str
    """Of the unpacked bytes of the training file; where line ends were changed, of the text as it is learnt."""
    validation_sha256: str
    """Likewise of the validation file; of the training file where the validation text is its end."""
    remarks: tuple[str, ...] = ()
    """What was changed, for people."""


def read_corpus(train: str, validation: str, validation_fraction: float, *, keep_line_ends: bool = False) -> TextCorpus:
    """Read the texts; without a validation file, the end of the training text is held out.

    Line ends become LF, unless they are to be kept: a model that has learnt CR LF knows nothing of the LF of prompts,
    and says no "\\n\\n" that a stop string could find.

    Raises:
        CorpusError: a file is missing, empty, damaged or not UTF-8.
    """
    text, digest, remarks = _read(train, "corpus.train", keep_line_ends)
    if validation:
        held_out, validation_digest, more = _read(validation, "corpus.validation", keep_line_ends)
        if held_out.strip() in text:
            more.append(f"corpus.validation: {validation} is a part of the learnt text; its figures say nothing")
        return TextCorpus(text, held_out, digest, validation_digest, (*remarks, *more))
    cut = len(text) - int(len(text) * validation_fraction)
    return TextCorpus(text[:cut], text[cut:], digest, digest, tuple(remarks))


def _read(path: str, key: str, keep: bool) -> tuple[str, str, list[str]]:
    text, digest = read_text(Path(path), key)
    if "\r" not in text:
        return text, digest, []
    windows = text.count("\r\n")
    ends = " and ".join(
        f"{count:,} {name}" for count, name in ((windows, "CR LF"), (text.count("\r") - windows, "lone CR")) if count
    )
    if keep:
        return text, digest, [f"{key}: line ends are learnt as they stand, {ends}"]
    text = one_line_end(text)
    remark = f'{key}: line ends, {ends}, are read as LF; corpus.line_ends = "keep" keeps them'
    return text, hashlib.sha256(text.encode()).hexdigest(), [remark]
