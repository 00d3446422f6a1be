"""What every router needs of the application: its models and metrics, found through the request."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from service.observability.metrics import Metrics
from service.observability.requests import record_of
from service.repository import Repository, ServedModel
from service.settings import Settings


@dataclass(slots=True)
class Context:
    """The application's parts."""

    settings: Settings
    repository: Repository
    metrics: Metrics
    ready: bool = False
    """Whether models are loaded and warm and the server is not shutting down."""


def context_of(connection: HTTPConnection) -> Context:
    """The application's parts."""
    context = connection.app.state.context
    assert isinstance(context, Context)
    return context


def find_model(connection: HTTPConnection, name: str) -> ServedModel:
    """The model of that name, noted in the request's record.

    Raises:
        RequestError: unknown_model.
    """
    model = context_of(connection).repository.get(name)
    record = record_of(connection.scope)
    record.model, record.version = model.name, str(model.bundle.version)
    return model
