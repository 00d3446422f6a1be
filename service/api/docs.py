"""The API's description: what /openapi.json adds to the routes, and /docs, which shows it without asking the internet.

The page is Swagger UI, whose files come with the package fastapi-swagger (MIT; Swagger UI itself Apache 2.0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import FileResponse, HTMLResponse, Response

from carousel.service.api import predict
from carousel.service.api.oip.infer import example
from carousel.service.api.oip.messages import InferRequest
from carousel.service.api.oip.repository import OIP_REPOSITORY
from carousel.service.api.repository import PREFIX as ADMIN_PREFIX
from carousel.service.api.routes.context import Context
from carousel.service.api.routes.head_route import HeadRoute
from carousel.service.api.task import TASKS
from carousel.service.api.wire.examples import add_examples
from carousel.service.api.wire.rows import FRAMES
from carousel.service.errors import RequestError

EVENTS = {
    "accepted": "request_id, model, version, prompt_tokens, cached_tokens, unknown_tokens",
    "token": "index, token, text, logprob; attention, where asked for",
    "finished": "reason (stop, length or cancelled), text, usage; session and state, where there are any",
    "error": "code, message, retryable; it is the last, and the socket closes with 4000 + the code's HTTP status",
}
"""What a server sends over a WebSocket, by `type`: the other fields."""

RAW_EVENTS = {
    "accepted": "request_id, model, version, inputs, outputs (each name, dtype, shape), max_steps (of a frame)",
    "outputs": "index (of the frame's first step), outputs (by port a row for each step; one row without each)",
    "finished": "reason (stop or cancelled), steps; session and state, where there are any",
    "error": "code, message, retryable, index; of a frame that was refused: the stream is as before it, and goes on",
}
"""The same of a raw stream; a failure without `index` is as everywhere."""


def _table(events: Mapping[str, str]) -> str:
    return "".join(f"| `{kind}` | {fields} |\n" for kind, fields in events.items())


DESCRIPTION = f"""
Errors have one shape everywhere, `ErrorBody`; its `code` is stable. Any request may also get 400 (`malformed_http`),
403 (`foreign_host`), 408 (`request_timeout`) or 431 (`head_too_large`) before it is one.

**Keys.** Where the server asks for them: `Authorization: Bearer KEY`, for every path but `/livez` and `/readyz`.

**Streams over a WebSocket**: `ws://.../v1/models/{{model}}/stream`, JSON text frames. A client sends `Start`, `Feed` or
`Cancel`; to a captioning model `CaptionStart`, `Cancel`, or an image file as a binary frame (these are described under
*Schemas*). It gets, for each generation, `accepted`, a `token` for each token and `finished`:

| type | fields |
|---|---|
{_table(EVENTS)}
**Raw steps**, on any model: `RawStart`, then `Steps` (with `binary`: rows as bytes, little-endian, and one binary
frame back for each), `Finish` or `Cancel`:

| type | fields |
|---|---|
{_table(RAW_EVENTS)}"""

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


def frames() -> list[type[BaseModel]]:
    """What a client sends over a WebSocket, which OpenAPI has no place for but among the schemas."""
    streams = (TASKS[name].stream for name in TASKS)
    return [*(frame for stream in streams if stream is not None for frame in stream.frames), *FRAMES]


class Described(FastAPI):
    """An application whose description of itself has what FastAPI does not know of.

    That are the frames of WebSockets, among its schemas; who needs a key; and examples of the models that are served.
    """

    def openapi(self) -> dict[str, Any]:
        """OpenAPI's document: made once, but for the examples."""
        if self.openapi_schema is None:
            schema = super().openapi()
            # No endpoint has any of these.
            models: list[type[BaseModel]] = [
                *frames(),
                InferRequest,
                *(body for name in TASKS for body in TASKS[name].bodies),
            ]
            _, more = models_json_schema(
                [(model, "validation") for model in models],
                ref_template="#/components/schemas/{model}",
            )
            schema["components"]["schemas"] |= more["$defs"]
            self._secure(schema)
            _say_defaults(schema)
            _mend_errors(schema)
        document = deepcopy(super().openapi())
        context = self.state.context
        assert isinstance(context, Context)
        examples = {name: TASKS[name].examples for name in TASKS}
        add_examples(
            document["paths"],
            context.repository.models.values(),
            examples,
            {"infer": example, "predict": predict.example},
        )
        return document

    def _secure(self, schema: dict[str, Any]) -> None:
        """Say who needs which key. A client that is made where none is needed can be used where one is."""
        context = self.state.context
        assert isinstance(context, Context)
        keys: list[dict[str, list[str]]] = [{"ApiKey": []}]
        schema["components"]["securitySchemes"] = {"ApiKey": _bearer("An API key of this server (README: Keys).")}
        schema["security"] = keys if context.settings.api_keys_file is not None else [{}, *keys]
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
            schema["paths"][path]["get"]["security"] = []
        if context.settings.admin_key is not None:
            schema["components"]["securitySchemes"]["AdminKey"] = _bearer("The server's CAROUSEL_ADMIN_KEY.")
            for path, operations in schema["paths"].items():
                if path.startswith((ADMIN_PREFIX, OIP_REPOSITORY)):
                    for operation in operations.values():
                        operation["security"] = [{"AdminKey": []}]


def _bearer(description: str) -> dict[str, str]:
    return {"type": "http", "scheme": "bearer", "description": description}


def _say_defaults(node: Any) -> None:
    """Say defaults in words: for what has one, generators of clients take that it is always there, in requests too."""
    if isinstance(node, list):
        for part in node:
            _say_defaults(part)
    elif isinstance(node, dict):
        for told in node.get("properties", {}).values():
            default = told.pop("default", None) if isinstance(told, dict) else None
            if default is not None:
                told["description"] = f"{told.get('description', '')} Default: {json.dumps(default)}.".lstrip()
        for part in node.values():
            _say_defaults(part)


def _mend_errors(schema: dict[str, Any]) -> None:
    """Errors are JSON whatever the answer is; and FastAPI's own, of what is wrong with a path, is no route's."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in list(operation["responses"].items()):
                if status < "400" or "content" not in response:
                    continue
                (told,) = response["content"].values()
                if told["schema"]["$ref"].endswith("/HTTPValidationError"):
                    del operation["responses"][status]
                response["content"] = {"application/json": told}
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
