"""A picture's captions, and the one form of words in which they are learnt, generated and judged.

The form is that which the COCO caption evaluation's tokenizer leaves (Chen et al. 2015, arXiv:1504.00325: Penn
Treebank tokens, lower case, punctuation removed), stated as rules that need no JVM:

- lower case, in Unicode's compatibility form (NFKC), words apart by single blanks;
- a hyphen or an apostrophe between letters stays (`t-shirt`, `o'clock`), elsewhere it goes;
- what English writes onto a word becomes a word: `man's` is `man 's`, `don't` is `do n't`;
- a point or comma between digits stays (`3.5`), elsewhere it goes: `d.c.` is `d c` (the Treebank keeps such points);
- whatever else is no letter, mark or digit goes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from carousel.training.errors import CorpusError


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """A picture by name, and what people said of it."""

    name: str
    captions: tuple[str, ...]
    """At least one, each as normalise_caption leaves it and not empty."""


class _Kept(dict[int, str]):
    """For str.translate: letters, marks, digits and what may stand inside a word; a blank for the rest."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kept = character in "-'.," or unicodedata.category(character)[0] in "LMN"
        self[code] = character if kept else " "
        return self[code]


_KEPT = _Kept({0x2019: "'", 0x02BC: "'", 0x2010: "-"})  # typographic apostrophes and hyphen

_CLITIC = r"(?:n't|'(?:s|re|ve|ll|d|m))"
_END = r"(?![^ \-'.,])"
_ATTACHED = re.compile(rf"(?<=[^ \-'.,])({_CLITIC}(?={_CLITIC}*{_END}))")
_WORD = re.compile(rf"{_CLITIC}{_END}|[^ \-'.,]+(?:[-'][^ \-'.,]+|(?<=\d)[.,](?=\d)[^ \-'.,]+)*")


def normalise_caption(text: str) -> str:
    """The caption's words by the rules above. What is in that form already stays as it is."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).translate(_KEPT)
    return " ".join(_WORD.findall(_ATTACHED.sub(r" \1", plain)))


def group_captions(lines: Iterable[tuple[str, str]], file: str) -> list[CaptionedImage]:
    """The pictures of (name, raw caption) lines, each at its first line's place, its captions in their order.

    Captions without a word are left out.

    Raises:
        CorpusError: a picture has no caption with a word in it, or there is no picture.
    """
    captions: dict[str, list[str]] = {}
    for name, text in lines:
        caption = normalise_caption(text)
        captions.setdefault(name, []).extend([caption] if caption else [])
    for name, kept in captions.items():
        if not kept:
            raise CorpusError(f"{file}: picture {name!r} has no caption with a word in it; leave it out or caption it")
    if not captions:
        raise CorpusError(f"{file}: holds no caption; there is nothing in it to learn from")
    return [CaptionedImage(name, tuple(kept)) for name, kept in captions.items()]
