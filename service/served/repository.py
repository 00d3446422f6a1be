"""The models being served, each opened, verified and warm: at first the newest version in the repository of each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from carousel.models.bundle import Bundle, open_bundle
from carousel.models.cores import usable_cores
from carousel.models.errors import BundleError, BundleNotFound
from carousel.models.listing import list_repository
from carousel.service.engine.encoder.encoder import Encoder
from carousel.service.engine.encoder.encoding import EncoderReport
from carousel.service.engine.port import Engine
from carousel.service.engine.session import RunnerBroken
from carousel.service.engine.threads.async_engine import AsyncEngine
from carousel.service.errors import RequestError
from carousel.service.observability.metrics import Metrics, ModelMetrics
from carousel.service.prefixes.cache import PrefixCache
from carousel.service.prefixes.prefixes import Prefixes
from carousel.service.served.heap import give_back_freed
from carousel.service.served.opening import find_place, open_parts, step_threads
from carousel.service.served.ports import step_ports
from carousel.service.served.serving import Serving
from carousel.service.sessions.memory import ModelIdentity
from carousel.service.settings import Settings

logger = logging.getLogger("carousel.repository")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last version of a model that was not loaded, and why."""

    version: int | None
    """None where the model's directory cannot be listed: nobody knows what is in it."""
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One model: its bundle, what runs it, its metrics, what its memories are checked against, and the beginnings of
    prompts whose state is known."""

    name: str
    bundle: Bundle
    engine: Engine
    encoder: Encoder | None
    """Where sequences begin with what the bundle's encoder makes of an image."""
    serving: Serving
    metrics: ModelMetrics
    identity: ModelIdentity
    prefixes: Prefixes
    load_seconds: float
    """To verify, open and warm it up."""

    @property
    def failure(self) -> str | None:
        """Why the model does not run; None while it does."""
        return self.engine.describe().failure or (None if self.encoder is None else self.encoder.failure)


class Repository:
    """Opens models, finds them by name, and lets one version take over from another.

    Args:
        settings: of the machine.
        metrics: of all models.
        require: holds that a bundle is what its task needs; raises BundleError where it is not. None asks for nothing.

    Raises:
        BundleError: the repository is missing or empty, or nothing in it can be served.
    """

    def __init__(self, settings: Settings, metrics: Metrics, require: Callable[[Bundle], None] | None = None) -> None:
        self._require = require
        self._settings = settings
        self._metrics = metrics
        self._place = find_place(settings.providers)
        self._prefix_cache = PrefixCache(settings.state_cache_bytes)
        metrics.state_cache_bytes.set_function(lambda: self._prefix_cache.bytes)
        root = settings.repository
        self.refusals: dict[str, Refusal] = {}
        """What was to be served last and is not, by the model's name; nothing once something else was decided."""
        self.models: dict[str, ServedModel] = {}
        self.retiring: dict[asyncio.Task[None], ServedModel] = {}
        """Served no more, with requests that still run."""
        self._open_all(root)
        if not self.models:
            raise _nothing_served(root, self.refusals)

    def start(self) -> None:
        """Start every engine and encoder. Called on the event loop."""
        for model in self.models.values():
            _start(model)

    def serve(self, model: ServedModel) -> None:
        """Give new requests this version from now on; that which they were given runs to its end.

        Between finding a model and taking a place in its engine nobody awaits anything: so all who have found the old
        one have a place in it.
        """
        _start(model)
        before = self.models.get(model.name)
        self.models[model.name] = model  # at no moment is there none
        if before is not None:
            self._let_go(before)

    def withdraw(self, name: str) -> None:
        """Give nobody this model any more; its requests run to their end."""
        self._let_go(self.models.pop(name))

    def _let_go(self, model: ServedModel) -> None:
        task = asyncio.create_task(self._retire(model), name=f"retire-{model.name}-{model.bundle.version}")
        self.retiring[task] = model
        task.add_done_callback(self.retiring.pop)

    async def _retire(self, model: ServedModel) -> None:
        """Wait until nothing of a model runs, then close it and forget its prompts."""
        await model.engine.vacated()
        await _close(model)
        others = [other for other in (*self.models.values(), *self.retiring.values()) if other is not model]
        if all(model.bundle.digest != other.bundle.digest for other in others):
            model.prefixes.drop()
        logger.info("%s version %d has ended", model.name, model.bundle.version)

    def get(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            RequestError: unknown_model.
        """
        model = self.models.get(name)
        if model is None:
            served = ", ".join(sorted(self.models)) or "none"
            raise RequestError("unknown_model", f"no model {name[:100]!r} is served; served are: {served}")
        return model

    async def close(self) -> None:
        """Stop every engine and encoder."""
        models = [*self.models.values(), *self.retiring.values()]
        for task in list(self.retiring):
            task.cancel()
        for model in models:
            await _close(model)

    def _open_all(self, root: Path) -> None:
        """Of each model the newest version that can be served. A bad one is refused and stops nothing else."""
        listing = list_repository(root)
        for name, reason in listing.unreadable.items():
            self.refusals[name] = self.refusal(name, None, reason)
        for name, found in listing.versions.items():
            for version in reversed(found):
                try:
                    self.models[name] = self.open(root / name / str(version))
                    break
                except Exception as error:
                    self.refusals.setdefault(name, self.refusal(name, version, error))

    def refusal(self, name: str, version: int | None, error: Exception | str) -> Refusal:
        """What a version that cannot be served is listed as, after the log has been told.

        Args:
            name: of the model.
            version: None where the model's directory cannot be listed.
            error: what is wrong. One that nobody expects is logged with where it came from.
        """
        served = self.models.get(name)
        goes_on = "" if served is None else f"; version {served.bundle.version} goes on"
        unexpected = None if isinstance(error, str | BundleError | RunnerBroken) else error
        refusal = Refusal(version, str(error) if unexpected is None else f"{type(error).__name__}: {error}")
        what = f"{_named(name, version)} cannot be served: {refusal.reason}{goes_on}"
        logger.error("%s", what, exc_info=unexpected)
        return refusal

    def open(self, path: Path, served: ServedModel | None = None) -> ServedModel:
        """What serves the bundle at `<repository>/<model>/<version>`: verified, warm and not yet started.

        Takes as long as it takes, and may run on a thread.

        Args:
            path: of the bundle.
            served: what serves the model now; given back where the bundle is no other, and it runs.

        Raises:
            BundleError: the bundle must not be served.
            RunnerBroken: a graph does not run.
        """
        started = time.perf_counter()
        bundle = open_bundle(path)
        if self._require is not None:
            self._require(bundle)
        same = served is not None and (served.bundle.version, served.bundle.digest) == (bundle.version, bundle.digest)
        if served is not None and same and served.failure is None:
            return served
        threads = self._settings.intra_op_threads or step_threads(bundle, usable_cores())

        def encoded(report: EncoderReport) -> None:
            metrics.encoded(report)

        opened = open_parts(
            bundle, self._place, threads, self._settings.max_rows, self._settings.max_rows_bytes, encoded
        )
        metrics = ModelMetrics(self._metrics, bundle.model, bundle.version)  # of what is refused nothing is measured
        engine = AsyncEngine(
            opened.core,
            max_waiting=self._settings.max_waiting,
            max_live=_most_live(bundle, self._settings.max_rows_bytes),
            on_steps=metrics.steps,
            name=f"engine-{bundle.model}",
            max_wait_seconds=self._settings.max_wait_seconds,
            deadline_seconds=self._settings.deadline_seconds,
        )
        identity = ModelIdentity.of(bundle)
        prefixes = Prefixes(self._prefix_cache, identity.digest, identity.state_bytes, metrics.looked_up)
        seconds = time.perf_counter() - started
        logger.info("loaded %s version %d in %.2f s", bundle.model, bundle.version, seconds)
        bundle = replace(bundle, files={})  # onnxruntime has read them: there is no need to keep them twice
        give_back_freed()
        return ServedModel(
            bundle.model, bundle, engine, opened.encoder, opened.serving, metrics, identity, prefixes, seconds
        )


def _most_live(bundle: Bundle, max_bytes: int) -> int:
    """Live sequences whose states take so much memory, at least one."""
    ports = step_ports(bundle)
    return max_bytes // max(1, sum(spec.row_bytes for spec in (*ports.states.values(), *ports.context.values()))) or 1


def _nothing_served(root: Path, refusals: dict[str, Refusal]) -> BundleError:
    if not refusals:
        return BundleNotFound(f"{root} holds no <model>/<version>/ directory; publish one with python -m export")
    reasons = (f"{_named(name, refusal.version)}: {refusal.reason}" for name, refusal in sorted(refusals.items()))
    return BundleError(f"nothing in {root} can be served; {'; '.join(reasons)}")


def _named(name: str, version: int | None) -> str:
    return name if version is None else f"{name} version {version}"


def _start(model: ServedModel) -> None:
    model.engine.start()
    if model.encoder is not None:
        model.encoder.start()
    model.metrics.begin(model.engine, model.bundle, model.serving.labels, model.load_seconds)


async def _close(model: ServedModel) -> None:
    if model.encoder is not None:
        await model.encoder.close()
    await model.engine.close()
    model.metrics.end(model.engine)
