"""What does a known beginning save? `python -m benchmarks.prefix [BUNDLE] [--output prefix.json]`.

In process, one request at a time: the time from a request's admission to its first token, for prompts that nobody has
sent (cold) and for the same ones again (warm, all but the last token known), in turns; medians. Besides, what looking
a prompt up and keeping its states takes of the event loop, with the cache full of other prompts: where that is as long
as the steps it saves, a prompt is too short for an entry (service/prefixes/prefixes.py, MIN_LENGTH).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from carousel.benchmarks.report import Machine
from carousel.models.bundle import open_bundle
from carousel.service.engine.parameters import Ids, SamplingParameters, State
from carousel.service.engine.port import Request, Told
from carousel.service.engine.states.pool import zeros
from carousel.service.engine.threads.async_engine import AsyncEngine
from carousel.service.prefixes.cache import PrefixCache
from carousel.service.prefixes.prefixes import Prefixes
from carousel.service.served.opening import open_core
from carousel.service.sessions.memory import ModelIdentity

LENGTHS = (16, 128, 1024)
ROUNDS = 41
CACHE_BYTES = 64 * 1024 * 1024


async def first_token_seconds(engine: AsyncEngine, prefixes: Prefixes, prompt: Ids) -> float:
    """From admission to the first token; then the states are kept, which nobody waits for."""
    with engine.admit() as admission:
        beginning = prefixes.begin(prompt, None)
        request = Request(
            prompt,
            SamplingParameters(1),
            snapshot=beginning.snapshot,
            checkpoints=beginning.checkpoints,
            consumed=beginning.length,
        )
        event = await admission.start(request).get()
        seconds = time.perf_counter() - admission.admitted_at
        assert isinstance(event, Told)
        beginning.keep(event.checkpoints)
    return seconds


def loop_seconds(prefixes: Prefixes, prompt: Ids, state: State) -> float:
    """What the event loop gives to a cold prompt: looking it up, and keeping its states."""
    started = time.perf_counter()
    beginning = prefixes.begin(prompt, None)
    spent = time.perf_counter() - started
    checkpoints = {length: dict(state) for length in beginning.checkpoints}
    started = time.perf_counter()
    beginning.keep(checkpoints)
    return spent + time.perf_counter() - started


async def measure(path: Path) -> dict[str, Any]:
    """Print one line a length. The medians, for benchmarks.plots."""
    bundle, machine = open_bundle(path), Machine.this()
    core = open_core(bundle, 1, 1)
    engine = AsyncEngine(core, max_waiting=1, on_steps=lambda _: None)
    engine.start()
    cache = PrefixCache(CACHE_BYTES)
    identity = ModelIdentity.of(bundle)
    prefixes = Prefixes(cache, bundle.digest, identity.state_bytes, lambda *_: None)
    random = np.random.default_rng(0)
    state = {name: rows[0] for name, rows in zeros(identity.states, 1).items()}
    while cache.bytes < 0.95 * CACHE_BYTES:
        loop_seconds(prefixes, random.integers(0, bundle.output_size, 40), state)
    print(f"machine  {machine}")
    print(
        f"{bundle.model} {bundle.version}, {bundle.manifest.precision}; {len(cache):,} states of {cache.bytes:,} bytes"
    )
    print("| prompt | cold | warm | ratio | of the event loop, cold |\n|---:|---:|---:|---:|---:|")
    medians: dict[str, list[float]] = {"cold_seconds": [], "warm_seconds": [], "loop_seconds": []}
    for length in LENGTHS:
        cold, warm, loop = [], [], []
        for _ in range(ROUNDS):
            prompt = random.integers(0, bundle.output_size, length)
            cold.append(await first_token_seconds(engine, prefixes, prompt))
            warm.append(await first_token_seconds(engine, prefixes, prompt))
            assert prefixes.begin(prompt, None).length == length - 1
            loop.append(loop_seconds(prefixes, random.integers(0, bundle.output_size, length), state))
        for name, seconds in zip(medians, (cold, warm, loop), strict=True):
            medians[name].append(median(seconds))
        slow, fast, spent = (seconds[-1] * 1e3 for seconds in medians.values())
        print(f"| {length:,} | {slow:.2f} ms | {fast:.2f} ms | {slow / fast:.1f} | {spent:.3f} ms |")
    await engine.close()
    return {"machine": asdict(machine), "model": bundle.model, "lengths": list(LENGTHS), **medians}


def main() -> None:
    """Measure, and write what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefix", description="Prompts whose beginning is known."
    )
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("bundles/shakespeare/2"))
    parser.add_argument("--output", type=Path, help="write the medians here, as JSON, for benchmarks.plots")
    options = parser.parse_args()
    measured = asyncio.run(measure(options.bundle))
    if options.output:
        options.output.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
