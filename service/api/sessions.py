"""What is known of a session, and its end."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.head_route import HeadRoute
from carousel.service.api.wire.error_messages import ERRORS
from carousel.service.api.wire.session_messages import SessionInfo

router = APIRouter(prefix="/v1/models/{model}/sessions/{session}", tags=["sessions"], route_class=HeadRoute)


@router.get("", summary="A session's metadata", responses=ERRORS)
async def get_session(request: Request, model: str, session: str) -> SessionInfo:
    """Who made it, when, how much it holds and how long it has left. Looking is no use of it."""
    view = await context_of(request).memories.look(find_model(request, model).name, session)
    memory = view.memory
    return SessionInfo(
        session=session,
        model=memory.model,
        version=memory.version,
        steps=memory.steps,
        created_at=memory.created_at,
        updated_at=memory.updated_at,
        expires_in_seconds=view.expires_in_seconds,
    )


@router.delete("", summary="Forget a session", status_code=204, responses=ERRORS)
async def delete_session(request: Request, model: str, session: str) -> Response:
    """Forget a session; its id is free again."""
    await context_of(request).memories.delete(find_model(request, model).name, session)
    return Response(status_code=204)
