"""A process of its own that counts up in shared sessions: python increment.py URL PROCESSES TIMES SESSION..."""

import asyncio
import sys

from carousel.service.sessions.errors import SessionBusy
from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.redis_store import RedisSessionStore
from carousel.service.sessions.store import Retention, SessionStore, Writing


async def increment(store: SessionStore, name: str) -> None:
    key = SessionKey("school", "tutor", name)
    while True:
        try:
            lease = await store.acquire(key)
            break
        except SessionBusy:
            await asyncio.sleep(0)
    await store.commit([Writing(lease, b"%d" % (int(lease.value or 0) + 1), [b"."])])


async def main(url: str, processes: str, times: str, *names: str) -> None:
    store = RedisSessionStore(url, Retention(), timeout_seconds=20)
    await increment(store, "ready")
    while (await store.peek(SessionKey("school", "tutor", "ready"))).value != processes.encode():
        pass
    for i in range(int(times)):
        await increment(store, names[i % len(names)])
    await store.close()


asyncio.run(main(*sys.argv[1:]))
