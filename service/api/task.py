"""What the service has to know of a task, and the register of all tasks.

A task is a directory of `service/tasks/`: its routes and messages, how its sockets talk, what it computes with the
engine. One object there tells the rest of the service what there is, and registers itself; nobody else names a task.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel

from carousel.models.bundle import Bundle
from carousel.models.codec.spec import Codec
from carousel.models.errors import BundleError
from carousel.models.manifest import MANIFEST
from carousel.models.registry import Registry
from carousel.service.api.stream.connection import ENDPOINT, Connection
from carousel.service.observability.outcomes import Endpoints
from carousel.service.served.repository import ServedModel
from carousel.service.settings import Settings

Examples = Callable[[ServedModel], Mapping[str, Any]]
"""Bodies for an operation on a model that is served, by what they are for. Each works as it is."""


def no_body(_: ServedModel) -> Mapping[str, Any]:
    """The examples of an operation without a body."""
    return {}


def no_needs(_: Bundle) -> None:
    """What a task holds of a bundle whose routes can do with any."""


@dataclass(frozen=True, slots=True)
class Stream:
    """How a task's sockets talk.

    Args:
        connection: what serves one.
        frames: that a client sends, for the API's description.
        images: whether a frame may be as long as an image.
    """

    connection: type[Connection]
    frames: tuple[type[BaseModel], ...]
    images: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A word of the command line.

    Args:
        help: in the list of words.
        description: of the word itself.
        add_arguments: to its parser.
        run: what it does; returns the exit status, and may raise CarouselError, RunnerBroken or OSError.
    """

    help: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Settings, argparse.Namespace], int]


@dataclass(frozen=True, slots=True)
class ServedTask:
    """One task, as the service sees it.

    Args:
        routers: of its routes. One that is posted to runs a model, one that is got looks at what a model left.
        catalogue: fields of its models' `ModelInfo`, beside those that all have.
        stream: how its sockets talk; None where they stream raw steps alone, as those of any model do.
        bodies: that the API's description needs and no endpoint declares.
        examples: by operation; these, and no others, are shown for a model of this task.
        commands: words of the command line.
        require: holds that a bundle is what its routes need; raises BundleError where it is not.
    """

    routers: tuple[APIRouter, ...]
    catalogue: Callable[[ServedModel], Mapping[str, Any]]
    stream: Stream | None = None
    bodies: tuple[type[BaseModel], ...] = ()
    examples: Mapping[str, Examples] = field(default_factory=dict)
    commands: Mapping[str, Command] = field(default_factory=dict)
    require: Callable[[Bundle], None] = no_needs

    @property
    def posted(self) -> frozenset[str]:
        """Paths of the routes whose requests have a body, and run a model."""
        return endpoints_of(*self.routers).runs

    @property
    def endpoints(self) -> Endpoints:
        """The routes, as requests are counted."""
        own = endpoints_of(*self.routers)
        return Endpoints(own.runs | {ENDPOINT}, own.looks)


def endpoints_of(*routers: APIRouter) -> Endpoints:
    """The routes of models, as requests are counted: those that are posted to, and those that are got."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]

    def paths(method: str) -> frozenset[str]:
        return frozenset(route.path for route in routes if method in (route.methods or ()))

    return Endpoints(paths("POST"), frozenset(path for path in paths("GET") if "{model}" in path))


TASKS: Registry[ServedTask] = Registry("carousel.service.tasks")
"""All tasks, by the name that manifests have for them."""


def require_task(bundle: Bundle) -> None:
    """Hold that a bundle is what its task's routes need. A task that nobody knows has none, and asks for nothing.

    Raises:
        BundleError: it is not.
    """
    name = bundle.manifest.task
    if name in TASKS:
        TASKS[name].require(bundle)


def require_head(bundle: Bundle, *fields: str) -> None:
    """Hold that a bundle's head has these fields: by them a task knows the head that it needs.

    Raises:
        BundleError: it lacks one.
    """
    told = bundle.manifest.head.model_dump(by_alias=True, exclude_none=True)
    for name in fields:
        if not told.get(name):
            raise BundleError(f"{MANIFEST}: the head has no {name}, which that of a {bundle.manifest.task} model has")


def require_codec(bundle: Bundle, port: str, kind: type[Codec]) -> None:
    """Hold that a port's codec is of this class.

    Raises:
        BundleError: it is not, or the port has none.
    """
    if bundle.codecs.get(bundle.manifest.ports.get(port, "")) is not bundle.codec(kind):
        task = bundle.manifest.task
        raise BundleError(f"{MANIFEST}: port {port} has no {kind.__name__}, which that of a {task} model has")
