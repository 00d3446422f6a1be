"""`python -m benchmarks.tracing`: what an answer costs with a session, and against re-running the history.

1. The flat-cost curve: one learner at a time, sessions of 10 to 10,000 past answers, taking turns answer by answer.
2. 64 learners with histories of 100, each sending the next answer as soon as the last one is predicted: the service
   with sessions, and the peer (naive_tracing.py) that is sent the whole history.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import uvloop

from carousel.benchmarks import numbers
from carousel.benchmarks.http import Client
from carousel.benchmarks.load import Target
from carousel.benchmarks.report import Machine
from carousel.benchmarks.server import SERVICE, launched, service_settings
from carousel.benchmarks.tutor import MODEL, SKILLS, tutor_bundle

PAST = (10, 100, 1_000, 10_000)
HISTORY = 100
LEARNERS = 64
WARMUP_SECONDS = 1.0
PATH = f"/v1/models/{MODEL}/trace"

Json = dict[str, Any]


async def ask(client: Client, body: Json) -> None:
    """One request."""
    await client.post(PATH, json.dumps(body, separators=(",", ":")).encode())


def attempts(count: int, seed: int) -> list[Json]:
    """A learner's answers."""
    random = np.random.default_rng(seed)
    skills, corrects = random.integers(0, SKILLS, count).tolist(), random.integers(0, 2, count).tolist()
    return [{"skill": skill, "correct": bool(correct)} for skill, correct in zip(skills, corrects, strict=True)]


async def flat_cost(target: Target, answers: int) -> dict[int, list[float]]:
    """Seconds of each next answer, by how many answers came before."""
    client = await Client.open(target)
    for past in PAST:
        await ask(client, {"attempts": attempts(past, past), "session": f"past-{past}"})
    seconds: dict[int, list[float]] = {past: [] for past in PAST}
    for number, attempt in enumerate(attempts(answers, 0)):
        for past in PAST if number % 2 else reversed(PAST):
            body = {"attempts": [attempt], "session": f"past-{past}"}
            began = perf_counter()
            await ask(client, body)
            seconds[past].append(perf_counter() - began)
    client.close()
    return {past: values[answers // 10 :] for past, values in seconds.items()}


async def closed_loop(
    target: Target, seconds: float, first: Callable[[int], Json | None], following: Callable[[int, Json], Json]
) -> tuple[float, list[float]]:
    """All learners at once, each with one answer in flight: answers per second, and the seconds of each.

    Args:
        target: who is asked.
        seconds: to measure, after the warm-up.
        first: a learner's request before the clock starts.
        following: a learner's request for one more attempt.
    """
    durations: list[float] = []
    ready = asyncio.Barrier(LEARNERS)

    async def learn(learner: int) -> None:
        client = await Client.open(target)
        opening = first(learner)
        if opening is not None:
            await ask(client, opening)
        await ready.wait()
        start = perf_counter() + WARMUP_SECONDS
        for attempt in attempts(1_000_000 // LEARNERS, learner):
            began = perf_counter()
            await ask(client, following(learner, attempt))
            ended = perf_counter()
            if ended > start + seconds:
                break
            if ended > start:
                durations.append(ended - began)
        client.close()

    await asyncio.gather(*map(learn, range(LEARNERS)))
    return len(durations) / seconds, durations


def with_sessions(target: Target, seconds: float) -> tuple[float, list[float]]:
    """The service: each answer alone, on a session of a history."""
    return uvloop.run(
        closed_loop(
            target,
            seconds,
            lambda learner: {"attempts": attempts(HISTORY, learner), "session": f"learner-{os.getpid()}-{learner}"},
            lambda learner, attempt: {"attempts": [attempt], "session": f"learner-{os.getpid()}-{learner}"},
        )
    )


def with_histories(target: Target, seconds: float) -> tuple[float, list[float]]:
    """The peer: each answer at the end of the whole history."""
    histories = [attempts(HISTORY - 1, learner) for learner in range(LEARNERS)]
    return uvloop.run(
        closed_loop(
            target, seconds, lambda _: None, lambda learner, attempt: {"attempts": [*histories[learner], attempt]}
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=numbers.seconds, default=6.0, help="measured per run of the closed loop")
    parser.add_argument("--rounds", type=numbers.count, default=3, help="how often each side is measured")
    parser.add_argument("--answers", type=numbers.count, default=1000, help="of the flat-cost curve, for each history")
    options = parser.parse_args(arguments)
    bundle = tutor_bundle()
    print(Machine.this(), flush=True)

    with launched(SERVICE, service_settings(bundle), bundle) as target:
        curve = uvloop.run(flat_cost(target, options.answers))
    print("\n| past answers | median of the next | 99th percentile | median against 10 past answers |")
    print("|---|---|---|---|")
    for past, seconds in curve.items():
        ratio = median(seconds) / median(curve[PAST[0]])
        p99 = float(np.quantile(seconds, 0.99))
        print(f"| {past:,} | {median(seconds) * 1e3:.2f} ms | {p99 * 1e3:.2f} ms | {ratio:.3f} |")

    rates: dict[str, list[float]] = {"sessions": [], "steps": [], "torch": []}
    tails: dict[str, list[float]] = {side: [] for side in rates}
    for number in range(options.rounds):
        for side in rates if number % 2 == 0 else reversed(rates):
            command = SERVICE if side == "sessions" else ["carousel.benchmarks.naive_tracing", "--way", side]
            with launched(command, service_settings(bundle) if side == "sessions" else {}, bundle) as target:
                run = with_sessions if side == "sessions" else with_histories
                rate, durations = run(target, options.seconds)
            rates[side].append(rate)
            tails[side].append(float(np.quantile(durations, 0.99)))
            print(f"round {number + 1}, {side}: {rate:,.0f} answers/s", file=sys.stderr, flush=True)
    print(f"\n{LEARNERS} learners, histories of {HISTORY}\n\n| | answers/s | 99th percentile | sessions against it |")
    print("|---|---|---|---|")
    for side, values in rates.items():
        ratio = median(a / b for a, b in zip(rates["sessions"], values, strict=True))
        print(f"| {side} | {median(values):,.0f} | {median(tails[side]) * 1e3:.0f} ms | {ratio:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
