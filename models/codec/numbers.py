"""Vectors of real numbers <-> rows of a port, with the scaling that training used.

Axes: N numbers of a vector.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeGuard

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError
from typing_extensions import override  # of Python 3.12

from carousel.models.codec.names import check_names
from carousel.models.codec.spec import CODECS, Array, Codec, FileCodecSpec, text_of
from carousel.models.errors import ValueRejected
from carousel.models.graph import TensorSpec
from carousel.models.part import Part, first_mistake

Doubles = npt.NDArray[np.float64]
Number = int | float
Vector = Sequence[Number] | Mapping[str, Number]
"""What people send: numbers in order, or by name where they have names."""

MAX_SIZE = 65_536
SHOWN = 80
"""Characters of what was sent that an error repeats."""


@CODECS.register("numbers")
class NumbersCodecSpec(FileCodecSpec):
    """Vectors of real numbers in or out."""

    kind: Literal["numbers"] = "numbers"
    file: str = "numbers.json"

    def open(self, files: Mapping[str, bytes]) -> NumbersCodec:
        """The codec of the file."""
        return NumbersCodec.from_json(text_of(files, self.file))


class _File(Part):
    """`numbers.json`."""

    size: Annotated[int, Field(ge=1, le=MAX_SIZE)] | None = None
    names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None


class NumbersCodec(Codec):
    """Vectors of N numbers. A port holds (x - mean) / deviation of each; what people send and get is x.

    Args:
        size: N; a vector of one may be a bare number in a row, and is one for people.
        names: of the numbers in order, each once; None where they have none.
        mean: of each number in training's data; zeros where not given.
        deviation: likewise its standard deviation, above 0; ones where not given. A number that never changed has none:
            write 1.

    Raises:
        ValueError: lengths differ, or a value is not allowed.
    """

    def __init__(
        self,
        size: int,
        names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
    ) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"size is {size:,}; allowed are 1 to {MAX_SIZE:,}")
        for field, values in (("names", names), ("mean", mean), ("deviation", deviation)):
            if values is not None and len(values) != size:
                raise ValueError(f"{field} has {len(values):,} entries; size is {size:,}")
        self.size = size
        """N."""
        self.names: tuple[str, ...] | None = None if names is None else check_names("number", names)
        self.mean: Doubles = np.zeros(size) if mean is None else np.array(mean, np.float64)
        self.deviation: Doubles = np.ones(size) if deviation is None else np.array(deviation, np.float64)
        if not np.isfinite(self.mean).all():
            raise ValueError(f"mean of number {_first(~np.isfinite(self.mean))} is not finite")
        wrong = ~(np.isfinite(self.deviation) & (self.deviation > 0))
        if wrong.any():
            place = _first(wrong)
            raise ValueError(f"deviation of number {place} is {self.deviation[place]}; allowed are numbers above 0")
        self._places = {name: place for place, name in enumerate(self.names or ())}

    @classmethod
    def from_json(cls, content: str) -> NumbersCodec:
        """The codec of a `numbers.json`: an object of `size`, `names`, `mean` and `deviation`, of which size may be
        left out where one of the others says it.

        Raises:
            ValueError: the content is anything else.
        """
        try:
            said = _File.model_validate_json(content)
        except ValidationError as error:
            raise ValueError(first_mistake(error)) from None
        lists = [values for values in (said.names, said.mean, said.deviation) if values is not None]
        if said.size is None and not lists:
            raise ValueError("says no size; give size, names, or mean and deviation")
        size = len(lists[0]) if said.size is None else said.size
        return cls(size, said.names, said.mean, said.deviation)

    def to_json(self) -> str:
        """The codec as `numbers.json`."""
        told = {
            "size": self.size,
            **({} if self.names is None else {"names": self.names}),
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
        }
        return json.dumps(told, ensure_ascii=False, indent=1) + "\n"

    @override
    def require(self, port: TensorSpec, *, fed: bool) -> None:
        """A row of N floats, in or out; of one number the row may be the number."""
        row = port.shape[1:]
        if not port.dtype.startswith("float") or (row != (self.size,) and not (self.size == 1 and row == ())):
            raise ValueError(f"vectors of {self.size:,} numbers; {port} is not a row of so many floats")

    def encode(self, vector: Vector | Number, port: Array) -> None:
        """Write a vector, scaled, into one row of a port.

        Args:
            vector: N numbers in order; or by name, all of them; or of one number the number.
            port: to be written to, of floats. [N] or []

        Raises:
            ValueRejected: it is no such vector, a number is not finite, or is none once scaled and in the port's type.
        """
        numbers = np.array(self._in_order(vector), np.float64)
        with np.errstate(over="ignore"):
            scaled = ((numbers - self.mean) / self.deviation).astype(port.dtype)
        if not np.isfinite(scaled).all():
            place = _first(~np.isfinite(scaled))
            raise ValueRejected(
                f"{self._called(place)} is {numbers[place]:g}, too large for {port.dtype} when scaled by "
                f"mean {self.mean[place]:g} and deviation {self.deviation[place]:g}"
            )
        port[...] = scaled if port.ndim else scaled[0]

    def decode(self, rows: Array) -> Doubles:
        """The numbers that rows of a port stand for. [..., N] (or [...] of one number) -> <float64>, alike"""
        values = np.asarray(rows, np.float64)
        if self.size == 1 and values.shape[-1:] != (1,):
            return np.asarray(values * self.deviation[0] + self.mean[0])
        return np.asarray(values * self.deviation + self.mean)

    def told(self, row: Array) -> list[float] | dict[str, float]:
        """One row as people get it: numbers in order, or by name where they have names. [N] or []"""
        numbers: list[float] = np.atleast_1d(self.decode(row)).tolist()
        return numbers if self.names is None else dict(zip(self.names, numbers, strict=True))

    def _in_order(self, vector: object) -> list[Number]:
        if isinstance(vector, Mapping):
            vector = self._by_name(vector)
        elif self.size == 1 and _is_number(vector):
            vector = [vector]
        if isinstance(vector, str | bytes) or not isinstance(vector, Sequence | np.ndarray):
            raise ValueRejected(f"the vector is {_shown(vector)}; allowed are {self._allowed()}")
        numbers: list[object] = vector.tolist() if isinstance(vector, np.ndarray) else list(vector)
        if len(numbers) != self.size:
            raise ValueRejected(f"the vector has {len(numbers):,} entries; allowed are {self._allowed()}")
        return [self._number(place, number) for place, number in enumerate(numbers)]

    def _by_name(self, vector: Mapping[object, object]) -> list[object]:
        if self.names is None:
            raise ValueRejected(
                f"the vector is an object, and its numbers have no names; allowed are {self._allowed()}"
            )
        for name in vector:
            if name not in self._places:
                raise ValueRejected(f"there is no number {_shown(name)}; allowed are {self._allowed()}")
        for name in self.names:
            if name not in vector:
                raise ValueRejected(f"number {name!r} is missing; allowed are {self._allowed()}")
        return [vector[name] for name in self.names]

    def _number(self, place: int, number: object) -> Number:
        if not _is_number(number):
            raise ValueRejected(f"{self._called(place)} is {_shown(number)}; allowed is a finite number")
        try:
            finite = math.isfinite(number)
        except OverflowError:  # an integer that no float holds
            finite = False
        if not finite:
            raise ValueRejected(f"{self._called(place)} is {_shown(number)}; allowed is a finite number")
        return number

    def _called(self, place: int) -> str:
        return f"number {place}" if self.names is None else f"number {self.names[place]!r}"

    def _allowed(self) -> str:
        count = "1 number" if self.size == 1 else f"{self.size:,} numbers"
        if self.names is None:
            return count
        few = ", ".join(map(repr, self.names[:8]))
        return f"{count}, {few}{', ...' if self.size > 8 else ''}"


def _is_number(value: object) -> TypeGuard[Number]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _first(wrong: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(wrong))


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length():,} bits"
    shown = repr(value)
    return shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
