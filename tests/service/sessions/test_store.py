"""The contract that both stores keep."""

import asyncio

import pytest

from carousel.service.sessions.errors import ExpiredSession, LeaseLost, MemoryTooLarge, SessionBusy, UnknownSession
from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.store import Writing

KEY = SessionKey("school", "tutor", "ada")
OTHERS = [
    SessionKey("academy", "tutor", "ada"),
    SessionKey("school", "writer", "ada"),
    SessionKey("school", "tutor", "ad"),
]


async def put(store, key, value, marks=()):
    await store.commit([Writing(await store.acquire(key), value, marks)])


async def test_session_is_new_until_its_first_commit(harness):
    store = harness.store()
    lease = await store.acquire(KEY)
    assert lease.value is None
    await store.release(lease)
    with pytest.raises(UnknownSession):
        await store.peek(KEY)


async def test_session_gives_back_the_bytes_of_the_last_commit(harness):
    store = harness.store()
    content = bytes(range(256))
    for value in (b"first", b"", content):
        await put(store, KEY, value)
        assert (await store.peek(KEY)).value == value
    assert (await store.acquire(KEY)).value == content


async def test_session_of_another_tenant_model_or_id_is_absent(harness):
    store = harness.store()
    await put(store, KEY, b"mine")
    held = await store.acquire(KEY)
    for key in OTHERS:
        with pytest.raises(UnknownSession):
            await store.peek(key)
        with pytest.raises(UnknownSession):
            await store.delete(key)
        lease = await store.acquire(key)
        assert lease.value is None
        await store.commit([Writing(lease, b"theirs")])
    await store.commit([Writing(held, b"still mine")])
    assert (await store.peek(KEY)).value == b"still mine"


async def test_commit_of_several_writes_each_its_own(harness):
    store, first, *rest = harness.store(), KEY, *OTHERS
    await put(store, first, b"before", [b"0"])
    leases = [await store.acquire(key) for key in (first, *rest)]
    await store.commit(
        [Writing(lease, b"%d" % i, [b"%d" % mark for mark in range(i)]) for i, lease in enumerate(leases)]
    )
    for i, key in enumerate((first, *rest)):
        kept = await store.peek(key, trail=True)
        marks = tuple(b"%d" % mark for mark in range(i))
        assert (kept.value, kept.trail) == (b"%d" % i, marks if i else (b"0",))
        await store.release(await store.acquire(key))  # all were let go


@pytest.mark.parametrize("lost", range(3))
async def test_commit_of_several_writes_none_where_one_lease_is_lost(harness, lost):
    store, keys = harness.store(), OTHERS
    await put(store, keys[0], b"before", [b"mark"])
    leases = [await store.acquire(key) for key in keys]
    await store.release(leases[lost])
    with pytest.raises(LeaseLost, match=keys[lost].session):
        await store.commit([Writing(lease, b"after", [b"more"]) for lease in leases])
    kept = await store.peek(keys[0], trail=True)
    assert (kept.value, kept.trail) == (b"before", (b"mark",))
    for key in keys[1:]:
        with pytest.raises(UnknownSession):
            await store.peek(key)
    others = [lease for lease in leases if lease is not leases[lost]]
    await store.commit([Writing(lease, b"after") for lease in others])  # they hold


async def test_commit_of_several_writes_none_where_one_is_too_large(harness):
    store = harness.store(max_value_bytes=100)
    leases = [await store.acquire(key) for key in OTHERS]
    sizes = [100, 101, 100]
    with pytest.raises(MemoryTooLarge):
        await store.commit([Writing(lease, b"x" * size) for lease, size in zip(leases, sizes, strict=True)])
    await store.commit([Writing(lease, b"x" * 100) for lease in leases])


async def test_lease_is_one_at_a_time(harness):
    store = harness.store()
    lease = await store.acquire(KEY)
    with pytest.raises(SessionBusy, match="'ada'"):
        await store.acquire(KEY)
    with pytest.raises(SessionBusy):
        await store.delete(KEY)
    await store.release(lease)
    await put(store, KEY, b"next")


async def test_lease_ends_with_its_commit(harness):
    store = harness.store()
    lease = await store.acquire(KEY)
    await store.commit([Writing(lease, b"one")])
    second = await store.acquire(KEY)
    assert second.value == b"one"
    await store.release(lease)  # of the first, long over: the second holds all the same
    with pytest.raises(SessionBusy):
        await store.acquire(KEY)
    await store.commit([Writing(second, b"two")])


async def test_release_without_commit_changes_nothing(harness):
    store = harness.store()
    await put(store, KEY, b"one", [b"mark"])
    lease = await store.acquire(KEY)
    await store.release(lease)
    await store.release(lease)
    assert (await store.peek(KEY, trail=True)).trail == (b"mark",)
    assert (await store.acquire(KEY)).value == b"one"


async def test_one_of_many_contenders_wins(harness):
    stores = harness.replicas(2)
    results = await asyncio.gather(*(stores[i % 2].acquire(KEY) for i in range(20)), return_exceptions=True)
    assert sum(isinstance(result, SessionBusy) for result in results) == 19


async def test_lease_expires_so_that_a_crash_locks_nobody_out(harness):
    store = harness.store(lease_seconds=10)
    await store.acquire(KEY)
    harness.elapse(9.5)
    with pytest.raises(SessionBusy):
        await store.acquire(KEY)
    harness.elapse(0.6)
    await put(store, KEY, b"next")


async def test_renewed_lease_lasts(harness):
    store = harness.store(lease_seconds=10)
    lease = await store.acquire(KEY)
    for _ in range(3):
        harness.elapse(8)
        await store.renew(lease)
    with pytest.raises(SessionBusy):
        await store.acquire(KEY)
    await store.commit([Writing(lease, b"done")])


async def test_expired_lease_cannot_overwrite_what_came_after(harness):
    store = harness.store(lease_seconds=10)
    await put(store, KEY, b"zero")
    slow = await store.acquire(KEY)
    harness.elapse(11)
    await put(store, KEY, b"newer")
    for attempt in (store.commit([Writing(slow, b"older")]), store.renew(slow)):
        with pytest.raises(LeaseLost):
            await attempt
    assert (await store.peek(KEY)).value == b"newer"


async def test_expired_lease_cannot_write_while_another_holds(harness):
    store = harness.store(lease_seconds=10)
    slow = await store.acquire(KEY)
    harness.elapse(11)
    fast = await store.acquire(KEY)
    with pytest.raises(LeaseLost):
        await store.commit([Writing(slow, b"older")])
    await store.release(slow)
    with pytest.raises(SessionBusy):
        await store.acquire(KEY)
    await store.commit([Writing(fast, b"newer")])


async def test_expired_lease_cannot_bring_a_deleted_session_back(harness):
    store = harness.store(lease_seconds=10)
    await put(store, KEY, b"private")
    slow = await store.acquire(KEY)
    harness.elapse(11)
    await store.delete(KEY)
    with pytest.raises(LeaseLost):
        await store.commit([Writing(slow, b"private")])
    with pytest.raises(UnknownSession):
        await store.peek(KEY)


async def test_session_expires_when_it_is_not_used(harness):
    store = harness.store(ttl_seconds=60, lease_seconds=5)
    await put(store, KEY, b"old", [b"mark"])
    harness.elapse(61)
    for attempt in (store.acquire(KEY), store.peek(KEY), store.acquire(KEY)):
        with pytest.raises(ExpiredSession, match="'ada'") as error:
            await attempt
        assert error.value.status == 410
    with pytest.raises(UnknownSession):
        await store.peek(OTHERS[0])


async def test_session_lives_on_while_it_is_used(harness):
    store = harness.store(ttl_seconds=60, lease_seconds=50)
    await put(store, KEY, b"value")
    for _ in range(3):
        harness.elapse(40)
        await store.release(await store.acquire(KEY))
    lease = await store.acquire(KEY)
    for _ in range(3):
        harness.elapse(40)
        await store.renew(lease)
    harness.elapse(40)
    await store.commit([Writing(lease, b"next")])
    harness.elapse(40)
    assert (await store.peek(KEY)).value == b"next"


async def test_peek_is_no_use(harness):
    store = harness.store(ttl_seconds=60)
    await put(store, KEY, b"value")
    harness.elapse(40)
    assert (await store.peek(KEY)).expires_in_seconds == pytest.approx(20, abs=1)
    harness.elapse(30)
    with pytest.raises(ExpiredSession):
        await store.peek(KEY)


async def test_tombstone_is_forgotten_in_the_end(harness):
    store = harness.store(ttl_seconds=60, tombstone_seconds=600)
    await put(store, KEY, b"value")
    harness.elapse(61)
    with pytest.raises(ExpiredSession):
        await store.peek(KEY)
    harness.elapse(601)
    with pytest.raises(UnknownSession):
        await store.peek(KEY)
    assert (await store.acquire(KEY)).value is None


async def test_deleted_session_is_unknown_and_its_id_free(harness):
    store = harness.store()
    await put(store, KEY, b"value", [b"mark"])
    await store.delete(KEY)
    assert harness.evicted == ["deleted"]
    with pytest.raises(UnknownSession) as error:
        await store.peek(KEY)
    assert error.value.status == 404
    with pytest.raises(UnknownSession):
        await store.delete(KEY)
    await put(store, KEY, b"again", [b"new"])
    assert (await store.peek(KEY, trail=True)).trail == (b"new",)
    assert harness.evicted == ["deleted"]


async def test_deleting_an_expired_session_frees_its_id(harness):
    store = harness.store(ttl_seconds=60)
    await put(store, KEY, b"value", [b"mark"])
    harness.elapse(61)
    await store.delete(KEY)
    await put(store, KEY, b"again", [b"new"])
    assert (await store.peek(KEY, trail=True)).trail == (b"new",)
    assert "deleted" not in harness.evicted


async def test_session_may_expire_while_it_is_held_and_is_written_all_the_same(harness):
    store = harness.store(ttl_seconds=5, lease_seconds=60)
    await put(store, KEY, b"value")
    lease = await store.acquire(KEY)
    harness.elapse(6)
    await store.commit([Writing(lease, b"next")])
    assert (await store.peek(KEY)).value == b"next"
    await store.delete(KEY)
    with pytest.raises(UnknownSession):  # no tombstone of the time between is left
        await store.peek(KEY)


async def test_trail_appends_and_keeps_the_newest(harness):
    store = harness.store(max_marks=5)
    await put(store, KEY, b"", [b"0", b"\x00\xff"])
    assert (await store.peek(KEY, trail=True)).trail == (b"0", b"\x00\xff")
    await put(store, KEY, b"")
    await put(store, KEY, b"", [b"2", b"3", b"4", b"5"])
    assert (await store.peek(KEY, trail=True)).trail == (b"\x00\xff", b"2", b"3", b"4", b"5")
    await put(store, KEY, b"", [b"%d" % i for i in range(20_000)])
    assert (await store.peek(KEY, trail=True)).trail == (b"19995", b"19996", b"19997", b"19998", b"19999")
    assert (await store.peek(KEY)).trail == ()


async def test_value_or_mark_that_is_too_large_is_refused_and_the_lease_holds(harness):
    store = harness.store(max_value_bytes=100)
    lease = await store.acquire(KEY)
    for value, marks in ((b"x" * 101, []), (b"", [b"x" * 101])):
        with pytest.raises(MemoryTooLarge, match=r"101 bytes in one piece, and at most 100 are kept \(CAROUSEL_MAX_"):
            await store.commit([Writing(lease, value, marks)])
    await store.commit([Writing(lease, b"x" * 100, [b"x" * 100])])


async def test_state_of_megabytes_is_kept(harness):
    store, value = harness.store(), bytes(range(256)) * 8 * 1024
    await put(store, KEY, value, [b"mark"])
    assert (await store.peek(KEY, trail=True)).value == value
    lease = await store.acquire(KEY)
    assert lease.value == value
    with pytest.raises(MemoryTooLarge, match="16,777,217 bytes in one piece, and at most 16,777,216"):
        await store.commit([Writing(lease, bytes(16 * 1024 * 1024 + 1))])
    await store.commit([Writing(lease, bytes(16 * 1024 * 1024))])
    assert len((await store.peek(KEY)).value) == 16 * 1024 * 1024


async def test_store_serves_a_thousand_sessions_at_once(harness):
    store = harness.store()
    keys = [SessionKey("school", "tutor", f"learner-{i}") for i in range(1000)]
    for answer in (b"1", b"2"):
        await asyncio.gather(*(put(store, key, key.session.encode() + answer) for key in keys))
    kept = await asyncio.gather(*(store.peek(key) for key in keys))
    assert [one.value for one in kept] == [key.session.encode() + b"2" for key in keys]
