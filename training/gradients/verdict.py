"""What a curve of gradients by lag says, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

GONE = 1e-3
"""Of the gradient at the last step: what is less no longer teaches."""
TOO_MUCH = 1e3


def verdict(norms: Sequence[float]) -> str:
    """Whether the gradient vanishes, explodes, or neither, and from which lag on.

    Args:
        norms: of dE/ds(t - d), d = 0, 1, ...
    """
    start = next((place for place, norm in enumerate(norms) if norm > 0), None)
    if start is None:
        return "no error reaches this state at any lag"
    first, whole = norms[start], len(norms) - 1
    # From the far end: a dip that recovers has not vanished.
    gone = next((lag + 1 for lag in range(whole, -1, -1) if norms[lag] >= GONE * first), 0)
    over = next((lag for lag, norm in enumerate(norms) if norm > TOO_MUCH * first), None)
    if over is not None:
        return f"exploding: from lag {over} on it is more than {TOO_MUCH:,.0f} times what it is at lag {start}"
    if gone <= whole:
        return f"vanishing: from lag {gone} on it is less than a thousandth of what it is at lag {start}"
    return f"fine: over all {whole} steps it stays within a thousandth and a thousand times what it is at lag {start}"


def shares(norms: Sequence[float]) -> list[float]:
    """The share of all lags' norms that each lag has; zeros where all are."""
    total = sum(norms)
    return [norm / total if total else 0.0 for norm in norms]
