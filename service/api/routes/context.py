"""What every router needs of the application: its models and metrics, found through the request."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from carousel.service.errors import RequestError
from carousel.service.observability.metrics import Metrics
from carousel.service.observability.requests import record_of
from carousel.service.pictures.images import ImageReader
from carousel.service.served.reloads import Reloads
from carousel.service.served.repository import Repository, ServedModel
from carousel.service.settings import Settings
from carousel.service.work.drain import Drain
from carousel.service.work.memories import Memories

SERVER = "the server"


@dataclass(slots=True)
class Context:
    """The application's parts."""

    settings: Settings
    repository: Repository
    metrics: Metrics
    memories: Memories
    images: ImageReader
    drain: Drain
    reloads: Reloads
    started: bool = False
    """Whether models are loaded and warm, and their engines run."""

    @property
    def unready(self) -> dict[str, str]:
        """Why work should go to another server, by what is not ready: a model's name, or SERVER."""
        reasons = self.failures
        if self.drain.begun or not self.started:
            reasons[SERVER] = "is shutting down" if self.drain.begun else "is starting"
        elif not self.repository.models:
            reasons[SERVER] = "serves no model"
        return reasons

    @property
    def failures(self) -> dict[str, str]:
        """Why models do not run, by name."""
        return {model.name: model.failure for model in self.repository.models.values() if model.failure is not None}


def context_of(connection: HTTPConnection) -> Context:
    """The application's parts."""
    context = connection.app.state.context
    assert isinstance(context, Context)
    return context


def note_model(connection: HTTPConnection, name: object) -> None:
    """Note in the request's record which model it is for, if that is served: a request may fail before it is found."""
    model = context_of(connection).repository.models.get(name) if isinstance(name, str) else None
    if model is not None:
        record = record_of(connection.scope)
        record.model, record.version = model.name, str(model.bundle.version)


def find_model(connection: HTTPConnection, name: str, task: str | None = None) -> ServedModel:
    """The model of that name, noted in the request's record.

    Raises:
        RequestError: unknown_model, or wrong_task where a task is needed and the model's is another.
    """
    model = context_of(connection).repository.get(name)
    record = record_of(connection.scope)
    record.model, record.version = model.name, str(model.bundle.version)
    if task is not None and model.bundle.manifest.task != task:
        raise wrong_task(model, task)
    return model


def wrong_task(model: ServedModel, needed: str) -> RequestError:
    """The refusal of a model by a route for models of another task."""
    return RequestError(
        "wrong_task",
        f"{model.name} is a {model.bundle.manifest.task} model and this route is for {needed} models; "
        "GET /v1/models lists each with its task",
    )
