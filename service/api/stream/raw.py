"""Sockets that take raw streams beside what their model's task streams: all of them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import WebSocket

from carousel.service.api.routes.context import Context
from carousel.service.api.stream.connection import FAREWELL_SECONDS, Connection, Work
from carousel.service.api.stream.raw_stream import RawStream
from carousel.service.api.wire.rows import RAW_FRAME, RAW_START
from carousel.service.api.wire.slices import LARGE, loads
from carousel.service.errors import ServiceError

WORDS = ('"raw"', '"steps"', '"finish"')
"""One of which a frame about a raw stream holds."""


class RawConnection(Connection):
    """One socket. As it is, of a model whose task streams nothing of its own."""

    def __init__(self, websocket: WebSocket, name: str, task: str, context: Context) -> None:
        super().__init__(websocket, name, task, context)
        self._raw: RawStream | None = None
        """The one that runs."""

    async def parse(self, message: Any) -> Any:
        """What a frame says besides raw streams."""
        if message.get("text") is None:
            self.refuse("unsupported_frame", "a binary frame came, and no raw stream runs; send start first")
        if (await _said(message["text"]))[0] == "start":
            self.refuse(
                "wrong_task",
                f"{self._name} is a {self._model_task} model, whose sockets stream raw steps; send start with raw",
            )
        return await self.parse_json(message["text"], RAW_FRAME)

    def begin(self, request: Any) -> Work | None:
        """A raw stream."""
        self.urgency = request.urgency
        self.rows = 0
        self._raw = RawStream(self, request)
        return self._raw.run

    async def _handle(self, message: Any) -> None:
        if self._raw is not None and not self._raw.over:
            await self._raw.take(message)
            return
        kind, raw = await _kind(message.get("text"))
        if kind in ("steps", "finish"):
            self.refuse("out_of_order", f"{kind} came and no raw stream runs; send start with raw first")
        if raw is True:
            start = await self.parse_json(message["text"], RAW_START)
            await self.act(start, lambda request: RawConnection.begin(self, request))
            if self._task is not None:
                self._task.add_done_callback(self._forget_raw)
        else:
            await super()._handle(message)

    def _forget_raw(self, _: asyncio.Task[None]) -> None:
        """It has ended, or found no place; a circle would keep both until the garbage is collected."""
        if self._raw is not None:
            self._raw.end()
            self._raw = None

    def idle_seconds(self) -> float | None:
        """A raw stream is idle while its client says nothing; and late where it is not answered."""
        raw, settings = self._raw, self.context.settings
        if raw is None or raw.over:
            return super().idle_seconds()
        allowed = settings.socket_idle_seconds if raw.waits else settings.deadline_seconds
        return max(0.0, allowed - (asyncio.get_running_loop().time() - raw.active_at))

    async def fall_idle(self) -> None:
        """A raw stream that is idle for too long ends as with `cancel`: its session is kept."""
        raw = self._raw
        if raw is not None and not raw.over:
            if self.idle_seconds():
                return  # frames have come meanwhile
            if not raw.waits:
                seconds = f"{self.context.settings.deadline_seconds:,.12g}"
                raise ServiceError(
                    "deadline_exceeded", f"a frame was not answered for {seconds} s; open another socket"
                )
            raw.cancel()
            if self._task is not None:
                await asyncio.wait({self._task}, timeout=FAREWELL_SECONDS)
        await super().fall_idle()


async def _kind(text: str | None) -> tuple[object, object]:
    """The `type` and `raw` of a frame that may be about a raw stream."""
    return (None, None) if text is None or not any(word in text for word in WORDS) else await _said(text)


async def _said(text: str) -> tuple[object, object]:
    """The `type` and `raw` of any frame."""
    try:
        value = loads(text) if len(text) < LARGE else await asyncio.to_thread(loads, text)
    except (ValueError, RecursionError):
        return None, None  # who looks closer will tell
    return (value.get("type"), value.get("raw")) if isinstance(value, dict) else (None, None)
