"""Spans of requests through the real server: what they say, whose trace they join, and that nobody else pays."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect as websockets_connect

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from carousel.service import app as app_module
from carousel.service.app import open_spans
from carousel.service.observability import spans as spans_module
from carousel.service.observability.spans import MAX_SEQUENCES, Spans

ROOT = Path(__file__).parents[3]
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = "01", "00"
SECRET = "dehbfacg"
"""A prompt of known letters that nothing else spells."""


@pytest.fixture(scope="module")
def exporter():
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def traced(run_server, exporter):
    """A server whose spans stay in memory."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")  # milliseconds between two batches
            patch.setattr(app_module, "open_spans", lambda environment: Spans(exporter))
            server = stack.enter_context(run_server())
        yield server


@pytest.fixture
def http(traced, exporter):
    exporter.clear()
    with httpx.Client(base_url=traced.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def take(exporter, eventually):
    """The spans of the one request since they were last taken: its own, and those within it by their names."""

    def found():
        return [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]

    def wait(**expected):
        eventually(lambda: len(found()) == 1)
        (root,) = found()
        children = [span for span in exporter.get_finished_spans() if span is not root]
        exporter.clear()
        assert all(span.parent.span_id == root.context.span_id for span in children)
        assert all(root.start_time <= span.start_time <= span.end_time <= root.end_time for span in children)
        told = told_by(root)
        assert {name: told[name] for name in expected} == expected
        return root, children

    return wait


def told_by(span):
    return {name.removeprefix("carousel."): value for name, value in span.attributes.items()}


def test_completion_has_spans_from_socket_to_step(http, take):
    body = {"model": "tiny", "prompt": SECRET, "max_tokens": 20, "temperature": 0}
    for cached in (0, 7):  # the second finds the state before the last token of the prompt
        response = http.post("/v1/completions", json=body)
        root, children = take(
            request_id=response.headers["x-request-id"], model="tiny", version="1", outcome="ok", sequences=1
        )
        assert root.name == "POST /v1/completions"
        assert root.attributes["http.response.status_code"] == 200
        assert root.status.status_code is StatusCode.UNSET
        wait, prompt, generate = sorted(children, key=lambda span: span.start_time)
        assert [span.name for span in (wait, prompt, generate)] == ["wait", "prompt", "generate"]
        assert wait.end_time == prompt.start_time
        assert prompt.end_time == generate.start_time
        assert [event.name for event in wait.events] == ["submitted"]
        assert wait.start_time <= wait.events[0].timestamp <= wait.end_time
        assert told_by(prompt) == {"prompt_tokens": 8, "cached_tokens": cached}
        told = told_by(generate)
        assert (told["tokens"], told["rows"], told["finish_reason"]) == (20, 1, "length")
        assert told["steps"] == 19
        assert told["step_rows_mean"] == 1
        everything = repr([[span.name, dict(span.attributes)] for span in (root, *children)])
        assert SECRET not in everything
        assert response.json()["choices"][0]["text"] not in everything


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/v1/models/tiny/score", {"text": SECRET}, ["wait", "prompt"]),
        ("/v1/models/tutor/trace", {"attempts": [{"skill": 1, "correct": True}] * 9}, ["wait", "prompt"]),
        ("/v1/models/scenes/captions", {"beam_width": 3}, ["wait", "generate"]),
    ],
)
def test_what_tells_no_tokens_has_the_spans_that_it_lived_to_see(http, take, picture, path, body, names):
    if "captions" in path:
        response = http.post(path, files={"image": picture()}, data=body)
    else:
        response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    _, children = take(request_id=response.headers["x-request-id"], outcome="ok")
    assert [span.name for span in sorted(children, key=lambda span: span.start_time)] == names
    if "beam_width" in body:
        assert told_by(children[1])["rows"] == 3


def test_each_generation_of_a_socket_joins_the_callers_trace(traced, http, take, connect, caplog, eventually):
    caplog.set_level(logging.INFO, "carousel.requests")
    headers = {"traceparent": f"00-{TRACE_ID}-{CALLER}-{SAMPLED}"}
    url = traced.socket_url("tiny")
    with websockets_connect(url, proxy=None, compression=None, additional_headers=headers) as socket:
        stream = type(connect(traced))(socket)
        for place, kind in enumerate(("start", "feed")):
            accepted = stream.generate("abc", kind=kind, max_tokens=5)[0]
            root, children = take(request_id=accepted["request_id"], outcome="ok", sequences=1)
            assert root.name == "WS /v1/models/{model}/stream"
            assert f"{root.context.trace_id:032x}" == TRACE_ID
            assert f"{root.parent.span_id:016x}" == CALLER
            assert len(children) == 3
            eventually(lambda count=place + 1: len(caplog.records) == count)
            line = caplog.records[place].msg.fields()
            assert (line["request_id"], line["trace_id"]) == (accepted["request_id"], TRACE_ID)
            assert f"trace_id={TRACE_ID}" in caplog.text


def test_trace_that_the_caller_does_not_record_is_not_recorded_here(http, take, exporter):
    headers = {"traceparent": f"00-{TRACE_ID}-{CALLER}-{NOT_SAMPLED}"}
    http.post("/v1/models/tiny/score", json={"text": "abc"}, headers=headers)
    response = http.post("/v1/models/tiny/score", json={"text": "abc"}, headers={"traceparent": "00-broken"})
    root, _ = take(request_id=response.headers["x-request-id"])  # and no other
    assert root.parent is None


def test_refusal_is_an_error_where_it_is_the_servers(http, take, traced, monkeypatch):
    response = http.post("/v1/models/nobody/score", json={"text": "abc"})
    root, children = take(outcome="unknown_model", model="unknown", request_id=response.headers["x-request-id"])
    assert (root.status.status_code, root.attributes["error.type"]) == (StatusCode.UNSET, "unknown_model")
    assert children == []
    monkeypatch.setattr(traced.context.repository.models["tiny"].engine, "_failure", "the device is gone")
    http.post("/v1/models/tiny/score", json={"text": "abc"})
    root, _ = take(outcome="model_unavailable")
    assert (root.status.status_code, root.attributes["http.response.status_code"]) == (StatusCode.ERROR, 503)


def test_request_for_many_has_spans_of_some_only(http, take):
    learners = [{"attempts": [{"skill": 1, "correct": True}] * 3}] * (MAX_SEQUENCES + 5)
    assert http.post("/v1/models/tutor/trace", json={"learners": learners}).status_code == 200
    _, children = take(sequences=MAX_SEQUENCES + 5)
    assert len(children) == 2 * MAX_SEQUENCES


def test_probes_and_scrapes_have_no_spans(http, take):
    for path in ("/livez", "/readyz", "/metrics"):
        assert http.get(path).status_code == 200
    response = http.get("/v1/models")
    take(request_id=response.headers["x-request-id"])


@pytest.fixture
def collector():
    """A collector's address, and the batches that it was sent."""
    batches, arrived = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            batches.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", batches, arrived
        server.shutdown()
        thread.join()


def test_standard_variables_send_spans_to_a_collector(run_server, collector, monkeypatch):
    address, batches, arrived = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "carousel-eu")
    with run_server() as server:
        response = httpx.post(f"{server.url}/v1/models/tiny/score", json={"text": "abc"}, trust_env=False)
    assert arrived.wait(30)  # what was left is sent before the server ends
    ((path, content),) = batches
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(content).resource_spans
    assert {pair.key: pair.value.string_value for pair in resource.resource.attributes}["service.name"] == "carousel-eu"
    (root,) = (span for scope in resource.scope_spans for span in scope.spans if not span.parent_span_id)
    told = {pair.key: pair.value.string_value for pair in root.attributes}
    assert told["carousel.request_id"] == response.headers["x-request-id"]


def test_collector_that_is_away_holds_nobody_up(run_server, monkeypatch):
    monkeypatch.setattr(spans_module, "CLOSE_SECONDS", 0.2)
    exporter = OTLPSpanExporter("http://127.0.0.1:9/v1/traces")
    monkeypatch.setattr(app_module, "open_spans", lambda environment: Spans(exporter))
    with run_server() as server:
        url = f"{server.url}/v1/models/tiny/score"
        assert httpx.post(url, json={"text": "abc"}, trust_env=False).status_code == 200
        began = time.monotonic()
    assert time.monotonic() - began < 10  # a first retry alone takes about a second, all of them much more


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}],
)
def test_nothing_is_opened_where_nobody_is_to_get_spans(environment):
    assert open_spans(environment) is None


WITHOUT = """
import sys
from carousel.service.app import create_app
from carousel.service.settings import Settings

if sys.argv[1] == "absent":
    sys.modules["opentelemetry.exporter.otlp.proto.http.trace_exporter"] = None
create_app(Settings(repository=sys.argv[2]))
print(*sys.modules)
"""
NOT_WITHOUT = {"opentelemetry.sdk.trace", "opentelemetry.exporter.otlp", "carousel.service.observability.spans"}
"""(redis imports `opentelemetry.sdk.metrics` where that is installed.)"""


@pytest.mark.parametrize("state", ["off", "absent"])
def test_without_a_collector_or_the_extra_nothing_of_it_is_imported(tiny_bundle, state):
    environment = {} if state == "off" else {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, state, str(tiny_bundle.parents[1])],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not NOT_WITHOUT & set(done.stdout.split())
    assert ("no spans are sent" in done.stderr) == (state == "absent")
