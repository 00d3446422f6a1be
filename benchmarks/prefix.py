"""What does a known beginning save? `python -m benchmarks.prefix [BUNDLE]`.

In process, one request at a time: the time from a request's admission to its first token, for prompts that nobody has
sent (cold) and for the same ones again (warm, all but the last token known), in turns; medians. Besides, what looking
a prompt up and keeping its states takes of the event loop, with the cache full of other prompts: where that is as long
as the steps it saves, a prompt is too short for an entry (service/prefixes.py, MIN_LENGTH).
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from models.bundle import open_bundle
from service.engine.async_engine import AsyncEngine
from service.engine.core import EngineCore
from service.engine.sequence import Array, Ids, SamplingParameters, Sequence, TokenEvent
from service.engine.state_pool import zeros
from service.prefix_cache import PrefixCache
from service.prefixes import Prefixes
from service.repository import open_runner
from service.sessions.memory import ModelIdentity

LENGTHS = (16, 128, 1024)
ROUNDS = 41
CACHE_BYTES = 64 * 1024 * 1024


async def first_token_seconds(engine: AsyncEngine, prefixes: Prefixes, prompt: Ids) -> float:
    """From admission to the first token; then the states are kept, which nobody waits for."""
    with engine.admit() as admission:
        beginning = prefixes.begin(prompt, None)
        sequence = Sequence(
            prompt, SamplingParameters(1), snapshot=beginning.snapshot, looks=beginning.looks, eaten=beginning.length
        )
        event = await admission.start(sequence).get()
        seconds = time.perf_counter() - admission.admitted_at
        assert isinstance(event, TokenEvent)
        beginning.keep(sequence)
    return seconds


def loop_seconds(prefixes: Prefixes, prompt: Ids, state: dict[str, Array]) -> float:
    """What the event loop gives to a cold prompt: looking it up, and keeping its states."""
    started = time.perf_counter()
    beginning = prefixes.begin(prompt, None)
    spent = time.perf_counter() - started
    sequence = Sequence(prompt, SamplingParameters(1), looks=beginning.looks)
    sequence.looked |= {look: dict(state) for look in beginning.looks}
    started = time.perf_counter()
    beginning.keep(sequence)
    return spent + time.perf_counter() - started


async def main(path: Path) -> None:
    """Print one line a length."""
    bundle = open_bundle(path)
    core = EngineCore(open_runner(bundle, 1), 1)
    core.warm_up()
    engine = AsyncEngine(core, max_waiting=1, on_step=lambda _: None)
    engine.start()
    cache = PrefixCache(CACHE_BYTES)
    prefixes = Prefixes(cache, bundle.digest, lambda *_: None)
    random = np.random.default_rng(0)
    state = {name: rows[0] for name, rows in zeros(ModelIdentity.of(bundle).states, 1).items()}
    while cache.bytes < 0.95 * CACHE_BYTES:
        loop_seconds(prefixes, random.integers(0, bundle.output_size, 40), state)
    print(
        f"{bundle.model} {bundle.version}, {bundle.manifest.precision}; {len(cache):,} states of {cache.bytes:,} bytes"
    )
    print("| prompt | cold | warm | ratio | of the event loop, cold |\n|---:|---:|---:|---:|---:|")
    for length in LENGTHS:
        cold, warm, loop = [], [], []
        for _ in range(ROUNDS):
            prompt = random.integers(0, bundle.output_size, length)
            cold.append(await first_token_seconds(engine, prefixes, prompt))
            warm.append(await first_token_seconds(engine, prefixes, prompt))
            assert prefixes.begin(prompt, None).length == length - 1
            loop.append(loop_seconds(prefixes, random.integers(0, bundle.output_size, length), state))
        slow, fast, spent = (median(seconds) * 1e3 for seconds in (cold, warm, loop))
        print(f"| {length:,} | {slow:.2f} ms | {fast:.2f} ms | {slow / fast:.1f} | {spent:.3f} ms |")
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "bundles/shakespeare/2")))
