"""A captioning model's stream: an image in, as a binary frame or in a start; accepted, token and finished out."""

from __future__ import annotations

from functools import partial
from typing import Any

from carousel.service.api.stream.connection import Work
from carousel.service.api.stream.raw import RawConnection
from carousel.service.api.wire import frames
from carousel.service.api.wire.messages import Cancel
from carousel.service.engine.port import Place
from carousel.service.errors import RequestError
from carousel.service.observability.requests import RequestRecord
from carousel.service.pictures.images import ImageFile
from carousel.service.tasks.captioning.captions import CaptionStream
from carousel.service.tasks.captioning.frames import token_json
from carousel.service.tasks.captioning.messages import CaptionStart, CaptionStreamMessage
from carousel.service.work.generation import Finished

GREEDY = CaptionStart(type="start")


class CaptionConnection(RawConnection):
    """One socket of a captioning model. A start without an image says how the next binary frame is captioned."""

    _next = GREEDY

    async def parse(self, message: Any) -> bytes | CaptionStart | Cancel:
        """An image, or a text frame."""
        if message.get("text") is None:
            content: bytes = message["bytes"]
            return content
        return await self.parse_json(message["text"], CaptionStreamMessage)

    def begin(self, request: bytes | CaptionStart) -> Work | None:
        """A caption, unless its image is still to come."""
        if isinstance(request, bytes):
            start, self._next = self._next, GREEDY
            self.urgency = start.urgency
            return partial(self._send_events, start, request)
        if request.image is not None:
            self.urgency = request.urgency
            return partial(self._send_events, request, request.image)
        self._next = request
        return None

    async def _send_events(
        self, start: CaptionStart, image: ImageFile, admission: Place, record: RequestRecord
    ) -> None:
        model = self.model
        try:
            parameters = start.fields.caption_parameters(model)
        except ValueError as error:
            raise RequestError("invalid_request", f"sampling: {error}") from None
        encoding = await self.context.images.encode(model, image, batch=admission.batch)
        stream = CaptionStream(model, admission, encoding, parameters, self.overflowed(record))
        self.hold(stream)
        await self.send(frames.accepted(record.request_id, model, prompt_tokens=0))
        async for event in stream.events():
            if isinstance(event, Finished):
                await self.send_end(event, record)
            else:
                await self.websocket.send_text(token_json(event))
