"""What a network is: what training learns, a checkpoint holds and export makes graphs of.

Axes: B batch rows, T steps, V outputs of a step (a vocabulary's or a list of skills' size).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from carousel.models.graph import TensorSpec
from carousel.models.nn.config import NetworkConfig
from carousel.models.nn.recurrent import RecurrentStack, RecurrentState
from carousel.models.registry import Registry

Fed = npt.NDArray[Any]
"""What many rows read, ids or numbers. [B, ...]"""


class StepModule(nn.Module):
    """One step of a network: what it reads and the state in, what it puts out and the next state out.

    Evaluation only: no dropout, and none of a network's shape checks. Training runs fused kernels over many steps;
    serving runs one step for many rows, so cells lay their weights out anew for it.

    Args:
        network: embedding, stack and projection.
        input_bounds: each input's name, in order, and what its values are below. <int64>[B] each
        output: the name of what is put out.
    """

    def __init__(self, network: Network, input_bounds: Mapping[str, int], output: str) -> None:
        super().__init__()
        self.input_bounds = dict(input_bounds)
        self.output = output
        self.context_shapes: dict[str, tuple[int, ...]] = {}
        """Of a row, by name: what a step reads and does not rewrite."""
        self.grid: tuple[int, int] | None = None
        """Rows and columns of where a step looks; None where it does not."""
        self.state_shapes = network.stack.state_shapes
        self.embedding = network.embedding
        self.stack = network.stack.step()
        self.projection = network.projection
        self.eval()

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """What a step reads, in order."""
        return {name: TensorSpec(name, "int64", (None,)) for name in self.input_bounds}

    def drawn(self, shape: tuple[int, ...], seed: int) -> Fed:
        """What so many rows may read, at random, as `split` takes it. [*shape, ...]"""
        return np.random.default_rng(seed).integers(0, math.prod(self.input_bounds.values()), shape)

    def split(self, ids: Fed) -> dict[str, Fed]:
        """What each input is of one id a row, which counts all that the inputs can say, the last changing fastest."""
        parts: dict[str, Fed] = {}
        for name, bound in reversed(self.input_bounds.items()):
            ids, parts[name] = ids // bound, ids % bound
        return dict(reversed(parts.items()))


class Network(nn.Module, ABC):
    """An embedding of ids, a recurrent stack, and a projection of what it puts out."""

    Config: ClassVar[type[NetworkConfig]]
    encodes: ClassVar[bool] = False
    """Whether sequences begin with what it makes of an input of their own, not with zeros."""
    config: NetworkConfig
    embedding: nn.Module
    stack: RecurrentStack
    projection: nn.Linear

    @abstractmethod
    def step_module(self) -> StepModule:
        """One step of it, as it is served, of the weights that it has now."""

    def initial_state(self, batch: int) -> RecurrentState:
        """Zeros, as at a sequence's start. <float32>[batch, ...] each"""
        return self.stack.initial_state(batch)

    def served(self, logits: Tensor) -> Tensor:
        """What a step puts out, of the logits that `forward` returns."""
        return logits

    def fold(self) -> None:
        """Turn what only training has apart into what is served, in place: the same function."""

    @property
    def parameter_count(self) -> int:
        """The number of trained values; tied weights count once."""
        return sum(parameter.numel() for parameter in self.parameters())


NETWORKS: Registry[type[Network]] = Registry(__package__)
"""By the name that a checkpoint's header gives."""
