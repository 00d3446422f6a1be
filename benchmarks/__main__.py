"""`python -m benchmarks`: the service and its peers in turn, one table with all of them and the ratios.

Only one server is alive at a time: an idle one would still hold memory, threads and caches. Drift of the machine is
met by rounds instead, each of which measures every server, in the other order than the round before.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import uvloop

from carousel.benchmarks import numbers, sampling, tables
from carousel.benchmarks.load import (
    Generation,
    LoadFailed,
    LoadRefused,
    Target,
    Window,
    allow_connections,
    closed_loop,
    open_loop,
    poisson_arrivals,
)
from carousel.benchmarks.report import BareRun, ClosedRun, Machine, OpenRun, Report
from carousel.benchmarks.server import ServerFailed, Side, left_out, resident_bytes, running, step_time
from carousel.benchmarks.step import PROVIDERS_VARIABLE, StepGraph, bare_tokens_per_second
from carousel.benchmarks.words import VOCABULARY_SIZE, Shape, words_bundle
from carousel.models.bundle import Bundle, open_bundle
from carousel.models.codec.text import TextCodec
from carousel.models.errors import CarouselError
from carousel.models.manifest import Precision
from carousel.service.engine.device import CUDA
from carousel.service.engine.session import RunnerBroken, reason_against
from carousel.service.served.opening import open_core

PEERS: tuple[Side, ...] = ("torch", "litserve", "bentoml")
"""Beside the naive one. They run in fp32, as they come."""

STREAMS = (1, 16, 64, 256, 1024)
SAMPLING_STREAMS = (1, 64)
LOADS = (0.05, 0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 5.0)
PROMPT_TOKENS = 4
BARE_SECONDS = 1.0
BARE_MAX_ROWS = 128
CAPACITY_STREAMS = 128
"""Of the closed loop that says what an open loop's load is a fraction of."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for."""

    bundles: dict[Precision, Bundle]
    servers: Sequence[tuple[Side, Precision]]
    streams: Sequence[int]
    loads: Sequence[float]
    rounds: int
    window: Window
    generation: Generation
    remarks: list[str]
    providers: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and return the exit status: 0, or 1 with one sentence on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if mistake := _mistake(options):
        parser.error(mistake)
    if options.streams is None:
        options.streams = SAMPLING_STREAMS if options.sampling else STREAMS
    try:
        allow_connections(max(*options.streams, CAPACITY_STREAMS))
        if options.sampling:
            return _sampling(options)
        report = measure(_plan(options), Machine.this())
    except (CarouselError, RunnerBroken, LoadRefused, LoadFailed, ServerFailed) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(tables.text(report))
    if options.output:
        options.output.write_text(report.to_json() + "\n")
    return 0


def _mistake(options: argparse.Namespace) -> str | None:
    """What was asked for and would not be done; None where there is nothing."""
    if not options.sampling:
        if options.against:
            return "argument --against: is for --sampling alone"
        return "argument --vocabulary: is for --sampling alone" if options.vocabulary is not None else None
    for name in ("open", "output", "precision"):
        if getattr(options, name) is not None:
            return f"argument --{name}: is not for --sampling"
    if options.bundle and (options.peers is not None or options.vocabulary is not None):
        return "argument --bundle: with --sampling, leave out --peers and --vocabulary: they choose models of their own"
    if options.providers != "cpu":
        return f"argument --providers: is {options.providers}; --sampling measures on the cpu"
    if options.rounds < 1:
        return f"argument --rounds: is {options.rounds}; --sampling takes 1 or more"
    if options.against and not (options.against / "service" / "__main__.py").is_file():
        return f"argument --against: {options.against} holds no service/__main__.py; name a checkout"
    return None


def _sampling(options: argparse.Namespace) -> int:
    """The tables of `--sampling`: the service on a flat and a peaked model, or the bundle that was named."""
    shapes: tuple[Shape, ...] = ("flat", "peaked")
    vocabulary_size = options.vocabulary or VOCABULARY_SIZE
    os.environ[PROVIDERS_VARIABLE] = options.providers  # the servers are child processes
    if options.bundle:
        bundles = {options.bundle.parent.name: options.bundle.resolve()}
    else:
        bundles = {f"{shape} int8": words_bundle("int8", shape, vocabulary_size) for shape in shapes}
    servers = [sampling.Server(name, "carousel", bundle) for name, bundle in bundles.items()]
    if options.against:
        other = options.against.resolve()
        servers += [sampling.Server(f"{name}, other", "carousel", bundle, other) for name, bundle in bundles.items()]
    if options.peers is not None and not options.bundle:
        plain = words_bundle("fp32", vocabulary_size=vocabulary_size)
        servers.append(sampling.Server("Carousel, flat fp32", "carousel", plain))
        servers += [sampling.Server(f"{side}, flat fp32", side, plain) for side in _sides(options)]
        servers.append(sampling.Server("naive, flat int8", "naive", bundles["flat int8"]))
    size = open_bundle(next(iter(bundles.values()))).codec(TextCodec).vocabulary_size
    prompt = random.Random(0).choices(range(size), k=PROMPT_TOKENS)
    generation = Generation(tuple(prompt), options.max_tokens)
    window = Window(options.seconds, options.warmup)
    report = sampling.measure(servers, options.streams, options.rounds, window, generation)
    print(f"machine  {Machine.this()}\n\n{sampling.text(report)}")
    return 0


def _sides(options: argparse.Namespace) -> list[Side]:
    """The peers that can run here, the naive one first."""
    sides: list[Side] = ["naive"]
    for side in options.peers or PEERS:
        if reason := left_out(side):
            _progress(reason)
        elif side != "torch" or options.vocabulary in (None, VOCABULARY_SIZE):
            sides.append(side)
    return sides


def measure(plan: Plan, machine: Machine) -> Report:
    """Everything that the plan asks for, one thing at a time."""
    bare: list[BareRun] = []
    closed: list[ClosedRun] = []
    servers = list(plan.servers)
    for number in range(plan.rounds):
        bare += _bare(plan, number)
        for side, precision in servers:
            closed += _closed(plan, side, precision, number)
        servers.reverse()
    best: Precision = "int8" if "int8" in plan.bundles else "fp32"
    capacity, opened = _open(plan, plan.bundles[best]) if plan.loads else (None, [])
    names = {f"{bundle.model}/{bundle.version}" for bundle in plan.bundles.values()}
    model = f"{', '.join(sorted(names))} ({', '.join(plan.bundles)}) on {plan.providers}"
    return Report(machine, model, plan.generation, bare, closed, opened, best, capacity, plan.remarks)


def _plan(options: argparse.Namespace) -> Plan:
    bundles: dict[Precision, Bundle] = {}
    if options.bundle:
        named = open_bundle(options.bundle.resolve())
        bundles[named.manifest.precision] = named
    else:
        default: tuple[Precision, ...] = ("fp32",) if options.providers == "cuda" else ("int8", "fp32")
        chosen: Sequence[Precision] = options.precision or default
        bundles = {precision: open_bundle(words_bundle(precision)) for precision in chosen}
    if options.providers == "cuda":
        _require_cuda(bundles.values())
    os.environ[PROVIDERS_VARIABLE] = options.providers  # the servers are child processes
    servers: list[tuple[Side, Precision]] = [("carousel", precision) for precision in bundles]
    servers += [("naive", precision) for precision in reversed(bundles)]
    remarks = []
    for side in PEERS if options.peers == [] else options.peers or ():
        if reason := left_out(side):
            remarks.append(reason)
        elif side == "torch" and options.bundle:
            remarks.append("torch is left out: it runs the default bundle's network, not a graph")
        elif "fp32" not in bundles:
            remarks.append(f"{side} is left out: it runs fp32, which is not measured")
        else:
            servers.append((side, "fp32"))
    for reason in remarks:
        _progress(reason)
    size = next(iter(bundles.values())).codec(TextCodec).vocabulary_size
    prompt = random.Random(0).choices(range(size), k=PROMPT_TOKENS)
    return Plan(
        bundles=bundles,
        servers=servers,
        streams=options.streams,
        loads=LOADS if options.open == [] else options.open or (),
        rounds=options.rounds,
        window=Window(options.seconds, options.warmup),
        generation=Generation(tuple(prompt), options.max_tokens),
        remarks=remarks,
        providers=options.providers,
    )


def _require_cuda(bundles: Iterable[Bundle]) -> None:
    """Make sure that figures which say `cuda` are a GPU's: the service itself would fall back to the CPU.

    Raises:
        RunnerBroken: there is no GPU, or a bundle does not run on it.
    """
    reason = reason_against(CUDA)
    if reason is not None:
        raise RunnerBroken(f"cannot measure on cuda: {reason}")
    for bundle in bundles:
        open_core(bundle, 1, 1, CUDA)


def _bare(plan: Plan, number: int) -> list[BareRun]:
    runs: list[BareRun] = []
    for precision, bundle in plan.bundles.items():
        graph, size = StepGraph(bundle), bundle.codec(TextCodec).vocabulary_size
        runs += [
            BareRun(precision, rows, number, bare_tokens_per_second(graph, size, rows, BARE_SECONDS))
            for rows in sorted({min(streams, BARE_MAX_ROWS) for streams in plan.streams})
        ]
    return runs


def _closed(plan: Plan, side: Side, precision: Precision, number: int) -> list[ClosedRun]:
    """One server of one round: a fresh process, every number of streams."""
    runs = []
    with running(side, plan.bundles[precision].path) as target:
        for streams in plan.streams:
            memory = [resident_bytes(target)]
            before = step_time(target) if side == "carousel" else None
            try:
                look = partial(_note_memory, target, memory)
                result = uvloop.run(closed_loop(target, plan.generation, streams, plan.window, look))
            except LoadFailed as failure:
                plan.remarks.append(f"{side} {precision}, {streams:,} streams, round {number + 1}: {failure}")
                _progress(plan.remarks[-1])
                continue
            steps = step_time(target).since(before) if before else None
            rate = f"{result.tokens_per_second:,.0f} tokens/s"
            _progress(f"round {number + 1}, {side} {precision}, {streams:,} streams: {rate}")
            idle, begin, end = memory
            runs.append(ClosedRun(side, precision, streams, number, result, steps, (idle, begin, end)))
    return runs


def _note_memory(target: Target, memory: list[int]) -> None:
    memory.append(resident_bytes(target))


def _open(plan: Plan, bundle: Bundle) -> tuple[float, list[OpenRun]]:
    """What one process of the service delivers to a closed loop (tokens per second), and the open loop at every load.

    Over HTTP: a refusal leaves the connection as it is, so that shedding costs the client no new one.
    """
    runs = []
    with running("carousel", bundle.path) as websocket:
        target = replace(websocket, wire="completions")
        busy = uvloop.run(closed_loop(target, plan.generation, CAPACITY_STREAMS, plan.window))
        capacity = busy.tokens_per_second
        _progress(f"carousel, closed loop of {CAPACITY_STREAMS} streams: {capacity:,.0f} tokens/s")
        for load in plan.loads:
            rate = load * capacity / plan.generation.max_tokens
            arrivals = poisson_arrivals(rate, plan.window.total_seconds, seed=0)
            result = uvloop.run(open_loop(target, plan.generation, arrivals, plan.window))
            _progress(f"carousel, {load:g} of that: {result.tokens_per_second:,.0f} tokens/s")
            runs.append(OpenRun(load, rate, len(arrivals), result))
    return capacity, runs


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Carousel against its peers.")
    parser.add_argument("--bundle", type=Path, help="<repository>/<model>/<version>; default: 2x512 LSTM, 10,000 words")
    parser.add_argument(
        "--precision", choices=["int8", "fp32"], nargs="+", help="of the default bundle; default: both, on cuda fp32"
    )
    parser.add_argument(
        "--providers",
        choices=["cpu", "cuda"],
        default=os.environ.get(PROVIDERS_VARIABLE, "cpu"),
        help=f"where graphs run, the naive peer's too (default: {PROVIDERS_VARIABLE}, or cpu)",
    )
    parser.add_argument("--peers", choices=PEERS, nargs="*", help="measured beside the naive one; alone: all of them")
    parser.add_argument("--streams", type=numbers.count, nargs="+", help="closed loop: how many at once")
    parser.add_argument(
        "--open",
        type=numbers.multiple,
        nargs="*",
        metavar="LOAD",
        help=f"open loop too, at fractions of capacity ({LOADS})",
    )
    parser.add_argument("--sampling", action="store_true", help="instead: by how tokens are sampled")
    parser.add_argument("--vocabulary", type=numbers.count, help="words of the default bundle, with --sampling")
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="another commit's code, measured in turn, with --sampling"
    )
    parser.add_argument("--seconds", type=numbers.seconds, default=8.0, help="measured per run")
    parser.add_argument(
        "--warmup", type=numbers.seconds_or_none, default=2.0, help="seconds before that whose figures are dropped"
    )
    parser.add_argument(
        "--rounds", type=numbers.count_or_none, default=3, help="how often every server is measured; 0: open loop only"
    )
    parser.add_argument(
        "--max-tokens", type=numbers.count, default=128, help="sampled per generation, at temperature 1"
    )
    parser.add_argument("--output", type=Path, help="write all runs here, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
