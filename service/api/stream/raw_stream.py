"""One raw stream: rows in, rows out, on any model, by a live sequence of its engine.

While it runs, a frame that cannot be taken changes nothing: in its place in the order of answers an `error` tells why,
with the number of the step that is next, and the stream goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple, cast

import numpy as np

from carousel.models.codec.text import CONTEXT_TOKENS
from carousel.service.api.routes.direct_frames import FRAME_READER, FRAME_WRITER, FrameReader, SocketWriter
from carousel.service.api.stream.connection import Connection, read_json
from carousel.service.api.stream.raw_frames import RawFrames, refused, told_ports
from carousel.service.api.wire.messages import Cancel
from carousel.service.api.wire.rows import RAW_MESSAGE, Finish, RawStart
from carousel.service.api.wire.slices import LARGE, LARGE_ANSWER
from carousel.service.engine.fed import Answer, Fed
from carousel.service.engine.parameters import FinishReason, Ids, LiveParameters
from carousel.service.engine.port import Ended, Events, Place, Request, Snapshot
from carousel.service.errors import RequestError, ServiceError
from carousel.service.keys.caller import current_caller
from carousel.service.observability.outcomes import CANCELLED, OK
from carousel.service.observability.requests import RequestRecord
from carousel.service.served.ports import as_fed
from carousel.service.served.repository import ServedModel
from carousel.service.sessions.memory import NO_IDS
from carousel.service.work.encoding import encode
from carousel.service.work.generation import raise_for
from carousel.service.work.rows import context_rows, encoder_ports

MAX_FRAMES = 32
MAX_BYTES = 1 << 20
"""In frames that are not answered, at most (but one may be longer); then the socket is not read."""

OWED = 64
"""Ids that are handed over at a time of those that a memory has not consumed: what a step says of each is held."""


class _Unanswered(NamedTuple):
    """A frame that the engine has."""

    steps: int
    """0 where it is of what is owed."""
    bytes: int
    ids: Ids
    """The last of them."""


class RawStream:
    """From a `start` to `finished`.

    Args:
        connection: whose socket it has for that time.
        start: what was asked for.
    """

    def __init__(self, connection: Connection, start: RawStart) -> None:
        self._connection = connection
        self._start = start
        self._caller = current_caller()
        self._loop = asyncio.get_running_loop()
        self._writer: SocketWriter | None = connection.websocket.scope.get(FRAME_WRITER)
        self._reader: FrameReader | None = connection.websocket.scope.get(FRAME_READER) if start.binary else None
        self.active_at = self._loop.time()
        """When a frame was last taken or answered."""
        self.over = False
        """Whether frames are no longer its business."""
        self._model: ServedModel | None = None
        self._frames: RawFrames | None = None
        self._place: Place | None = None
        self._events: Events | None = None
        self._changed = asyncio.Event()
        """Set when it has begun, when a frame is answered, and when it is over."""
        self._unanswered: deque[_Unanswered] = deque()
        self._bytes = 0
        self._taken = 0
        """Steps that were taken and told."""
        self._owed = NO_IDS
        """Ids that the memory has not consumed: they go before the frames', and what they lead to is not told."""
        self._context = NO_IDS
        """The last ids, which a detokeniser must know."""
        self._finishing = False

    @property
    def waits(self) -> bool:
        """Whether it is for the client to say something."""
        return not self._unanswered

    def cancel(self) -> None:
        """End it as it is after the last frame that was answered."""
        if self._place is not None:
            self._place.cancel()

    async def run(self, place: Place, record: RequestRecord) -> None:
        """Serve it, from the place taken for it to its last event."""
        try:
            await self._run(place, record)
        finally:
            self.end()

    def end(self) -> None:
        """No frame is its business any more."""
        self.over = True
        if self._reader is not None:
            self._reader.take = None
        self._changed.set()

    async def _run(self, place: Place, record: RequestRecord) -> None:
        connection, start, choice = self._connection, self._start, self._start.memory
        model = self._model = connection.model
        if not model.bundle.manifest.step.graph:
            raise RequestError("wrong_task", f"{model.name} is an encoder, which has no steps; POST predict")
        frames = self._frames = RawFrames(model, start, connection.context.settings.max_body_bytes)
        context, begun = context_rows(model, start.context), None
        if encoder_ports(model):
            encoding = await encode(model, start.inputs, batch=place.batch)
            context, begun = encoding.context, encoding.snapshot
        elif start.inputs:
            raise RequestError("invalid_request", "inputs: are of an encoder's ports, and there is none; send steps")
        async with connection.context.memories.recall(model.identity, choice) as recall:
            if recall.snapshot is not None:
                self._owed, self._context = recall.snapshot.pending, recall.context
            self._place = place
            connection.hold(self)
            await connection.send(
                {
                    "type": "accepted",
                    "request_id": record.request_id,
                    "model": model.name,
                    "version": model.bundle.version,
                    "inputs": told_ports(frames.inputs),
                    "outputs": told_ports(frames.outputs),
                    "max_steps": frames.max_steps,
                }
            )
            head = LiveParameters(tuple(frames.outputs), start.each)
            request = Request(NO_IDS, head, snapshot=recall.snapshot or begun, context=context, keep_state=choice.keeps)
            events = self._events = place.start(request, connection.overflowed(record), self._hand_over)
            if frames.ids:
                self._feed_owed()
            self._changed.set()
            if self._reader is not None:
                self._reader.take = self._take_now
            while isinstance(event := await events.get(), Answer):
                await self._send(event)
            assert isinstance(event, Ended)
            raise_for(model, event)
            model.metrics.queued(place)
            record.outcome = CANCELLED if event.reason is FinishReason.CANCELLED else OK
            if event.snapshot is not None:
                kept = Snapshot(event.snapshot.state, self._owed)
                await recall.keep(kept, consumed=self._taken, context=self._context)
            self.over = True
            told = {"type": "finished", "reason": event.reason.value, "steps": self._taken, **recall.told}
            await connection.send(told)

    async def take(self, message: Any) -> None:
        """Act on a frame that came while it runs; waits until there is room for its steps."""
        while self._events is None and not self.over:
            await self._change()
        if self.over:
            return
        try:
            fed = await self._read(message)
            while fed is not None and not self._has_room and not self.over:
                await self._change()
            if fed is not None:
                self._feed(fed, len(message.get("text") or message["bytes"]))
        except RequestError as error:
            while self._unanswered and not self.over:
                await self._change()
            if not self.over:
                await self._connection.websocket.send_text(refused(error, self._taken))

    def _take_now(self, content: bytes) -> bool:
        """Take a binary frame before it is queued, if all before it are taken, there is room, and it is a good one."""
        assert self._frames is not None
        assert self._reader is not None
        if self._reader.queued != self._connection.handled or self._finishing or not self._has_room:
            return False
        try:
            self._feed(self._frames.of_bytes(content), len(content))
        except RequestError:
            return False  # it is refused in its turn
        return True

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    @property
    def _has_room(self) -> bool:
        return len(self._unanswered) < MAX_FRAMES and (self._bytes < MAX_BYTES or not self._unanswered)

    async def _read(self, message: Any) -> Fed | None:
        """Steps of a frame; None where it is of another kind, which has been seen to.

        Raises:
            RequestError: it cannot be taken.
        """
        text, frames = message.get("text"), self._frames
        assert frames is not None
        if text is None:
            if not self._start.binary:
                raise RequestError("unsupported_frame", "a binary frame came; send steps as JSON, or start with binary")
            self._check_open("a binary frame")
            return frames.of_bytes(message["bytes"])
        frame = await read_json(text, RAW_MESSAGE)
        if isinstance(frame, Cancel):
            self.cancel()
            return None
        self._check_open(frame.type)
        if isinstance(frame, RawStart):
            raise RequestError("out_of_order", "start came while a raw stream runs; send finish first")
        if isinstance(frame, Finish):
            self._finishing = True
            self._hand(None)
            return None
        if self._start.binary:
            raise RequestError(
                "unsupported_frame", "steps came as JSON, and start asked for binary; send rows as bytes"
            )
        if len(text) < LARGE:
            return frames.of_json(frame)
        return await asyncio.to_thread(frames.of_json, frame)

    def _check_open(self, what: str) -> None:
        if self._finishing:
            raise RequestError("out_of_order", f"{what} came after finish; wait for finished")

    def _feed(self, fed: Fed, size: int) -> None:
        """Hand the steps of a frame to the engine."""
        if self._caller.metered:
            self._caller.check_quota()
            self._caller.spend(fed.steps)
        self.active_at = self._loop.time()
        self._bytes += size
        self._unanswered.append(_Unanswered(fed.steps, size, self._last_ids(fed)))
        self._hand(fed)

    def _feed_owed(self) -> None:
        """Hand over the ids that the memory has not consumed, before any frame's."""
        assert self._model is not None
        assert self._frames is not None
        (port,) = as_fed(self._model.bundle, dict.fromkeys(self._frames.inputs, NO_IDS))
        for start in range(0, len(self._owed), OWED):
            piece = self._owed[start : start + OWED]
            self._unanswered.append(_Unanswered(0, 0, NO_IDS))
            self._hand(Fed(len(piece), {port: piece}))

    def _hand(self, fed: Fed | None) -> None:
        assert self._model is not None
        assert self._events is not None
        self._model.engine.feed(self._events.id, fed)

    def _last_ids(self, fed: Fed) -> Ids:
        assert self._frames is not None
        return cast(Ids, next(iter(fed.inputs.values())))[-CONTEXT_TOKENS:] if self._frames.ids else NO_IDS

    def _hand_over(self, answer: Answer) -> bool:
        """Tell an answer the moment it comes, past whoever waits for it, if the socket takes it (a TokenSink)."""
        writer = self._writer
        if writer is None or not writer.ready or self._is_large(answer):
            return False
        index = self._answered(answer)
        if index is not None:
            assert self._frames is not None
            told = self._frames.told(answer, index)
            if isinstance(told, bytes):
                writer.write_bytes(told)
            else:
                writer.write_text(told)
        return True

    async def _send(self, answer: Answer) -> None:
        """Tell an answer when the socket takes it."""
        index = self._answered(answer)
        if index is None:
            return
        assert self._frames is not None
        tell = self._frames.told
        told = await asyncio.to_thread(tell, answer, index) if self._is_large(answer) else tell(answer, index)
        if isinstance(told, bytes):
            await self._connection.websocket.send_bytes(told)
        else:
            await self._connection.websocket.send_text(told)

    def _is_large(self, answer: Answer) -> bool:
        return not self._start.binary and sum(part.size for part in answer.outputs) > LARGE_ANSWER

    def _answered(self, answer: Answer) -> int | None:
        """The number of an answer's first step, which is no longer waited for; None where it is of what is owed."""
        steps, size, ids = self._unanswered.popleft()
        self._bytes -= size
        self._changed.set()
        self.active_at = self._loop.time()
        if not steps:
            if answer.error is not None:
                raise ServiceError("step_failed", f"the model failed on what the memory holds: {answer.error}")
            self._owed = self._owed[OWED:]
            return None
        index = self._taken
        if answer.error is None:
            self._taken += steps
            if len(ids):
                self._context = np.concatenate([self._context, ids])[-CONTEXT_TOKENS:]
        return index
