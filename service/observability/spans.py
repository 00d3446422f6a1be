"""Where the time of a request went, as OpenTelemetry's spans. Imported only where somebody is to get them.

    POST /v1/models/{model}/trace      from the request's arrival to its end; each generation of a socket has one
    ├── wait                           of each sequence: from its place in the queue until it has a row
    ├── prompt                         until its first token, or until its end where it samples nothing
    └── generate                       until its last token; what tells no tokens (a beam) has this and no `prompt`

A step is no span: it belongs to all its rows, and there are thousands a second. `generate` has attributes for them: how
many steps the engine took meanwhile, and of how many rows on average. All spans of a request are made when it has
ended, out of the record that its log line is made of and the timelines of what engines ran for it. So a request
pays next to nothing while it runs, and an attribute can be nothing but what is named here: never what a client sent.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from starlette.types import Scope

from carousel.service.engine.timeline import Timeline
from carousel.service.errors import status_of
from carousel.service.observability.outcomes import CANCELLED, OK
from carousel.service.observability.requests import RequestRecord

MAX_SEQUENCES = 16
"""Of one request that have spans: a thousand learners would make three thousand, one like the other."""

CLOSE_SECONDS = 2.0
"""How long a server that stops tries to send its last spans."""

Attributes = dict[str, str | int | float]


class Spans:
    """Makes spans, and sends them to a collector, in batches, from a thread of its own.

    The standard variables say where to (`OTEL_EXPORTER_OTLP_ENDPOINT`), in whose name (`OTEL_SERVICE_NAME`) and which
    (`OTEL_TRACES_SAMPLER`). What the collector does not take in time is lost, never waited for.

    Args:
        exporter: sends them.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource({"service.name": "carousel"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._exporter = exporter
        self._tracer = self._provider.get_tracer("carousel")

    def of(self, scope: Scope) -> RequestSpans:
        """What makes the spans of a request, or of a socket's generations."""
        return RequestSpans(self._tracer, scope)

    def close(self) -> None:
        """Send what is left. Waits for a collector that does not answer, if not for long: not for the event loop."""
        late = threading.Timer(CLOSE_SECONDS, self._exporter.shutdown)
        late.start()
        self._provider.shutdown()
        late.cancel()


class RequestSpans:
    """Makes the spans of what one scope carries (a service.observability.requests.Tracer).

    They join the caller's trace where the headers name one (`traceparent`: W3C Trace Context), and are left out where
    the caller's are.
    """

    def __init__(self, tracer: Tracer, scope: Scope) -> None:
        self._tracer = tracer
        self._scope = scope
        self._epoch = 0
        """Nanoseconds from the Unix epoch to zero of `time.perf_counter`."""

    def ended(self, record: RequestRecord, seconds: float) -> str:
        """Make the spans of a request that has ended; gives the id of its trace."""
        self._epoch = time.time_ns() - time.perf_counter_ns()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._scope["headers"]}
        method = self._scope.get("method")
        name, end = f"{method or 'WS'} {record.endpoint}", record.started_at + seconds
        told = _of_request(record, method)
        with self._span(name, record.started_at, end, told, extract(headers), SpanKind.SERVER) as span:
            if _status(record.outcome) >= 500:
                span.set_status(Status(StatusCode.ERROR, record.outcome))
            if span.is_recording():
                for timeline in record.sequences[:MAX_SEQUENCES]:
                    self._request(timeline, end, set_span_in_context(span))
        return f"{span.get_span_context().trace_id:032x}"

    def _request(self, timeline: Timeline, request_end: float, within: Context) -> None:
        """The spans of what one request made an engine run, as many as it lived to see."""
        end = request_end if timeline.ended is None else timeline.ended.at
        joined, first = timeline.joined_at, timeline.first_token
        if first is not None and first.at > end:  # its last token as well, which its reader came to see later
            first = timeline.ended
        with self._span("wait", timeline.admitted_at, joined or end, {}, within) as wait:
            # Until here it was tokenised or decoded and its memory was looked for; from here on it queued.
            wait.add_event("submitted", timestamp=self._nanoseconds(timeline.submitted_at))
        if joined is None:
            return
        if first is not None or not timeline.generates:
            told: Attributes = {
                "carousel.prompt_tokens": timeline.prompt_tokens,
                "carousel.cached_tokens": timeline.cached_tokens,
            }
            with self._span("prompt", joined, end if first is None else first.at, told, within):
                pass
        if timeline.generates:
            told = {"carousel.tokens": timeline.new_tokens, "carousel.rows": timeline.rows}
            if timeline.reason is not None:
                told["carousel.finish_reason"] = timeline.reason.value
            if first is not None and timeline.ended is not None and (steps := timeline.ended.steps - first.steps) > 0:
                told["carousel.steps"] = steps
                told["carousel.step_rows_mean"] = (timeline.ended.step_rows - first.step_rows) / steps
            with self._span("generate", joined if first is None else first.at, end, told, within):
                pass

    @contextlib.contextmanager
    def _span(
        self,
        name: str,
        start: float,
        end: float,
        attributes: Attributes,
        within: Context,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Iterator[Span]:
        """A span, its times in seconds of `time.perf_counter`."""
        span = self._tracer.start_span(name, within, kind, attributes, start_time=self._nanoseconds(start))
        yield span
        span.end(self._nanoseconds(end))

    def _nanoseconds(self, at: float) -> int:
        return self._epoch + round(at * 1e9)


def _of_request(record: RequestRecord, method: str | None) -> Attributes:
    """HTTP's by their standard names (OpenTelemetry's semantic conventions), what is ours by the log line's."""
    attributes: Attributes = {
        "http.route": record.endpoint,
        "carousel.request_id": record.request_id,
        "carousel.model": record.model,
        "carousel.version": record.version,
        "carousel.outcome": record.outcome,
        "carousel.sequences": len(record.sequences),
    }
    if method is not None:
        attributes["http.request.method"] = method
    if record.status is not None:
        attributes["http.response.status_code"] = record.status
    if record.outcome not in (OK, CANCELLED):
        attributes["error.type"] = record.outcome
    if record.caller.name is not None:
        attributes |= {"carousel.key": record.caller.name, "carousel.tenant": record.caller.tenant}
    return attributes


def _status(outcome: str) -> int:
    return status_of(outcome) or 200
