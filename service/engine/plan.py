"""What sampling has to do to a block of rows: worked out when a row joins or leaves, not at every step.

Axes: b rows of a block, r rows that are truncated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.engine.sequence import Floats, Ids

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]
Doubles = npt.NDArray[np.float64]

BLOCK_WEIGHTS = 1 << 20
"""Weights worked on at a time, which bounds the sampler's buffers to four mebibytes each."""

MAX_BLOCK_ROWS = 256

MIN_TEMPERATURE = np.float32(1e-6)
"""Below this (and above 0) a temperature acts as this one: its inverse must not overflow."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """The rows of a block that use top-k, top-p or min-p, as places in the block, with their parameters. [r] each"""

    rows: Rows
    top_k: Ids
    """0 where all are kept."""
    top_p: Doubles
    min_p: Floats


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """None stands for: no row of the block needs it."""

    rows: slice
    each: Rows
    """0 to b - 1."""
    greedy: Mask | None
    all_greedy: bool
    inverse_temperature: Floats | None
    """<float32>[b, 1]"""
    penalty: Floats | None
    """<float32>[b, 1]"""
    truncation: Truncation | None
    altered: Mask | None
    """Which rows are not drawn from the model's own probabilities, or not drawn at all. <bool>[b]"""
    in_place: bool
    """Whether the logits are good for nothing once they have been turned into probabilities."""
    plain: bool = False
    """Whether all rows draw from the model's own probabilities and tell no alternatives."""


def block_rows(vocabulary_size: int) -> int:
    """How many rows sampling works on at a time."""
    return min(MAX_BLOCK_ROWS, max(1, BLOCK_WEIGHTS // vocabulary_size))


def plain_block(rows: slice) -> BlockPlan:
    """The plan of rows that all draw from the model's own probabilities and tell no alternatives."""
    each = np.arange(rows.stop - rows.start)
    return BlockPlan(rows, each, None, False, None, None, None, None, in_place=True, plain=True)


def plan_block(
    rows: slice,
    temperature: Floats,
    top_k: Ids,
    top_p: Doubles,
    min_p: Floats,
    penalty: Floats,
    alternatives: Ids,
    vocabulary_size: int,
) -> BlockPlan:
    """The plan of the rows in `rows`, from the parameters of those rows. [b] each"""
    greedy = temperature == 0.0
    each, penalties = np.arange(len(temperature)), penalty[:, None].copy() if (penalty != 1.0).any() else None
    altered = (temperature != 1.0) | (penalty != 1.0)
    if greedy.all():
        return BlockPlan(rows, each, greedy, True, None, penalties, None, altered, in_place=False)
    tempered = (temperature != 1.0) & ~greedy
    top_k = np.where(top_k < vocabulary_size, top_k, 0)
    truncated = np.flatnonzero(((top_k > 0) | (top_p < 1.0) | (min_p > 0.0)) & ~greedy)
    # A greedy row's weights are never looked at; a temperature of 1 leaves them as they are.
    inverse = 1.0 / np.maximum(np.where(greedy, np.float32(1.0), temperature), MIN_TEMPERATURE)
    return BlockPlan(
        rows=rows,
        each=each,
        greedy=greedy if greedy.any() else None,
        all_greedy=False,
        inverse_temperature=inverse[:, None].astype(np.float32) if tempered.any() else None,
        penalty=penalties,
        truncation=Truncation(truncated, top_k[truncated], top_p[truncated], min_p[truncated])
        if len(truncated)
        else None,
        altered=altered if altered.any() else None,
        in_place=not (altered.any() or alternatives.any()),
    )
