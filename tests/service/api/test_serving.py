"""How models are run on this machine is for all to see; and what a model cannot do stops neither it nor others."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from carousel.service.observability.metrics import SERVING
from carousel.service.served.serving import Serving
from tests.service import step_graphs as graphs

BUNDLES = Path(__file__).parents[3] / "bundles"
COMPANY = {
    "mixes": (graphs.MAXIMUM, "alone", "a row differs from the same row alone ("),
    "single": (graphs.ONE_ROW, "alone", "2 rows in a call fail ("),
    "places": (graphs.SIXTH_ROW, "alone", "a row differs from the same row alone (logits, row 6 of 9)"),
    "rounds": (graphs.SOFTPLUS, "alone", "a row differs from the same row alone ("),
    "second": (graphs.SECOND_ROW, "padded", "one row alone fails ("),
    "elman": (graphs.ELMAN, "padded", "a row differs from the same row alone ("),
}


@pytest.fixture(scope="module")
def bad_company(run_server, tiny_bundle, tmp_path_factory):
    """A server of models whose rows must be kept apart, one that runs nowhere, and one without any trouble."""
    repository = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_bundle.parent, repository / "tiny")
    for name, (nodes, _, _) in COMPANY.items():
        graphs.publish_graph(graphs.step_graph(nodes), repository, name, tiny_bundle)
    graphs.publish_graph(graphs.step_graph(graphs.THREE_ROWS), repository, "broken", tiny_bundle)
    with run_server(repository=repository) as server:
        yield server


@pytest.fixture
def http(bad_company):
    with httpx.Client(base_url=bad_company.url, timeout=60, trust_env=False) as client:
        yield client


def labels_of(client):
    """Of each model's `carousel_model_info`."""
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    return {sample.labels["model"]: sample.labels for sample in families["carousel_model_info"].samples}


def test_labels_are_all_that_is_known_of_how_a_model_is_run():
    assert tuple(Serving().labels) == SERVING


def test_models_that_run_as_they_might_say_so_and_give_no_reasons(client):
    told = {model["id"]: model["serving"] for model in client.get("/v1/models").json()["data"]}
    assert set(told) == {"blind", "endless", "scenes", "tiny", "tutor"}
    for name, serving in told.items():
        encoder = name in ("blind", "endless", "scenes")
        assert serving == {
            "rows": "together",
            "provider": "cpu",
            "prefill": "none",
            "encoder": "together" if encoder else "none",
            "encoder_provider": "cpu" if encoder else "none",
            "max_rows": 8,
            "reasons": {},
        }
    for name, labels in labels_of(client).items():
        assert {part: labels[part] for part in SERVING} | {"max_rows": 8, "reasons": {}} == told[name]


@pytest.mark.parametrize("name", COMPANY)
def test_rows_that_are_kept_apart_are_told_with_the_reason(http, name):
    _, company, reason = COMPANY[name]
    serving = http.get(f"/v1/models/{name}").json()["serving"]
    assert serving["rows"] == labels_of(http)[name]["rows"] == company
    assert set(serving["reasons"]) == {"rows"}
    assert serving["reasons"]["rows"].startswith(reason)
    assert "\n" not in serving["reasons"]["rows"]


def test_what_runs_nowhere_is_refused_and_stops_nothing_else(http, bad_company):
    assert {model["id"] for model in http.get("/v1/models").json()["data"]} == {"tiny", *COMPANY}
    reason = bad_company.context.repository.refusals["broken"].reason
    assert reason.startswith("a row of zeros fails, alone (")
    assert http.get("/v1/models/tiny").json()["serving"]["reasons"] == {}
    assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize("name", COMPANY)
def test_answers_in_company_are_those_alone(http, name):
    bodies = [
        {"model": name, "prompt": "abcdefgh"[place % 5 :], "max_tokens": 20 + place, "seed": place, "logprobs": 5}
        for place in range(12)
    ]

    def answer(body):
        response = http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text[:500]
        return response.json()["choices"]

    alone = [answer(body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as threads:
        assert list(threads.map(answer, bodies)) == alone


def test_session_of_a_model_whose_rows_are_kept_apart_resumes_bit_for_bit(http):
    text = "abcdefghk" * 3
    whole = http.post("/v1/models/mixes/next-token", json={"text": text, "top": 13}).json()["candidates"]
    for part in (text[:10], text[10:]):
        answer = http.post("/v1/models/mixes/next-token", json={"text": part, "top": 13, "session": "ada"})
        assert answer.status_code == 200, answer.text
    assert answer.json()["candidates"] == whole


@pytest.mark.parametrize("agrees", [True, False])
def test_prefill_graphs_that_differ_from_steps_are_told(run_server, monkeypatch, agrees):
    if not agrees:
        monkeypatch.setattr("carousel.service.engine.prefill.prefill._same_states", lambda *_: False)
    with run_server(repository=BUNDLES) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        serving = client.get("/v1/models/shakespeare").json()["serving"]
        assert serving["prefill"] == labels_of(client)["shakespeare"]["prefill"] == ("graphs" if agrees else "steps")
        reason = "the prefill graph and the step graph differ on this machine; prompts are fed step by step"
        assert serving["reasons"] == ({} if agrees else {"prefill": reason})


def test_encoder_whose_images_are_kept_apart_is_told_and_given_one_a_call(run_server, monkeypatch, picture):
    from carousel.service.engine.runner import OnnxEncoder

    class Encoder(OnnxEncoder):
        def __call__(self, images):
            if len(images) > 1:
                raise ValueError("one image")
            return super().__call__(images)

    monkeypatch.setattr("carousel.service.served.opening.OnnxEncoder", Encoder)
    with run_server() as server, httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        serving = client.get("/v1/models/scenes").json()["serving"]
        assert serving["encoder"] == labels_of(client)["scenes"]["encoder"] == "alone"
        assert serving["reasons"] == {"encoder": "2 rows in a call fail (ValueError: one image)"}
        files = [("image", ("photo", picture(place))) for place in range(9)]
        assert client.post("/v1/models/scenes/captions", files=files).status_code == 200
        registry = server.context.metrics.registry
        labels = {"model": "scenes", "version": "1"}
        assert registry.get_sample_value("carousel_encoder_images_count", labels) == 9
