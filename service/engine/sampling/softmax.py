"""The softmax of each row of logits."""

from __future__ import annotations

import numpy as np

from carousel.service.engine.device import address_of
from carousel.service.engine.parameters import Floats
from carousel.service.engine.session import SOFTMAX_GRAPH, Binding, open_session

MAX_BOUND = 512
"""Places of memory that a softmax is bound to at once: an engine has few, but for what is picked out of its blocks."""


class Softmax:
    """The softmax of each row, by onnxruntime: in half the time of numpy, and without the lock of the interpreter."""

    def __init__(self) -> None:
        self._session = open_session(SOFTMAX_GRAPH.read_bytes(), "softmax", intra_op_threads=1)
        self._bound: dict[tuple[tuple[int, bool], tuple[int, bool], tuple[int, ...]], Binding] = {}
        self.in_place = self._same_in_place()
        """Whether `probabilities` may be `logits`: onnxruntime does not promise it."""

    def __call__(self, logits: Floats, probabilities: Floats) -> None:
        """Read logits and write probabilities, both <float32>[b, V] and contiguous."""
        place = (logits.__array_interface__["data"], probabilities.__array_interface__["data"], logits.shape)
        binding = self._bound.get(place)
        if binding is None:  # which takes longer than one row does
            if len(self._bound) >= MAX_BOUND:
                self._bound.clear()
            binding = self._bound[place] = self._session.io_binding()
            binding.bind_input("logits", *address_of(logits))
            binding.bind_output("probabilities", *address_of(probabilities))
        self._session.run_with_iobinding(binding)

    def _same_in_place(self) -> bool:
        logits = np.linspace(-9.0, 9.0, 3 * 1001, dtype=np.float32).reshape(3, 1001)[:, ::-1].copy()
        probabilities = np.empty_like(logits)
        self(logits, probabilities)
        self(logits, logits)
        return logits.tobytes() == probabilities.tobytes()
