"""`predict`: a stranger's network over HTTP, against its own file run its own way."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import onnx
import pytest

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.trial import Trial
from tests.export.adopt.strangers import CLASSES, FEATURES, UNITS, sequence_network
from tests.export.adopt.test_step import speaker_network

STEPS = 11


@pytest.fixture(scope="module")
def file():
    return sequence_network("LSTM", states=False)


@pytest.fixture(scope="module")
def repository(file, tmp_path_factory):
    root = tmp_path_factory.mktemp("adopted")
    for name, content in {"net": file, "speaker": speaker_network()}.items():
        path = root / f"{name}.onnx"
        path.write_bytes(content)
        assert main([str(path), "--repository", str(root / "bundles"), "--name", name, "--time", "x=1"]) == 0
    first = root / "bundles" / "net" / "1"
    other = root / "bundles" / "net" / "2"
    other.mkdir()
    for each in first.iterdir():
        (other / each.name).write_bytes(each.read_bytes())
    said = json.loads((first / "manifest.json").read_text())
    said |= {"head": {"kind": "read", "from": "scores"}, "ports": {"scores": "classes"}}
    said["codecs"] = {"classes": {"kind": "labels", "names": ["a", "b", "c"]}}
    (other / "manifest.json").write_text(json.dumps(said))
    return root / "bundles"


@pytest.fixture(scope="module")
def client(run_server, repository):
    with (
        run_server(repository=repository, max_rows=4) as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as instance,
    ):
        yield instance


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(2).standard_normal((9, STEPS, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def truth(file, x):
    return Trial(onnx.load_model_from_string(file))({"x": x})["scores"]


def predict(client, model="net", **body):
    return client.post(f"/v1/models/{model}/predict", json=body)


def test_steps_are_what_the_file_says_of_the_sequence(client, x, truth):
    answer = predict(client, inputs={"x": x[0].tolist()}, each=True).json()
    assert (answer["model"], answer["version"], answer["steps"]) == ("net", 1, STEPS)
    assert answer.keys() == {"model", "version", "steps", "cached_steps", "outputs"}
    np.testing.assert_array_equal(np.float32(answer["outputs"]["scores"]), truth[0])
    last = predict(client, inputs={"x": x[0].tolist()}, outputs=["scores"]).json()["outputs"]
    np.testing.assert_array_equal(np.float32(last["scores"]), truth[0, -1])


def test_beginning_that_was_sent_before_is_not_run_again(client, x, truth):
    def ask(steps, salt=None):
        answer = predict(client, inputs={"x": x[3, :steps].tolist()}, cache_salt=salt).json()
        np.testing.assert_array_equal(np.float32(answer["outputs"]["scores"]), truth[3, steps - 1])
        return answer["cached_steps"]

    assert [ask(8), ask(8), ask(11), ask(11), ask(11, "else")] == [0, 7, 7, 10, 0]
    other = x[3].copy()
    other[9] += 1
    answer = predict(client, inputs={"x": other.tolist()}).json()
    assert answer["cached_steps"] == 7
    every = predict(client, inputs={"x": x[3].tolist()}, each=True).json()
    assert every["cached_steps"] == 0  # whose outputs are wanted
    np.testing.assert_array_equal(np.float32(every["outputs"]["scores"]), truth[3])


def test_many_at_once_are_each_what_it_is_alone(client, x, truth):
    def ask(row):
        return predict(client, inputs={"x": x[row].tolist()}, each=True).json()["outputs"]["scores"]

    with ThreadPoolExecutor(len(x)) as pool:
        for row, scores in enumerate(pool.map(ask, range(len(x)))):
            np.testing.assert_array_equal(np.float32(scores), truth[row])


def test_session_goes_on_where_it_was(client, x, truth):
    for start, end in ((0, 4), (4, 5), (5, STEPS)):
        answer = predict(client, inputs={"x": x[1, start:end].tolist()}, session="one", each=True).json()
        assert answer["session"] == "one"
        np.testing.assert_array_equal(np.float32(answer["outputs"]["scores"]), truth[1, start:end])
    view = client.get("/v1/models/net/sessions/one").json()
    assert view["model"] == "net"
    assert client.delete("/v1/models/net/sessions/one").status_code in (200, 204)


def test_state_token_goes_on_where_it_was(client, x, truth):
    first = predict(client, inputs={"x": x[2, :7].tolist()}, return_state=True).json()
    last = predict(client, inputs={"x": x[2, 7:].tolist()}, state=first["state"]).json()
    np.testing.assert_array_equal(np.float32(last["outputs"]["scores"]), truth[2, -1])


def test_context_is_read_by_every_step(client, x):
    file = Trial(onnx.load_model_from_string(speaker_network()))
    who = np.random.default_rng(4).standard_normal(FEATURES).astype(np.float32)
    told = predict(client, "speaker", inputs={"x": x[0].tolist()}, context={"context.speaker": who.tolist()}, each=True)
    zeros = np.zeros((1, 1, UNITS), np.float32)
    expected = file({"x": x[:1], "speaker": who[None], "h": zeros})["told"][:, 0]
    np.testing.assert_array_equal(np.float32(told.json()["outputs"]["told"]), expected)


def test_catalogue_tells_the_ports(client):
    info = client.get("/v1/models/net").json()
    assert (info["task"], info["version"]) == ("prediction", 1)
    assert client.get("/v1/models/net").json()["version"] == 1  # version 2 has another head than the route needs
    assert info["inputs"] == [{"name": "x", "shape": [FEATURES], "dtype": "float32"}]
    assert info["outputs"] == [{"name": "scores", "shape": [CLASSES], "dtype": "float32"}]
    assert client.get("/v1/models/speaker").json()["context"][0]["name"] == "context.speaker"


def test_examples_of_the_description_work_as_they_are(client):
    description = client.get("/openapi.json").json()
    operation = description["paths"]["/v1/models/{model}/predict"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    for each in examples.values():
        assert any(predict(client, model, **each["value"]).status_code == 200 for model in ("net", "speaker"))


ROW = [0.0] * FEATURES


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs: input 'x' is missing; inputs are x"),
        ({"inputs": {"y": [ROW]}}, "there is no input 'y'; inputs are x"),
        ({"inputs": {"x": []}}, "allowed is"),
        ({"inputs": {"x": [ROW[1:]]}}, "input 'x' has rows [4]; allowed is [5]"),
        ({"inputs": {"x": [ROW, ROW[1:]]}}, "rows of unequal lengths"),
        ({"inputs": {"x": [1.0, 2.0]}}, "input 'x' has rows []; allowed is [5]"),
        ({"inputs": {"x": [["a"] * FEATURES]}}, "holds what is no number"),
        ({"inputs": {"x": [[None] * FEATURES]}}, "holds what is no number"),
        ({"inputs": {"x": [[True] * FEATURES]}}, "input 'x' is bool; allowed is float32"),
        ({"inputs": {"x": [[1e39, *ROW[1:]]]}}, "not finite in float32"),
        ({"inputs": {"x": [[10**400, *ROW[1:]]]}}, "input 'x'"),
        ({"inputs": {"x": [ROW]}, "steps": 3}, "steps: the model has inputs"),
        ({"inputs": {"x": [ROW]}, "outputs": ["logits"]}, "outputs.0: there is no output 'logits'; outputs are scores"),
        ({"inputs": {"x": [ROW]}, "outputs": []}, "outputs"),
        ({"inputs": {"x": [ROW]}, "context": {"who": 1}}, "context: there is no port 'who'; ports are none"),
        ({"inputs": {"x": [ROW]}, "colour": "red"}, "colour"),
        ({"inputs": {"x": [ROW]}, "session": "a", "state": "b"}, ""),
    ],
)
def test_bad_bodies_are_refused_in_a_sentence(client, body, message):
    answer = client.post("/v1/models/net/predict", json=body)
    assert answer.status_code in (400, 422), answer.text
    assert message in answer.json()["error"]["message"]


def test_missing_context_is_refused(client):
    answer = predict(client, "speaker", inputs={"x": [ROW]})
    assert "context: port 'context.speaker' is missing" in answer.json()["error"]["message"]


def test_infinity_in_the_body_is_refused(client):
    headers = {"content-type": "application/json"}
    content = b'{"inputs": {"x": [[NaN, 0, 0, 0, 0]]}}'
    answer = client.post("/v1/models/net/predict", content=content, headers=headers)
    assert answer.status_code in (400, 422)


def test_sequences_are_each_what_it_is_alone(client, x, truth):
    sequences = [{"inputs": {"x": x[row, : row + 1].tolist()}, "session": f"many-{row}"} for row in range(9)]
    answer = predict(client, sequences=sequences).json()
    assert answer.keys() == {"model", "version", "sequences"}
    for row, told in enumerate(answer["sequences"]):
        assert (told["steps"], told["session"]) == (row + 1, f"many-{row}")
        np.testing.assert_array_equal(np.float32(told["outputs"]["scores"]), truth[row, row])
    told = predict(client, inputs={"x": x[4, 5:6].tolist()}, session="many-4").json()
    np.testing.assert_array_equal(np.float32(told["outputs"]["scores"]), truth[4, 5])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"inputs": {"x": [[0.0]]}}, "sequences.1.inputs.x: input 'x' has rows [1]; allowed is [5]"),
        ({"inputs": {}}, "sequences.1.inputs: input 'x' is missing"),
        ({"inputs": {"x": [[0.0] * 5]}, "outputs": ["y"]}, "sequences.1.outputs.0: there is no output 'y'"),
        ({"inputs": {"x": [[0.0] * 5]}, "session": "all"}, "sequences.1.session: sequences.0.session is 'all' too"),
    ],
)
def test_one_bad_sequence_refuses_all(client, bad, message):
    answer = predict(client, sequences=[{"inputs": {"x": [[0.0] * FEATURES]}, "session": "all"}, bad])
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]
    assert client.get("/v1/models/net/sessions/all").status_code == 404


def test_fields_of_one_beside_sequences_are_refused(client):
    answer = predict(client, sequences=[{"inputs": {"x": [[0.0] * FEATURES]}}], each=True)
    assert "belongs into each of the sequences" in answer.json()["error"]["message"]


def test_million_steps_are_refused(server):
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        answer = predict(client, "tiny", inputs={"token": [1] * 1_000_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "prompt_too_long")
    assert "inputs.token: has 1,000,000 steps, of 1,000,000 in all" in answer.json()["error"]["message"]


def test_ids_go_on_from_text(server):
    """What a language model sampled and had not consumed is consumed first, and not told."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        body = {"prompt": "abc", "max_tokens": 1, "temperature": 0, "session": "ids-after-text", "logprobs": 0}
        assert client.post("/v1/completions", json={"model": "tiny", **body}).status_code == 200
        vocabulary = predict(client, "tiny", inputs={"token": [0]}).json()["outputs"]["logits"]
        bad = predict(client, "tiny", inputs={"token": [len(vocabulary)]}).json()["error"]
        assert bad["code"] == "token_out_of_range"
        told = predict(client, "tiny", inputs={"token": [1, 2]}, each=True, session="ids-after-text").json()
        assert (told["steps"], len(told["outputs"]["logits"])) == (2, 2)


def test_tracing_model_takes_its_two_ports(server):
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        told = predict(client, "tutor", inputs={"skill": [0, 2], "correct": [1, 0]}).json()["outputs"]
        body = {"attempts": [{"skill": 0, "correct": True}, {"skill": 2, "correct": False}]}
        predictions = client.post("/v1/models/tutor/trace", json=body).json()["predictions"]
        np.testing.assert_allclose([each["probability"] for each in predictions], told["probability"], atol=1e-8)
