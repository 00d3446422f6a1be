"""What a load run measured: durations as they arrive, and the figures made of them."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles of a set of durations in seconds; None where nothing was measured."""

    count: int
    p50_seconds: float | None
    p99_seconds: float | None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The quantiles of `seconds`, linear between neighbours."""
        if not len(seconds):
            return cls(0, None, None)
        p50, p99 = np.quantile(np.asarray(seconds, np.float64), (0.5, 0.99))
        return cls(len(seconds), float(p50), float(p99))


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One load run, as the client saw it."""

    seconds: float
    """Length of the measured window; what fell before or after it is in no figure but the counts of errors."""
    tokens: int
    generations: int
    """Generations that finished inside the window."""
    first_token: Latency
    """From the start frame (open loop: from the planned arrival) to the first token."""
    inter_token: Latency
    """Between neighbouring tokens of one generation. Tokens that one read brings have 0 between them."""
    shed: int
    """Refusals that the server marked retryable, in the whole run."""
    refusal: Latency
    """How long those refusals took, counted as a first token is."""
    errors: Mapping[str, int]
    """Every other failure of the whole run, by code."""
    client_cpu: float
    """Processor seconds that the load generator itself used per second of the window: near 1, it measures itself."""
    whole: Latency = Latency(0, None, None)
    """Of the generations that finished inside the window, counted as a first token is."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens that arrived per second of the window."""
        return self.tokens / self.seconds

    @property
    def failed(self) -> int:
        """How many generations failed for another reason than shedding."""
        return sum(self.errors.values())


class Recorder:
    """Collects what arrives at [start, end) on the clock of `time.perf_counter`; without them, nothing as yet."""

    def __init__(self, start: float = math.inf, end: float = math.inf) -> None:
        self._start = start
        self._end = end
        self._tokens = 0
        self._generations = 0
        self._shed = 0
        self._first = array("d")
        self._gaps = array("d")
        self._refusals = array("d")
        self._whole = array("d")
        self._errors: Counter[str] = Counter()

    def measure(self, start: float, end: float) -> None:
        """Set the window, of a recorder that has none."""
        self._start, self._end = start, end

    def first_token(self, at: float, asked: float) -> None:
        """The first token of a generation that was asked for at `asked`."""
        if self._start <= at < self._end:
            self._tokens += 1
            self._first.append(at - asked)

    def next_token(self, at: float, previous: float) -> None:
        """A later token, whose predecessor arrived at `previous`."""
        if self._start <= at < self._end:
            self._tokens += 1
            self._gaps.append(at - previous)

    def finished(self, at: float, asked: float = math.nan) -> None:
        """A generation that was asked for at `asked` came to its end."""
        if self._start <= at < self._end:
            self._generations += 1
            self._whole.append(at - asked)

    def failed(self, code: str, *, shed: bool, seconds: float | None = None) -> None:
        """A generation was refused, `seconds` after it was asked for, or broke off."""
        if shed:
            self._shed += 1
            if seconds is not None:
                self._refusals.append(seconds)
        else:
            self._errors[code] += 1

    def result(self, client_cpu: float = 0.0) -> LoadResult:
        """The figures of what was collected."""
        return LoadResult(
            seconds=self._end - self._start,
            tokens=self._tokens,
            generations=self._generations,
            first_token=Latency.of(self._first),
            inter_token=Latency.of(self._gaps),
            shed=self._shed,
            refusal=Latency.of(self._refusals),
            errors=dict(self._errors),
            client_cpu=client_cpu,
            whole=Latency.of(self._whole),
        )
