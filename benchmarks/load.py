"""The load generator: closed loop (so many streams, always busy) and open loop (so many arrivals a second).

Both are bounded in time and in count, and both speak to this machine only.

The closed loop lines its connections up before the clock starts. The open loop keeps connections that have become idle
and opens one only where there is none, as clients do that expect to ask again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import random
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter, process_time
from typing import Any, Literal

from carousel.benchmarks.connection import Connection, GenerationFailed
from carousel.benchmarks.event_stream import EventStream
from carousel.benchmarks.record import LoadResult, Recorder
from carousel.benchmarks.websocket import WebSocket

MAX_STREAMS = 4096
MAX_SECONDS = 3600.0
MAX_ARRIVALS = 100_000
MAX_IDLE_SECONDS = 3.0
"""How long an idle connection is kept: a server that closes it meanwhile (uvicorn after 5 s) would lose a request."""
SPARE_FILES = 200
"""Beside the sockets of the load: libraries, pipes, logs."""
MAX_CONSECUTIVE_FAILURES = 20
"""After so many failures in a row a closed-loop stream gives the run up: the server is not there to be measured."""


class LoadRefused(ValueError):
    """A load that this generator does not make."""


class LoadFailed(Exception):
    """The server answered a stream with nothing but errors."""


Wire = Literal["websocket", "completions", "events"]
"""How tokens are streamed: frames of the service's WebSocket; OpenAI's completions; whatever a peer's framework streams
as the answer to a POST of the start frame's fields."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model behind a server on this machine."""

    port: int
    model: str
    host: str = "127.0.0.1"
    wire: Wire = "websocket"
    path: str = "/generate"
    """Of `events`."""
    group: int = 0
    """The server's process group; 0 where it was not started here."""

    def __post_init__(self) -> None:
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise LoadRefused(f"host is {self.host!r}; allowed is a loopback address such as 127.0.0.1")

    @property
    def uri(self) -> str:
        """Where the model's stream is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        path = {"websocket": f"/v1/models/{self.model}/stream", "completions": "/v1/completions", "events": self.path}
        return f"{'ws' if self.wire == 'websocket' else 'http'}://{host}:{self.port}{path[self.wire]}"

    def over(self, wire: Wire) -> Target:
        """The same over another wire."""
        return replace(self, wire=wire)

    async def connect(self, recorder: Recorder) -> Connection:
        """A connection for one generation after another.

        Raises:
            GenerationFailed: nobody listens, or the server refused.
        """
        return await (WebSocket if self.wire == "websocket" else EventStream).open(self.uri, recorder)

    def request(self, generation: Generation, seed: int, max_tokens: int | None = None) -> str:
        """The JSON that asks for one generation."""
        sampling: dict[str, Any] = {
            "max_tokens": max_tokens or generation.max_tokens,
            "temperature": generation.temperature,
            "seed": seed,
            **generation.sampling,
        }
        if self.wire == "websocket":
            return json.dumps({"type": "start", "tokens": generation.prompt, "sampling": sampling})
        if self.wire == "events":
            return json.dumps({"tokens": generation.prompt, "sampling": sampling})
        return json.dumps({"model": self.model, "prompt": generation.prompt, **sampling, "stream": True})


@dataclass(frozen=True, slots=True)
class Generation:
    """What every request asks for."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Other sampling parameters, or the same ones again."""


@dataclass(frozen=True, slots=True)
class Window:
    """How long a run takes: `warmup_seconds` whose figures are dropped, then `seconds` that are measured."""

    seconds: float
    warmup_seconds: float

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.warmup_seconds >= 0 and self.total_seconds <= MAX_SECONDS):
            raise LoadRefused(
                f"window is {self.warmup_seconds:g} + {self.seconds:g} s; allowed is above 0, at most {MAX_SECONDS:g}"
            )

    @property
    def total_seconds(self) -> float:
        """With the warm-up."""
        return self.warmup_seconds + self.seconds


def allow_connections(count: int) -> None:
    """Let this process, and the servers it starts, open so many sockets.

    Raises:
        LoadRefused: the machine's hard limit is lower.
    """
    wanted, (soft, hard) = count + SPARE_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise LoadRefused(f"{count:,} connections need {wanted:,} open files; allowed are {hard:,} (raise ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def closed_loop(
    target: Target, generation: Generation, streams: int, window: Window, look: Callable[[], None] = lambda: None
) -> LoadResult:
    """Keep `streams` sockets busy: each starts its next generation as soon as one has ended.

    Each stream's first generation has a random length, so that the streams do not begin and end in step.

    Args:
        look: called as the window begins and as it ends, with all streams busy; the first time on another thread.

    Raises:
        LoadRefused: more streams than allowed.
        LoadFailed: a stream met nothing but errors.
    """
    if not 1 <= streams <= MAX_STREAMS:
        raise LoadRefused(f"streams is {streams:,}; allowed is 1 to {MAX_STREAMS:,}")
    recorder = Recorder()
    lengths = random.Random(streams)
    lined_up = asyncio.Barrier(streams + 1)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    _stream(
                        target, generation, stream << 32, lengths.randint(1, generation.max_tokens), recorder, lined_up
                    )
                )
                for stream in range(streams)
            ]
            await lined_up.wait()
            start = perf_counter() + window.warmup_seconds
            recorder.measure(start, start + window.seconds)
            await asyncio.sleep(window.warmup_seconds)
            cpu = process_time()
            await asyncio.to_thread(look)
            await asyncio.sleep(start + window.seconds - perf_counter())
            cpu = process_time() - cpu
            look()
            for task in tasks:
                task.cancel()
    except* LoadFailed as failures:
        raise failures.exceptions[0] from None
    return recorder.result(cpu / window.seconds)


async def _stream(
    target: Target, generation: Generation, seed: int, max_tokens: int, recorder: Recorder, lined_up: asyncio.Barrier
) -> None:
    """One stream of the closed loop; ends by cancellation."""
    connection: Connection | None = None
    failures, waiting = 0, True
    try:
        while failures < MAX_CONSECUTIVE_FAILURES:
            try:
                if connection is None or not connection.usable:
                    connection = await target.connect(recorder)
                if waiting:
                    waiting = False
                    await lined_up.wait()
                asked = perf_counter()
                await connection.generate(target.request(generation, seed, max_tokens), asked)
                failures = 0
            except GenerationFailed as failure:
                recorder.failed(failure.code, shed=failure.retryable)
                failures += 1
                last = failure.code
            seed += 1
            max_tokens = generation.max_tokens
        raise LoadFailed(f"{failures} generations in a row failed, the last with {last}")
    finally:
        if connection is not None:
            await connection.close()


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """The arrival times of a Poisson process in [0, seconds), ascending.

    Raises:
        LoadRefused: the rate is not a positive number, or gives more arrivals than allowed.
    """
    if not (math.isfinite(rate) and rate > 0 and rate * seconds <= MAX_ARRIVALS):
        raise LoadRefused(
            f"rate is {rate:g}/s for {seconds:g} s; allowed is above 0, at most {MAX_ARRIVALS:,} arrivals"
        )
    gaps = random.Random(seed)
    arrivals: list[float] = []
    at = gaps.expovariate(rate)
    while at < seconds and len(arrivals) < MAX_ARRIVALS:
        arrivals.append(at)
        at += gaps.expovariate(rate)
    return arrivals


async def open_loop(
    target: Target, generation: Generation, arrivals: Sequence[float], window: Window, drain_seconds: float = 30.0
) -> LoadResult:
    """One generation per arrival, whether or not the earlier ones are done.

    The first token's time counts from the planned arrival, so a server that keeps the client waiting is charged for it.

    Args:
        arrivals: seconds after the run's start, ascending.
        drain_seconds: how long the generations still running at the window's end may take; then they are `unfinished`.
    """
    began = perf_counter()
    start = began + window.warmup_seconds
    recorder = Recorder(start, start + window.seconds)
    cpu = process_time()
    running: set[asyncio.Task[None]] = set()
    idle: list[tuple[Connection, float]] = []
    for number, arrival in enumerate(arrivals):
        await asyncio.sleep(max(0.0, began + arrival - perf_counter()))
        if len(running) >= MAX_STREAMS:
            recorder.failed("client_limit", shed=False)
            continue
        request = target.request(generation, number)
        task = asyncio.create_task(_arrival(target, request, began + arrival, recorder, idle))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.sleep(max(0.0, start + window.seconds - perf_counter()))
    cpu = process_time() - cpu
    if running:
        _, unfinished = await asyncio.wait(running, timeout=drain_seconds)
        for task in unfinished:
            recorder.failed("unfinished", shed=False)
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    await asyncio.gather(*(connection.close() for connection, _ in idle))
    return recorder.result(cpu / window.total_seconds)


async def _arrival(
    target: Target, request: str, asked: float, recorder: Recorder, idle: list[tuple[Connection, float]]
) -> None:
    connection: Connection | None = None
    try:
        while idle and connection is None:
            connection, since = idle.pop()
            if not connection.usable or perf_counter() - since > MAX_IDLE_SECONDS:
                connection.hang_up()
                connection = None
        if connection is None:
            connection = await target.connect(recorder)
        await connection.generate(request, asked)
    except GenerationFailed as failure:
        recorder.failed(failure.code, shed=failure.retryable, seconds=perf_counter() - asked)
    except asyncio.CancelledError:
        if connection is not None:
            await connection.close()
        raise
    if connection is not None and connection.usable:
        idle.append((connection, perf_counter()))
