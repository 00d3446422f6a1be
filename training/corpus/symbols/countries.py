"""Sentences with a long gap: who grew up in a country speaks its language."""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from carousel.training.corpus.symbols.symbols import SYMBOLS, Line, SymbolKind

LANGUAGES = {
    "Albania": "Albanian", "Bulgaria": "Bulgarian", "China": "Chinese", "Denmark": "Danish", "Estonia": "Estonian",
    "Finland": "Finnish", "Georgia": "Georgian", "Hungary": "Hungarian", "Iceland": "Icelandic", "Japan": "Japanese",
    "Korea": "Korean", "Latvia": "Latvian", "Mongolia": "Mongolian", "Norway": "Norwegian", "Poland": "Polish",
    "Romania": "Romanian", "Sweden": "Swedish", "Thailand": "Thai", "Ukraine": "Ukrainian", "Vietnam": "Vietnamese",
}  # fmt: skip
"""Twenty countries, no two of one language."""

NAMES = ("Ada", "Ben", "Clara", "David", "Emma", "Felix")
VERBS = ("saw", "bought", "painted", "carried", "found", "sold")
THINGS = ("apples", "books", "chairs", "clocks", "horses", "lamps", "maps", "shoes")
GAPS = (1, 2, 4, 8, 16)
"""How many sentences stand between; four words each."""


@SYMBOLS.register("countries")
class Countries(SymbolKind):
    """`Ada grew up in Norway .`, some sentences of other things, and `Ada speaks Norwegian .`"""

    separator = " "

    longest: Annotated[int, Field(ge=1)] = GAPS[-1]
    """Sentences between, at most; of GAPS."""

    def line(self, draw: random.Random) -> Line:
        """See SymbolKind. The language is judged; a group for each gap, in words from the country to the language."""
        name, country = draw.choice(NAMES), draw.choice(sorted(LANGUAGES))
        between = draw.choice([gap for gap in GAPS if gap <= self.longest])
        words = [name, "grew", "up", "in", country, "."]
        for _ in range(between):
            words += [draw.choice(NAMES), draw.choice(VERBS), draw.choice(THINGS), "."]
        words += [name, "speaks", LANGUAGES[country], "."]
        legal: list[frozenset[str] | None] = [None] * len(words)
        legal[-2] = frozenset([LANGUAGES[country]])
        return Line(words, legal, f"gap={len(words) - 2 - 4:03d}")
