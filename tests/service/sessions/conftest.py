"""Both stores behind one harness, a real redis-server, and a memory whose sizes are all different."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from carousel.service.engine.port import Snapshot
from carousel.service.engine.states.pool import StateSpec
from carousel.service.sessions.memory import Memory, ModelIdentity, remember
from carousel.service.sessions.process_store import ProcessSessionStore
from carousel.service.sessions.redis_store import RedisSessionStore
from carousel.service.sessions.store import Retention, SessionStore


@pytest.fixture(scope="session")
def shared_redis(start_redis):
    return start_redis()


@pytest.fixture
def redis_server(shared_redis):
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

    def store(self, **retention: Any) -> SessionStore:
        self.stores.append(self._make(Retention(**retention)))
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
                timeout_seconds=20.0,
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
    def make(steps: int = 5, seed: int = 0) -> Memory:
        generator = np.random.default_rng(seed)
        state = {name: generator.standard_normal(spec.shape).astype(spec.dtype) for name, spec in model.states.items()}
        snapshot = Snapshot(state, np.array([7, 1 << 40], np.int64))
        return remember(model, snapshot, consumed=steps, now=1e9 + seed, context=np.arange(8))

    return make
