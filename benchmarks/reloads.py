"""`python -m benchmarks.reloads`: versions published and loaded one after another, under load.

Two bundles of equal weights and different digests are published in turn, each as the next version, and loaded by the
admin call while WebSockets stream, completions and learners' answers are asked for over HTTP. Printed: requests that
failed (there must be none), resident memory after the first reloads (`--settle`) and after the last, the lines of
/metrics at both, and the gaps between a stream's tokens without reloads and with them.

Resident memory is the median of what it was after each of the WINDOW reloads before: one look may see two versions in
memory, or three, and what the allocator has not given back yet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import uvloop
from websockets.asyncio.client import connect

from carousel.benchmarks import numbers
from carousel.benchmarks.churn import REPOSITORY, WrongAnswer, ask
from carousel.benchmarks.load import Target
from carousel.benchmarks.report import Machine
from carousel.benchmarks.server import SERVICE, exposition, launched, resident_bytes

MODEL, TUTOR = "shakespeare", "tutor"
WINDOW = 20
KEPT_ON_DISK = 3
"""Versions that stay in the repository; older ones are deleted, as somebody who tidies up would."""


@dataclass(slots=True)
class Load:
    """What clients have seen so far."""

    ended: Counter[str] = field(default_factory=Counter)
    """Requests by kind, and `failed`."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between two tokens of a stream."""
    errors: list[str] = field(default_factory=list)
    stop: bool = False


class Publisher:
    """Publishes two bundles in turn, as ever newer versions of one model."""

    def __init__(self, repository: Path, model: str) -> None:
        self._home = repository / model
        self.version = max(int(entry.name) for entry in self._home.iterdir())

    def publish(self) -> int:
        """The next version, by a rename; it differs from the last one in the spaces of its manifest."""
        staging = self._home / ".staging"
        shutil.copytree(self._home / str(self.version), staging)
        self.version += 1
        manifest = staging / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()), indent=2 + self.version % 2))
        staging.rename(self._home / str(self.version))
        shutil.rmtree(self._home / str(self.version - KEPT_ON_DISK), ignore_errors=True)
        return self.version


async def stream(target: Target, load: Load) -> None:
    """Generations on one socket, one after another."""
    async with connect(target.uri, compression=None, ping_interval=None, proxy=None) as socket:
        while not load.stop:
            start = {"type": "start", "prompt": "ROMEO:\n", "sampling": {"max_tokens": 60}}
            await socket.send(json.dumps(start))
            last = None
            while (event := json.loads(await socket.recv()))["type"] not in ("finished", "error"):
                if event["type"] == "token":
                    now = perf_counter()
                    if last is not None:
                        load.gaps.append(now - last)
                    last = now
            if event["type"] == "error":
                raise WrongAnswer(f"a stream ended in {event}")
            load.ended["stream"] += 1


async def complete(target: Target, load: Load) -> None:
    """Completions, each on a connection of its own."""
    while not load.stop:
        await ask(target, "/v1/completions", {"model": MODEL, "prompt": "JULIET:\n", "max_tokens": 20})
        load.ended["completion"] += 1


async def answer(target: Target, load: Load) -> None:
    """A learner's answers, in a session: of a model that is not reloaded."""
    while not load.stop:
        body = {"session": "reloads", "attempts": [{"skill": load.ended["answer"] % 22, "correct": True}]}
        await ask(target, f"/v1/models/{TUTOR}/trace", body)
        load.ended["answer"] += 1


async def _keep_on(work: Callable[[Target, Load], Awaitable[None]], target: Target, load: Load) -> None:
    """Run a client; one that fails is counted and begins again."""
    while not load.stop:
        try:
            await work(target, load)
        except Exception as error:  # whatever a client meets is a failure of the service
            load.ended["failed"] += 1
            load.errors.append(f"{type(error).__name__}: {error}")


async def run(
    target: Target, publisher: Publisher, key: str, reloads: int, settle: int, streams: int, baseline: float
) -> int:
    """Reload so many times under load, and print what came of it. Returns how many requests failed."""
    load = Load()
    works = [*[stream] * streams, complete, complete, answer]
    clients = [asyncio.create_task(_keep_on(work, target, load)) for work in works]
    await asyncio.sleep(baseline)
    alone, load.gaps = load.gaps, []
    times: list[float] = []
    resident: list[int] = []

    async def tell(number: int) -> float:
        held = statistics.median(resident[-WINDOW:])
        lines = len((await asyncio.to_thread(exposition, target)).splitlines())
        print(f"after {number} reloads: resident {held / 1e6:,.1f} MB, {lines:,} lines of /metrics", flush=True)
        return held

    settled = 0.0
    for number in range(1, reloads + 1):
        version = await asyncio.to_thread(publisher.publish)
        started = perf_counter()
        await ask_admin(target, f"/v1/repository/models/{MODEL}/load", key, version)
        times.append(perf_counter() - started)
        resident.append(await asyncio.to_thread(resident_bytes, target))
        if number == settle:
            settled = await tell(number)
    end = await tell(reloads)
    load.stop = True
    await asyncio.gather(*clients)
    medians = [statistics.median(resident[start : start + WINDOW]) for start in range(0, reloads, WINDOW)]
    print(f"resident MB by {WINDOW} reloads: {', '.join(f'{held / 1e6:,.0f}' for held in medians)}")
    if settled:
        print(f"ratio of resident memory: {end / settled:.3f}")
    print(f"requests: {', '.join(f'{count:,} {kind}' for kind, count in sorted(load.ended.items()))}")
    print(f"failed requests: {load.ended['failed']}")
    for error in load.errors[:5]:
        print(f"  {error}")
    print(f"a reload took {statistics.median(times) * 1e3:,.0f} ms, the longest {max(times) * 1e3:,.0f} ms")
    for what, gaps in (("without reloads", alone), ("with", load.gaps)):
        ordered = sorted(gaps)
        print(
            f"gaps between tokens {what}: median {statistics.median(ordered) * 1e3:.2f} ms, "
            f"p99 {ordered[int(len(ordered) * 0.99)] * 1e3:.2f} ms, longest {ordered[-1] * 1e3:.1f} ms"
        )
    return load.ended["failed"]


async def ask_admin(target: Target, path: str, key: str, version: int) -> None:
    """Load a version.

    Raises:
        WrongAnswer: it was refused.
    """
    content = json.dumps({"version": version}).encode()
    reader, writer = await asyncio.open_connection(target.host, target.port)
    head = f"POST {path} HTTP/1.1\r\nhost: b\r\nconnection: close\r\nauthorization: Bearer {key}\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
    told = await reader.read()
    writer.close()
    if b" 200 " not in told.partition(b"\r\n")[0]:
        raise WrongAnswer(f"version {version} was not loaded: {told[-300:]!r}")


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status is 1 where a request failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reloads", description=__doc__.partition("\n")[0])
    parser.add_argument("--reloads", type=numbers.count, default=200)
    parser.add_argument(
        "--settle",
        type=numbers.count_or_none,
        default=2 * WINDOW,
        help="reloads before the memory that the end is held against",
    )
    parser.add_argument("--streams", type=numbers.count, default=4)
    parser.add_argument(
        "--baseline", type=numbers.seconds_or_none, default=5.0, help="seconds of load before the first reload"
    )
    options = parser.parse_args(arguments)
    print(Machine.this(), flush=True)
    key = secrets.token_hex(32)
    with tempfile.TemporaryDirectory() as directory:
        repository = Path(directory) / "bundles"
        for model in (MODEL, TUTOR):
            shutil.copytree(REPOSITORY / model, repository / model)
        publisher = Publisher(repository, MODEL)
        settings = {"CAROUSEL_REPOSITORY": str(repository), "CAROUSEL_ADMIN_KEY": key}
        settings |= {"CAROUSEL_LOG_LEVEL": "warning"}
        with launched(SERVICE, settings, repository / MODEL / str(publisher.version)) as target:
            work = run(target, publisher, key, options.reloads, options.settle, options.streams, options.baseline)
            return 1 if uvloop.run(work) else 0


if __name__ == "__main__":
    sys.exit(main())
