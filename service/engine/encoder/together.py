"""Which inputs of an encoder share a call, and how they lie in it.

Axes: B inputs of a call, T steps of the longest.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from carousel.models.graph import TensorSpec
from carousel.service.engine.feed import as_port
from carousel.service.engine.parameters import Array, Floats

Whole = Any
"""One prepared input. Any: each Together has a form of its own, which it alone looks into."""

Batch = Any
"""As a graph takes several. Any, for the same reason."""


class Together(Protocol):
    """How inputs are put together."""

    def key(self, whole: Whole) -> Hashable:
        """Those of one key may share a call."""
        ...

    def batch(self, wholes: Sequence[Whole]) -> Batch:
        """Inputs of one key, as the graph takes them."""
        ...

    def rows(self, wholes: Sequence[Whole], outputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """What each of a batch is given, copied: a view would keep the whole batch."""
        ...

    def zeros(self, count: int) -> Batch:
        """So many that say nothing."""
        ...


class Alike(Together):
    """One array each, all of the same shape: images.

    Args:
        shape: of one.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    @override
    def key(self, whole: Floats) -> Hashable:
        """See Together."""
        return None

    def batch(self, wholes: Sequence[Floats]) -> Floats:
        """See Together. <float32>[B, ...]"""
        return np.stack(wholes)

    def rows(self, wholes: Sequence[Floats], outputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """See Together."""
        return [{name: array[place].copy() for name, array in outputs.items()} for place in range(len(wholes))]

    def zeros(self, count: int) -> Floats:
        """See Together."""
        return np.zeros((count, *self._shape), np.float32)


class Ragged:
    """Some arrays each, by port, of which some have a free time axis.

    Args:
        ports: what the graph is fed, batch first: a free second axis is time, and as long for all of an input's.
        lengths: the port that is told how long each is; None where the graph has none, and none is padded.
        padded: whether inputs of any lengths may share a call, filled up with zeros; else those of one length do.
        timed: the outputs that are as long as an input.
        max_length: of an input; None for any.
    """

    def __init__(
        self,
        ports: Sequence[TensorSpec],
        lengths: TensorSpec | None = None,
        *,
        padded: bool = False,
        timed: Container[str] = (),
        max_length: int | None = None,
    ) -> None:
        self._ports = ports
        self._lengths = lengths
        self.timed = timed
        self._max_length = max_length
        self._padded = padded and lengths is not None

    def take(self, inputs: Mapping[str, npt.ArrayLike]) -> Mapping[str, Array]:
        """An input as the graph takes it, alone. [T, ...] or [...] each

        Raises:
            ValueError: an array is missing, unknown, of another shape or of a type that the port's cannot hold; or
                their lengths differ, or are 0.
        """
        names = ", ".join(port.name for port in self._ports)
        if unknown := [name for name in inputs if all(name != port.name for port in self._ports)]:
            raise ValueError(f"there is no input {unknown[0]!r}; inputs are {names}")
        taken: dict[str, Array] = {}
        length: int | None = None
        for port in self._ports:
            if port.name not in inputs:
                raise ValueError(f"input {port.name!r} is missing; inputs are {names}")
            given, row = np.asarray(inputs[port.name]), port.shape[1:]
            if given.ndim != len(row) or any(
                size not in (None, seen) for size, seen in zip(row, given.shape, strict=True)
            ):
                raise ValueError(f"input {port.name!r} is {list(given.shape)}; allowed is a row of {port}")
            if is_timed(port):
                length = len(given) if length is None else length
                if len(given) != length or not length:
                    raise ValueError(
                        f"input {port.name!r} has {len(given):,} steps; allowed are {length or '1 or more'}"
                    )
                if self._max_length is not None and length > self._max_length:
                    raise ValueError(
                        f"input {port.name!r} has {length:,} steps; allowed are up to {self._max_length:,} "
                        "(manifest encoder.max_length)"
                    )
            taken[port.name] = as_port(port.name, given, port.dtype)
        return taken

    def key(self, whole: Mapping[str, Array]) -> Hashable:
        """See Together."""
        return None if self._padded else self.length(whole)

    def batch(self, wholes: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
        """See Together. [B, T, ...] or [B, ...] each, and the lengths <integer>[B]"""
        lengths = [self.length(whole) for whole in wholes]
        made: dict[str, Array] = {}
        for port in self._ports:
            rows = [whole[port.name] for whole in wholes]
            if is_timed(port):
                array = made[port.name] = np.zeros((len(rows), max(lengths), *rows[0].shape[1:]), port.dtype)
                for target, row in zip(array, rows, strict=True):
                    target[: len(row)] = row
            else:
                made[port.name] = np.stack(rows)
        if self._lengths is not None:
            made[self._lengths.name] = np.array(lengths, self._lengths.dtype)
        return made

    def rows(self, wholes: Sequence[Mapping[str, Array]], outputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """See Together: what is as long as an input is cut where that ends."""
        return [
            {
                name: (array[place, : self.length(whole)] if name in self.timed else array[place]).copy()
                for name, array in outputs.items()
            }
            for place, whole in enumerate(wholes)
        ]

    def zeros(self, count: int) -> Mapping[str, Array]:
        """See Together: of one step."""
        return self.batch([self.random(None, 1)] * count)

    def random(self, random: np.random.Generator | None, length: int) -> Mapping[str, Array]:
        """An input of so many steps: of floats random ones, of zeros without a generator."""
        made = {}
        for port in self._ports:
            shape = tuple(length if size is None else size for size in port.shape[1:])
            number = np.dtype(port.dtype)
            if random is None:
                made[port.name] = np.zeros(shape, number)
            elif number.kind == "f":
                made[port.name] = random.standard_normal(shape).astype(number)
            else:
                made[port.name] = random.integers(0, 2, shape).astype(number)
        return made

    def length(self, whole: Mapping[str, Array]) -> int:
        """Of an input: its steps; 1 where there is no time."""
        return next((len(whole[port.name]) for port in self._ports if is_timed(port)), 1)


def is_timed(port: TensorSpec) -> bool:
    """Whether its axis behind the batch is time, and free."""
    return len(port.shape) > 1 and port.shape[1] is None


def is_one_array(ports: Sequence[TensorSpec]) -> bool:
    """Whether inputs are one array of float32, of one shape: as images are."""
    return len(ports) == 1 and ports[0].dtype == "float32" and None not in ports[0].shape[1:]
