"""One socket of a stream: JSON frames in, the events of one generation at a time out.

A reader waits for frames while the generation's task sends, so a closed socket or a `cancel` is seen at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Protocol, TypeVar

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import TypeAdapter, ValidationError

from carousel.service.api.routes.context import Context
from carousel.service.api.wire import frames
from carousel.service.api.wire.messages import Cancel
from carousel.service.api.wire.slices import LARGE, TooManyLists, loads
from carousel.service.api.wire.validation import invalid, parsed
from carousel.service.engine.port import INTERACTIVE, Place
from carousel.service.errors import ErrorCode, RequestError, ServiceError, close_code
from carousel.service.keys.caller import current_caller
from carousel.service.observability.metrics import UNKNOWN
from carousel.service.observability.outcomes import CANCELLED
from carousel.service.observability.requests import RequestRecord, finish, socket_record, watch
from carousel.service.served.repository import ServedModel
from carousel.service.work.generation import Finished, admit

logger = logging.getLogger("carousel.stream")

ENDPOINT = "/v1/models/{model}/stream"
FAREWELL_SECONDS = 2.0
"""How long the last event and the close may take to send to a client that does not read."""

Work = Callable[[Place, RequestRecord], Coroutine[Any, Any, None]]
"""One generation, from the place taken for it to its last event."""

Message = TypeVar("Message")


class Cancellable(Protocol):
    """A generation that can be ended early."""

    def cancel(self) -> None:
        """End early; nothing happens if it has ended already."""


class Connection(ABC):
    """One socket. Tasks say what frames they take and what is done about them.

    Args:
        websocket: accepted.
        name: of the model.
        task: of the model.
        context: the application's parts.
    """

    def __init__(self, websocket: WebSocket, name: str, task: str, context: Context) -> None:
        self.websocket = websocket
        self.context = context
        self._name = name
        self._model_task = task
        self._model: ServedModel | None = None
        """Only while a generation runs: an idle socket must not keep a version in memory that is served no more."""
        self.urgency = INTERACTIVE
        """Of the generation that a frame asks for; `begin` sets it."""
        self.rows = 1
        """Of the place that is taken for it."""
        self.handled = 0
        """Messages of the socket's queue."""
        self._task: asyncio.Task[None] | None = None
        self._generation: Cancellable | None = None
        self._started = False
        self._cancelled = False
        """Whether a cancel has come since the last generation began, which may still be preparing."""
        self._overflowed = False
        self._alarm = asyncio.Event()
        """Set when `run` has something to see to that is neither a frame nor a generation's end."""

    @abstractmethod
    async def parse(self, message: Any) -> Any:
        """What a frame says: a Cancel, or something for `begin`."""

    @abstractmethod
    def begin(self, request: Any) -> Work | None:
        """The generation that a frame asks for, while none runs; None where it only says how the next one is to be."""

    @property
    def model(self) -> ServedModel:
        """The version that the running generation found."""
        assert self._model is not None
        return self._model

    async def run(self) -> None:
        """Serve frames until the socket closes or an error ends it."""
        alarm = asyncio.ensure_future(self._alarm.wait())
        frame = asyncio.ensure_future(self.websocket.receive())
        try:
            with self.context.drain.listening(self._drain):
                while True:
                    waiting = {frame, alarm} | ({self._task} if self._task is not None else set())
                    done, _ = await asyncio.wait(
                        waiting, timeout=self.idle_seconds(), return_when=asyncio.FIRST_COMPLETED
                    )
                    if not done:
                        await self.fall_idle()
                    if alarm.done():
                        self._alarm.clear()
                        alarm = asyncio.ensure_future(self._alarm.wait())
                    if self._overflowed:
                        raise ServiceError(
                            "slow_reader", "the stream was not read fast enough; read each event as it comes"
                        )
                    if self._task is not None and self._task.done():
                        task, self._task = self._task, None
                        task.result()
                    if self._task is None and self.context.drain.begun:
                        raise self.context.drain.refusal()
                    if frame.done():
                        message, frame = frame.result(), asyncio.ensure_future(self.websocket.receive())
                        if message["type"] == "websocket.disconnect":
                            return
                        await self._handle(message)
                        self.handled += 1
        except ServiceError as error:
            await self._stop_generation()
            await say_goodbye(self.websocket, error)
        except WebSocketDisconnect:
            pass  # the client left while an event was being sent
        except Exception:
            logger.exception("a stream failed")
            await self._stop_generation()
            await say_goodbye(
                self.websocket, ServiceError("internal_error", "the server failed on this stream; it has been logged")
            )
        finally:
            await self._stop_generation()
            for waiter in (frame, alarm):
                waiter.cancel()
            await asyncio.gather(frame, alarm, return_exceptions=True)

    def idle_seconds(self) -> float | None:
        """How long the socket may say nothing from now on; None for as long as it likes."""
        return self.context.settings.socket_idle_seconds if self._task is None else None

    async def fall_idle(self) -> None:
        """End a socket that has said nothing for so long."""
        raise ServiceError(
            "request_timeout",
            f"nothing came for {self.context.settings.socket_idle_seconds:,.12g} s (CAROUSEL_SOCKET_IDLE_SECONDS); "
            "open another socket when there is something to say",
        )

    async def _handle(self, message: Any) -> None:
        """Act on one frame."""
        await self.act(await self.parse(message), self.begin)

    async def act(self, request: Any, begin: Callable[[Any], Work | None]) -> None:
        """Do what a frame says; what begins a generation is asked for one while none runs."""
        if isinstance(request, Cancel):
            if not self._started:
                self.refuse("out_of_order", "cancel came before any start")
            self._cancelled = True
            if self._generation is not None:
                self._generation.cancel()
            return  # a cancel that crosses with `finished` is no error
        if self._task is not None:
            if not self._task.done():
                self.refuse(
                    "out_of_order",
                    f"{getattr(request, 'type', 'an image')} came while a generation runs; "
                    "wait for finished, or send cancel",
                )
            task, self._task = self._task, None
            task.result()
        if self.context.drain.begun:
            raise self.context.drain.refusal()
        self.rows = 1
        work = begin(request)
        if work is not None:
            self._started, self._cancelled = True, False
            self._task = asyncio.create_task(self._generate(work))

    async def parse_json(self, text: str, messages: TypeAdapter[Message]) -> Message:
        """The message that a text frame holds."""
        try:
            return await read_json(text, messages)
        except RequestError as error:
            self.refuse(error.code, error.message)

    def refuse(self, code: ErrorCode, message: str) -> NoReturn:
        """End the socket for a frame that asks for no generation."""
        finish(self.context.metrics, self._record(code))
        raise RequestError(code, message)

    def hold(self, generation: Cancellable) -> None:
        """Let a `cancel` end this generation, if one has not come already."""
        self._generation = generation
        if self._cancelled:
            generation.cancel()

    def overflowed(self, record: RequestRecord) -> Callable[[], None]:
        """What a generation is to call when its events are read too slowly."""

        def end() -> None:
            record.outcome = "slow_reader"
            self._overflowed = True
            self._alarm.set()

        return end

    async def send(self, event: dict[str, Any]) -> None:
        """One event."""
        await self.websocket.send_text(frames.dumps(event))

    async def send_end(self, event: Finished, record: RequestRecord, **told: Any) -> None:
        """The last event of a generation."""
        record.outcome = CANCELLED if event.reason.value == "cancelled" else "ok"
        await self.send({**frames.finished(event), **told})

    def _drain(self) -> None:
        """The server shuts down: what runs may go on until the grace is over, and is then ended like a cancel does."""
        self._alarm.set()
        if self.context.drain.over:
            self._cancelled = True
            if self._generation is not None:
                self._generation.cancel()

    def _record(self, outcome: str) -> RequestRecord:
        served = self.context.repository.models.get(self._name)
        version = UNKNOWN if served is None else str(served.bundle.version)
        return socket_record(self.websocket.scope, outcome, ENDPOINT, model=self._name, version=version)

    def _find_model(self) -> ServedModel:
        """The version that is served now: a generation takes what it finds, whatever the one before it ran on.

        Raises:
            RequestError: unknown_model, or wrong_task where the new version has another task.
        """
        model = self.context.repository.get(self._name)
        task = model.bundle.manifest.task
        if task != self._model_task:
            raise RequestError(
                "wrong_task",
                f"{model.name} is a {task} model now and was a {self._model_task} model when this socket was opened; "
                "open another one",
            )
        return model

    async def _generate(self, work: Work) -> None:
        """Run one generation, and record its end."""
        record = self._record(CANCELLED)
        watch(record)
        try:
            current_caller().admit()  # a socket's generations count as requests, each when it begins
            self._model = model = self._find_model()
            with admit(model, self.rows, self.urgency) as admission:
                await work(admission, record)
        except ServiceError as error:
            record.outcome = error.code
            raise
        except WebSocketDisconnect:  # the client left while an event was being sent
            raise
        except Exception:
            record.outcome = "internal_error"
            raise
        finally:
            self._generation = self._model = None
            finish(self.context.metrics, record)

    async def _stop_generation(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


async def read_json(text: str, messages: TypeAdapter[Message]) -> Message:
    """The message that a text frame holds.

    Raises:
        RequestError: malformed_json or invalid_request.
    """
    value = None
    try:
        if len(text) < LARGE:
            return messages.validate_json(text)
        value = await asyncio.to_thread(loads, text)
        return await asyncio.to_thread(messages.validate_python, value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            message = f"the frame is not JSON: {errors[0]['ctx']['error']}"
            raise RequestError("malformed_json", message) from None
        message = invalid(errors, parsed(text) if value is None else value).message
        raise RequestError("invalid_request", message) from None
    except TooManyLists as error:
        raise RequestError("invalid_request", f"the frame holds {error}") from None
    except (ValueError, RecursionError) as error:
        message = f"the frame is not JSON: {getattr(error, 'msg', 'it could not be parsed')}"
        raise RequestError("malformed_json", message) from None


async def say_goodbye(websocket: WebSocket, error: ServiceError) -> None:
    """The error as the last event, then its close code."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(FAREWELL_SECONDS):
            await websocket.send_text(frames.dumps(frames.error(error)))
            await websocket.close(close_code(error.code))
