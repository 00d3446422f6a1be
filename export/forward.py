"""ONNX step graphs behind the face of the torch models that they were made of.

Axes: N images, B batch rows, T steps, V outputs of a step (a vocabulary's or a list of skills' size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carousel.export.runtime import open_session
from carousel.models.graph import CONTEXT_PREFIX, STATE_PREFIX, next_name
from carousel.models.nn.captioning import CaptioningModel, Context
from carousel.models.nn.network import Network, StepModule
from carousel.models.nn.recurrent import RecurrentState
from carousel.models.nn.score import Forward, TorchForward
from carousel.models.step import IMAGE, STEP_GRAPH

Array = npt.NDArray[np.generic]


def start_of(network: Network, graphs: Mapping[str, bytes] | None) -> Callable[[int], Forward]:
    """What reads so many sequences, from the zero state on: a network, or what its graphs by file have in its place."""
    if graphs is None:
        return partial(TorchForward, network)
    return partial(GraphForward, graphs[STEP_GRAPH], network.step_module())


class GraphForward:
    """A step graph in onnxruntime, step after step (a Forward).

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

    def __call__(self, ids: Tensor) -> Tensor:
        """See Forward."""
        said = []
        for column in ids.numpy().swapaxes(0, 1):  # [B, ...]
            output, *after = self._session.run(self._outputs, {**self._step.split(column), **self._state})
            seen = after[len(self._state) :]
            self._state = dict(zip(self._state, after, strict=False))
            for name, value in zip(self.largest, seen, strict=True):
                self.largest[name] = float(np.maximum(self.largest[name], np.abs(value).max()))  # NaN stays
            said.append(output)
        return torch.from_numpy(np.stack(said, axis=1))


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

    def encode(self, images: Tensor) -> tuple[RecurrentState, Context]:
        """See CaptioningModel.encode."""
        if self._encoder is None:
            return self._model.encode(images)
        names = [spec.name for spec in self._encoder.get_outputs()]
        said = dict(zip(names, map(torch.from_numpy, self._encoder.run(names, {IMAGE: images.numpy()})), strict=True))
        return _unprefixed(STATE_PREFIX, said), _unprefixed(CONTEXT_PREFIX, said)

    def step(self, token: Tensor, state: RecurrentState, context: Context) -> tuple[Tensor, RecurrentState, None]:
        """See CaptioningModel.step, less where the step looked; a graph's context is each row's own."""
        fed = {STATE_PREFIX + name: part for name, part in state.items()}
        fed |= {
            CONTEXT_PREFIX + name: part.repeat_interleave(len(token) // len(part), 0) for name, part in context.items()
        }
        arrays = {name: part.numpy() for name, part in fed.items()}
        logits, *after = map(torch.from_numpy, self._session.run(self._outputs, {"token": token.numpy(), **arrays}))
        self.seen = dict(zip(self._watched, after[len(self._states) :], strict=True))
        return logits, dict(zip(self._states, after, strict=False)), None


def _unprefixed(prefix: str, said: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): part for name, part in said.items() if name.startswith(prefix)}
