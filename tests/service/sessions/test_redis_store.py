"""What only the shared store does: outlive processes, lose its server and find it again."""

import asyncio
import logging
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from carousel.service.sessions.errors import ExpiredSession, LeaseLost, SessionBusy, StoreUnavailable, UnknownSession
from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.redis_store import RedisSessionStore
from carousel.service.sessions.store import Retention, Writing

ROOT = Path(__file__).parents[3]
KEY = SessionKey("school", "tutor", "ada")
PATIENT_SECONDS = 20.0


@pytest.fixture
async def make_store():
    stores = []

    def make(url, timeout_seconds=PATIENT_SECONDS, max_connections=32, **retention):
        stores.append(
            RedisSessionStore(
                url, Retention(**retention), timeout_seconds=timeout_seconds, max_connections=max_connections
            )
        )
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
def store(make_store, redis_server):
    return make_store(redis_server.url)


async def put(store, key, value, marks=()):
    await store.commit([Writing(await store.acquire(key), value, marks)])


async def eventually(attempt, error):
    """Call until it raises that error."""
    deadline = time.monotonic() + PATIENT_SECONDS
    while True:
        try:
            await attempt()
        except error:
            return
        assert time.monotonic() < deadline, f"never raised {error.__name__}"
        await asyncio.sleep(0.005)


async def test_redis_never_sees_an_id_and_every_key_has_a_time_to_live(store, redis_server):
    await put(store, KEY, b"value", [b"mark"])
    await store.acquire(KEY)
    names = redis_server.client.keys("*")
    assert {name.rpartition(b":")[2] for name in names} == {b"memory", b"trail", b"grave", b"lease"}
    for name in names:
        assert KEY.digest.encode() in name
        assert not any(part in name for part in (b"school", b"tutor", b"ada"))
        assert redis_server.client.pttl(name) > 0


async def test_every_use_prolongs_all_keys_of_a_session(make_store, redis_server):
    store = make_store(redis_server.url, ttl_seconds=60, tombstone_seconds=600, lease_seconds=1000)

    def seconds_left():
        keys = redis_server.client.keys("*")
        return {key.decode().rpartition(":")[2]: round(redis_server.client.pttl(key) / 1000) for key in keys}

    fresh = {"memory": 60, "trail": 60, "grave": 660}
    await put(store, KEY, b"value", [b"mark"])
    assert seconds_left() == fresh
    redis_server.elapse(30)
    lease = await store.acquire(KEY)
    assert seconds_left() == fresh | {"lease": 1000}
    redis_server.elapse(30)
    await store.renew(lease)
    assert seconds_left() == fresh | {"lease": 1000}
    redis_server.elapse(30)
    await store.commit([Writing(lease, b"value")])
    assert seconds_left() == fresh


async def test_nothing_of_a_deleted_session_stays_in_redis(store, redis_server):
    await put(store, KEY, b"value", [b"mark"])
    await store.delete(KEY)
    assert redis_server.client.keys("*") == []


async def test_session_outlives_the_process_that_made_it(make_store, redis_server):
    first = make_store(redis_server.url)
    await put(first, KEY, b"value", [b"mark"])
    await first.close()
    kept = await make_store(redis_server.url).peek(KEY, trail=True)
    assert (kept.value, kept.trail) == (b"value", (b"mark",))


async def test_two_processes_on_one_session_lose_no_answer(store, redis_server):
    command = [
        sys.executable,
        str(Path(__file__).with_name("increment.py")),
        redis_server.url,
        "2",
        "150",
        "ada",
        "bob",
    ]
    processes = [await asyncio.create_subprocess_exec(*command, cwd=ROOT, env={"PYTHONPATH": "."}) for _ in range(2)]
    for process in processes:
        assert await asyncio.wait_for(process.wait(), 60) == 0
    for name in ("ada", "bob"):
        kept = await store.peek(SessionKey("school", "tutor", name), trail=True)
        assert (kept.value, len(kept.trail)) == (b"150", 150)


async def test_killed_redis_that_persists_comes_back_with_sessions_and_leases(make_store, start_redis):
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    store = make_store(server.url)
    await put(store, KEY, b"value", [b"mark"])
    lease = await store.acquire(KEY)
    server.stop(kill=True)
    with pytest.raises(StoreUnavailable):
        await store.peek(KEY)
    server.start()
    kept = await store.peek(KEY, trail=True)
    assert (kept.value, kept.trail) == (b"value", (b"mark",))
    with pytest.raises(SessionBusy):
        await store.acquire(KEY)
    await store.commit([Writing(lease, b"next", [b"more"])])
    assert (await store.peek(KEY, trail=True)).trail == (b"mark", b"more")


async def test_redis_that_forgets_comes_back_empty_and_takes_no_write_from_before(make_store, start_redis):
    server = start_redis()
    store = make_store(server.url)
    await put(store, KEY, b"value")
    lease = await store.acquire(KEY)
    server.stop()
    server.start()
    with pytest.raises(UnknownSession):
        await store.peek(KEY)
    with pytest.raises(LeaseLost):
        await store.commit([Writing(lease, b"next")])
    await put(store, KEY, b"anew")
    assert (await store.peek(KEY)).value == b"anew"


async def test_commit_whose_first_answer_was_lost_says_the_same_again(store, redis_server):
    other = SessionKey("school", "tutor", "bob")
    leases = [await store.acquire(key) for key in (KEY, other)]
    writings = [Writing(lease, b"value", [b"mark"]) for lease in leases]
    for _ in range(2):
        await store.commit(writings)
    for key in (KEY, other):
        assert (await store.peek(key, trail=True)).trail == (b"mark",)
    await put(store, KEY, b"newer")  # one of them has gone on since
    await store.commit(writings)
    assert (await store.peek(KEY)).value == b"newer"


async def test_every_call_is_unavailable_while_redis_is_down_and_it_is_logged_once(make_store, start_redis, caplog):
    server = start_redis()
    store = make_store(server.url)
    lease = await store.acquire(KEY)
    server.stop()
    with caplog.at_level(logging.INFO, "carousel.sessions"):
        for attempt in (
            store.acquire(KEY),
            store.renew(lease),
            store.commit([Writing(lease, b"value")]),
            store.release(lease),
            store.peek(KEY),
            store.delete(KEY),
        ):
            with pytest.raises(StoreUnavailable, match="does not answer") as error:
                await attempt
            assert (error.value.status, error.value.retryable) == (503, True)
        server.start()
        await put(store, KEY, b"value")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def test_redis_that_hangs_is_unavailable_until_it_goes_on(make_store, start_redis):
    server = start_redis()
    store = make_store(server.url, timeout_seconds=0.1)
    await put(store, KEY, b"value")
    server.signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailable):
        await store.peek(KEY)
    server.signal(signal.SIGCONT)

    async def answers():
        try:
            raise LookupError((await store.peek(KEY)).value)
        except StoreUnavailable:  # it may be slow to wake
            pass

    await eventually(answers, LookupError)


async def test_full_redis_is_unavailable(make_store, start_redis):
    server = start_redis("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    with pytest.raises(StoreUnavailable):
        await put(make_store(server.url), KEY, b"value")


async def test_wrong_address_is_unavailable_and_shows_no_password(make_store):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = make_store(f"redis://user:sesame@127.0.0.1:{free.getsockname()[1]}/0")
        with pytest.raises(StoreUnavailable) as error:
            await store.acquire(KEY)
    assert "sesame" not in f"{error.value} {error.value.__cause__}"


def test_wrong_url_is_refused():
    with pytest.raises(ValueError, match="scheme"):
        RedisSessionStore("http://localhost", Retention())


async def test_redis_ends_sessions_and_leases_by_its_own_clock(make_store, redis_server):
    store = make_store(redis_server.url, ttl_seconds=0.05, tombstone_seconds=60, lease_seconds=0.05)
    await put(store, KEY, b"value")
    await eventually(lambda: store.peek(KEY), ExpiredSession)
    await store.delete(KEY)
    lease = await store.acquire(KEY)
    await eventually(
        lambda: store.renew(lease) if not redis_server.client.keys("*:lease") else asyncio.sleep(0), LeaseLost
    )
    await put(store, KEY, b"next")


async def test_lease_asked_for_twice_is_the_same(store):
    for _ in range(2):
        assert await store._run(store._acquire, [KEY], b"t" * 16, 9000, 9000, 9000) == [b"ok", None]


async def test_trail_that_outlived_its_session_is_not_inherited(store, redis_server):
    await put(store, KEY, b"value", [b"old"])
    for part in (b"memory", b"grave"):  # as Redis may do when its memory is full
        redis_server.client.delete(*redis_server.client.keys(b"*:" + part))
    await put(store, KEY, b"value", [b"new"])
    assert (await store.peek(KEY, trail=True)).trail == (b"new",)


async def test_cancelled_call_leaves_no_answer_for_the_next_one(make_store, redis_server):
    store = make_store(redis_server.url, max_connections=1)
    keys = [SessionKey("school", "tutor", name) for name in ("ada", "bob")]
    for key in keys:
        await put(store, key, key.session.encode())
    for turns in range(12):
        task = asyncio.create_task(store.peek(keys[0]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await store.peek(keys[1])).value == b"bob"


async def test_calls_beyond_the_connections_wait_their_turn(make_store, redis_server):
    store = make_store(redis_server.url, max_connections=2)
    keys = [SessionKey("school", "tutor", str(i)) for i in range(100)]
    await asyncio.gather(*(put(store, key, b"value") for key in keys))
    assert redis_server.client.info("clients")["connected_clients"] <= 3


async def test_a_thousand_sessions_at_once_are_kept(store):
    keys = [SessionKey("school", "tutor", str(i)) for i in range(1000)]
    await asyncio.gather(*(put(store, key, key.session.encode() + bytes(1800), [b"mark"]) for key in keys))
    kept = await asyncio.gather(*(store.peek(key) for key in keys))
    assert [entry.value for entry in kept] == [key.session.encode() + bytes(1800) for key in keys]
