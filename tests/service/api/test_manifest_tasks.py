"""Models whose task the service does not know, or which are not what their task's routes need."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from carousel.models.bundle import publish
from carousel.models.manifest import Manifest
from carousel.service.app import create_app
from carousel.service.settings import Settings
from tests.port_models import VITALS, VITALS_FILES, WARDS, WARDS_FILES, publish_vitals

LYING = {
    "tensors": (VITALS, VITALS_FILES, "language", "the head has no feeds, which that of a language model has"),
    "labels": (WARDS, WARDS_FILES, "language", "has no TextCodec, which a language model has"),
    "numbers": (VITALS, VITALS_FILES, "tracing", "has no InteractionCodec, which a tracing model has"),
    "fed": (WARDS, WARDS_FILES, "tracing", "feeds something back, or has an encoder"),
    "blind": (WARDS, WARDS_FILES, "captioning", "has no encoder; a captioning model begins with an image"),
    "endless": (VITALS, VITALS_FILES, "captioning", "the head has no feeds, which that of a captioning model has"),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    repository: Path = tmp_path_factory.mktemp("repository")
    publish_vitals(repository)
    for name, (manifest, files, task, _) in LYING.items():
        publish(repository, name, Manifest.model_validate({**manifest, "task": task, "files": {}}), files)
    with TestClient(create_app(Settings(repository=repository, admin_key="k" * 32))) as client:
        yield client


def test_model_of_a_task_of_its_own_is_in_the_catalogue(client: TestClient) -> None:
    (info,) = client.get("/v1/models").json()["data"]
    assert (info["id"], info["task"], info["serving"]["rows"]) == ("vitals", "vitals", "together")
    assert info["states"] == [
        {"name": "h", "shape": [5], "dtype": "float32"},
        {"name": "taken", "shape": [1], "dtype": "int64"},
    ]
    assert info["state_bytes"] == 5 * 4 + 8
    assert info["limits"]["max_prompt_tokens"] == 262_144
    assert client.get("/v1/models/vitals").json() == info


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/vitals/next-token", {"text": "a"}),
        ("/v1/models/vitals/trace", {"attempts": [{"skill": 0, "correct": True}]}),
        ("/v1/models/vitals/captions", {"image": "AAAA"}),
        ("/v1/completions", {"model": "vitals", "prompt": "a"}),
    ],
)
def test_no_route_of_another_task_takes_it(client: TestClient, path: str, body: dict[str, object]) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code in (400, 404, 409, 422)
    assert answer.json()["error"]["code"] == "wrong_task"


def test_its_socket_streams_raw_steps_alone(client: TestClient) -> None:
    """Three ports of two types, a number among them; two outputs of three."""
    rows = {"vitals": [[1, 2, 3], [0, 0, 1]], "ward": [[1, 0, 0, 0]] * 2, "dose": [2, 3]}
    with client.websocket_connect("/v1/models/vitals/stream") as socket:
        socket.send_json({"type": "start", "raw": True, "outputs": ["total", "risk"]})
        accepted = socket.receive_json()
        assert [port["name"] for port in accepted["inputs"]] == ["vitals", "ward", "dose"]
        assert [(port["name"], port["dtype"], port["shape"]) for port in accepted["outputs"]] == [
            ("risk", "float32", [4]),
            ("total", "int64", [1]),
        ]
        socket.send_json({"type": "steps", "inputs": rows})
        told = socket.receive_json()["outputs"]
        assert (list(told), told["total"], len(told["risk"])) == (["risk", "total"], [[9], [12]], 2)
        socket.send_json({"type": "steps", "inputs": {**rows, "dose": [1]}})
        assert "has 1 steps; the others have 2" in socket.receive_json()["message"]
        socket.send_json({"type": "steps", "inputs": {**rows, "dose": [1.5, 2]}})
        assert "input 'dose' is float64; allowed is int32" in socket.receive_json()["message"]
        socket.send_json({"type": "finish"})
        assert socket.receive_json()["steps"] == 2
        socket.send_json({"type": "start", "prompt": "Two of"})
        assert "whose sockets stream raw steps; send start with raw" in socket.receive_json()["message"]
        with pytest.raises(WebSocketDisconnect):  # the client must not leave first: it would cancel what serves it
            socket.receive_json()
    with client.websocket_connect("/v1/models/vitals/stream") as socket:
        socket.send_json({"type": "start", "raw": True, "binary": True})
        assert "binary: is for models with one port of numbers" in socket.receive_json()["message"]


def test_description_of_the_api_is_there(client: TestClient) -> None:
    assert client.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("name", LYING)
def test_model_that_is_not_what_its_task_needs_stops_nothing_else(client: TestClient, name: str) -> None:
    headers = {"authorization": f"Bearer {'k' * 32}"}
    answer = client.post(f"/v1/repository/models/{name}/load", headers=headers)
    assert LYING[name][3] in answer.text
    assert client.get("/readyz").status_code == 200
