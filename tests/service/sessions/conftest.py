"""Both stores behind one harness, a real redis-server, and a memory whose sizes are all different."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis as redis_client

from service.engine.sequence import Snapshot
from service.engine.state_pool import StateSpec
from service.sessions.memory import Memory, ModelIdentity, remember
from service.sessions.process_store import ProcessSessionStore
from service.sessions.redis_store import RedisSessionStore
from service.sessions.store import Retention, SessionStore

REDIS_SERVER = shutil.which("redis-server")
DEADLINE_SECONDS = 20.0


def poll(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


class RedisServer:
    """A redis-server of the tests' own, on a free port, with its files in a temporary directory."""

    def __init__(self, directory: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            REDIS_SERVER or "",
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""),
            *("--logfile", "redis.log", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis_client.Redis(port=self.port)

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        poll(self._answers, "redis-server did not start")

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            self.client.close()
            self._process.send_signal(signal.SIGCONT)
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(DEADLINE_SECONDS)
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def elapse(self, seconds: float) -> None:
        """Let time pass for all keys, without waiting: each has so much less left to live."""
        for name in self.client.keys("*"):
            self.client.pexpire(name, max(0, self.client.pttl(name) - round(seconds * 1000)))

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis_client.RedisError:
            return False


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Starts a server with options of its own."""
    if REDIS_SERVER is None:
        pytest.skip("there is no redis-server here; Debian's package of that name brings it")
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        servers.append(RedisServer(tmp_path_factory.mktemp("redis"), *options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_redis(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty one, which a test leaves running."""
    shared_redis.client.flushall()
    return shared_redis


class Harness:
    """A way to make stores over one place, and to let time pass there."""

    def __init__(self, make: Callable[[Retention], SessionStore], elapse: Callable[[float], None]) -> None:
        self._make = make
        self.elapse = elapse
        self.stores: list[SessionStore] = []
        self.evicted: list[str] = []

    def store(self, **retention: float) -> SessionStore:
        self.stores.append(self._make(Retention(**retention)))  # type: ignore[arg-type]
        return self.stores[-1]

    def replicas(self, count: int) -> list[SessionStore]:
        """Stores of several processes over one place; one process has only its own."""
        first = self.store()
        return (
            [first] * count
            if isinstance(first, ProcessSessionStore)
            else [first, *(self.store() for _ in range(1, count))]
        )


@pytest.fixture(params=["process", "redis"])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    if request.param == "process":
        now = [1000.0]

        def elapse(seconds: float) -> None:
            now[0] += seconds

        harness = Harness(
            lambda retention: ProcessSessionStore(
                retention, clock=lambda: now[0], on_evicted=lambda reason: harness.evicted.append(reason)
            ),
            elapse,
        )
    else:
        server = request.getfixturevalue("redis_server")
        harness = Harness(
            lambda retention: RedisSessionStore(
                server.url,
                retention,
                on_evicted=lambda reason: harness.evicted.append(reason),
                timeout_seconds=DEADLINE_SECONDS,
            ),
            server.elapse,
        )
    yield harness
    for store in harness.stores:
        await store.close()


@pytest.fixture
def model() -> ModelIdentity:
    states = {"state.h": StateSpec((2, 3), "float32"), "state.c": StateSpec((2, 3), "float32")}
    return ModelIdentity("tutor", 4, "ab" * 32, states)


@pytest.fixture
def make_memory(model: ModelIdentity) -> Callable[..., Memory]:
    def make(steps: int = 5, seed: int = 0, **extra: object) -> Memory:
        generator = np.random.default_rng(seed)
        state = {name: generator.standard_normal(spec.shape).astype(spec.dtype) for name, spec in model.states.items()}
        snapshot = Snapshot(state, np.array([7, 1 << 40], np.int64))
        return remember(model, snapshot, eaten=steps, now=1e9 + seed, context=np.arange(8), extra=extra)

    return make
