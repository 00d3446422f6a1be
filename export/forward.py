"""A torch model and an ONNX step graph behind one face: ids in, what is said after each of them out.

Axes: N images, B batch rows, T steps, V outputs of a step (a vocabulary's or a list of skills' size).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carousel.export.runtime import open_session
from carousel.models.graph import CONTEXT_PREFIX, STATE_PREFIX, next_name
from carousel.models.nn.captioning import CaptioningModel, Memories
from carousel.models.nn.network import Network, StepModule
from carousel.models.nn.recurrent import RecurrentState
from carousel.models.step import IMAGE

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Forward(Protocol):
    """Reads B sequences from the zero state on, some steps a call; the state is carried from call to call."""

    def __call__(self, ids: Ids) -> Floats:
        """Logits or probabilities after each id: of a token, or of an attempt. <int64>[B, T] -> <float32>[B, T, V]"""
        ...


class TorchForward:
    """A model in evaluation mode, all steps of a call in its fused kernels."""

    def __init__(self, model: Network, rows: int) -> None:
        self._model = model
        self._state = model.initial_state(rows)

    @torch.inference_mode()
    def __call__(self, ids: Ids) -> Floats:
        """See Forward."""
        said, self._state = self._model(torch.from_numpy(np.ascontiguousarray(ids)), self._state)
        return np.asarray(self._model.served(said).numpy())


class GraphForward:
    """A step graph in onnxruntime, step after step.

    Args:
        graph: the ONNX model.
        step: what it was made from.
        rows: B
        watched: further outputs, of which the largest absolute entry is kept.
    """

    def __init__(self, graph: bytes, step: StepModule, rows: int, watched: Sequence[str] = ()) -> None:
        self.largest = dict.fromkeys(watched, 0.0)
        self._session = open_session(graph, threads=1)
        self._step = step
        self._state: dict[str, Array] = {
            spec.name: np.zeros((rows, *spec.shape[1:]), np.float32)
            for spec in self._session.get_inputs()
            if spec.name.startswith(STATE_PREFIX)
        }
        self._outputs = [step.output, *map(next_name, self._state), *watched]

    def __call__(self, ids: Ids) -> Floats:
        """See Forward."""
        said = []
        for column in ids.T:  # [B]
            output, *after = self._session.run(self._outputs, {**self._step.split(column), **self._state})
            seen = after[len(self._state) :]
            self._state = dict(zip(self._state, after, strict=False))
            for name, value in zip(self.largest, seen, strict=True):
                self.largest[name] = float(np.maximum(self.largest[name], np.abs(value).max()))  # NaN stays
            said.append(output)
        return np.stack(said, axis=1)


class GraphCaptioner:
    """A captioning model whose steps are a graph's, and perhaps its encoder too (models.nn.beam.Captioner).

    Args:
        model: what encodes where no graph does.
        graph: its step graph.
        encoder: its encoder graph, from what the model's `encode` takes on; None where torch encodes.
        watched: further outputs of a step, of which the last ones are kept.
    """

    def __init__(
        self, model: CaptioningModel, graph: bytes, encoder: bytes | None = None, watched: Sequence[str] = ()
    ) -> None:
        self.seen: dict[str, Tensor] = {}
        self._watched = watched
        self._model = model
        self._encoder = None if encoder is None else open_session(encoder, threads=1)
        self._session = open_session(graph, threads=1)
        self._states = list(model.stack.state_shapes)
        after = (next_name(STATE_PREFIX + name) for name in self._states)
        self._outputs = ["logits", *after, *watched]

    def encode(self, images: Tensor) -> tuple[RecurrentState, Memories]:
        """See CaptioningModel.encode."""
        if self._encoder is None:
            return self._model.encode(images)
        names = [spec.name for spec in self._encoder.get_outputs()]
        said = dict(zip(names, map(torch.from_numpy, self._encoder.run(names, {IMAGE: images.numpy()})), strict=True))
        return _unprefixed(STATE_PREFIX, said), _unprefixed(CONTEXT_PREFIX, said)

    def step(self, token: Tensor, state: RecurrentState, memories: Memories) -> tuple[Tensor, RecurrentState, None]:
        """See CaptioningModel.step, less where the step looked; a graph's memories are each row's own."""
        fed = {STATE_PREFIX + name: part for name, part in state.items()}
        fed |= {
            CONTEXT_PREFIX + name: part.repeat_interleave(len(token) // len(part), 0) for name, part in memories.items()
        }
        arrays = {name: part.numpy() for name, part in fed.items()}
        logits, *after = map(torch.from_numpy, self._session.run(self._outputs, {"token": token.numpy(), **arrays}))
        self.seen = dict(zip(self._watched, after[len(self._states) :], strict=True))
        return logits, dict(zip(self._states, after, strict=False)), None


def _unprefixed(prefix: str, said: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): part for name, part in said.items() if name.startswith(prefix)}
