"""Sessions as a request sees them."""

import asyncio
import dataclasses

import numpy as np
import pytest

from carousel.service.engine.port import Snapshot
from carousel.service.sessions.codec import encode
from carousel.service.sessions.errors import LeaseLost, ModelMismatch, SessionBusy, StoreUnavailable, UnknownSession
from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.memory import remember
from carousel.service.sessions.process_store import ProcessSessionStore
from carousel.service.sessions.sessions import Change, Sessions
from carousel.service.sessions.store import Retention, Writing

KEY = SessionKey("school", "tutor", "ada")


@pytest.fixture
def store():
    return ProcessSessionStore(Retention())


@pytest.fixture
async def sessions(store):
    sessions = Sessions(store)
    yield sessions
    await sessions.close()


async def test_session_goes_on_from_what_was_committed(harness, model, make_memory):
    sessions = Sessions(harness.store())
    memory = make_memory(steps=3)
    async with sessions.open(KEY, model) as session:
        assert session.memory is None
        await sessions.commit(Change(session, memory, [b"1", b"2", b"3"]))
    async with sessions.open(KEY, model) as session:
        assert encode(session.memory) == encode(memory)
        snapshot = Snapshot(session.memory.snapshot.state, np.zeros(0, np.int64))
        await sessions.commit(
            Change(session, remember(model, snapshot, consumed=1, now=2e9, before=session.memory), [b"4"])
        )
    view = await sessions.look(KEY, trail=True)
    assert (view.memory.steps, view.trail) == (4, (b"1", b"2", b"3", b"4"))
    assert view.expires_in_seconds == pytest.approx(3600, abs=60)
    await sessions.delete(KEY)
    with pytest.raises(UnknownSession):
        await sessions.look(KEY)


async def test_request_that_fails_leaves_the_session_as_it_was_and_free(sessions, model, make_memory):
    async with sessions.open(KEY, model) as session:
        await sessions.commit(Change(session, make_memory(steps=3)))
    with pytest.raises(ZeroDivisionError):
        async with sessions.open(KEY, model):
            raise ZeroDivisionError
    async with sessions.open(KEY, model) as session:
        assert session.memory.steps == 3


async def test_second_request_is_busy_until_the_first_is_done(sessions, model, make_memory):
    async with sessions.open(KEY, model) as session:
        with pytest.raises(SessionBusy):
            async with sessions.open(KEY, model):
                pass
        await sessions.commit(Change(session, make_memory()))
        async with sessions.open(KEY, model) as second:  # a commit lets go at once
            assert second.memory is not None


async def test_session_of_another_model_version_is_refused_and_let_go(sessions, model, make_memory):
    async with sessions.open(KEY, model) as session:
        await sessions.commit(Change(session, make_memory()))
    newer = dataclasses.replace(model, version=5, digest="cd" * 32)
    for _ in range(2):
        with pytest.raises(ModelMismatch, match="version 5"):
            async with sessions.open(KEY, newer):
                pass
    assert (await sessions.look(KEY)).memory.version == 4
    async with sessions.open(KEY, dataclasses.replace(model, version=6)) as session:
        assert session.memory is not None


async def test_session_in_an_unreadable_format_is_refused_and_let_go(sessions, store, model):
    await store.commit([Writing(await store.acquire(KEY), b"CRM\x03 of the future")])
    for _ in range(2):
        with pytest.raises(ModelMismatch, match="another format"):
            async with sessions.open(KEY, model):
                pass
    with pytest.raises(ModelMismatch):
        await sessions.look(KEY)
    await sessions.delete(KEY)


class Gate:
    """A store whose calls wait to be let through."""

    waits = True

    def __init__(self, store, **overrides):
        self.retention = dataclasses.replace(store.retention, **overrides)
        self._store = store
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.renewals = asyncio.Queue()
        self.renewal_error = None
        self.renewing = asyncio.Event()
        self.renewing.set()

    async def acquire(self, key):
        self.entered.set()
        await self.open.wait()
        return await self._store.acquire(key)

    async def renew(self, lease):
        self.renewals.put_nowait(lease)
        await self.renewing.wait()
        if self.renewal_error is not None:
            raise self.renewal_error

    async def release(self, lease):
        await self.open.wait()
        await self._store.release(lease)

    async def commit(self, writings):
        await self._store.commit(writings)

    async def close(self):
        pass


async def test_request_cancelled_while_it_waits_for_its_lease_gives_it_back(store, model):
    gate = Gate(store)
    sessions = Sessions(gate)

    async def request():
        async with sessions.open(KEY, model):
            pass

    task = asyncio.create_task(request())
    await gate.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open.set()
    await sessions.close()
    await store.release(await store.acquire(KEY))


async def test_request_cancelled_twice_gives_its_lease_back(store, model):
    gate = Gate(store)
    gate.open.set()
    sessions = Sessions(gate)
    holding = asyncio.Event()

    async def request():
        async with sessions.open(KEY, model):
            gate.open.clear()
            holding.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await holding.wait()
    while not task.done():  # as a cancel scope does: at every await anew
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(SessionBusy):
        await store.acquire(KEY)
    gate.open.set()
    await sessions.close()
    await store.release(await store.acquire(KEY))


async def assert_not_renewed_any_more(gate, sessions, model):
    """Over three renewals of another session, the first one has none."""
    gate.renewal_error = None
    while not gate.renewals.empty():
        gate.renewals.get_nowait()
    other = dataclasses.replace(KEY, session="bob")
    async with sessions.open(other, model):
        leases = [await asyncio.wait_for(gate.renewals.get(), 20) for _ in range(3)]
    assert {lease.key for lease in leases} == {other}


@pytest.mark.parametrize("error", [None, StoreUnavailable("away")])
async def test_lease_is_renewed_for_as_long_as_the_session_is_open(store, model, make_memory, error):
    gate = Gate(store, lease_seconds=0.03)
    gate.open.set()
    gate.renewal_error = error
    sessions = Sessions(gate)
    async with sessions.open(KEY, model) as session:
        leases = [await asyncio.wait_for(gate.renewals.get(), 20) for _ in range(4)]
        await sessions.commit(Change(session, make_memory()))
    assert {lease.key for lease in leases} == {KEY}
    await assert_not_renewed_any_more(gate, sessions, model)


async def test_lost_lease_is_not_renewed_and_its_commit_fails(store, model, make_memory):
    gate = Gate(store, lease_seconds=0.03)
    gate.open.set()
    gate.renewal_error = LeaseLost("gone")
    sessions = Sessions(gate)
    async with sessions.open(KEY, model) as session:
        await asyncio.wait_for(gate.renewals.get(), 20)
        await store.release(session.lease)
        with pytest.raises(LeaseLost):
            await sessions.commit(Change(session, make_memory()))
        await assert_not_renewed_any_more(gate, sessions, model)


async def test_renewal_that_ends_after_its_session_is_the_last(store, model, make_memory):
    gate = Gate(store, lease_seconds=0.03)
    gate.open.set()
    gate.renewing.clear()
    sessions = Sessions(gate)
    async with sessions.open(KEY, model) as session:
        await asyncio.wait_for(gate.renewals.get(), 20)
        await sessions.commit(Change(session, make_memory()))
    gate.renewing.set()
    await assert_not_renewed_any_more(gate, sessions, model)
    await sessions.close()
