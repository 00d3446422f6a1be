"""The composition root: the one place where settings, models, routes and metrics meet."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from carousel import __version__
from carousel.models.cores import usable_cores
from carousel.service.api import catalogue, docs, health, predict, sessions, socket
from carousel.service.api import repository as repository_routes
from carousel.service.api.oip import repository as oip_repository
from carousel.service.api.oip import routes as oip
from carousel.service.api.routes import handlers
from carousel.service.api.routes.context import Context
from carousel.service.api.task import TASKS, endpoints_of, require_task
from carousel.service.engine.streams.lock_turns import LONG_SECONDS
from carousel.service.gates.body_limit import BodyLimit
from carousel.service.gates.drain_gate import DrainGate
from carousel.service.gates.key_gate import KeyGate
from carousel.service.gates.last_resort import LastResort
from carousel.service.gates.load_gate import LoadGate
from carousel.service.gates.origin_gate import OriginGate
from carousel.service.keys.keyring import Keyring
from carousel.service.keys.origins import Origins
from carousel.service.observability.loop_lag import LoopLag
from carousel.service.observability.metrics import Metrics
from carousel.service.observability.outcomes import Outcomes
from carousel.service.observability.requests import RequestObserver
from carousel.service.pictures.images import ImageReader
from carousel.service.served.reloads import Reloads
from carousel.service.served.repository import Repository
from carousel.service.settings import Settings
from carousel.service.work.drain import Drain
from carousel.service.work.memories import open_memories

if TYPE_CHECKING:
    from carousel.service.observability.spans import Spans

logger = logging.getLogger("carousel")

YOUNG_OBJECTS = 3_000
"""New objects before garbage is looked for among them. At Python's 700, a few requests make a round, for which
every stream's next token waits; nearly all that requests leave is freed without one."""


def open_spans(environment: Mapping[str, str]) -> Spans | None:
    """What makes spans, if the standard variables name a collector for them; None if not, and nothing is imported."""
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if (
        not any(environment.get(name) for name in endpoints)
        or environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from carousel.service.observability.spans import Spans
    except ImportError as error:
        logger.warning("no spans are sent, though %s is set: %s (pip install 'carousel[otel]')", endpoints[1], error)
        return None
    return Spans(OTLPSpanExporter())


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Models are opened here; their engines run from its startup to its shutdown.

    Raises:
        BundleError: the repository is missing or empty, or a bundle must not be served.
        RunnerBroken: a graph does not run.
        ValueError: sessions cannot be kept as the settings say.
        KeyFileError, OSError: API keys cannot be read.
    """
    keyring = None if settings.api_keys_file is None else Keyring(settings.api_keys_file)
    common = endpoints_of(predict.router, oip.router)
    metrics = Metrics(Outcomes({name: TASKS[name].endpoints for name in TASKS}, common))
    repository, drain = Repository(settings, metrics, require_task), Drain()
    reloads = Reloads(repository, settings.repository, metrics, settings.watch_seconds)
    memories = open_memories(settings, metrics)
    context = Context(settings, repository, metrics, memories, ImageReader(), drain, reloads)

    lag, spans = LoopLag(metrics.event_loop_lag_seconds.observe), open_spans(os.environ)

    metrics.ready.set_function(lambda: not context.unready)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sys.setswitchinterval(LONG_SECONDS)
        # What asyncio.to_thread runs on: Python would count the cores that the machine has.
        threads = ThreadPoolExecutor(min(32, usable_cores() + 4), "carousel")
        asyncio.get_running_loop().set_default_executor(threads)
        try:
            repository.start()
            gc.collect()
            gc.set_threshold(YOUNG_OBJECTS)
            gc.freeze()  # what lives as long as the server need not be looked through for garbage again and again
            reloads.start()
            lag.start()
            await memories.sessions.check()
            context.started = True
            yield
        finally:
            context.started = False
            lag.close()
            await reloads.close()
            await repository.close()
            await memories.sessions.close()
            context.images.close()
            if spans is not None:
                await asyncio.to_thread(spans.close)

    app = docs.Described(
        title="Carousel",
        summary="Recurrent models, step-batched across requests and streamed.",
        description=docs.DESCRIPTION,
        separate_input_output_schemas=False,  # else what has a default is said to be always there
        docs_url=None,  # FastAPI's own page loads its scripts from another site
        redoc_url=None,
        version=__version__,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it looks for exporters at every request
    )
    app.state.context = context
    # What runs a model is found first. Not include_router: its routes are looked for twice.
    own = [router for name in sorted(TASKS, reverse=True) for router in TASKS[name].routers]
    for router in (*own, *(part.router for part in (predict, oip, socket, sessions, catalogue, health, docs))):
        app.router.routes.extend(router.routes)
    if settings.admin_key is not None:
        app.router.routes.extend([*repository_routes.router.routes, *oip_repository.router.routes])
    handlers.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_image_bytes=settings.max_image_body_bytes)
    app.add_middleware(LoadGate, repository=context.repository, common=common.runs)
    if keyring is not None:
        admin_paths = () if settings.admin_key is None else (repository_routes.PREFIX, oip_repository.OIP_REPOSITORY)
        app.add_middleware(KeyGate, keyring=keyring, metrics=metrics, admin_paths=admin_paths)
    app.add_middleware(DrainGate, drain=drain, metrics=metrics)
    app.add_middleware(LastResort)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["x-request-id", "retry-after", "x-should-retry"],
        )
    app.add_middleware(OriginGate, origins=Origins(settings.cors_origins, settings.host), metrics=metrics)
    app.add_middleware(RequestObserver, metrics=metrics, tracer_of=None if spans is None else spans.of)
    return app
