"""The API's description holds: whatever is sent, what comes back is described, and never a defect.

Requests are drawn from the description itself, and from what it does not allow (schemathesis).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="session")
def description(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.fixture(scope="module")
def drawn():
    return {}


EXAMPLES = 60  # of each operation, of each kind
OPEN = {"GET /livez", "GET /readyz", "GET /v2/health/live", "GET /v2/health/ready"}
MODELS = {"trace": "tutor", "captions": "scenes"}


def kinds(operation):
    """What is sent: what the description allows, to a model that is there or not, and what it does not."""
    there = next((name for part, name in MODELS.items() if part in operation.path), "tiny")
    yield schemathesis.GenerationMode.POSITIVE, None
    if "{model}" in operation.path or operation.path == "/v1/completions":
        yield schemathesis.GenerationMode.POSITIVE, there
    if operation.body:
        yield schemathesis.GenerationMode.NEGATIVE, there


@dataclass
class Answers:
    """What came back."""

    server: Any
    draw: Any
    drawn: dict[tuple[str, Any, str | None], list[Any]]
    """Examples by operation, kind and model: always the same, and drawing them takes longer than sending them."""
    session: requests.Session = field(default_factory=requests.Session)
    statuses: dict[str, set[int]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def examples(self, operation, mode, model):
        """Those of one kind."""
        key = (operation.label, mode, model)
        if key not in self.drawn:
            self.drawn[key] = self.draw(operation.as_strategy(generation_mode=mode), EXAMPLES)
            for case in self.drawn[key]:
                for place in (case.path_parameters, case.body):
                    if model is not None and isinstance(place, dict) and isinstance(place.get("model"), str):
                        place["model"] = model
        return self.drawn[key]

    def send(self, operation, mode, model):
        """Examples of one kind; all that is wrong is kept, not the first."""

        for case in self.examples(operation, mode, model):
            response = case.call(base_url=self.server.url, session=self.session)
            self.statuses.setdefault(operation.label, set()).add(response.status_code)
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as failures:
                for failure in failures.exceptions:
                    self.wrong.setdefault(f"{operation.label} {response.status_code}: {failure.title}", str(failure))


def test_whatever_is_sent_gets_an_answer_that_is_described(description, server, draw, drawn):
    answers = Answers(server, draw, drawn)
    for operation in (found.ok() for found in description.get_all_operations()):
        for mode, model in kinds(operation):
            answers.send(operation, mode, model)
    assert not answers.wrong, "\n\n".join(f"{title}\n{text[:900]}" for title, text in answers.wrong.items())
    assert not any(500 in statuses for statuses in answers.statuses.values())


def test_server_without_places_says_what_is_described(description, server, draw, drawn):
    answers = Answers(server, draw, drawn)
    engines = [model.engine for model in server.context.repository.models.values()]
    for engine in engines:
        engine._controller.taken += engine.describe().max_admitted
    try:
        for operation in (found.ok() for found in description.get_all_operations()):
            if operation.method == "post":
                for mode, model in kinds(operation):
                    answers.send(operation, mode, model)
    finally:
        for engine in engines:
            engine._controller.taken -= engine.describe().max_admitted
    assert not answers.wrong, answers.wrong
    assert all(503 in statuses for statuses in answers.statuses.values())


def test_server_that_asks_for_keys_says_what_is_described(description, run_server, tmp_path, draw, drawn):
    keys = tmp_path / "api_keys"
    keys.write_text("# nobody has one\n")
    with run_server(api_keys_file=keys) as server:
        answers = Answers(server, draw, drawn)
        for operation in (found.ok() for found in description.get_all_operations()):
            answers.send(operation, schemathesis.GenerationMode.POSITIVE, None)
    assert not answers.wrong, answers.wrong
    assert all(statuses == {200 if label in OPEN else 401} for label, statuses in answers.statuses.items())


ATTEMPTS = [{"skill": 0, "correct": True}, {"skill": 1, "correct": False}]
SOUND = [
    ("/v1/models/{model}/next-token", "tiny", {"text": "abc", "session": "as-described", "return_state": True}),
    ("/v1/models/{model}/score", "tiny", {"tokens": [1, 2, 3], "priority": "batch", "timeout_seconds": 60}),
    ("/v1/completions", "tiny", {"model": "tiny", "prompt": ["ab", "c"], "n": 2, "logprobs": 2, "max_tokens": 3}),
    ("/v1/completions", "tiny", {"model": "tiny", "prompt": "ab", "stream": True, "max_tokens": 3}),
    (
        "/v1/models/{model}/trace",
        "tutor",
        {"attempts": ATTEMPTS, "each": True, "curve": [0, 2], "session": "as-described"},
    ),
    ("/v1/models/{model}/trace", "tutor", {"learners": [{"id": 7, "attempts": ATTEMPTS}, {"attempts": ATTEMPTS}]}),
    ("/v1/models/{model}/captions", "scenes", {"images": 2, "n": 2, "beam_width": 3, "attention": True}),
    ("/v1/models/{model}/captions/attention.svg", "scenes", {"image": 1}),
]


@pytest.mark.parametrize(("path", "model", "body"), SOUND)
def test_sound_request_gets_the_answer_that_is_described(description, server, picture, path, model, body):
    image = base64.b64encode(picture()).decode()
    images = {"image": image, "images": [image] * 2}
    body = {name: images.get(name, value) for name, value in body.items()}
    case = description[path]["post"].Case(
        path_parameters={"model": model} if "{" in path else None, body=body, media_type="application/json"
    )
    response = case.call(base_url=server.url)
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/{model}/sessions/{session}"),
        ("GET", "/v1/models/{model}/trace/{session}/mastery.svg"),
        ("DELETE", "/v1/models/{model}/sessions/{session}"),
    ],
)
def test_session_gets_the_answer_that_is_described(description, server, trace, method, path):
    trace(attempts=ATTEMPTS, session="looked-at")
    case = description[path][method].Case(path_parameters={"model": "tutor", "session": "looked-at"})
    response = case.call(base_url=server.url)
    assert response.status_code == (204 if method == "DELETE" else 200)
    case.validate_response(response, checks=CHECKS)
