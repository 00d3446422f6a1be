"""The models being served, each opened, verified and warm: at first the newest version in the repository of each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH, Bundle, list_repository, open_bundle
from carousel.models.cores import usable_cores
from carousel.models.errors import BundleError, BundleNotFound
from carousel.models.prefill import prefill_names
from carousel.service.engine.core import EngineCore
from carousel.service.engine.device import CUDA, Device
from carousel.service.engine.encoder.encoder import Encoder, EncoderReport
from carousel.service.engine.prefill.runner import OnnxPrefillRunner
from carousel.service.engine.runner import AttemptRunner, OnnxEncoder, OnnxRunner, Runner
from carousel.service.engine.session import RunnerBroken, reason_against
from carousel.service.engine.states.device_pool import DevicePool
from carousel.service.engine.threads.async_engine import AsyncEngine
from carousel.service.errors import RequestError
from carousel.service.observability.metrics import Metrics, ModelMetrics
from carousel.service.prefixes.cache import PrefixCache
from carousel.service.prefixes.prefixes import Prefixes
from carousel.service.served.heap import give_back_freed
from carousel.service.served.ports import step_ports
from carousel.service.sessions.memory import ModelIdentity
from carousel.service.settings import Providers, Settings

logger = logging.getLogger("carousel.repository")

Opened = TypeVar("Opened")

ENCODER_THREADS = 1
"""Of one call. Cores are used by as many calls side by side: more threads in a call cost more than they bring, and the
last bits of some operators depend on how a batch is split among threads (service/README.md has figures)."""


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
    engine: AsyncEngine
    encoder: Encoder | None
    """Where sequences begin with what the bundle's encoder makes of an image."""
    metrics: ModelMetrics
    identity: ModelIdentity
    prefixes: Prefixes
    load_seconds: float
    """To verify, open and warm it up."""

    @property
    def failure(self) -> str | None:
        """Why the model does not run; None while it does."""
        return self.engine.failure or (None if self.encoder is None else self.encoder.failure)


def open_runner(bundle: Bundle, intra_op_threads: int, device: Device | None = None) -> Runner:
    """The runner of a bundle's step graph, which open_bundle has checked."""
    ports = step_ports(bundle.step, bundle.manifest.task)
    weights = bundle.weights(bundle.step)
    runner = OnnxRunner(bundle.files[STEP_GRAPH], ports, intra_op_threads, device=device, weights=weights)
    return AttemptRunner(runner, *ports.inputs) if bundle.manifest.task == "tracing" else runner


def open_core(bundle: Bundle, intra_op_threads: int, max_rows: int, device: Device | None = None) -> EngineCore:
    """The engine's loop body for a bundle, warm. Its states live on the device, where one is given.

    Raises:
        RunnerBroken: a graph does not run, or not there.
    """
    runner = open_runner(bundle, intra_op_threads, device)
    pool = None if device is None else DevicePool(device, runner.ports.states, runner.ports.context, max_rows)
    core = EngineCore(runner, max_rows, prefill=open_prefill(bundle, device), pool=pool)
    core.warm_up()
    return core


def find_device(providers: Providers) -> Device | None:
    """The device that CAROUSEL_PROVIDERS asks for; None, with the reason in the log, for the CPU."""
    if providers == "cpu":
        return None
    reason = reason_against(CUDA)
    if reason is not None:
        logger.warning("CAROUSEL_PROVIDERS is cuda, but models run on the CPU: %s", reason)
        return None
    return CUDA


def step_threads(bundle: Bundle, cores: int) -> int:
    """Threads of one operator of a step.

    In fp32 a step reads all weights, which several threads do faster. In int8 it is so short that it gains less from
    the last core than the event loop does, which has the tokens of the step before to send. Beside an encoder, which
    has a call on every core, a second thread would do little but wait.
    """
    if bundle.encoder is not None:
        return 1
    return max(1, cores - 1) if bundle.manifest.precision == "int8" else cores


def open_prefill(bundle: Bundle, device: Device | None = None) -> OnnxPrefillRunner | None:
    """The runner of a bundle's prefill graphs; None where it has none."""
    graphs = [bundle.files[name] for name in prefill_names(bundle.files)]
    weights = [bundle.weights(graph) for graph in bundle.prefill]
    return OnnxPrefillRunner(graphs, bundle.manifest.task, device, weights=weights) if graphs else None


class Repository:
    """Opens models, finds them by name, and lets one version take over from another.

    Raises:
        BundleError: the repository is missing or empty, or nothing in it can be served.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._device = find_device(settings.providers)
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
        if model.name in self.models:
            self.withdraw(model.name)
        self.models[model.name] = model

    def withdraw(self, name: str) -> None:
        """Give nobody this model any more; its requests run to their end."""
        model = self.models.pop(name)
        task = asyncio.create_task(self._retire(model), name=f"retire-{name}-{model.bundle.version}")
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
        same = served is not None and (served.bundle.version, served.bundle.digest) == (bundle.version, bundle.digest)
        if served is not None and same and served.failure is None:
            return served
        threads = self._settings.intra_op_threads or step_threads(bundle, usable_cores())
        core = self._on_device(bundle, "steps", partial(open_core, bundle, threads, self._settings.max_rows))

        def encoded(report: EncoderReport) -> None:
            metrics.encoded(report)

        encoder = self._on_device(bundle, "encoder", partial(self._open_encoder, bundle, encoded))
        metrics = ModelMetrics(self._metrics, bundle.model, bundle.version)  # of what is refused nothing is measured
        engine = AsyncEngine(
            core,
            max_waiting=self._settings.max_waiting,
            on_steps=metrics.steps,
            name=f"engine-{bundle.model}",
            max_wait_seconds=self._settings.max_wait_seconds,
            deadline_seconds=self._settings.deadline_seconds,
        )
        identity = ModelIdentity.of(bundle)
        prefixes = Prefixes(self._prefix_cache, identity.digest, metrics.looked_up)
        seconds = time.perf_counter() - started
        logger.info("loaded %s version %d in %.2f s", bundle.model, bundle.version, seconds)
        bundle = replace(bundle, files={})  # onnxruntime has read them: there is no need to keep them twice
        give_back_freed()
        return ServedModel(bundle.model, bundle, engine, encoder, metrics, identity, prefixes, seconds)

    def _on_device(self, bundle: Bundle, part: str, open_on: Callable[[Device | None], Opened]) -> Opened:
        """A part of a model, opened on the device that there is, and on the CPU if it cannot run there."""
        if self._device is not None:
            try:
                return open_on(self._device)
            except RunnerBroken as error:
                name, provider = f"{bundle.model} version {bundle.version}", self._device.provider
                logger.warning("the %s of %s cannot run on %s and runs on the CPU: %s", part, name, provider, error)
        return open_on(None)

    def _open_encoder(
        self, bundle: Bundle, on_batch: Callable[[EncoderReport], None], device: Device | None
    ) -> Encoder | None:
        if bundle.encoder is None:
            return None
        states = frozenset(spec.name for spec in bundle.step.states)
        context = [spec.name for spec in bundle.step.memories]
        encoder = Encoder(
            OnnxEncoder(
                bundle.files[ENCODER_GRAPH],
                [*states, *context],
                ENCODER_THREADS,
                device,
                weights=bundle.weights(bundle.encoder),
            ),
            bundle.image_codec.preprocessing.shape,
            states,
            workers=usable_cores(),
            on_batch=on_batch,
            name=f"encoder-{bundle.model}",
        )
        encoder.warm_up()
        return encoder


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
    model.metrics.begin(model.engine, model.bundle, model.load_seconds)


async def _close(model: ServedModel) -> None:
    if model.encoder is not None:
        await model.encoder.close()
    await model.engine.close()
    model.metrics.end(model.engine)
