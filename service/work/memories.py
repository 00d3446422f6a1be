"""Where a request's memory comes from and where it goes: a session, a state token, or nowhere."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from carousel.service.engine.parameters import Ids
from carousel.service.engine.port import Snapshot
from carousel.service.keys.caller import current_caller
from carousel.service.observability.metrics import Metrics
from carousel.service.sessions.errors import UnknownSession
from carousel.service.sessions.key import SessionKey
from carousel.service.sessions.memory import NO_IDS, Memory, ModelIdentity, check_fit, remember
from carousel.service.sessions.process_store import ProcessSessionStore
from carousel.service.sessions.refusals import unknown
from carousel.service.sessions.sessions import Change, OpenSession, Sessions, SessionView
from carousel.service.sessions.store import Retention, SessionStore
from carousel.service.sessions.tokens import MIN_KEY_BYTES, TokenSigner
from carousel.service.settings import Settings

logger = logging.getLogger("carousel.sessions")

MAX_MARKS = 256
"""Attempts that a session keeps for its picture: as many as a screen can tell apart."""


@dataclass(frozen=True, slots=True)
class MemoryChoice:
    """Which memory a request goes on from, and who keeps the new one.

    Args:
        session: id of the session to go on from and to write.
        state: a token to go on from.
        return_state: whether the answer brings a token of the new memory.
        begin: whether what the session holds is forgotten (`new`), or must be there (`old`).
        drop: whether the session ends with the request.
    """

    session: str | None = None
    state: str | None = None
    return_state: bool = False
    begin: Literal["new", "old", "either"] = "either"
    drop: bool = False

    @property
    def keeps(self) -> bool:
        """Whether anybody wants the new memory."""
        return (self.session is not None and not self.drop) or self.return_state

    @property
    def resumes(self) -> bool:
        """Whether there may be a memory to go on from."""
        return self.session is not None or self.state is not None


class Recall:
    """The memory of one request, for as long as it runs."""

    def __init__(
        self,
        model: ModelIdentity,
        choice: MemoryChoice,
        sessions: Sessions,
        signer: TokenSigner,
        before: Memory | None,
        held: OpenSession | None,
    ) -> None:
        self._model = model
        self._sessions = sessions
        self._signer = signer
        self._held = held
        self.choice = choice
        self.before = before
        self._state: str | None = None

    @property
    def snapshot(self) -> Snapshot | None:
        """What to go on from; None starts from zeros."""
        return None if self.before is None else self.before.snapshot

    @property
    def context(self) -> Ids:
        """The last ids before this request."""
        return NO_IDS if self.before is None else self.before.context

    async def keep(
        self,
        snapshot: Snapshot,
        *,
        consumed: int,
        context: Ids = NO_IDS,
        marks: Sequence[bytes] = (),
        signed: Snapshot | None = None,
    ) -> None:
        """Write the session and sign the token, where they are wanted. Lets the session go.

        Args:
            snapshot: how the request ended.
            consumed: ids that it added to the memory.
            context: the last ids, which a detokeniser must know.
            marks: for the session's trail.
            signed: what a token holds, where that is not `snapshot`.

        Raises:
            SessionError
        """
        change = self.note(snapshot, consumed=consumed, context=context, marks=marks, signed=signed)
        if change is not None:
            await self._sessions.commit(change)

    def note(
        self,
        snapshot: Snapshot,
        *,
        consumed: int,
        context: Ids = NO_IDS,
        marks: Sequence[bytes] = (),
        signed: Snapshot | None = None,
    ) -> Change | None:
        """As `keep`, but what is to be written to the session is for `Sessions.commit`, with that of other learners."""
        memory = remember(
            self._model, snapshot, consumed=consumed, now=time.time(), before=self.before, context=context
        )
        if self.choice.return_state:
            portable = memory if signed is None else replace(memory, snapshot=signed)
            self._state = self._signer.sign(portable, current_caller().tenant)
        return None if self._held is None else Change(self._held, memory, marks)

    @property
    def told(self) -> dict[str, str]:
        """What the answer says of the new memory."""
        told = {} if self.choice.session is None else {"session": self.choice.session}
        return told if self._state is None else {**told, "state": self._state}


class Memories:
    """Sessions and tokens as requests use them.

    Args:
        sessions: those that the server keeps.
        signer: of those that clients keep.
    """

    def __init__(self, sessions: Sessions, signer: TokenSigner) -> None:
        self.sessions = sessions
        self._signer = signer

    @asynccontextmanager
    async def recall(self, model: ModelIdentity, choice: MemoryChoice) -> AsyncIterator[Recall]:
        """Hold a request's memory for the time of a `with` block; leaving it without `keep` changes nothing.

        Raises:
            SessionError
        """
        tenant = current_caller().tenant
        # What cannot be kept is not computed either. How much it is to the byte shows when it is encoded.
        if choice.return_state:
            self._signer.check_size(model.state_bytes)
        if choice.session is not None:
            self.sessions.check_size(model.state_bytes)
        before = None if choice.state is None else self._signer.open(choice.state, tenant, model)
        if choice.session is None:
            yield Recall(model, choice, self.sessions, self._signer, before, None)
            return
        key = SessionKey(tenant, model.name, choice.session)
        async with self.sessions.open(key, model, anew=choice.begin == "new") as held:
            if choice.begin == "old" and held.memory is None:
                raise unknown(key)
            yield Recall(model, choice, self.sessions, self._signer, held.memory, held)
        if choice.drop:
            with contextlib.suppress(UnknownSession):  # of one that began here
                await self.sessions.delete(key)

    async def look(
        self, model: str, session: str, *, trail: bool = False, fits: ModelIdentity | None = None
    ) -> SessionView:
        """What a session of the caller's holds; where `fits` is given, refused unless that model can go on from it.

        Raises:
            SessionError
        """
        view = await self.sessions.look(SessionKey(current_caller().tenant, model, session), trail=trail)
        if fits is not None:
            check_fit(view.memory, fits)
        return view

    async def delete(self, model: str, session: str) -> None:
        """Forget a session of the caller's.

        Raises:
            SessionError
        """
        await self.sessions.delete(SessionKey(current_caller().tenant, model, session))


def open_memories(settings: Settings, metrics: Metrics) -> Memories:
    """The store and the keys that the settings name.

    Raises:
        ValueError: a URL or a key that cannot be used.
    """
    retention = Retention(
        ttl_seconds=settings.session_ttl_seconds, max_marks=MAX_MARKS, max_value_bytes=settings.max_session_bytes
    )

    def count(reason: str) -> None:
        metrics.sessions_evicted.labels(reason).inc()

    store: SessionStore
    if settings.redis_url is None:
        store = process_store = ProcessSessionStore(
            retention, max_sessions=settings.max_sessions, max_bytes=settings.session_store_bytes, on_evicted=count
        )
        metrics.sessions.set_function(lambda: len(process_store))
        metrics.sessions_bytes.set_function(lambda: process_store.size_bytes)
    else:
        from carousel.service.sessions.redis_store import RedisSessionStore  # here: its client is 7 MB, which few need

        store = RedisSessionStore(settings.redis_url.get_secret_value(), retention, on_evicted=count)
    return Memories(Sessions(store), TokenSigner(_keys(settings), settings.max_state_token_bytes))


def _keys(settings: Settings) -> list[bytes]:
    if settings.state_key is None:
        # Whoever shares sessions has replicas: there a token comes back to another process than made it.
        shared = settings.redis_url is not None
        logger.log(
            logging.WARNING if shared else logging.INFO,
            "CAROUSEL_STATE_KEY is not set: state tokens are signed with a random key that only this process knows "
            "and are worth nothing after its end%s",
            ", and nothing at other replicas: give all that share a Redis one key (openssl rand -hex 32)" * shared,
        )
        return [secrets.token_bytes(MIN_KEY_BYTES)]
    return [key.encode() for key in settings.state_key.get_secret_value().split(",")]
