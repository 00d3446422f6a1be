"""Opens what runs a bundle: its graphs in sessions, each tried on this machine before anybody is served."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from carousel.models.bundle import Bundle
from carousel.models.cores import usable_cores
from carousel.service.engine.core import EngineCore
from carousel.service.engine.device import CUDA, Device
from carousel.service.engine.encoder.encoder import Encoder
from carousel.service.engine.encoder.encoding import EncoderReport
from carousel.service.engine.encoder.pace import Pace
from carousel.service.engine.encoder.together import Ragged, is_one_array, is_timed
from carousel.service.engine.live import step_rows
from carousel.service.engine.prefill.runner import OnnxPrefillRunner
from carousel.service.engine.probe import Found, check_encoder, check_rows, find_together, require_company
from carousel.service.engine.runner import IdRunner, NoSteps, OnnxEncoder, OnnxRunner, Runner
from carousel.service.engine.session import RunnerBroken, reason_against
from carousel.service.engine.states.device_pool import DevicePool
from carousel.service.served.ports import id_codec, prefill_feed, row_spec, step_ports, takes_ids
from carousel.service.served.serving import Prefilled, Serving
from carousel.service.settings import Providers

logger = logging.getLogger("carousel.repository")

Part = TypeVar("Part")

ENCODER_THREADS = 1
"""Of one call. Cores are used by as many calls side by side: more threads in a call cost more than they bring, and the
last bits of some operators depend on how a batch is split among threads."""

SHORT_BYTES = 4 << 20
"""Of a step graph whose weights stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where graphs run.

    Args:
        device: a device; None is the CPU.
        reason: why it is the CPU although a device was asked for.
    """

    device: Device | None = None
    reason: str | None = None

    @property
    def provider(self) -> str:
        """As CAROUSEL_PROVIDERS calls it."""
        return "cpu" if self.device is None else self.device.memory


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What runs a bundle, warm and not yet started, and how."""

    core: EngineCore
    encoder: Encoder | None
    serving: Serving


def find_place(providers: Providers) -> Place:
    """What CAROUSEL_PROVIDERS asks for; the CPU, with the reason in the log, where that is not there."""
    if providers == "cpu":
        return Place()
    reason = reason_against(CUDA)
    if reason is not None:
        logger.warning("CAROUSEL_PROVIDERS is cuda, but models run on the CPU: %s", reason)
        return Place(None, reason)
    return Place(CUDA)


def open_parts(
    bundle: Bundle,
    place: Place,
    threads: int,
    max_rows: int,
    max_rows_bytes: int,
    on_batch: Callable[[EncoderReport], None],
) -> Opened:
    """A bundle's graphs, opened at a place, or on the CPU where they cannot run there.

    Args:
        bundle: with its files, which open_bundle has checked.
        place: where to.
        threads: of one operator of a step.
        max_rows: of a step, at most.
        max_rows_bytes: that they may take: where a row has much, there are fewer.
        on_batch: see Encoder.

    Raises:
        RunnerBroken: a graph does not run.
    """
    rows, few = rows_that_fit(bundle, max_rows, max_rows_bytes)
    (core, found), at = _open_at(place, bundle, "steps", partial(_open_steps, bundle, threads, rows))
    refusal = core.prefill.refusal
    reasons = {"rows": found.reason, "provider": at.reason, "prefill": refusal, "max_rows": few}
    prefill: Prefilled = "none" if not bundle.prefill else "graphs" if refusal is None else "steps"
    serving = Serving(found.company, at.provider, prefill, max_rows=rows)
    encoder = None
    if bundle.encoder is not None:
        (encoder, apart), at = _open_at(place, bundle, "encoder", partial(_open_encoder, bundle, on_batch))
        reasons |= {"encoder": apart, "encoder_provider": at.reason}
        serving = replace(serving, encoder="alone" if apart else "together", encoder_provider=at.provider)
    for part in ("rows", "encoder", "max_rows"):  # of the others the log has been told where they were found
        if reasons.get(part):
            name, how = f"{bundle.model} version {bundle.version}", getattr(serving, part)
            logger.warning("%s is run with %s: %s (%s)", name, part, how, reasons[part])
    return Opened(core, encoder, replace(serving, reasons={part: why for part, why in reasons.items() if why}))


def rows_that_fit(bundle: Bundle, max_rows: int, max_bytes: int) -> tuple[int, str | None]:
    """Rows of so much memory, at least one; and why they are not `max_rows`."""
    row_bytes = step_ports(bundle).row_bytes
    rows = max(1, max_bytes // max(1, row_bytes))
    if rows >= max_rows:
        return max_rows, None
    return rows, (
        f"a row takes {row_bytes:,} bytes, and rows may take {max_bytes:,} (CAROUSEL_MAX_ROWS_BYTES): "
        f"there are {rows:,} instead of {max_rows:,} (CAROUSEL_MAX_ROWS)"
    )


def open_core(bundle: Bundle, intra_op_threads: int, max_rows: int, device: Device | None = None) -> EngineCore:
    """The engine's loop body for a bundle, warm. Its states live on the device, where one is given.

    Raises:
        RunnerBroken: a graph does not run, or not there.
    """
    return _open_steps(bundle, intra_op_threads, max_rows, device)[0]


def open_runner(bundle: Bundle, intra_op_threads: int, device: Device | None = None) -> Runner:
    """The runner of a bundle's step graph, which open_bundle has checked."""
    return _fed_ids(bundle, _graph_runner(bundle, intra_op_threads, device))


def _graph_runner(bundle: Bundle, intra_op_threads: int, device: Device | None) -> OnnxRunner:
    ports, weights = step_ports(bundle), bundle.weights(bundle.step)
    graph = bundle.files[bundle.manifest.step.graph]
    return OnnxRunner(graph, ports, intra_op_threads, device=device, weights=weights)


def _fed_ids(bundle: Bundle, runner: OnnxRunner) -> Runner:
    """The same, fed with ids where the bundle's codec has any."""
    codec = id_codec(bundle)
    return runner if codec is None or takes_ids(bundle) else IdRunner(runner, codec.enter)


def open_prefill(bundle: Bundle, device: Device | None = None) -> OnnxPrefillRunner | None:
    """The runner of a bundle's prefill graphs; None where it has none."""
    graphs = [bundle.files[name] for name in bundle.manifest.prefill]
    weights = [bundle.weights(graph) for graph in bundle.prefill]
    after = {state.before: state.after for state in bundle.manifest.step.states}
    if not graphs:
        return None
    outputs = bundle.manifest.step.outputs
    return OnnxPrefillRunner(graphs, prefill_feed(bundle), after, device, outputs=outputs, weights=weights)


def step_threads(bundle: Bundle, cores: int) -> int:
    """Threads of one operator of a step.

    In fp32 a step reads all weights, which several threads do faster. In int8, and where weights are few, it is so
    short that it gains less from the last core than the event loop does, which has the tokens of the step before to
    send. Beside an encoder, which has a call on every core, a second thread would do little but wait.
    """
    if bundle.encoder is not None:
        return 1
    manifest = bundle.manifest
    short = manifest.precision == "int8" or len(bundle.files.get(manifest.step.graph, b"")) < SHORT_BYTES
    return max(1, cores - 1) if short else cores


def _open_at(place: Place, bundle: Bundle, part: str, open_on: Callable[[Device | None], Part]) -> tuple[Part, Place]:
    """A part of a model, and where it runs."""
    if place.device is not None:
        try:
            return open_on(place.device), place
        except RunnerBroken as error:
            name, provider = f"{bundle.model} version {bundle.version}", place.device.provider
            logger.warning("the %s of %s cannot run on %s and runs on the CPU: %s", part, name, provider, error)
            place = Place(None, f"the {part} cannot run on {provider}: {error}")
    return open_on(None), place


def _open_steps(
    bundle: Bundle, intra_op_threads: int, max_rows: int, device: Device | None
) -> tuple[EngineCore, Found]:
    if not bundle.manifest.step.graph:
        places = NoSteps(step_ports(bundle))
        return EngineCore(places, max_rows), Found(places)
    graph = _graph_runner(bundle, intra_op_threads, device)
    runner, rows = _fed_ids(bundle, graph), step_rows(max_rows)
    pool = None
    if device is None:
        found = check_rows(runner, rows)
    else:
        found = require_company(runner, rows)
        pool = DevicePool(device, runner.ports.states, runner.ports.context, rows)
    core = EngineCore(found.runner, max_rows, prefill=open_prefill(bundle, device), pool=pool)
    core.prefill.check(found.runner)
    if device is None:
        graph.shrink(rows=2 if found.company == "padded" else 1)  # as few as it is ever given
    return core, found


def _open_encoder(
    bundle: Bundle, on_batch: Callable[[EncoderReport], None], device: Device | None
) -> tuple[Encoder, str | None]:
    """The encoder, and why it is given one image a call; None where it is given several."""
    declared = bundle.manifest.encoder
    assert declared is not None
    assert bundle.encoder is not None
    states = frozenset(spec.name for spec in bundle.states)
    graph = OnnxEncoder(
        bundle.files[declared.graph],
        declared.gives,
        ENCODER_THREADS,
        device,
        input_name=declared.inputs[0],
        weights=bundle.weights(bundle.encoder),
    )
    ports = [spec for spec in bundle.encoder.inputs if spec.name in declared.inputs]
    shape: tuple[int, ...] | Ragged = row_spec(ports[0]).shape
    images = is_one_array(ports) and ports[0].name in bundle.manifest.ports  # what else has a codec reads arrays of it
    if images:
        apart = check_encoder(graph, row_spec(ports[0]).shape, on_device=device is not None)
    else:
        lengths = None if declared.lengths is None else bundle.encoder.input(declared.lengths)
        timed = {spec.name for spec in bundle.encoder.outputs if is_timed(spec)}
        shape, apart = find_together(
            graph, ports, lengths, timed=timed, max_length=declared.max_length, on_device=device is not None
        )
    pace = Pace() if apart is None else Pace(1)
    name = f"encoder-{bundle.model}"
    encoder = Encoder(graph, shape, states, workers=usable_cores(), on_batch=on_batch, name=name, pace=pace)
    encoder.warm_up()
    if device is None and images:
        graph.shrink(np.zeros((1, *row_spec(ports[0]).shape), np.float32))
    return encoder, apart
