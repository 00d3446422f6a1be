"""Languages that take a counter: a^n b^n, and how many a's there were."""

from __future__ import annotations

import random

from carousel.models.strict import Count
from carousel.training.corpus.symbols.symbols import SYMBOLS, Line, SymbolKind


@SYMBOLS.register("anbn")
class AnBn(SymbolKind):
    """n times a, n times b, and a full stop; n up to `longest`, equally probable (Gers & Schmidhuber 2001)."""

    longest: Count = 10

    def line(self, draw: random.Random) -> Line:
        """See SymbolKind. Among the a's anything may come, so the b's and the stop are judged; a group for each n."""
        n = draw.randint(1, self.longest)
        legal = [*[None] * (n + 1), *[frozenset("b")] * (n - 1), frozenset(".")]
        return Line("a" * n + "b" * n + ".", legal, f"n={n}")


@SYMBOLS.register("count")
class CountAs(SymbolKind):
    """Letters a, b and c at random, up to `longest` of them, then `=` and the number of a's as one digit a symbol."""

    longest: Count = 20

    def line(self, draw: random.Random) -> Line:
        """See SymbolKind. The number is judged; a group for each number."""
        letters = "".join(draw.choices("abc", k=draw.randint(1, self.longest)))
        number = str(letters.count("a"))
        legal = [*[None] * (len(letters) + 1), *map(frozenset, number), frozenset(".")]
        return Line(f"{letters}={number}.", legal, f"a={number}")
