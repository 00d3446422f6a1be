"""A task that registers itself is served, described, counted and refused as others are, and nothing else changes."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.service.__main__ import main
from carousel.service.api.routes.context import find_model
from carousel.service.api.routes.json_route import JsonRoute
from carousel.service.api.task import TASKS, Command, ServedTask
from carousel.service.api.wire.error_messages import ERRORS
from carousel.service.api.wire.messages import Message

PATH = "/v1/models/{model}/toy"
router = APIRouter(prefix="/v1/models/{model}", route_class=JsonRoute)


class ToyRequest(Message):
    """What it takes."""

    number: int


@router.post("/toy", responses=ERRORS)
async def play(request: Request, model: str, body: ToyRequest) -> Response:
    """No model that is served can."""
    find_model(request, model, "toy")
    raise AssertionError("no model is of this task")


def _run(_settings, options):
    return options.toys


@pytest.fixture
def toy(monkeypatch):
    command = Command("play", "Play.", lambda parser: parser.add_argument("toys", type=int), _run)
    task = ServedTask(
        (router,), lambda model: {}, examples={"play": lambda model: {"One": {"number": 1}}}, commands={"toys": command}
    )
    monkeypatch.setitem(TASKS.choices, "toy", task)


@pytest.mark.usefixtures("toy")
def test_task_is_served_described_counted_and_refused(run_server, refused):
    with run_server() as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        answer = client.post("/v1/models/tiny/toy", json={"number": 1})
        assert "tiny is a language model and this route is for toy models" in refused(answer, 409, "wrong_task")
        refused(client.post("/v1/models/tiny/toy", json={"number": "one"}), 422, "invalid_request")
        assert set(client.get("/openapi.json").json()["paths"][PATH]) == {"post"}
        series = 'carousel_requests_total{endpoint="/v1/models/{model}/toy",model="%s",outcome="wrong_task"'
        counted = client.get("/metrics").text
        for model in ("tiny", "tutor", "scenes"):
            assert series % model in counted


def test_word_of_a_task_is_one_of_the_command_line(toy, capsys):
    assert main(["toys", "3"]) == 3
    with pytest.raises(SystemExit):
        main(["--port", "1", "toys", "3"])
    assert "--port says nothing to toys" in capsys.readouterr().err


def test_without_it_there_is_no_such_route(client, refused):
    refused(client.post("/v1/models/tiny/toy", json={"number": 1}), 404, "not_found")
