"""The API's description: what /openapi.json adds to the routes, and /docs, which shows it without asking the internet.

The page is Swagger UI, whose files come with the package fastapi-swagger (MIT; Swagger UI itself Apache 2.0).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import FileResponse, HTMLResponse, Response

from service.api.caption_messages import CaptionStart
from service.api.head_route import HeadRoute
from service.api.stream_messages import Cancel, Feed, Start
from service.errors import RequestError

FRAMES: tuple[type[BaseModel], ...] = (Start, Feed, Cancel, CaptionStart)
"""What a client sends over a WebSocket, which OpenAPI has no place for but among the schemas."""

EVENTS = {
    "accepted": "request_id, model, version, prompt_tokens, cached_tokens, unknown_tokens",
    "token": "index, token, text, logprob; attention, where asked for",
    "finished": "reason (stop, length or cancelled), text, usage; session and state, where there are any",
    "error": "code, message, retryable; it is the last, and the socket closes with 4000 + the code's HTTP status",
}
"""What a server sends over a WebSocket, by `type`: the other fields."""

DESCRIPTION = f"""
Errors have one shape everywhere, `ErrorBody`; its `code` is stable. Any request may also get 400 (`malformed_http`),
408 (`request_timeout`) or 431 (`head_too_large`) before it is one.

**Keys.** Where the server asks for them: `Authorization: Bearer KEY`, for every path but `/livez` and `/readyz`.

**Streams over a WebSocket**: `ws://.../v1/models/{{model}}/stream`, JSON text frames. A client sends `Start`, `Feed` or
`Cancel`; to a captioning model `CaptionStart`, `Cancel`, or an image file as a binary frame (these are described under
*Schemas*). It gets, for each generation, `accepted`, a `token` for each token and `finished`:

| type | fields |
|---|---|
{"".join(f"| `{kind}` | {fields} |{chr(10)}" for kind, fields in EVENTS.items())}
"""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load and ask: this server (and styles that its scripts set)."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Carousel</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/page.js"></script>
</body>
</html>
"""
SCRIPT = """SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#page",
  deepLinking: true,
  displayRequestDuration: true,
});
"""
FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
"""Of the package, and what they are."""

router = APIRouter(include_in_schema=False, route_class=HeadRoute)


@router.get("/docs")
async def page() -> Response:
    """The page. Its links are relative: it may lie below a path of a proxy's."""
    return HTMLResponse(PAGE, headers={"content-security-policy": POLICY})


@router.get("/docs/page.js")
async def script() -> Response:
    """What starts Swagger UI. Not in the page, whose policy allows no script there."""
    return Response(SCRIPT, media_type="text/javascript")


@router.get("/docs/{file}")
async def part(file: str) -> Response:
    """A file of Swagger UI."""
    if file not in FILES:
        raise RequestError("not_found", "there is no such path; /docs lists what there is")
    path = Path(str(files("fastapi_swagger") / "resources" / file))
    return FileResponse(path, media_type=FILES[file], headers={"cache-control": "max-age=86400"})


class Described(FastAPI):
    """An application whose description of itself has the frames of WebSockets among its schemas."""

    def openapi(self) -> dict[str, Any]:
        """OpenAPI's document, made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            _, frames = models_json_schema(
                [(frame, "validation") for frame in FRAMES], ref_template="#/components/schemas/{model}"
            )
            schema["components"]["schemas"] |= frames["$defs"]
        return super().openapi()
