"""`python -m benchmarks.overload`: what happens to those who are let in when far more come than the server can serve.

Two runs on one process of the service, over keep-alive HTTP. At capacity: a closed loop of as many streams as there are
rows, so that every row is busy and nobody waits. Overload: arrivals that do not wait for one another, at a multiple of
what the closed loop got; they are let in or refused. (A closed loop that is refused would ask again at once and measure
how fast it can ask.) A refusal without Retry-After counts as a failure. `--warmup 0` measures from the first arrival
on, when the service cannot tell an overload from a crowd yet.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

import uvloop

from carousel.benchmarks import numbers
from carousel.benchmarks.load import (
    Generation,
    LoadFailed,
    LoadRefused,
    Window,
    allow_connections,
    closed_loop,
    open_loop,
    poisson_arrivals,
)
from carousel.benchmarks.record import Latency, LoadResult
from carousel.benchmarks.server import ServerFailed, running
from carousel.benchmarks.words import words_bundle
from carousel.models.bundle import open_bundle
from carousel.models.codec.text import TextCodec
from carousel.models.errors import CarouselError
from carousel.service.settings import Settings

PROMPT_TOKENS = 4
MAX_TOKENS = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status: 0, or 1 with one sentence on stderr."""
    options = _parser().parse_args(arguments)
    rows = Settings().max_rows
    try:
        allow_connections(4096)
        bundle = open_bundle(words_bundle("int8"))
        prompt = random.Random(0).choices(range(bundle.codec(TextCodec).vocabulary_size), k=PROMPT_TOKENS)
        generation = Generation(tuple(prompt), MAX_TOKENS)
        window = Window(options.seconds, options.warmup)
        with running("carousel", bundle.path) as websocket:
            target = replace(websocket, wire="completions")
            busy = uvloop.run(closed_loop(target, generation, rows, Window(options.capacity_seconds, options.warmup)))
            rate = options.times * busy.tokens_per_second / MAX_TOKENS
            arrivals = poisson_arrivals(rate, window.total_seconds, seed=0)
            loaded = uvloop.run(open_loop(target, generation, arrivals, window))
    except (CarouselError, LoadRefused, LoadFailed, ServerFailed) as error:
        print(f"overload: {error}", file=sys.stderr)
        return 1
    print(f"{rows} rows; at capacity: {rows} streams; overload: {rate:,.0f} arrivals/s for {options.seconds:g} s")
    print(text(busy, loaded))
    return 0


def text(busy: LoadResult, loaded: LoadResult) -> str:
    """The table, and what became of those who were refused."""
    lines = [
        "|                   | at capacity, p50 |      p99 | overload, p50 |      p99 | p99, times |",
        "|-------------------|-----------------:|---------:|--------------:|---------:|-----------:|",
    ]
    for name, at, over in (
        ("first token", busy.first_token, loaded.first_token),
        ("between tokens", busy.inter_token, loaded.inter_token),
        ("whole generation", busy.whole, loaded.whole),
    ):
        lines.append(
            f"| {name:<17} | {_ms(at.p50_seconds):>16} | {_ms(at.p99_seconds):>8} | {_ms(over.p50_seconds):>13} | "
            f"{_ms(over.p99_seconds):>8} | {_times(at, over):>10} |"
        )
    lines.append(f"tokens/s: {busy.tokens_per_second:,.0f} at capacity, {loaded.tokens_per_second:,.0f} in overload")
    lines.append(
        f"refused: {loaded.shed:,}, p50 {_ms(loaded.refusal.p50_seconds)}, p99 {_ms(loaded.refusal.p99_seconds)}; "
        f"finished: {loaded.generations:,}; failed: {loaded.failed} {dict(loaded.errors) or ''}".rstrip()
    )
    lines.append(f"client CPU: {busy.client_cpu:.0%} at capacity, {loaded.client_cpu:.0%} in overload")
    return "\n".join(lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:,.1f} ms"


def _times(at: Latency, over: Latency) -> str:
    if not at.p99_seconds or over.p99_seconds is None:
        return "-"
    return f"{over.p99_seconds / at.p99_seconds:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description="More requests than rows.")
    parser.add_argument("--times", type=numbers.multiple, default=5.0, help="arrivals, as a multiple of capacity")
    parser.add_argument("--seconds", type=numbers.seconds, default=60.0, help="of overload that are measured")
    parser.add_argument("--capacity-seconds", type=numbers.seconds, default=10.0, help="of the closed loop before")
    parser.add_argument(
        "--warmup", type=numbers.seconds_or_none, default=6.0, help="seconds before each whose figures are dropped"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
