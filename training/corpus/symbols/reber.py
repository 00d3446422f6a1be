"""The embedded Reber grammar (Reber 1967; Hochreiter & Schmidhuber 1997, experiment 1)."""

from __future__ import annotations

import random

from carousel.training.corpus.symbols.symbols import SYMBOLS, Line, SymbolKind

ARCS: dict[int, dict[str, int]] = {
    0: {"T": 1, "P": 2},
    1: {"S": 1, "X": 3},
    2: {"T": 2, "V": 4},
    3: {"X": 2, "S": 5},
    4: {"P": 3, "V": 5},
}
"""Reber's automaton: from each state, by symbol, the next; from state 5 only the end is left."""


@SYMBOLS.register("reber")
class Reber(SymbolKind):
    """B, T or P, a string of Reber's grammar between B and E, the same T or P again, and E.

    The inner string can be told from the last symbols but few; the T or P behind it only by who has kept the one at the
    beginning. Both arcs of a state are equally probable.
    """

    def line(self, draw: random.Random) -> Line:
        """See SymbolKind. All symbols but the first are judged."""
        outer = draw.choice("TP")
        symbols, legal = ["B", outer, "B"], [frozenset("B"), frozenset("TP"), frozenset("B")]
        state = 0
        while state in ARCS:
            arcs = ARCS[state]
            legal.append(frozenset(arcs))
            symbols.append(draw.choice(sorted(arcs)))
            state = arcs[symbols[-1]]
        return Line([*symbols, "E", outer, "E"], [None, *legal[1:], frozenset("E"), frozenset(outer), frozenset("E")])
