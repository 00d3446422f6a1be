"""Every metric, declared once. Labels are bounded: a model's name, its version, fixed words; never an id or a path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from carousel.models.bundle import Bundle
from carousel.service.engine.encoder.encoding import EncoderReport
from carousel.service.engine.port import Engine, Place, StepReport
from carousel.service.observability.histogram import FrequentHistogram
from carousel.service.observability.outcomes import BEFORE_A_MODEL, UNREAD, Outcomes

LATENCY_BUCKETS = (
    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Seconds. An LSTM step takes 0.1 to 5 ms: the first bucket is 50 microseconds."""

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
IMAGE_BUCKETS = (1, 2, 4, 8, 16, 32)
UNKNOWN = "unknown"
"""The model label of a request for a model that is not served: a client cannot make labels."""

RETIRED_VERSIONS = 8
"""So many versions that are no longer served keep their counters and histograms: their last requests have not been
scraped, or have not even been counted, when they are let go. Then they are forgotten, or each reload would leave some
hundred series behind."""

SHED_REASONS = ("full", "wait", "deadline", "slow_reader")
"""No place was free; a row would have come too late; the request's time was over; events were not read fast enough."""

_MODEL = ("model", "version")

SERVING = ("rows", "provider", "prefill", "encoder", "encoder_provider")
"""How a model is run on this machine: the labels that `served.serving` has words for."""


class Metrics:
    """The service's metrics in a registry of their own.

    Args:
        outcomes: how requests to models can end, each counted from 0 on.
    """

    def __init__(self, outcomes: Outcomes | None = None) -> None:
        self._outcomes = outcomes or Outcomes({})
        disable_created_metrics()  # type: ignore[no-untyped-call] # else every series has a line that says since when
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "carousel_requests_total",
            "Requests ended, by outcome: ok, cancelled, or an error code.",
            (*_MODEL, "endpoint", "outcome"),
            registry=registry,
        )
        self.request_seconds = self._histogram(
            "carousel_request_seconds", "From a request's arrival to its end.", "endpoint"
        )
        self.queue_seconds = self._histogram("carousel_queue_seconds", "From a request's admission to its first step.")
        self.time_to_first_token_seconds = self._histogram(
            "carousel_time_to_first_token_seconds", "From a request's admission to its first sampled token."
        )
        self.inter_token_seconds = self._frequent_histogram(
            "carousel_inter_token_seconds", "Between two sampled tokens of one request."
        )
        self.step_seconds = self._frequent_histogram(
            "carousel_step_seconds",
            "One step of all active rows, and what long prompts consume before it where nobody is in steps, by phase: "
            "prefill, decode or mixed.",
            "phase",
        )
        self.engine_overhead_seconds = self._frequent_histogram(
            "carousel_engine_overhead_seconds", "The part of a step that was not spent in onnxruntime."
        )
        self.step_rows = FrequentHistogram(
            "carousel_step_rows", "Rows in a step.", _MODEL, buckets=ROW_BUCKETS, registry=registry
        )
        self.rows = Gauge("carousel_rows", "Rows by state: active or free.", (*_MODEL, "state"), registry=registry)
        self.queue_depth = Gauge("carousel_queue_depth", "Requests waiting for a row.", _MODEL, registry=registry)
        self.tokens = Counter(
            "carousel_tokens_total",
            "Tokens (tracing: attempts) by kind: prompt (consumed), cached (not consumed again) or generated.",
            (*_MODEL, "kind"),
            registry=registry,
        )
        self.shed = Counter(
            "carousel_shed_total",
            "Requests refused or ended for capacity, by reason: full, wait, deadline, slow_reader or connections.",
            (*_MODEL, "reason"), registry=registry,
        )  # fmt: skip
        self.encoder_seconds = self._histogram("carousel_encoder_seconds", "One batch of images in the encoder.")
        self.encoder_images = Histogram(
            "carousel_encoder_images", "Images in a batch.", _MODEL, buckets=IMAGE_BUCKETS, registry=registry
        )
        self.state_cache_query_tokens = Counter(
            "carousel_state_cache_query_tokens_total", "Prompt tokens looked up in the prefix-state cache.",
            _MODEL, registry=registry,
        )  # fmt: skip
        self.state_cache_hit_tokens = Counter(
            "carousel_state_cache_hit_tokens_total", "Those of them whose state was there.", _MODEL, registry=registry
        )
        self.state_cache_bytes = Gauge(
            "carousel_state_cache_bytes", "Memory that the prefix-state cache holds, of all models.", registry=registry
        )
        self.sessions = Gauge(
            "carousel_sessions", "Sessions in this process; 0 where Redis keeps them.", registry=registry
        )
        self.sessions_bytes = Gauge(
            "carousel_sessions_bytes", "Memory that sessions take in this process; 0 where Redis keeps them.",
            registry=registry,
        )  # fmt: skip
        self.sessions_evicted = Counter(
            "carousel_sessions_evicted_total",
            "Sessions that ended, by reason: ttl, lru or deleted (Redis counts its own ttl and lru).",
            ("reason",), registry=registry,
        )  # fmt: skip
        for reason in ("ttl", "lru", "deleted"):
            self.sessions_evicted.labels(reason)  # from 0 on: what appears with its first event has no rate then
        self.ready = Gauge("carousel_ready", "1 while /readyz says 200, else 0.", registry=registry)
        self.event_loop_lag_seconds = Histogram(
            "carousel_event_loop_lag_seconds", "How late the event loop was with what was due, ten times a second.",
            buckets=LATENCY_BUCKETS, registry=registry,
        )  # fmt: skip
        ProcessCollector(registry=registry)
        self.model_info = Gauge(
            "carousel_model_info", "1 for each model served, with its task, precision, digest, and how it is run here.",
            (*_MODEL, "task", "precision", "digest", *SERVING), registry=registry,
        )  # fmt: skip
        self.model_load_seconds = Gauge(
            "carousel_model_load_seconds", "Time to verify, open and warm a model up.", _MODEL, registry=registry
        )
        self.model_reloads = Counter(
            "carousel_model_reloads_total",
            "Versions that were to be served while the server runs, by result: ok or refused.",
            ("model", "result"), registry=registry,
        )  # fmt: skip
        self.model_refused = Gauge(
            "carousel_model_refused",
            "1 while the version that was last to be served is refused, and an older one or none is; else 0.",
            ("model",), registry=registry,
        )  # fmt: skip
        self._gauges = (self.rows, self.queue_depth, self.model_info, self.model_load_seconds)
        self._records = (
            self.requests, self.request_seconds, self.queue_seconds, self.time_to_first_token_seconds,
            self.inter_token_seconds, self.step_seconds, self.engine_overhead_seconds, self.step_rows, self.tokens,
            self.shed, self.encoder_seconds, self.encoder_images, self.state_cache_query_tokens,
            self.state_cache_hit_tokens,
        )  # fmt: skip
        """What else has a series for each version."""
        self._engines: dict[tuple[str, str], list[Engine]] = {}
        """Those that run, by model and version: more than one while a version makes room for itself, opened anew."""
        self._tasks: dict[tuple[str, str], str] = {}
        """What they do."""
        self._retired: dict[tuple[str, str], None] = {}
        """Versions without an engine, the longest so first."""
        self._ends: dict[tuple[str, str, str, str], tuple[Counter, Histogram]] = {}
        self.shed.labels(UNKNOWN, UNKNOWN, "connections")
        for code in BEFORE_A_MODEL:
            self.requests.labels(UNKNOWN, UNKNOWN, UNKNOWN, code)
        for endpoint in self._outcomes.endpoints:
            for code in UNREAD:
                self.requests.labels(UNKNOWN, UNKNOWN, endpoint, code)

    def keep(self, labels: tuple[str, str]) -> None:
        """Forget nothing of a version that is about to be served."""
        self._retired.pop(labels, None)

    def expect(self, labels: tuple[str, str], task: str) -> None:
        """Count each way in which a request for a version can end, from 0 on."""
        for endpoint, outcome in self._outcomes.of(task):
            self.requests.labels(*labels, endpoint, outcome)
        self._tasks[labels] = task

    def watch(self, labels: tuple[str, str], engine: Engine) -> None:
        """Read an engine's occupancy whenever the metrics are collected: a gauge that is set can go stale."""
        self.keep(labels)
        engines = self._engines.setdefault(labels, [])
        engines.append(engine)
        self.rows.labels(*labels, "active").set_function(lambda: sum(one.describe().running for one in engines))
        self.rows.labels(*labels, "free").set_function(lambda: sum(map(_free, engines)))
        self.queue_depth.labels(*labels).set_function(lambda: sum(one.describe().waiting for one in engines))

    def unwatch(self, labels: tuple[str, str], engine: Engine) -> None:
        """An engine has ended: with the last of a version its gauges go."""
        engines = self._engines.get(labels, [])
        if engine not in engines:
            return  # it had not begun
        engines.remove(engine)
        if engines:
            return
        del self._engines[labels]
        for endpoint, outcome in self._outcomes.of(self._tasks.pop(labels)):
            if (*labels, endpoint, outcome) not in self._ends:  # what has not happened will not
                self.requests.remove(*labels, endpoint, outcome)
        for gauge in self._gauges:
            gauge.remove_by_labels(_named(labels))
        self._retired[labels] = None
        if len(self._retired) > RETIRED_VERSIONS:
            self._forget(next(iter(self._retired)))

    def _forget(self, labels: tuple[str, str]) -> None:
        del self._retired[labels]
        for metric in self._records:
            metric.remove_by_labels(_named(labels))
        for end in [end for end in self._ends if end[:2] == labels]:
            del self._ends[end]

    def connection_refused(self) -> None:
        """Count a connection that was one too many: nobody knows what it would have asked for."""
        self.shed.labels(UNKNOWN, UNKNOWN, "connections").inc()

    def request_ended(self, model: str, version: str, endpoint: str, outcome: str, seconds: float) -> None:
        """Count a request and how long it took. Labels are resolved once: looking them up costs more than counting."""
        labels = (model, version, endpoint, outcome)
        end = self._ends.get(labels)
        if end is None:
            end = self._ends[labels] = (
                self.requests.labels(*labels),
                self.request_seconds.labels(model, version, endpoint),
            )
        end[0].inc()
        end[1].observe(seconds)

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(name, help_text, (*_MODEL, *labels), buckets=LATENCY_BUCKETS, registry=self.registry)

    def _frequent_histogram(self, name: str, help_text: str, *labels: str) -> FrequentHistogram:
        return FrequentHistogram(name, help_text, (*_MODEL, *labels), buckets=LATENCY_BUCKETS, registry=self.registry)


class ModelMetrics:
    """The metrics of one model, with its labels resolved once: looking labels up costs more than counting."""

    def __init__(self, metrics: Metrics, model: str, version: int) -> None:
        labels = (model, str(version))
        metrics.keep(labels)
        self._metrics = metrics
        self._labels = labels
        self.queue_seconds = metrics.queue_seconds.labels(*labels)
        self.time_to_first_token_seconds = metrics.time_to_first_token_seconds.labels(*labels)
        self.inter_token_seconds = metrics.inter_token_seconds.labels(*labels)
        self._step_seconds = {
            phase: metrics.step_seconds.labels(*labels, phase) for phase in ("prefill", "decode", "mixed")
        }
        self._engine_overhead_seconds = metrics.engine_overhead_seconds.labels(*labels)
        self._step_rows = metrics.step_rows.labels(*labels)
        self._prompt_tokens = metrics.tokens.labels(*labels, "prompt")
        self._cached_tokens = metrics.tokens.labels(*labels, "cached")
        self._state_cache_query_tokens = metrics.state_cache_query_tokens.labels(*labels)
        self._state_cache_hit_tokens = metrics.state_cache_hit_tokens.labels(*labels)
        self._generated_tokens = metrics.tokens.labels(*labels, "generated")
        self._encoder_seconds = metrics.encoder_seconds.labels(*labels)
        self._encoder_images = metrics.encoder_images.labels(*labels)
        self.shed = {reason: metrics.shed.labels(*labels, reason) for reason in SHED_REASONS}

    def begin(self, engine: Engine, bundle: Bundle, serving: Mapping[str, str], load_seconds: float) -> None:
        """The model is served from now on.

        Args:
            engine: runs it.
            bundle: what it is.
            serving: how it is run, by SERVING.
            load_seconds: what it took until now.
        """
        metrics, manifest = self._metrics, bundle.manifest
        metrics.expect(self._labels, manifest.task)
        metrics.watch(self._labels, engine)
        metrics.model_load_seconds.labels(*self._labels).set(load_seconds)
        metrics.model_info.remove_by_labels(_named(self._labels))  # the same version may have had other bytes
        what = (manifest.task, manifest.precision, bundle.digest)
        metrics.model_info.labels(*self._labels, *what, *(serving[name] for name in SERVING)).set(1)

    def end(self, engine: Engine) -> None:
        """The model is served no more, and nothing of it runs."""
        self._metrics.unwatch(self._labels, engine)

    def queued(self, place: Place) -> None:
        """Record how long the request that last had a place, and has run, waited for its row."""
        assert place.joined_at is not None
        self.queue_seconds.observe(place.joined_at - place.admitted_at)

    def steps(self, reports: Iterable[StepReport]) -> None:
        """Record steps."""
        prompt_tokens = generated_tokens = 0
        for report in reports:
            self._step_seconds[report.phase].observe(report.step_seconds)
            self._engine_overhead_seconds.observe(report.step_seconds - report.runner_seconds)
            self._step_rows.observe(report.rows)
            prompt_tokens += report.prompt_tokens + report.consumed_ahead
            generated_tokens += report.generated_tokens
        self._prompt_tokens.inc(prompt_tokens)
        self._generated_tokens.inc(generated_tokens)

    def looked_up(self, tokens: int, cached: int) -> None:
        """Record a prompt that was looked up in the prefix-state cache, and how much of it was there."""
        self._state_cache_query_tokens.inc(tokens)
        self._state_cache_hit_tokens.inc(cached)
        self._cached_tokens.inc(cached)

    def encoded(self, report: EncoderReport) -> None:
        """Record one batch of images."""
        self._encoder_seconds.observe(report.seconds)
        self._encoder_images.observe(report.images)


def _free(engine: Engine) -> int:
    """Rows that nobody has."""
    described = engine.describe()
    return described.max_rows - described.running


def _named(labels: tuple[str, str]) -> dict[str, str]:
    return dict(zip(_MODEL, labels, strict=True))
