import asyncio
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
from websockets.asyncio.server import serve

from carousel.benchmarks.load import (
    MAX_CONSECUTIVE_FAILURES,
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

GENERATION = Generation(prompt=(3, 1), max_tokens=5)
WINDOW = Window(seconds=0.8, warmup_seconds=0.0)


class FakeServer:
    """A real WebSocket server (of the websockets library) that answers each start frame from a script."""

    def __init__(self, *, refuse=None, hang_up=False, compact=True, limit=100):
        self.refuse, self.hang_up = refuse, hang_up
        self.limit = limit  # generations per socket; then it falls silent
        self.compact = compact
        self.starts = []
        self.connected_at_starts = []
        self.tokens = 0
        self.connections = 0
        self.paths = set()

    def dump(self, **message):
        return json.dumps(message, separators=(",", ":") if self.compact else None)

    async def answer(self, socket):
        self.connections += 1
        self.paths.add(socket.request.path)
        for _ in range(self.limit):
            start = json.loads(await socket.recv())
            self.starts.append(start)
            self.connected_at_starts.append(self.connections)
            if self.refuse:
                await socket.send(self.dump(type="error", **self.refuse))
                continue
            await socket.send(self.dump(type="accepted", request_id="r"))
            for index in range(start["sampling"]["max_tokens"]):
                token = {"type": "token", "index": index}
                # A frame whose type comes late counts too.
                await socket.send(self.dump(**(token if index % 2 else dict(reversed(token.items())))))
                self.tokens += 1
                if self.hang_up:
                    await socket.close()
                    return
            await socket.ping()
            await socket.send(self.dump(type="finished", reason="length", text=""))
        await socket.wait_closed()

    @asynccontextmanager
    async def running(self):
        async with serve(self.answer, "127.0.0.1", 0) as server:
            yield Target(server.sockets[0].getsockname()[1], "tiny")


@pytest.mark.parametrize("fake", [FakeServer(limit=4), FakeServer(limit=4, compact=False)])
async def test_closed_loop_keeps_its_streams_busy_and_counts_every_token(fake):
    async with fake.running() as target:
        result = await closed_loop(target, GENERATION, streams=3, window=WINDOW)
    assert fake.connections == 3  # a socket is used again
    assert fake.paths == {"/v1/models/tiny/stream"}
    lengths = [start["sampling"]["max_tokens"] for start in fake.starts[:12]]
    assert result.generations == result.first_token.count == 12
    assert result.tokens == fake.tokens == sum(lengths)
    assert result.inter_token.count == sum(lengths) - 12
    assert (result.shed, result.failed) == (0, 0)
    assert lengths.count(5) >= 9  # only a stream's first generation is cut short
    assert len({start["sampling"]["seed"] for start in fake.starts}) == len(fake.starts)
    assert fake.starts[0]["tokens"] == [3, 1]


async def test_closed_loop_drops_the_warm_up():
    fake = FakeServer(limit=2)  # which is over long before the window opens
    async with fake.running() as target:
        looks = []
        window = Window(seconds=0.05, warmup_seconds=0.5)
        result = await closed_loop(target, GENERATION, 1, window, lambda: looks.append(fake.tokens))
    assert fake.tokens > GENERATION.max_tokens
    assert looks == [fake.tokens] * 2
    assert result.tokens == result.generations == result.inter_token.count == 0


async def test_closed_loop_gives_up_on_a_server_that_only_refuses():
    fake = FakeServer(refuse={"code": "overloaded", "message": "full", "retryable": True})
    async with fake.running() as target:
        with pytest.raises(LoadFailed, match=f"{MAX_CONSECUTIVE_FAILURES} generations in a row failed.*overloaded"):
            await closed_loop(target, GENERATION, streams=1, window=Window(30.0, 0.0))
    assert len(fake.starts) == MAX_CONSECUTIVE_FAILURES


async def test_closed_loop_gives_up_where_nobody_listens():
    async with FakeServer().running() as target:
        pass
    with pytest.raises(LoadFailed, match="connection_refused"):
        await closed_loop(target, GENERATION, streams=2, window=Window(30.0, 0.0))


@pytest.mark.parametrize("streams", [0, 5000])
async def test_closed_loop_is_bounded_in_streams(streams):
    with pytest.raises(LoadRefused, match="allowed is 1 to 4,096"):
        await closed_loop(Target(1, "tiny"), GENERATION, streams, WINDOW)


@pytest.mark.parametrize(("seconds", "warmup"), [(0, 1), (1, -1), (3600, 1), (float("nan"), 0)])
def test_window_is_bounded(seconds, warmup):
    with pytest.raises(LoadRefused, match="allowed is above 0, at most 3600"):
        Window(seconds, warmup)


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "0.0.0.0"])  # 192.0.2.0/24 is for documentation
def test_target_is_this_machine(host):
    with pytest.raises(LoadRefused, match="allowed is a loopback address"):
        Target(8000, "tiny", host)


async def test_open_loop_runs_one_generation_per_arrival_and_uses_idle_connections():
    fake = FakeServer()
    async with fake.running() as target:
        result = await open_loop(target, GENERATION, [0.0, 0.01, 0.01, 0.5], WINDOW)
    assert len(fake.starts) == result.generations == 4
    assert fake.connections < 4  # the last arrival found one of the first ones' idle
    assert result.tokens == 4 * GENERATION.max_tokens
    assert (result.first_token.count, result.inter_token.count) == (4, 4 * (GENERATION.max_tokens - 1))


@pytest.mark.parametrize(
    ("fake", "shed", "errors"),
    [
        (FakeServer(refuse={"code": "overloaded", "message": "full", "retryable": True}), 3, {}),
        (FakeServer(refuse={"code": "invalid", "message": "no", "retryable": False}), 0, {"invalid": 3}),
        (FakeServer(hang_up=True), 0, {"connection_lost": 3}),
    ],
)
async def test_open_loop_tells_shed_from_failed(fake, shed, errors):
    async with fake.running() as target:
        result = await open_loop(target, GENERATION, [0.0, 0.0, 0.02], WINDOW)
    assert (result.shed, result.errors, result.generations) == (shed, errors, 0)
    assert result.refusal.count == shed


async def test_closed_loop_connects_every_stream_before_the_first_asks():
    fake = FakeServer(limit=1)
    async with fake.running() as target:
        await closed_loop(target, GENERATION, streams=6, window=Window(0.1, 0.0))
    assert fake.connected_at_starts == [6] * 6


async def test_open_loop_counts_a_refused_upgrade():
    async def refuse(connection, request):
        return connection.respond(503, "full")

    async with serve(FakeServer().answer, "127.0.0.1", 0, process_request=refuse) as server:
        target = Target(server.sockets[0].getsockname()[1], "tiny")
        result = await open_loop(target, GENERATION, [0.0, 0.0], WINDOW)
    assert (result.shed, result.errors) == (2, {})


async def test_open_loop_ends_though_a_generation_does_not():
    release = asyncio.Event()

    async def silent(socket):
        await release.wait()

    async with serve(silent, "127.0.0.1", 0) as server:
        target = Target(server.sockets[0].getsockname()[1], "tiny")
        result = await open_loop(target, GENERATION, [0.0, 0.0], Window(0.05, 0.0), drain_seconds=0.05)
        release.set()
    assert result.errors == {"unfinished": 2}


def test_poisson_arrivals_have_the_rate_and_the_spread():
    arrivals = np.array(poisson_arrivals(rate=50.0, seconds=400.0, seed=7))
    gaps = np.diff(arrivals)
    assert len(arrivals) == pytest.approx(20_000, abs=4 * np.sqrt(20_000))
    assert gaps.min() >= 0
    assert 0 < arrivals[0] < arrivals[-1] < 400.0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential: the spread equals the mean


def test_poisson_arrivals_repeat_with_their_seed():
    assert poisson_arrivals(9.0, 5.0, seed=1) == poisson_arrivals(9.0, 5.0, seed=1)
    assert poisson_arrivals(9.0, 5.0, seed=1) != poisson_arrivals(9.0, 5.0, seed=2)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan"), 1e6])
def test_poisson_arrivals_are_bounded(rate):
    with pytest.raises(LoadRefused, match="at most 100,000 arrivals"):
        poisson_arrivals(rate, 10.0, seed=0)


def test_connections_are_allowed_up_to_the_hard_limit(monkeypatch):
    limits = {"now": (64, 5000)}
    monkeypatch.setattr("resource.getrlimit", lambda _: limits["now"])
    monkeypatch.setattr("resource.setrlimit", lambda _, wanted: limits.update(now=wanted))
    allow_connections(1024)
    assert limits["now"][0] > 1024
    assert limits["now"][1] == 5000
    with pytest.raises(LoadRefused, match="5,000 connections need 5,200 open files; allowed are 5,000"):
        allow_connections(5000)
