"""A language model's stream: start, feed and cancel in; accepted, token and finished out."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import WebSocket

from carousel.models.codec.text import TextCodec
from carousel.service.api.routes.context import Context
from carousel.service.api.routes.direct_frames import token_frames
from carousel.service.api.stream.connection import Work
from carousel.service.api.stream.raw import RawConnection
from carousel.service.api.wire import frames
from carousel.service.api.wire.messages import Cancel
from carousel.service.api.wire.sampling import check_top_k
from carousel.service.engine.parameters import Ids
from carousel.service.engine.port import Place, Snapshot
from carousel.service.errors import RequestError
from carousel.service.observability.requests import RequestRecord
from carousel.service.sessions.memory import NO_IDS
from carousel.service.tasks.language.stream_messages import Feed, Start, StreamMessage
from carousel.service.work.generation import Generation, Token
from carousel.service.work.memories import MemoryChoice, Recall
from carousel.service.work.prompt import check_unconsumed, prompt_ids, unknown_tokens

DEFAULT_MAX_TOKENS = 256


class TextConnection(RawConnection):
    """One socket of a language model. It keeps the memory of its last generation, which a `feed` goes on from."""

    def __init__(self, websocket: WebSocket, name: str, task: str, context: Context) -> None:
        super().__init__(websocket, name, task, context)
        self._session: str | None = None
        """The session that the last start named: it is what a feed goes on from."""
        self._memory: Snapshot | None = None
        self._memory_of = ""
        """The digest of the version that left it."""
        self._context: Ids = NO_IDS
        """The last ids of the socket's text, which the detokeniser of a `feed` must know."""

    async def parse(self, message: Any) -> Start | Feed | Cancel:
        """A text frame; anything else is refused."""
        if message.get("text") is None:
            self.refuse("unsupported_frame", "a binary frame came; this model takes JSON text frames")
        return await self.parse_json(message["text"], StreamMessage)

    def begin(self, request: Start | Feed) -> Work:
        """A generation from the beginning, or from where the last one ended."""
        if isinstance(request, Feed) and self._memory is None:
            self.refuse("out_of_order", "feed came before any generation on this socket; send start first")
        self.urgency = request.urgency
        return partial(self._send_events, request)

    async def _send_events(self, request: Start | Feed, admission: Place, record: RequestRecord) -> None:
        prompt = await prompt_ids(self.model, request.text_or_ids)
        if isinstance(request, Start):
            self._session, choice = request.session, request.memory
        else:
            choice = MemoryChoice(self._session, return_state=request.return_state)
        async with self.context.memories.recall(self.model.identity, choice) as recall:
            await self._generate_from(recall, request, prompt, admission, record)

    async def _generate_from(
        self, recall: Recall, request: Start | Feed, prompt: Ids, admission: Place, record: RequestRecord
    ) -> None:
        model, choice = self.model, recall.choice
        memory, context = recall.snapshot, recall.context
        if isinstance(request, Feed):
            if choice.session is None:
                if self._memory_of != model.bundle.digest:
                    raise RequestError(
                        "model_mismatch",
                        f"{model.name} version {model.bundle.version} is served now, and another one left the "
                        "memory of this socket; send start with the whole text",
                    )
                memory, context = self._memory, self._context
            elif memory is None:
                raise RequestError("unknown_session", f"session {choice.session!r} was deleted; send start first")
        check_unconsumed(model, memory, len(prompt))
        try:
            sampling = request.sampling.parameters(model.bundle.manifest, default_max_tokens=DEFAULT_MAX_TOKENS)
            check_top_k(sampling.top_k, model.bundle.codec(TextCodec).vocabulary_size)
        except ValueError as error:
            raise RequestError("invalid_request", f"sampling: {error}") from None
        generation = Generation(
            model,
            admission,
            prompt,
            sampling,
            request.sampling.stop,
            snapshot=memory,
            context=context,
            keep_state=True,
            on_overflow=self.overflowed(record),
            cache_salt=request.cache_salt if isinstance(request, Start) else None,
        )
        self.hold(generation)
        unknown = unknown_tokens(model, prompt)
        await self.send(frames.accepted(record.request_id, model, len(prompt), generation.cached_tokens, unknown))
        async for event in generation.events(token_frames(self.websocket.scope, frames.token_json)):
            if isinstance(event, Token):
                await self.websocket.send_text(frames.token_json(event))
            else:
                self._memory, self._context = event.snapshot, generation.context
                self._memory_of = model.bundle.digest
                if choice.keeps:
                    assert event.snapshot is not None
                    consumed = event.usage.prompt_tokens + event.usage.completion_tokens
                    await recall.keep(event.snapshot, consumed=consumed, context=generation.context)
                await self.send_end(event, record, **recall.told)
