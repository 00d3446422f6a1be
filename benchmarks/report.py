"""What one benchmark measured, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.load import Generation
from benchmarks.record import LoadResult
from benchmarks.server import Side, StepTime

VERSIONS = ("onnxruntime", "numpy", "fastapi", "uvicorn", "uvloop", "websockets")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures come from: figures of two machines do not compare, ratios may."""

    processor: str
    cores: int
    """That this process may use."""
    python: str
    versions: dict[str, str]
    load_average: float
    """Processes that wanted a core in the minute before the run: far above 0, others were measured along."""

    @classmethod
    def this(cls) -> Machine:
        """The machine that runs this process."""
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            python=platform.python_version(),
            versions={name: version(name) for name in VERSIONS},
            load_average=os.getloadavg()[0],
        )

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.cores} cores ({self.processor}), load average {self.load_average:.1f} before the run; "
            f"Python {self.python}, {versions}"
        )


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """One closed loop against one server. `steps` is what the service says of its own steps in that time."""

    side: Side
    streams: int
    round: int
    result: LoadResult
    steps: StepTime | None


@dataclass(frozen=True, slots=True)
class OpenRun:
    """One open loop against the service; `rate` in generations per second."""

    rate: float
    result: LoadResult


@dataclass(frozen=True, slots=True)
class BareRun:
    """The step graph alone: row-steps per second at so many rows."""

    rows: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one command measured."""

    machine: Machine
    bundle: str
    """`<model>/<version>`"""
    generation: Generation
    bare: Sequence[BareRun]
    closed: Sequence[ClosedRun]
    open: Sequence[OpenRun]

    def to_json(self) -> str:
        """All runs, not only their medians."""
        return json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """The tables."""
        length = f"{len(self.generation.prompt)} prompt tokens, {self.generation.max_tokens} sampled"
        parts = [f"machine  {self.machine}\nmodel    {self.bundle}; every generation {length}"]
        if self.closed:
            parts += [_closed_table(self.closed), _overhead_table(self.closed)]
        if self.bare:
            parts.append(_bare_table(self.bare))
        if self.open:
            parts.append(_open_table(self.open, self.generation.max_tokens))
        return "\n\n".join(parts)


_Figure = Callable[[LoadResult], float | None]

_FIGURES: dict[str, tuple[_Figure, str]] = {
    "tokens/s": (lambda result: result.tokens_per_second, "{:,.0f}"),
    "first p50": (lambda result: _ms(result.first_token.p50_seconds), "{:.2f} ms"),
    "first p99": (lambda result: _ms(result.first_token.p99_seconds), "{:.2f} ms"),
    "inter p50": (lambda result: _ms(result.inter_token.p50_seconds), "{:.2f} ms"),
    "inter p99": (lambda result: _ms(result.inter_token.p99_seconds), "{:.2f} ms"),
    "client CPU": (lambda result: 100 * result.client_cpu, "{:.0f}%"),
}


def _closed_table(runs: Sequence[ClosedRun]) -> str:
    lines = [["streams", "server", *_FIGURES, "errors"]]
    for streams in sorted({run.streams for run in runs}):
        medians: dict[Side, list[float | None]] = {}
        for side in ("carousel", "naive"):
            results = [run.result for run in runs if (run.streams, run.side) == (streams, side)]
            if results:
                medians[side] = [_median([figure(result) for result in results]) for figure, _ in _FIGURES.values()]
                errors = sum(result.failed + result.shed for result in results)
                cells = [_cell(form, value) for (_, form), value in zip(_FIGURES.values(), medians[side], strict=True)]
                lines.append([f"{streams}", side, *cells, f"{errors}"])
        if len(medians) == 2:
            pairs = zip(medians["carousel"][:-1], medians["naive"][:-1], strict=True)
            lines.append([f"{streams}", "ratio", *(_cell("{:.2f}", _ratio(*pair)) for pair in pairs), "", ""])
    rounds = len({run.round for run in runs})
    return f"Closed loop, medians of {rounds} rounds (ratio: carousel / naive)\n{_markdown(lines)}"


def _overhead_table(runs: Sequence[ClosedRun]) -> str:
    lines = [["streams", "steps", "step", "engine overhead", "of the step"]]
    for streams in sorted({run.streams for run in runs}):
        times = [run.steps for run in runs if run.streams == streams and run.steps and run.steps.steps]
        if times:
            step = median(time.step_seconds / time.steps for time in times)
            overhead = median(time.overhead_seconds / time.steps for time in times)
            share = median(time.overhead_seconds / time.step_seconds for time in times)
            steps = sum(time.steps for time in times)
            cells = [f"{steps:,.0f}", f"{1e6 * step:,.0f} us", f"{1e6 * overhead:,.0f} us", f"{100 * share:.0f}%"]
            lines.append([f"{streams}", *cells])
    title = "Carousel's engine: mean step, and the part of it that is not onnxruntime (sampling included)"
    return f"{title}\n{_markdown(lines)}"


def _bare_table(runs: Sequence[BareRun]) -> str:
    lines = [["rows", "tokens/s"], *([f"{run.rows}", f"{run.tokens_per_second:,.0f}"] for run in runs)]
    return f"For scale: onnxruntime alone in a tight loop, nothing sampled, nothing sent\n{_markdown(lines)}"


def _open_table(runs: Sequence[OpenRun], max_tokens: int) -> str:
    lines = [["arrivals/s", "asked tokens/s", *_FIGURES, "finished", "shed", "failed"]]
    for run in runs:
        cells = [_cell(form, figure(run.result)) for figure, form in _FIGURES.values()]
        counts = [f"{run.result.generations}", f"{run.result.shed}", f"{run.result.failed}"]
        lines.append([f"{run.rate:g}", f"{run.rate * max_tokens:,.0f}", *cells, *counts])
    return f"Carousel, open loop with Poisson arrivals (first token: from the planned arrival)\n{_markdown(lines)}"


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [" | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "|".join("-" * (width + 1) + ":" for width in widths)
    return "\n".join([f"| {rows[0]} |", f"|{rule}|", *(f"| {row} |" for row in rows[1:])])


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _ratio(first: float | None, second: float | None) -> float | None:
    return first / second if first is not None and second else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _cell(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
