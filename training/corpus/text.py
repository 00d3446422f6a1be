"""A text to learn from and a text to be measured on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from carousel.models.strict import Count, Strict
from carousel.training.corpus.files import one_line_end, read_text
from carousel.training.corpus.parameters import made_up
from carousel.training.corpus.symbols.symbols import SYMBOLS, Line, SymbolKind


class CorpusFiles(Strict):
    """UTF-8 texts, plain or .gz; or lines that are made up."""

    kind: Annotated[str, AfterValidator(lambda kind: kind and SYMBOLS.known(kind))] = ""
    """Empty: files. Otherwise lines of that kind (training/corpus/symbols), from `seed`."""
    parameters: dict[str, int | float] = Field(default_factory=dict)
    """Of the kind."""
    lines: Count = 10_000
    """To learn from, where they are made up."""
    validation_lines: Count = 1_000
    seed: Count = 1
    train: str = ""
    validation: str = ""
    """Empty: the last `validation_fraction` of the training text is held out instead."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    line_ends: Literal["lf", "keep"] = "lf"
    """lf: CR LF and a lone CR are read as LF, as prompts and stop strings have it; keep: as they are in the file."""

    @model_validator(mode="after")
    def _files_or_kind(self) -> Self:
        if self.kind:
            self.symbols()
        if bool(self.kind) == bool(self.train):
            seen = f"train is {self.train!r} and kind {self.kind!r}"
            raise ValueError(f"{seen}; give the one, a file, or the other, what is made up")
        return self

    def symbols(self) -> SymbolKind:
        """The kind of what is made up, with its parameters."""
        return made_up(SYMBOLS, self.kind, self.parameters)


MOST_DRAWS = 20
"""For a validation line: of a language with few strings most are learnt."""


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
    lines: Sequence[Line] = ()
    """The validation lines, where they are made up."""


def made_up_corpus(files: CorpusFiles) -> TextCorpus:
    """Lines of a kind; those to be measured on are others than those to learn from, as far as there are so many."""
    kind, draw = files.symbols(), random.Random(files.seed)
    learnt = [kind.line(draw) for _ in range(files.lines)]
    known, held_out = {tuple(line.symbols) for line in learnt}, list[Line]()
    for _ in range(MOST_DRAWS * files.validation_lines):
        line = kind.line(draw)
        if tuple(line.symbols) not in known:
            held_out.append(line)
            if len(held_out) == files.validation_lines:
                break
    remark = f"corpus: {len(held_out):,} validation lines, none of which is learnt"
    if len(held_out) < files.validation_lines:
        held_out = [kind.line(draw) for _ in range(files.validation_lines)]
        remark = "corpus: there are few lines of the kind, so those to be measured on are learnt too"
    train, validation = kind.text(learnt), kind.text(held_out)
    digest, validation_digest = (hashlib.sha256(text.encode()).hexdigest() for text in (train, validation))
    return TextCorpus(train, validation, digest, validation_digest, (remark,), held_out)


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
