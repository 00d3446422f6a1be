"""Whether a row's result depends on its neighbours, tried where it is served: a free batch axis is no promise.

Some graphs fail from some number of rows on, or take a scale over the batch; some kernels round a value otherwise in
the last few of a tensor, or are others for one row than for two. So, when a model is opened, rows of random states run
alone and in company, in the session that will serve them: what comes out must be the same, bit for bit. Where it is
not, rows are kept apart (apart.py), and whoever asks is told why.

Axes: n rows of a call, R rows that are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from carousel.models.graph import TensorSpec
from carousel.service.engine.apart import Apart, AtLeastTwo
from carousel.service.engine.encoder.together import Ragged
from carousel.service.engine.parameters import Array, Floats
from carousel.service.engine.rows.plan import Rows
from carousel.service.engine.runner import Runner, StepArrays, StepPorts
from carousel.service.engine.session import RunnerBroken
from carousel.service.engine.states.pool import zeros

ROWS = 32
"""Rows that are tried, all different: a rounding that goes by a value's place shows in few values."""

FEW = (2, 3)
"""Rows of a call that are tried besides the most there are: the fewest, and an odd number."""

LARGER = 10.0
"""Every second row is so many times larger than its neighbours: a scale over the batch shows."""

LENGTHS = (4, 1, 9, 4, 16, 3)
"""Of inputs of an encoder that are tried."""

DEVICE_TOLERANCE = 1e-3
"""By how much, absolutely and relatively, a row on a GPU may differ: products choose their algorithm by the number of
rows there. What mixes rows differs by more."""

MAX_DETAIL = 300
"""Characters of what the runtime says."""

Company = Literal["together", "padded", "alone"]
"""How rows run: all in one call; likewise, but one that would be alone is there twice; each in a call of its own."""

Outcome = Mapping[str, Array]
"""What rows give, by name. [n, ...] each"""

Call = Callable[[Rows], Outcome]
"""Takes some of the rows that are tried forward, in one call. [n] It raises whatever the runtime raises."""


@dataclass(frozen=True, slots=True)
class Found:
    """How a model's rows are to run.

    Args:
        runner: sees to it.
        company: how.
        reason: why not simply all together; None where they do.
    """

    runner: Runner
    company: Company = "together"
    reason: str | None = None


def check_rows(runner: Runner, max_rows: int) -> Found:
    """How rows are to run, so that no row's result depends on others. For a runner on the host.

    Raises:
        RunnerBroken: a row of zeros fails, alone and twice in a call.
    """
    tried = _random_rows(runner.ports)
    alone = _Alone(_calls(runner, tried), ROWS)
    reason = alone.against(max_rows)
    if reason is None:
        return Found(runner)
    padded = AtLeastTwo(runner)
    twice = _Alone(_calls(padded, tried), ROWS)
    if alone.fault and twice.fault:
        raise RunnerBroken(f"a row of zeros fails, alone ({alone.fault}) and twice in a call ({twice.fault})")
    differs = twice.against(max_rows)
    if differs is None:
        return Found(padded, "padded", reason)
    if alone.fault:
        return Found(Apart(padded), "alone", f"{reason}; {differs}")
    return Found(Apart(runner), "alone", reason)


def require_company(runner: Runner, max_rows: int) -> Found:
    """Likewise on a device, where rows must bear company, and DEVICE_TOLERANCE is allowed.

    Raises:
        RunnerBroken: they do not.
    """
    reason = _Alone(_calls(runner, _random_rows(runner.ports)), ROWS, DEVICE_TOLERANCE).against(max_rows)
    if reason is not None:
        raise RunnerBroken(reason)
    return Found(runner)


def check_encoder(
    graph: Callable[[Floats], Mapping[str, Array]], shape: tuple[int, ...], *, on_device: bool = False
) -> str | None:
    """Why an encoder must be given one input a call; None where two give what each gives alone.

    Args:
        graph: the encoder.
        shape: of one input.
        on_device: whether DEVICE_TOLERANCE is allowed.

    Raises:
        RunnerBroken: it fails on an input of zeros.
    """
    inputs = np.random.default_rng(0).standard_normal((3, *shape), np.float32)
    inputs[0] = 0
    inputs[2] *= LARGER
    alone = _Alone(lambda places: graph(inputs[places]), len(inputs), DEVICE_TOLERANCE if on_device else 0)
    if alone.fault:
        raise RunnerBroken(alone.fault)
    return alone.against(2)


def find_together(
    graph: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    ports: Sequence[TensorSpec],
    lengths: TensorSpec | None,
    *,
    timed: Container[str] = (),
    max_length: int | None = None,
    on_device: bool = False,
) -> tuple[Ragged, str | None]:
    """How inputs of an encoder share calls, so that each gives what it gives alone: padded, or those of one length.

    Args:
        graph: the encoder.
        ports: what it is fed, but the lengths.
        lengths: the port that is told them; None where it has none.
        timed: outputs that are as long as an input.
        max_length: of an input; None for any.
        on_device: whether DEVICE_TOLERANCE is allowed.

    Returns:
        How they do, and why a call must have one input; None where it may have several.

    Raises:
        RunnerBroken: it fails on an input of zeros.
    """
    tolerance = DEVICE_TOLERANCE if on_device else 0.0
    tried = [min(length, max_length or length) for length in LENGTHS]
    padded = Ragged(ports, lengths, padded=True, timed=timed, max_length=max_length)
    if lengths is not None and _against(graph, padded, tried, tolerance) is None:
        return padded, None
    alike = Ragged(ports, lengths, timed=timed, max_length=max_length)
    return alike, _against(graph, alike, (tried[0],) * len(tried), tolerance)


def _against(
    graph: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    together: Ragged,
    lengths: Sequence[int],
    tolerance: float,
) -> str | None:
    """What differs where inputs of these lengths share calls; None where nothing does."""
    random = np.random.default_rng(0)
    tried = [together.random(random if place else None, length) for place, length in enumerate(lengths)]

    def call(places: Rows) -> Outcome:
        wholes = [tried[place] for place in places]
        rows = together.rows(wholes, graph(together.batch(wholes)))
        longest = max(lengths)
        return {
            name: _levelled([row[name] for row in rows], longest if name in together.timed else len(rows[0][name]))
            for name in rows[0]
        }

    alone = _Alone(call, len(tried), tolerance)
    if alone.fault:
        raise RunnerBroken(alone.fault)
    return alone.against(len(tried))


def _levelled(rows: Sequence[Array], length: int) -> Array:
    """Rows of which some end early, filled up with zeros. [n, length, ...]"""
    made = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(made, rows, strict=True):
        target[: len(row)] = row
    return made


class _Alone:
    """What rows give alone, to hold against what they give in company.

    Args:
        call: takes rows forward.
        rows: R.
        tolerance: by how much, absolutely and relatively, they may differ; 0 is bit for bit.
    """

    def __init__(self, call: Call, rows: int, tolerance: float = 0.0) -> None:
        self._call = call
        self._tolerance = tolerance
        self.fault: str | None = None
        """Of the first row, which is of zeros. Any other that fails is left out: with company it has nothing to do."""
        outcomes = []
        sound = []
        for row in range(rows):
            try:
                outcomes.append(call(np.array([row])))
                sound.append(row)
            except Exception as error:
                if not row:
                    self.fault = _detail(error)
                    break
        self._rows = np.array(sound, np.intp)
        self._outcome = {name: np.concatenate([one[name] for one in outcomes]) for name in outcomes[0]} if sound else {}

    def against(self, max_rows: int) -> str | None:
        """What differs in company, of up to so many rows; None where nothing does."""
        if self.fault:
            return f"one row alone fails ({self.fault})"
        count = len(self._rows)
        for n in sorted({*(few for few in FEW if few < max_rows), max_rows} - {1}):
            # At the even places those of one size, then those of the other. Threes alternate by themselves.
            for start, other in product(range(0, count, n), (0,) if n == 3 else (0, 1)):
                reason = self._differs(((start + np.arange(n)) % count ^ other) % count)
                if reason is not None:
                    return reason
        return None

    def _differs(self, chosen: Rows) -> str | None:
        n = len(chosen)
        try:
            together = self._call(self._rows[chosen])
        except Exception as error:
            return f"{n} rows in a call fail ({_detail(error)})"
        for name, array in together.items():
            same = _same(array, self._outcome[name][chosen], self._tolerance)
            if not same.all():
                return f"a row differs from the same row alone ({name}, row {int(same.argmin()) + 1} of {n})"
        return None


def _calls(runner: Runner, tried: StepArrays) -> Call:
    """Steps of a runner over some of these rows."""

    def call(rows: Rows) -> Outcome:
        arrays = StepArrays(
            inputs={name: array[rows] for name, array in tried.inputs.items()},
            before={name: np.asarray(array)[rows] for name, array in tried.before.items()},
            context={name: np.asarray(array)[rows] for name, array in tried.context.items()},
            after=zeros(runner.ports.states, len(rows)),
            outputs=zeros(runner.ports.outputs, len(rows)),
        )
        runner.bind(arrays)()
        return {**arrays.outputs, **{name: np.asarray(array) for name, array in arrays.after.items()}}

    return call


def _random_rows(ports: StepPorts) -> StepArrays:
    """ROWS rows of what a step reads: the first of zeros, each odd one LARGER than the one before it."""
    random, head = np.random.default_rng(0), ports.head
    rows = StepArrays.of(ports, ROWS)
    ids = ports.id_count
    for arrays in (rows.inputs, rows.before, rows.context):
        for name, array in arrays.items():
            _fill(np.asarray(array), random, ids if name == head.feeds else 2)
    return rows


def _fill(rows: Array, random: np.random.Generator, end: int) -> None:
    """Random numbers in all rows but the first. What is no float is less than `end`: the graph alone knows its range.

    Every second pair of rows is not negative: of a negative number there is no logarithm to compare.
    """
    if rows.dtype.kind != "f":
        rows[1:] = random.integers(0, end, rows[1:].shape)
        return
    numbers = random.standard_normal(rows.shape, np.float32)
    numbers[1::2] *= LARGER
    for pair in (numbers[2::4], numbers[3::4]):
        np.abs(pair, out=pair)
    rows[1:] = numbers[1:]


def _same(seen: Array, expected: Array, tolerance: float) -> npt.NDArray[np.bool_]:
    """Whether each row is the same: in its bits (no number is one), or nearly. [n]"""
    if tolerance and seen.dtype.kind == "f":
        same = np.isclose(seen, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        bits = f"u{seen.dtype.itemsize}"
        same = np.ascontiguousarray(seen).view(bits) == np.ascontiguousarray(expected).view(bits)
        if seen.dtype.kind == "f" and not same.all():
            same |= np.isnan(seen) & np.isnan(expected)
    return np.asarray(same.reshape(len(seen), -1).all(axis=1))


def _detail(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:MAX_DETAIL]
