import re
from collections.abc import Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from carousel.service.engine.runner import OnnxRunner


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_of_a_running_server_is_ok(client, path):
    response = client.get(path)
    assert response.status_code == 200
    assert response.json() == {"status": "ok"}


def test_metrics_count_requests_tokens_and_steps(client, server, eventually):
    before = _metrics(client)
    response = client.post("/v1/completions", json={"model": "tiny", "prompt": "abcd", "max_tokens": 6})
    assert response.status_code == 200

    def grown(name: str, **labels: str) -> float:
        return _value(_metrics(client), name, **labels) - _value(before, name, **labels)

    eventually(lambda: grown("requests_total", endpoint="/v1/completions", model="tiny", outcome="ok") == 1)
    assert grown("requests_total") == 1
    assert grown("request_seconds_count", model="tiny") == 1
    assert grown("tokens_total", kind="prompt") == 4
    assert grown("tokens_total", kind="generated") == 6
    assert grown("time_to_first_token_seconds_count") == 1
    assert grown("queue_seconds_count") == 1
    assert grown("inter_token_seconds_count") == 5
    assert grown("step_rows_count") == grown("step_rows_sum") == 9  # the last prompt id's step samples the first token
    assert grown("step_seconds_count") == grown("engine_overhead_seconds_count") == 9
    after = _metrics(client)
    assert _value(after, "rows", model="tiny", state="free") == 8
    assert _value(after, "rows", state="active") == _value(after, "queue_depth") == 0
    digest = server.context.repository.models["tiny"].bundle.digest
    assert _value(after, "model_info", model="tiny", version="1", task="language", digest=digest) == 1
    assert _value(after, "model_load_seconds", model="tiny") > 0


def test_metrics_let_no_client_make_labels(client):
    client.get("/v1/models/made-up-name")
    client.get("/made/up/path")
    client.post("/v1/completions", json={"model": "made-up-name", "prompt": "a"})
    text = client.get("/metrics").text
    assert "made" not in text
    assert re.search(r'requests_total\{endpoint="unknown",model="unknown",outcome="not_found"', text)
    assert re.search(r'requests_total\{endpoint="/v1/models/\{model\}",model="unknown",outcome="unknown_model"', text)


def test_request_id_is_told_for_every_request(client):
    responses = [client.get("/v1/models"), client.get("/nowhere"), client.post("/v1/completions", content=b"{")]
    assert len({response.headers["x-request-id"] for response in responses}) == 3


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/docs", "/livez"])
def test_response_is_taken_for_nothing_but_what_it_is(client, path):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


def test_broken_runner_turns_health_red_and_is_told(run_server, connect, eventually, monkeypatch):
    device_is_gone = False
    _fail_steps(monkeypatch, lambda _: device_is_gone, "the device is gone")
    with run_server() as server:
        engine = server.context.repository.models["tiny"].engine
        assert connect(server).generate("abc", max_tokens=5)[-1]["reason"] == "length"
        device_is_gone = True
        running = connect(server)
        running.start("abc", max_tokens=5)
        error, code = running.refusal()
        assert (error["code"], error["retryable"], code) == ("model_unavailable", True, 4503)
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            for path in ("/livez", "/readyz"):
                response = client.get(path)
                assert response.status_code == 503
                assert "the device is gone" in response.json()["failures"]["tiny"]
            response = client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "model_unavailable"
            assert response.headers["retry-after"] in ("1", "2", "3")
        eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)


def test_step_that_fails_ends_its_request_only(run_server, connect, outcomes, eventually, monkeypatch):
    _fail_steps(monkeypatch, lambda ids: 12 in ids, "a step failed")  # 12 is 'k'
    with run_server() as server, httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        fields = {"max_tokens": 600, "temperature": 0}  # which never samples 'k'
        expected = connect(server).generate("abc", **fields)[1:]
        neighbour, failing = connect(server), connect(server)
        neighbour.start("abc", **fields)
        failing.start("aak")
        error, code = failing.refusal()
        assert (error["code"], error["retryable"], code) == ("step_failed", True, 4500)
        response = client.post("/v1/models/tiny/score", json={"text": "akb"})
        assert (response.status_code, response.json()["error"]["code"]) == (500, "step_failed")
        assert client.get("/readyz").status_code == 200
        assert neighbour.rest()[1:] == expected
        eventually(lambda: outcomes(server) == {"ok": 2, "step_failed": 2})


def test_defect_is_one_500_and_counted(run_server, outcomes, eventually, monkeypatch, connect):
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("carousel.service.tasks.language.probability.admit", fail)
    monkeypatch.setattr("carousel.service.api.stream.connection.admit", fail)
    with run_server() as server, httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        response = client.post("/v1/models/tiny/next-token", json={"text": "a"})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "a defect" not in response.text
        assert response.headers["x-request-id"]
        eventually(lambda: outcomes(server) == {"internal_error": 1})
        stream = connect(server)
        stream.start()
        error, code = stream.refusal()
        assert (error["code"], code) == ("internal_error", 4500)
        eventually(lambda: outcomes(server) == {"internal_error": 2})
        assert client.post("/v1/completions", json={"model": "tiny", "prompt": "a"}).status_code == 200


def _fail_steps(monkeypatch, condition: Callable[[list[int]], bool], message: str) -> None:
    """Servers started from now on fail each step whose ids meet the condition."""

    class Runner(OnnxRunner):
        def bind(self, arrays):
            step = super().bind(arrays)

            def step_or_fail() -> None:
                if condition(arrays.inputs["token"].tolist()):
                    raise RuntimeError(message)
                step()

            return step_or_fail

    monkeypatch.setattr("carousel.service.served.opening.OnnxRunner", Runner)


def _metrics(client: httpx.Client) -> list[Sample]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]


def _value(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels."""
    return sum(
        sample.value
        for sample in samples
        if sample.name == f"carousel_{name}" and labels.items() <= sample.labels.items()
    )
