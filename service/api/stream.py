"""The WebSocket stream: start, feed and cancel in; accepted, token, finished and error out.

One socket runs one generation at a time and as many as it likes one after another. A reader waits for frames while
the generation's task sends, so a closed socket or a `cancel` is seen at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any, NoReturn

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from service.api.context import Context, context_of, find_model
from service.api.handlers import validation_message
from service.api.messages import DEFAULT_MAX_TOKENS, Cancel, Feed, Start, StreamMessage, check_top_k
from service.engine.async_engine import Admission
from service.engine.sequence import Ids, Snapshot
from service.errors import RequestError, ServiceError
from service.generation import Finished, Generation, Token, admit
from service.memories import MemoryChoice, Recall
from service.observability.requests import CANCELLED, RequestRecord, finish
from service.prompt import check_uneaten, prompt_ids
from service.repository import ServedModel
from service.sessions.memory import NO_IDS

logger = logging.getLogger("carousel.stream")

ENDPOINT = "/v1/models/{model}/stream"
FAREWELL_SECONDS = 2.0
"""How long the last event and the close may take to send to a client that does not read."""

router = APIRouter()


@router.websocket(ENDPOINT)
async def stream(websocket: WebSocket, model: str) -> None:
    """Stream generations over one socket (README: "WebSocket")."""
    await websocket.accept()
    context = context_of(websocket)
    metrics = context.metrics
    try:
        served = find_model(websocket, model, "language")
    except ServiceError as error:
        finish(metrics, RequestRecord(endpoint=ENDPOINT, outcome=error.code))
        await _say_goodbye(websocket, error)
        return
    await Connection(websocket, served, context).run()


class Connection:
    """One socket."""

    def __init__(self, websocket: WebSocket, model: ServedModel, context: Context) -> None:
        self._websocket = websocket
        self._model = model
        self._metrics = context.metrics
        self._memories = context.memories
        self._task: asyncio.Task[None] | None = None
        self._generation: Generation | None = None
        self._started = False
        self._cancelled = False
        """Whether a cancel has come since the last start or feed, which may still be tokenising."""
        self._overflowed = asyncio.Event()
        self._session: str | None = None
        """The session that the last start named: it is what a feed goes on from."""
        self._memory: Snapshot | None = None
        self._context: Ids = NO_IDS
        """The last ids of the socket's text, which the detokeniser of a `feed` must know."""

    async def run(self) -> None:
        """Serve frames until the socket closes or an error ends it."""
        overflowed = asyncio.ensure_future(self._overflowed.wait())
        frame = asyncio.ensure_future(self._websocket.receive())
        try:
            while True:
                waiting = {frame, overflowed} | ({self._task} if self._task is not None else set())
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if overflowed.done():
                    raise ServiceError(
                        "slow_reader", "the stream was not read fast enough; read each event as it comes"
                    )
                if self._task is not None and self._task.done():
                    task, self._task = self._task, None
                    task.result()
                if frame.done():
                    message, frame = frame.result(), asyncio.ensure_future(self._websocket.receive())
                    if message["type"] == "websocket.disconnect":
                        return
                    await self._handle(message)
        except ServiceError as error:
            await self._stop_generation()
            await _say_goodbye(self._websocket, error)
        except WebSocketDisconnect:
            pass  # the client left while an event was being sent
        except Exception:
            logger.exception("a stream failed")
            await self._stop_generation()
            await _say_goodbye(
                self._websocket, ServiceError("internal_error", "the server failed on this stream; it has been logged")
            )
        finally:
            await self._stop_generation()
            for waiter in (frame, overflowed):
                waiter.cancel()
            await asyncio.gather(frame, overflowed, return_exceptions=True)

    async def _handle(self, message: Any) -> None:
        """Act on one frame."""
        request = self._parse(message)
        if isinstance(request, Cancel):
            if not self._started:
                self._refuse("out_of_order", "cancel came before any start")
            self._cancelled = True
            if self._generation is not None:
                self._generation.cancel()
            return  # a cancel that crosses with `finished` is no error
        if self._task is not None:
            if not self._task.done():
                self._refuse(
                    "out_of_order", f"{request.type} came while a generation runs; wait for finished, or send cancel"
                )
            task, self._task = self._task, None
            task.result()
        if isinstance(request, Feed) and self._memory is None:
            self._refuse("out_of_order", "feed came before any generation on this socket; send start first")
        self._started, self._cancelled = True, False
        self._task = asyncio.create_task(self._generate(request))

    def _parse(self, message: Any) -> Start | Feed | Cancel:
        if message.get("text") is None:
            self._refuse("unsupported_frame", "a binary frame came; this model takes JSON text frames")
        try:
            return StreamMessage.validate_json(message["text"])
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            if errors[0]["type"] == "json_invalid":
                self._refuse("malformed_json", f"the frame is not JSON: {errors[0]['ctx']['error']}")
            self._refuse("invalid_request", validation_message(errors))

    def _refuse(self, code: str, message: str) -> NoReturn:
        finish(self._metrics, self._record(code))
        raise RequestError(code, message)

    def _record(self, outcome: str) -> RequestRecord:
        return RequestRecord(
            model=self._model.name, version=str(self._model.bundle.version), endpoint=ENDPOINT, outcome=outcome
        )

    async def _generate(self, request: Start | Feed) -> None:
        """Run one generation and send its events."""
        record = self._record(CANCELLED)
        try:
            with admit(self._model) as admission:
                await self._send_events(request, admission, record)
        except ServiceError as error:
            record.outcome = error.code
            raise
        except WebSocketDisconnect:  # the client left while an event was being sent
            raise
        except Exception:
            record.outcome = "internal_error"
            raise
        finally:
            self._generation = None
            finish(self._metrics, record)

    async def _send_events(self, request: Start | Feed, admission: Admission, record: RequestRecord) -> None:
        prompt = await prompt_ids(self._model, request.text_or_ids)
        if isinstance(request, Start):
            self._session, choice = request.session, request.memory
        else:
            choice = MemoryChoice(self._session, return_state=request.return_state)
        async with self._memories.recall(self._model.identity, choice) as recall:
            await self._generate_from(recall, request, prompt, admission, record)

    async def _generate_from(
        self, recall: Recall, request: Start | Feed, prompt: Ids, admission: Admission, record: RequestRecord
    ) -> None:
        model, choice = self._model, recall.choice
        memory, context = recall.snapshot, recall.context
        if isinstance(request, Feed):
            if choice.session is None:
                memory, context = self._memory, self._context
            elif memory is None:
                raise RequestError("unknown_session", f"session {choice.session!r} was deleted; send start first")
        check_uneaten(model, memory, len(prompt))
        try:
            sampling = request.sampling.parameters(model.bundle.manifest, default_max_tokens=DEFAULT_MAX_TOKENS)
            check_top_k(sampling.top_k, model.bundle.text_codec.vocabulary_size)
        except ValueError as error:
            raise RequestError("invalid_request", f"sampling: {error}") from None

        def overflowed() -> None:
            record.outcome = "slow_reader"
            self._overflowed.set()

        self._generation = generation = Generation(
            model,
            admission,
            prompt,
            sampling,
            request.sampling.stop,
            snapshot=memory,
            context=context,
            keep_state=True,
            on_overflow=overflowed,
        )
        if self._cancelled:
            generation.cancel()
        await self._send(
            {
                "type": "accepted",
                "request_id": record.request_id,
                "model": model.name,
                "version": model.bundle.version,
                "prompt_tokens": len(prompt),
                "cached_tokens": 0,
            }
        )
        async for event in generation.events():
            if isinstance(event, Token):
                await self._websocket.send_text(_token_frame(event))
            else:
                self._memory, self._context = event.snapshot, generation.context
                if choice.keeps:
                    assert event.snapshot is not None
                    eaten = event.usage.prompt_tokens + event.usage.completion_tokens
                    await recall.keep(event.snapshot, eaten=eaten, context=generation.context)
                record.outcome = CANCELLED if event.reason.value == "cancelled" else "ok"
                await self._send({**_finished(event), **recall.told})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._websocket.send_text(_json(message))

    async def _stop_generation(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


def _json(message: dict[str, Any]) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def _token_frame(token: Token) -> str:
    """The `token` event, put together by hand: it is written once per token, and only the text needs escaping."""
    return (
        f'{{"type":"token","index":{token.index},"token":{token.token},'
        f'"text":{_quote(token.text)},"logprob":{token.logprob!r}}}'
    )


_quote = json.encoder.encode_basestring  # JSON's escapes and no others: text stays as it is


def _finished(event: Finished) -> dict[str, Any]:
    prompt, completion = event.usage.prompt_tokens, event.usage.completion_tokens
    return {
        "type": "finished",
        "reason": event.reason.value,
        "text": event.text,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


async def _say_goodbye(websocket: WebSocket, error: ServiceError) -> None:
    """The error as the last event, then the close code: 1003 for a frame of the wrong kind, else 4000 + status."""
    code = 1003 if error.code == "unsupported_frame" else 4000 + error.status
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(FAREWELL_SECONDS):
            await websocket.send_text(_json({"type": "error", **error.body()["error"]}))
            await websocket.close(code)
