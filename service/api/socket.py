"""The WebSocket stream: one socket runs one generation at a time, and as many as it likes one after another."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket
from starlette.responses import Response

from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.head_route import HeadRoute
from carousel.service.api.stream.connection import ENDPOINT, say_goodbye
from carousel.service.api.stream.handshake import accept
from carousel.service.api.stream.message_limit import allow_messages_of
from carousel.service.api.stream.raw import RawConnection
from carousel.service.api.task import TASKS
from carousel.service.errors import RequestError, ServiceError
from carousel.service.observability.requests import finish, socket_record

router = APIRouter(route_class=HeadRoute)


@router.get(ENDPOINT, include_in_schema=False)
async def not_upgraded(model: str) -> Response:  # noqa: ARG001 (of the path)
    """Who comes without a handshake, as behind a proxy that passes none on, learns what is missing."""
    raise RequestError(
        "upgrade_required",
        "this is the path of a WebSocket, and the request asks for no upgrade; open it as ws:// or wss://, and let "
        "proxies pass the headers Upgrade and Connection on",
    )


@router.websocket(ENDPOINT)
async def stream(websocket: WebSocket, model: str) -> None:
    """Stream generations over one socket, as the model's task says (README: "WebSocket")."""
    context = context_of(websocket)
    try:
        served = find_model(websocket, model)
    except ServiceError as error:
        await accept(websocket)
        finish(context.metrics, socket_record(websocket.scope, error.code, ENDPOINT))
        await say_goodbye(websocket, error)
        return
    task = served.bundle.manifest.task
    talk = TASKS[task].stream if task in TASKS else None
    if talk is not None and talk.images:
        allow_messages_of(websocket, context.settings.max_image_body_bytes)
    await accept(websocket)
    connection = RawConnection if talk is None else talk.connection
    await connection(websocket, model, task, context).run()
