"""What only the store in this process does: make room, and clear up after time."""

import tracemalloc

import pytest

from carousel.service.sessions.errors import ExpiredSession, UnknownSession
from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.process_store import ENTRY_BYTES, MARK_BYTES, SWEEP, ProcessSessionStore
from carousel.service.sessions.store import Retention, Writing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_store(clock):
    def make(ttl_seconds=60.0, tombstone_seconds=600.0, max_marks=1000, **bounds):
        evicted = []
        retention = Retention(ttl_seconds, tombstone_seconds, max_marks=max_marks)
        store = ProcessSessionStore(retention, clock=clock, on_evicted=evicted.append, **bounds)
        return store, evicted

    return make


def key(i):
    return SessionKey("school", "tutor", f"learner-{i}")


async def put(store, i, value=b"", marks=()):
    await store.commit([Writing(await store.acquire(key(i)), value, marks)])


async def test_least_recently_used_session_makes_room(make_store):
    store, evicted = make_store(max_sessions=3)
    for i in (0, 1, 2, 0, 3):
        await put(store, i)
    assert (len(store), evicted) == (3, ["lru"])
    with pytest.raises(ExpiredSession):
        await store.acquire(key(1))
    for i in (0, 2, 3):
        await store.peek(key(i))


async def test_looking_does_not_save_a_session_from_making_room(make_store):
    store, _ = make_store(max_sessions=2)
    await put(store, 0)
    await put(store, 1)
    await store.peek(key(0))
    await put(store, 2)
    with pytest.raises(ExpiredSession):
        await store.peek(key(0))


async def test_sessions_take_no_more_bytes_than_allowed(make_store):
    bound = 5 * (ENTRY_BYTES + 1000)
    store, evicted = make_store(max_bytes=bound)
    for i in range(5):
        await put(store, i, b"x" * 1000)
    assert (store.size_bytes, evicted) == (bound, [])
    await put(store, 4, b"x" * 1000, [b"mark"])
    assert evicted == ["lru"]
    assert store.size_bytes == 4 * (ENTRY_BYTES + 1000) + MARK_BYTES + 4
    await put(store, 9, b"x" * 10 * bound)
    assert len(store) == 1  # one that is larger than all may be together stays until the next comes


async def test_size_is_right_whatever_is_written_and_goes(make_store):
    store, _ = make_store(max_marks=3)
    for value, marks in ((b"x" * 50, [b"a", b"bb"]), (b"", [b"ccc", b"dddd", b"e"]), (b"yy", [b"f"] * 7)):
        await put(store, 0, value, marks)
        trail = (await store.peek(key(0), trail=True)).trail
        assert store.size_bytes == ENTRY_BYTES + len(value) + sum(MARK_BYTES + len(mark) for mark in trail)
    await store.delete(key(0))
    assert store.size_bytes == 0


async def test_size_is_near_what_the_process_really_holds(make_store):
    store, _ = make_store()
    tracemalloc.start()
    try:
        for i in range(2000):
            await put(store, i, bytes(1700), [b"%d" % n for n in range(i % 30)])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.6 * store.size_bytes < held < 1.1 * store.size_bytes


async def test_overdue_sessions_are_cleared_away_a_few_at_a_time(make_store, clock):
    store, evicted = make_store()
    for i in range(3 * SWEEP):
        await put(store, i)
    clock.now += 61
    await put(store, "new")
    assert len(evicted) == SWEEP
    with pytest.raises(ExpiredSession):  # not cleared away yet, and gone nevertheless
        await store.peek(key(3 * SWEEP - 1))
    for _ in range(3):
        len(store)
    assert (len(store), len(evicted), set(evicted)) == (1, 3 * SWEEP, {"ttl"})


async def test_tombstones_are_bounded_and_forgotten(make_store, clock):
    store, _ = make_store(max_sessions=2)
    for i in range(5):
        await put(store, i)
    with pytest.raises(UnknownSession):
        await store.peek(key(0))  # its tombstone made room
    with pytest.raises(ExpiredSession):
        await store.peek(key(1))
    clock.now += 601
    with pytest.raises(UnknownSession):
        await store.peek(key(1))


async def test_leases_of_the_vanished_are_forgotten(make_store, clock):
    store, _ = make_store()
    for i in range(SWEEP):
        await store.acquire(key(i))
    clock.now += 11
    await put(store, "new")
    assert not store._leases


async def test_session_that_made_room_while_held_is_written_again(make_store):
    store, _ = make_store(max_sessions=1)
    await put(store, 0, b"old", [b"mark"])
    lease = await store.acquire(key(0))
    await put(store, 1)
    await store.commit([Writing(lease, b"new", [b"next"])])
    kept = await store.peek(key(0), trail=True)
    assert (kept.value, kept.trail) == (b"new", (b"next",))
