"""Responses of other kinds than JSON, by the media type that the API's description tells."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {  # of each event, as what reads descriptions takes it
            "type": "object",
            "title": "ServerSentEvent",
            "required": ["data"],
            "properties": {"data": {"type": "string", "description": "JSON; of completions' last, [DONE]."}},
        }
    }
}
"""The content of an answer that is streamed."""


class SvgResponse(Response):
    """A picture."""

    media_type = "image/svg+xml"
