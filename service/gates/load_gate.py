"""Who cannot be let in is told so before anything of the body is read, decoded or validated.

What is decided by the body (its priority, its time limit, how many rows it wants) is decided again where it is known.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from carousel.service.api.routes.handlers import error_response
from carousel.service.api.task import TASKS
from carousel.service.errors import ServiceError
from carousel.service.observability.requests import record_of
from carousel.service.served.repository import Repository, ServedModel
from carousel.service.work.generation import refusals

_OF_A_MODEL = re.compile(r"(?P<root>/v[12]/models/)(?P<model>[^/]+)(?P<version>/versions/[^/]+)?(?P<rest>/.+)")


class LoadGate:
    """ASGI middleware that answers 503 to a POST whose model has no place for it.

    A path that names no model, as that of completions, is looked at where there is one model of its task to ask.
    `common` are the paths that run a model of any task.
    """

    def __init__(self, app: ASGIApp, repository: Repository, common: frozenset[str]) -> None:
        self._app = app
        self._repository = repository
        self._task_of = {path: name for name in TASKS for path in TASKS[name].posted}
        self._posted = common | self._task_of.keys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and scope["method"] == "POST" and (found := self._find(scope["path"])) is not None:
            model, endpoint = found
            try:
                with refusals(model):
                    model.engine.check_room()
            except ServiceError as error:
                record = record_of(scope)
                record.model, record.version, record.endpoint = model.name, str(model.bundle.version), endpoint
                await error_response(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _find(self, path: str) -> tuple[ServedModel, str] | None:
        """The model that a path is for, and the path of its route."""
        models = self._repository.models
        if (found := _OF_A_MODEL.match(path)) is not None:
            model = models.get(found["model"])
            version = "/versions/{version}" if found["version"] else ""
            endpoint = f"{found['root']}{{model}}{version}{found['rest']}"
            return None if model is None or endpoint not in self._posted else (model, endpoint)
        task = self._task_of.get(path)
        able = [] if task is None else [model for model in models.values() if model.bundle.manifest.task == task]
        return (able[0], path) if len(able) == 1 else None
