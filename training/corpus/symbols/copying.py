"""Copy with a delay: letters, a pause, and the letters again (Hochreiter & Schmidhuber's long lags; Arjovsky et al.
2016).
"""

from __future__ import annotations

import random

from carousel.models.strict import Count
from carousel.training.corpus.symbols.symbols import SYMBOLS, Line, SymbolKind

LETTERS = "abcdefgh"


@SYMBOLS.register("copy")
class Copy(SymbolKind):
    """`letters` letters at random, `delay` dots, `>`, and the letters in the same order."""

    letters: Count = 5
    delay: Count = 20

    def line(self, draw: random.Random) -> Line:
        """See SymbolKind. The copy is judged."""
        letters = "".join(draw.choices(LETTERS, k=self.letters))
        legal = [*[None] * (self.letters + self.delay + 1), *map(frozenset, letters)]
        return Line(letters + "." * self.delay + ">" + letters, legal)
