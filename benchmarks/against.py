"""`python -m benchmarks.against CHECKOUT`: what the way from another commit to this one costs.

Both services stand side by side and are asked in turn, a short window each, so that other load on the machine meets
both alike. Shown are medians of the ratios of neighbouring windows, this commit's over the other's, with their tenth
and ninetieth percentile: a ratio whose two percentiles lie on one side of 1 has been seen, any other has not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import uvloop

from carousel.benchmarks import captions, numbers, tracing
from carousel.benchmarks.load import Generation, LoadFailed, Target, Window
from carousel.benchmarks.load import closed_loop as token_loop
from carousel.benchmarks.server import ServerFailed, processor_seconds, resident_bytes, running
from carousel.models.bundle import versions
from carousel.models.errors import BundleNotFound, CarouselError

PROMPT = (1, 2, 3, 4)
TOKENS = 128
WARMUP_SECONDS = 0.3
KINDS: Mapping[str, Mapping[str, float]] = {"plain": {}, "top-k 40": {"top_k": 40, "temperature": 0.8}}
CLIENTS = 64

Measure = Callable[[Target], Mapping[str, float]]
"""One window of one server: its figures, by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status: 0, or 1 with one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        print("| what | ratio | 10 % | 90 % | this commit |\n|---|---:|---:|---:|---:|", flush=True)
        for precision in ("int8", "fp32"):
            _compare(_made(options.checkout, f"benchmarks-{precision}/words"), options, _streams(options))
        _compare(captions.shipped().resolve(), options, {"captions": _captions(options.seconds)})
        _compare(_made(options.checkout, "benchmarks/tutor"), options, {"answers": _answers(options.seconds)})
    except (CarouselError, ServerFailed, LoadFailed, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def _made(checkout: Path, model: str) -> Path:
    """A bundle that the other commit's benchmarks made: what an older one writes, a newer one reads.

    Raises:
        BundleNotFound: they have not.
    """
    repository = checkout.resolve() / "build" / model
    if not (found := versions(repository.parent, repository.name)):
        raise BundleNotFound(
            f"there is no bundle in {repository}; run benchmarks and benchmarks.tracing in {checkout} once"
        )
    return repository / str(found[-1])


def _compare(bundle: Path, options: argparse.Namespace, windows: Mapping[str, Measure]) -> None:
    """All windows of one bundle on both services, which are started as often as there are restarts."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for restart in range(options.restarts):
        with _both(bundle, options.checkout, swapped=bool(restart % 2)) as (own, other, starts):
            pairs.setdefault("start, seconds", []).append(starts)
            pairs.setdefault("resident at rest, MB", []).append((_megabytes(own), _megabytes(other)))
            for number in range(options.rounds):
                for what, measure in windows.items():
                    turns = [own, other] if number % 2 == 0 else [other, own]
                    figures = {target.port: measure(target) for target in turns}
                    for name, value in figures[own.port].items():
                        pairs.setdefault(f"{what}: {name}", []).append((value, figures[other.port][name]))
            pairs.setdefault("resident at the end, MB", []).append((_megabytes(own), _megabytes(other)))
    for name, values in pairs.items():
        ratios = [mine / theirs for mine, theirs in values if theirs]
        middle, low, high = np.quantile(ratios, (0.5, 0.1, 0.9)) if ratios else (np.nan,) * 3
        shown = np.median([mine for mine, _ in values])
        print(f"| {bundle.parent.name} {name} | {middle:.3f} | {low:.3f} | {high:.3f} | {shown:,.4g} |", flush=True)


@contextmanager
def _both(bundle: Path, checkout: Path, *, swapped: bool) -> Iterator[tuple[Target, Target, tuple[float, float]]]:
    """This commit's service, the other's, and how long each took to be ready, one after the other."""
    targets, seconds = {}, {}
    with ExitStack() as stack:
        for own in (False, True) if swapped else (True, False):
            began = perf_counter()
            targets[own] = stack.enter_context(running("carousel", bundle, None if own else checkout))
            seconds[own] = perf_counter() - began
        yield targets[True], targets[False], (seconds[True], seconds[False])


def _streams(options: argparse.Namespace) -> dict[str, Measure]:
    """Token streams: so many at once, sampled in each way."""
    window = Window(options.seconds, WARMUP_SECONDS)

    def measure(target: Target, count: int, kind: str) -> Mapping[str, float]:
        before = processor_seconds(target)
        result = uvloop.run(token_loop(target, Generation(PROMPT, TOKENS, sampling=KINDS[kind]), count, window))
        share = window.seconds / window.total_seconds  # the processor's time is of the warm-up, too
        return {
            "tokens/s": result.tokens_per_second,
            "first token p50, ms": 1e3 * (result.first_token.p50_seconds or 0),
            "between tokens p99, ms": 1e3 * (result.inter_token.p99_seconds or 0),
            "processor, us a token": 1e6 * share * (processor_seconds(target) - before) / max(result.tokens, 1),
        }

    return {
        f"{count} streams, {kind}": partial(measure, count=count, kind=kind)
        for count in options.streams
        for kind in KINDS
    }


def _captions(seconds: float) -> Measure:
    images = captions.draw_images()

    def measure(target: Target) -> Mapping[str, float]:
        before = processor_seconds(target)
        durations, _, answers = uvloop.run(captions.closed_loop(target, images, CLIENTS, seconds))
        return {
            "a second": len(durations) / seconds,
            "processor, us": 1e6 * (processor_seconds(target) - before) / answers,
        }

    return measure


def _answers(seconds: float) -> Measure:
    return lambda target: {"a second": tracing.with_sessions(target, seconds)[0]}


def _megabytes(target: Target) -> float:
    return resident_bytes(target) / 1e6


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description="This commit against another.")
    parser.add_argument("checkout", type=Path, help="a directory with the other commit, whose benchmarks have run")
    parser.add_argument("--streams", type=numbers.count, nargs="+", default=[1, 64], help="token streams at once")
    parser.add_argument("--seconds", type=numbers.seconds, default=1.5, help="of a window")
    parser.add_argument("--rounds", type=numbers.count, default=4, help="windows of each service after a start")
    parser.add_argument("--restarts", type=numbers.count, default=3, help="how often both are started")
    return parser


if __name__ == "__main__":
    sys.exit(main())
