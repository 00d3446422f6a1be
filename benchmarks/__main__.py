"""`python -m benchmarks`: the service and the naive peer in turn, one table with both and the ratios.

Only one server is alive at a time: an idle one would still hold memory, threads and caches. Drift of the machine is
met by rounds instead, each of which measures both sides, in the other order than the round before.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.load import Generation, LoadFailed, LoadRefused, Window, closed_loop, open_loop, poisson_arrivals
from benchmarks.report import BareRun, ClosedRun, Machine, OpenRun, Report
from benchmarks.server import ServerFailed, Side, running, step_time
from benchmarks.step import StepGraph, bare_tokens_per_second
from benchmarks.words import words_bundle
from models.bundle import Bundle, open_bundle
from models.errors import CarouselError

PROMPT_TOKENS = 4
BARE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for."""

    bundle: Path
    streams: Sequence[int]
    rates: Sequence[float]
    rounds: int
    window: Window
    max_tokens: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and return the exit status: 0, or 1 with one sentence on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        plan = Plan(
            bundle=(options.bundle or words_bundle()).resolve(),
            streams=options.streams,
            rates=options.open,
            rounds=options.rounds,
            window=Window(options.seconds, options.warmup),
            max_tokens=options.max_tokens,
        )
        report = measure(plan, Machine.this())
    except (CarouselError, LoadRefused, LoadFailed, ServerFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(report.to_text())
    if options.output:
        options.output.write_text(report.to_json() + "\n")
    return 0


def measure(plan: Plan, machine: Machine) -> Report:
    """Everything that the plan asks for, one thing at a time."""
    bundle = open_bundle(plan.bundle)
    prompt = random.Random(0).choices(range(bundle.text_codec.vocabulary_size), k=PROMPT_TOKENS)
    generation = Generation(tuple(prompt), plan.max_tokens)
    bare = _bare(bundle, plan.streams)
    closed: list[ClosedRun] = []
    sides: list[Side] = ["carousel", "naive"]
    for number in range(plan.rounds):
        for side in sides:
            closed += _closed(plan, generation, side, number)
        sides.reverse()
    opened = _open(plan, generation) if plan.rates else []
    return Report(machine, f"{bundle.model}/{bundle.version}", generation, bare, closed, opened)


def _bare(bundle: Bundle, rows: Sequence[int]) -> list[BareRun]:
    graph = StepGraph(bundle)
    size = bundle.text_codec.vocabulary_size
    return [BareRun(count, bare_tokens_per_second(graph, size, count, BARE_SECONDS)) for count in rows]


def _closed(plan: Plan, generation: Generation, side: Side, number: int) -> list[ClosedRun]:
    """One side of one round: a fresh process, every number of streams."""
    runs = []
    with running(side, plan.bundle) as target:
        for streams in plan.streams:
            before = step_time(target) if side == "carousel" else None
            result = uvloop.run(closed_loop(target, generation, streams, plan.window))
            steps = step_time(target).since(before) if before else None
            _progress(f"round {number + 1}, {side}, {streams} streams: {result.tokens_per_second:,.0f} tokens/s")
            runs.append(ClosedRun(side, streams, number, result, steps))
    return runs


def _open(plan: Plan, generation: Generation) -> list[OpenRun]:
    """The open loop at every rate, against one process of the service."""
    runs = []
    with running("carousel", plan.bundle) as target:
        for rate in plan.rates:
            arrivals = poisson_arrivals(rate, plan.window.total_seconds, seed=0)
            result = uvloop.run(open_loop(target, generation, arrivals, plan.window))
            _progress(f"carousel, {rate:g} arrivals/s: {result.tokens_per_second:,.0f} tokens/s")
            runs.append(OpenRun(rate, result))
    return runs


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {number}; allowed is 1 or more")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Carousel against the naive peer.")
    parser.add_argument("--bundle", type=Path, help="<repository>/<model>/<version>; default: 2x512 LSTM, 10,000 words")
    parser.add_argument("--streams", type=_count, nargs="+", default=[1, 16, 64], help="closed loop: how many at once")
    parser.add_argument("--open", type=float, nargs="+", default=[], metavar="RATE", help="generations per second")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured per run")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before that whose figures are dropped")
    parser.add_argument("--rounds", type=int, default=3, help="how often both sides are measured; 0: open loop only")
    parser.add_argument("--max-tokens", type=_count, default=128, help="sampled per generation, at temperature 1")
    parser.add_argument("--output", type=Path, help="write all runs here, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
