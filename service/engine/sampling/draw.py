"""Draws tokens by their weights, in one call of onnxruntime (export/draw_graph.py has the graphs and how they do it).

Axes: b rows of a block, V weights of each, B weights of a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from carousel.service.engine.device import address_of
from carousel.service.engine.parameters import Array, Floats, Ids
from carousel.service.engine.rows.plan import Doubles
from carousel.service.engine.session import open_session

SAMPLE_GRAPH = Path(__file__).with_name("sample.onnx")
"""From logits: a softmax, and a token by its probabilities."""
DRAW_GRAPH = Path(__file__).with_name("draw.onnx")
"""From weights that have been made otherwise: a token by these."""

BUCKET = 128
"""Weights summed together, about: the shortest running sums, over and within the buckets, are of about as many."""

ALIGNED = 4
"""Rows, and buckets, begin at a multiple of so many numbers: onnxruntime sums differently, in the last bit, what does
not, and a row's token may not depend on which row it is."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A call over bound memory, which it holds on to."""

    binding: Any
    """onnxruntime's."""
    read: Floats
    uniforms: Doubles
    tokens: Ids
    weights: Floats


class Draw:
    """Draws for rows of one size. It keeps the memory of its answers: each is good until the next of as many rows.

    Args:
        size: V.
        probabilities: where a softmax is written, as many rows as a block has; None for over its logits.
            <float32>[block, V]
    """

    def __init__(self, size: int, probabilities: Floats | None = None) -> None:
        self._sample = open_session(SAMPLE_GRAPH.read_bytes(), "sample", 1)
        self._draw = open_session(DRAW_GRAPH.read_bytes(), "draw", 1)
        self._probabilities = probabilities
        self._calls: dict[tuple[bool, tuple[int, bool], int], _Call] = {}
        """By whether the softmax is in it, where it reads, and the number of rows: an engine has few of each."""
        width = bucket_width(size)
        buckets = -(-size // width)
        self._layout: dict[str, Array] = {
            "grid": np.array([0, buckets, width], np.int64),
            "even": np.array(buckets * width == size),
            "pads": np.array([0, 0, 0, buckets * width - size], np.int64),
            "places": np.arange(width, dtype=np.int64)[None],
            "last": np.array(size - 1, np.int64),
        }

    def sample(self, logits: Floats, uniforms: Doubles) -> tuple[Ids, Floats]:
        """A token of each row by the softmax of its logits, and its probability; NaN where these are not finite.

        Args:
            logits: contiguous; may be overwritten. <float32>[b, V]
            uniforms: in [0, 1). <float64>[b]
        """
        call = self._call(logits, softmax=True)
        call.uniforms[:, 0] = uniforms
        self._sample.run_with_iobinding(call.binding)
        return call.tokens[:, 0], call.weights[:, 0]

    def draw(self, weights: Floats, uniforms: Doubles) -> Ids:
        """A token of each row by its share in the sum of the row's weights; never one of weight zero.

        Args:
            weights: contiguous, not negative. <float32>[b, V]
            uniforms: in [0, 1). <float64>[b]
        """
        call = self._call(weights, softmax=False)
        call.uniforms[:, 0] = uniforms
        self._draw.run_with_iobinding(call.binding)
        return call.tokens[:, 0]

    def _call(self, read: Floats, *, softmax: bool) -> _Call:
        rows = len(read)
        key = softmax, read.__array_interface__["data"], rows
        call = self._calls.get(key)
        if call is None:  # binding takes longer than a row does
            binding = (self._sample if softmax else self._draw).io_binding()
            call = self._calls[key] = _Call(
                binding, read, np.zeros((rows, 1)), np.zeros((rows, 1), np.int64), np.zeros((rows, 1), np.float32)
            )
            named: dict[str, Array] = {
                "logits" if softmax else "weights": read,
                "uniforms": call.uniforms,
                **self._layout,
            }
            for name, array in named.items():
                binding.bind_input(name, *address_of(array))
            if softmax:
                written = read if self._probabilities is None else self._probabilities[:rows]
                binding.bind_output("probabilities", *address_of(written))
            binding.bind_output("token", *address_of(call.tokens))
            binding.bind_output("weight", *address_of(call.weights))
        return call


def bucket_width(size: int) -> int:
    """B: about as many as BUCKET, and if that can be so that they divide V and begin where they should."""
    fitting = [width for width in range(BUCKET // 2, 2 * BUCKET, ALIGNED) if size % width == 0]
    return min(fitting, key=lambda width: abs(width - BUCKET), default=BUCKET)
