"""Every way in which a request can end is counted from 0 on, and the table of endpoints is that of the routes."""

from __future__ import annotations

import httpx

from carousel.service.api import predict
from carousel.service.api.oip import routes as oip
from carousel.service.api.task import TASKS, endpoints_of
from carousel.service.errors import ERRORS
from carousel.service.observability.metrics import UNKNOWN
from carousel.service.observability.outcomes import BEFORE_A_MODEL, Outcomes

OUTCOMES = Outcomes({name: TASKS[name].endpoints for name in TASKS}, endpoints_of(predict.router, oip.router))
MODELS = {"tiny": "language", "tutor": "tracing", "scenes": "captioning"}


def _counts(server):
    registry = server.context.metrics.registry
    return {
        tuple(sample.labels[name] for name in ("model", "version", "endpoint", "outcome")): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "carousel_requests_total"
    }


def test_endpoints_are_the_routes_of_models(client):
    document = client.get("/openapi.json").json()
    described = {path for path in document["paths"] if "{model}" in path or path == "/v1/completions"}
    versions = {f"/v2/models/{{model}}/versions/{{version}}{rest}" for rest in ("", "/ready", "/infer")}
    assert OUTCOMES.endpoints == described | versions | {"/v1/models/{model}/stream"}


def test_outcomes_of_every_served_model_begin_at_zero(run_server):
    with run_server() as server:
        counts = _counts(server)
        assert not any(counts.values())
        for name, task in MODELS.items():
            for endpoint, outcome in OUTCOMES.of(task):
                assert counts[name, "1", endpoint, outcome] == 0
        for code in BEFORE_A_MODEL:
            assert counts[UNKNOWN, UNKNOWN, UNKNOWN, code] == 0
        assert {outcome for *_, outcome in counts} == {*ERRORS, "ok", "cancelled"}


def test_requests_end_in_what_was_there_before(run_server, eventually):
    """Whatever happens, no series appears that was not there."""
    with run_server(max_body_bytes=5_000) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        before = _counts(server)
        for path, body in (
            ("/v1/completions", {"model": "tiny", "prompt": "abc", "max_tokens": 1}),
            ("/v1/completions", {"model": "tiny", "prompt": 5}),
            ("/v1/completions", {"model": "nobody", "prompt": "abc"}),
            ("/v1/completions", {"model": "tutor", "prompt": "abc"}),
            ("/v1/completions", {"model": "tiny", "prompt": "a" * 6_000}),
            ("/v1/models/tiny/score", {"text": "xyz"}),
            ("/v1/models/tiny/score", {"text": 5}),
            ("/v1/models/nobody/score", {"text": "abc"}),
            ("/v1/models/tutor/trace", {"attempts": []}),
            ("/v1/models/tutor/trace", {"attempts": [{"skill": "none", "correct": True}]}),
            ("/v1/models/scenes/captions", {"image": "?"}),
            ("/v1/models/scenes/captions", {"foo": "?"}),
            ("/nowhere", {}),
        ):
            client.post(path, json=body)
        client.post("/v1/completions", content=b"{", headers={"content-type": "application/json"})
        client.post("/v1/models/tiny/score", content=b"{", headers={"content-type": "application/json"})
        client.get("/v1/models/tiny/sessions/nobody")
        client.get("/v1/models/tutor/trace/nobody/mastery.svg")
        client.get("/v1/models/nobody")
        client.put("/v1/models/tiny")
        client.get("/v1/models/tiny/stream")
        eventually(lambda: sum(_counts(server).values()) == 20)
        grown = {labels for labels, value in _counts(server).items() if value != before.get(labels, 0)}
        assert grown <= set(before), grown - set(before)
