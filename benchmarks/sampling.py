"""`python -m benchmarks --sampling`: how fast tokens come, by how they are sampled.

A server is measured with all kinds of sampling in turn, in the same process, round by round, each round in the other
order. With `--against` a server of another checkout takes turns with this one's: that is how commits are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from carousel.benchmarks.load import Generation, Target, Window, closed_loop
from carousel.benchmarks.record import LoadResult
from carousel.benchmarks.server import Side, StepTime, running, step_time
from carousel.benchmarks.tables import markdown


@dataclass(frozen=True, slots=True)
class Kind:
    """A way of sampling, and over which wire: a WebSocket tells no alternatives."""

    parameters: Mapping[str, Any]
    completions: bool = False


PLAIN, PLAIN_COMPLETIONS = "plain", "plain, completions"
BOTH = "top-k 40, top-p 0.95"
KINDS: dict[str, Kind] = {
    PLAIN: Kind({"temperature": 1.0}),
    "greedy": Kind({"temperature": 0.0}),
    "top-k 40": Kind({"temperature": 0.8, "top_k": 40}),
    BOTH: Kind({"temperature": 0.8, "top_k": 40, "top_p": 0.95}),
    "top-p 0.95": Kind({"temperature": 0.8, "top_p": 0.95}),
    "top-k 40, penalty 1.2": Kind({"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.2}),
    PLAIN_COMPLETIONS: Kind({"temperature": 1.0}, completions=True),
    "logprobs 5, completions": Kind({"temperature": 1.0, "logprobs": 5}, completions=True),
}
"""All but the first two, and the last two, at the temperature that people use with them."""

PEER_KINDS = (PLAIN, BOTH)
"""What is asked of peers: they know no penalty and tell no alternatives."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to measure: whose, on which bundle, called what in the table."""

    name: str
    side: Side
    bundle: Path
    checkout: Path | None = None
    """Of another commit; None is this one."""

    @property
    def kinds(self) -> Iterable[str]:
        """What it is asked for."""
        return KINDS if self.side == "carousel" else PEER_KINDS


@dataclass(frozen=True, slots=True)
class SamplingRun:
    """One closed loop of one kind of sampling."""

    server: str
    kind: str
    streams: int
    result: LoadResult
    steps: StepTime | None
    """What the service says of its steps meanwhile."""


@dataclass(slots=True)
class SamplingReport:
    """All runs; `against` says whose figures each server's are compared with."""

    runs: list[SamplingRun] = field(default_factory=list)
    against: dict[str, str] = field(default_factory=dict)


def measure(
    servers: Sequence[Server], streams: Sequence[int], rounds: int, window: Window, generation: Generation
) -> SamplingReport:
    """Everything, one thing at a time.

    Raises:
        ServerFailed, LoadFailed, LoadRefused: as they say.
    """
    report = SamplingReport()
    for number in range(rounds):
        for server in servers if number % 2 == 0 else servers[::-1]:
            with running(server.side, server.bundle, server.checkout) as target:
                for count in streams:
                    kinds = list(server.kinds)
                    for kind in kinds if number % 2 == 0 else kinds[::-1]:
                        report.runs.append(_run(server, target, kind, count, window, generation))
    names = {(server.bundle, server.checkout is None): server.name for server in servers if server.side == "carousel"}
    report.against = {
        name: names[bundle, False] for (bundle, own), name in names.items() if own and (bundle, False) in names
    }
    return report


def _run(
    server: Server, target: Target, kind: str, streams: int, window: Window, generation: Generation
) -> SamplingRun:
    way = KINDS[kind]
    asked = Generation(generation.prompt, generation.max_tokens, sampling=way.parameters)
    wire = target.over("completions") if way.completions else target
    before = step_time(target) if server.side == "carousel" else None
    result = uvloop.run(closed_loop(wire, asked, streams, window))
    steps = step_time(target).since(before) if before else None
    rate = f"{result.tokens_per_second:,.0f} tokens/s"
    print(f"{server.name}, {streams:,} streams, {kind}: {rate}", file=sys.stderr, flush=True)
    return SamplingRun(server.name, kind, streams, result, steps)


def text(report: SamplingReport) -> str:
    """A table for each number of streams: medians over the rounds."""
    return "\n\n".join(
        f"{streams:,} streams\n{_table(report, streams)}" for streams in sorted({run.streams for run in report.runs})
    )


def _table(report: SamplingReport, streams: int) -> str:
    head = ["server", "sampling", "tokens/s", "of plain", "between tokens, p50", "p99", "p99, steps", "a step"]
    lines = [[*head, "not onnxruntime", "of the other checkout", "errors"]]
    groups: dict[tuple[str, str], list[SamplingRun]] = {}
    for run in report.runs:
        if run.streams == streams:
            groups.setdefault((run.server, run.kind), []).append(run)
    rates = {key: median(run.result.tokens_per_second for run in runs) for key, runs in groups.items()}
    for (server, kind), runs in sorted(groups.items(), key=lambda group: (group[0][0], list(KINDS).index(group[0][1]))):
        plain = rates.get((server, PLAIN_COMPLETIONS if KINDS[kind].completions else PLAIN))
        other = rates.get((report.against.get(server, ""), kind))
        p50, p99 = (
            median(value) if (value := [each for each in values if each is not None]) else None
            for values in (
                [run.result.inter_token.p50_seconds for run in runs],
                [run.result.inter_token.p99_seconds for run in runs],
            )
        )
        timed = [run.steps for run in runs if run.steps is not None and run.steps.steps]
        step = median(steps.step_seconds / steps.steps for steps in timed) if timed else None
        overhead = median(steps.overhead_seconds / steps.steps for steps in timed) if timed else None
        rate = rates[server, kind]
        lines.append(
            [
                server,
                kind,
                f"{rate:,.0f}",
                _cell("{:.2f}", rate / plain if plain else None),
                _cell("{:.2f} ms", p50, 1000),
                _cell("{:.2f} ms", p99, 1000),
                _cell("{:.1f}", p99 / step if p99 is not None and step else None),
                _cell("{:,.0f} us", step, 1e6),
                _cell("{:,.0f} us", overhead, 1e6),
                _cell("{:.2f}", rate / other if other else None),
                str(sum(run.result.failed + run.result.shed for run in runs)),
            ]
        )
    return markdown(lines)


def _cell(form: str, value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else form.format(value * unit)
