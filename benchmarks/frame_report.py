"""What `python -m benchmarks.frames` measured, and its tables: medians over the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from carousel.benchmarks.record import LoadResult
from carousel.benchmarks.tables import markdown

PEER = "a session each"
"""That ratios are against: as voice agents have it."""
LIMIT_SECONDS = 0.010
"""Within which 99 of 100 answers of a stream that is held must come."""


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """A closed loop of one server."""

    network: str
    steps: int
    side: str
    streams: int
    round: int
    result: LoadResult
    rest_bytes: int
    """What the server held before the first stream."""
    busy_bytes: int
    """What it held with all of them, as the window ended."""
    processor_seconds: float
    """The server's, of a frame."""
    difference: float
    """The largest between an answer and the file's own."""


@dataclass(frozen=True, slots=True)
class PacedRun:
    """Streams at a pace, so many frames a second of each."""

    network: str
    steps: int
    side: str
    streams: int
    hertz: float
    result: LoadResult

    @property
    def held(self) -> bool:
        """Whether answers come in time."""
        return (self.result.first_token.p99_seconds or math.inf) < LIMIT_SECONDS


class Case(NamedTuple):
    """What is the same in every round."""

    network: str
    steps: int
    streams: int
    side: str


FIGURES: Mapping[str, tuple[Callable[[ClosedRun], float], str]] = {
    "frames/s": (lambda run: run.result.tokens_per_second, "{:,.0f}"),
    "steps/s": (lambda run: run.steps * run.result.tokens_per_second, "{:,.0f}"),
    "p50": (lambda run: 1e3 * (run.result.first_token.p50_seconds or math.nan), "{:,.2f} ms"),
    "p99": (lambda run: 1e3 * (run.result.first_token.p99_seconds or math.nan), "{:,.2f} ms"),
    "client CPU": (lambda run: 100 * run.result.client_cpu, "{:.0f}%"),
    "largest difference": (lambda run: run.difference, "{:.1e}"),
    "processor time a frame": (lambda run: 1e6 * run.processor_seconds, "{:,.0f} us"),
    "memory a stream": (lambda run: (run.busy_bytes - run.rest_bytes) / run.streams / 1e6, "{:,.2f} MB"),
}


def text(closed: Sequence[ClosedRun], paced: Sequence[PacedRun], held: Sequence[PacedRun]) -> str:
    """The tables that there are figures for: medians over the rounds."""
    by_case: dict[Case, list[ClosedRun]] = {}
    for each in closed:
        by_case.setdefault(Case(each.network, each.steps, each.streams, each.side), []).append(each)
    lines = [["network", "server", "streams", *FIGURES, "times frames/s", "times processor time"]]
    for case, runs in by_case.items():
        peers = {run.round: run for run in by_case[case._replace(side=PEER)]}
        cells = {name: form.format(median(map(figure, runs))) for name, (figure, form) in FIGURES.items()}
        if case.streams < max(each.streams for each in by_case):
            cells["memory a stream"] = "-"  # what is left of earlier streams would be most of it
        faster = median(run.result.tokens / max(peers[run.round].result.tokens, 1) for run in runs)
        cheaper = median(peers[run.round].processor_seconds / (run.processor_seconds or math.nan) for run in runs)
        ratios = [f"{faster:.1f}", f"{cheaper:.1f}"]
        lines.append([f"{case.network} x{case.steps}", case.side, f"{case.streams:,}", *cells.values(), *ratios])
    title = (
        f"Closed loop, medians; times: against {PEER!r}, more frames a second and less of the server's processor time "
        "a frame; memory a stream: what the server holds more than at rest, by their number"
    )
    parts = [f"{title}\n{markdown(lines)}"] if closed else []
    parts += [f"Evenly paced, at 0.7 of the best rate\n{_at_pace(paced)}"] if paced else []
    if held:
        parts.append(f"In real time\n{_at_pace(held)}")
        most = most_held(held)
        parts.append("; ".join(f"{side} holds {count:,} streams" for side, count in most.items()))
    return "\n\n".join(parts)


def most_held(runs: Sequence[PacedRun]) -> dict[str, int]:
    """The most streams that each side held; 0 where it held none."""
    return {
        side: max((run.streams for run in runs if run.side == side and run.held), default=0)
        for side in dict.fromkeys(run.side for run in runs)
    }


def _at_pace(runs: Sequence[PacedRun]) -> str:
    lines = [["network", "server", "streams", "frames/s of each", "p50", "p99", "client CPU"]]
    for run in sorted(runs, key=lambda run: (run.network, run.steps, run.side, run.streams)):
        cells = [f"{run.network} x{run.steps}", run.side, f"{run.streams:,}", f"{run.hertz:,.4g}"]
        cells += [_ms(run.result.first_token.p50_seconds), _ms(run.result.first_token.p99_seconds)]
        lines.append([*cells, f"{100 * run.result.client_cpu:.0f}%"])
    return markdown(lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.2f} ms"
