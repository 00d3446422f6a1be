"""What sampling has to do to a block of rows: worked out when a row joins or leaves, not at every step.

Axes: b rows of a block, r rows that are truncated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carousel.service.engine.parameters import Floats, Ids

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]
Doubles = npt.NDArray[np.float64]

BLOCK_WEIGHTS = 1 << 20
"""Weights worked on at a time, which bounds the sampler's buffers to four mebibytes each."""

MAX_BLOCK_ROWS = 256

MIN_TEMPERATURE = np.float32(1e-6)
"""Below this (and above 0) a temperature acts as this one: its inverse must not overflow."""


@dataclass(frozen=True, slots=True)
class LargestOnly:
    """Rows that draw from their k largest weights, as places in the block, with their parameters."""

    rows: Rows
    """[r]"""
    inverse_temperature: Doubles
    """[r, 1]"""
    top_k: Ids
    """[r]"""
    top_p: Doubles | None
    """[r]; None where no row has any."""
    min_p: Floats | None
    """The same."""


@dataclass(frozen=True, slots=True)
class MassOnly:
    """Rows that draw from what top-p keeps of all weights, as places in the block, with their parameters."""

    rows: Rows
    """[r]"""
    inverse_temperature: Floats | None
    """<float32>[r, 1]; None where all are 1."""
    top_p: Doubles
    """[r], each less than 1."""
    min_p: Floats | None
    """[r]; None where no row has any."""


@dataclass(frozen=True, slots=True)
class All:
    """Rows that draw from all weights, or all that min-p keeps, as places in the block, with their parameters."""

    rows: Rows
    """[r]"""
    inverse_temperature: Floats | None
    """<float32>[r, 1]; None where all are 1."""
    min_p: Floats | None
    """[r]; None where no row has any."""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Which rows of a block choose their tokens in which way, each row in one of four. None where no row does."""

    rows: slice
    greedy: Rows | None = None
    all: All | None = None
    largest: LargestOnly | None = None
    mass: MassOnly | None = None
    penalty: Floats | None = None
    """<float32>[b]"""
    plain: bool = False
    """Whether all rows draw from the model's own probabilities and tell no alternatives: then nothing else is said."""
    own: bool = False
    """Whether all rows draw from the model's own probabilities, and some tell alternatives."""
    altered: Mask | None = None
    """Which rows are not drawn from all of the model's own probabilities. <bool>[b]"""


def block_rows(vocabulary_size: int) -> int:
    """How many rows sampling works on at a time."""
    return min(MAX_BLOCK_ROWS, max(1, BLOCK_WEIGHTS // vocabulary_size))


def plain_block(rows: slice) -> BlockPlan:
    """The plan of rows that all draw from the model's own probabilities and tell no alternatives."""
    return BlockPlan(rows, plain=True)


def plan_block(
    rows: slice,
    temperature: Floats,
    top_k: Ids,
    top_p: Doubles,
    min_p: Floats,
    penalty: Floats,
    vocabulary_size: int,
) -> BlockPlan:
    """The plan of the rows in `rows`, from the parameters of those rows. [b] each"""
    greedy = temperature == 0.0
    limited = (top_k > 0) & (top_k < vocabulary_size) & ~greedy
    narrowed = (top_p < 1.0) & ~greedy & ~limited
    inverse = 1.0 / np.maximum(temperature, MIN_TEMPERATURE)

    def tempered(places: Rows) -> Floats | None:
        part = temperature[places]
        return None if (part == 1.0).all() else inverse[places, None].astype(np.float32)

    def some(values: Floats, places: Rows) -> Floats | None:
        return values[places] if values[places].any() else None

    few, narrow = np.flatnonzero(limited), np.flatnonzero(narrowed)
    others = np.flatnonzero(~(greedy | limited | narrowed))
    return BlockPlan(
        rows=rows,
        greedy=np.flatnonzero(greedy) if greedy.any() else None,
        all=All(others, tempered(others), some(min_p, others)) if len(others) else None,
        largest=LargestOnly(
            rows=few,
            inverse_temperature=inverse[few, None].astype(np.float64),
            top_k=top_k[few],
            top_p=top_p[few] if (top_p[few] < 1.0).any() else None,
            min_p=some(min_p, few),
        )
        if len(few)
        else None,
        mass=MassOnly(narrow, tempered(narrow), top_p[narrow], some(min_p, narrow)) if len(narrow) else None,
        penalty=penalty.copy() if (penalty != 1.0).any() else None,
        own=bool(
            (temperature == 1.0).all() and (penalty == 1.0).all() and not (limited | narrowed | (min_p > 0.0)).any()
        ),
        altered=(temperature != 1.0) | (penalty != 1.0) | limited,
    )
