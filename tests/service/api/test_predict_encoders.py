"""`predict` of encoders: whole inputs of many lengths at once, alone and before steps."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import onnx
import pytest

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.trial import Trial
from tests.export.adopt.strangers import CLASSES, FEATURES, UNITS
from tests.export.adopt.test_encoder import reader, tagger, writer

LENGTHS = [1, 9, 4, 4, 30, 2, 17, 9]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    for name, content in {"tagger": tagger(), "reader": reader(attends=True), "writer": writer()}.items():
        (root / f"{name}.onnx").write_bytes(content)
    flags = ["--repository", str(root / "bundles"), "--name"]
    alone = [str(root / "tagger.onnx"), "--encoder-only", "--time", "x=1"]
    assert main([*alone, "--lengths", "x", *flags, "padded"]) == 0
    assert main([*alone, *flags, "alike"]) == 0
    said = ["--time", "ids=1", "--time", "token=1", "--lengths", "ids", "--shape", f"memory=12,{2 * UNITS}"]
    said += ["--shape", "mask=12", "--encoder", str(root / "reader.onnx")]
    assert main([str(root / "writer.onnx"), *said, *flags, "writes"]) == 0
    return root / "bundles"


@pytest.fixture(scope="module")
def client(run_server, repository):
    with (
        run_server(repository=repository, max_rows=4) as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as instance,
    ):
        yield instance


def predict(client, model, **body):
    return client.post(f"/v1/models/{model}/predict", json=body)


@pytest.mark.parametrize("model", ["padded", "alike"])
def test_many_lengths_at_once_are_each_the_file_alone(client, model):
    random = np.random.default_rng(1)
    inputs = [random.standard_normal((length, FEATURES)).astype(np.float32) for length in LENGTHS]
    file = Trial(onnx.load_model_from_string(tagger()))
    with ThreadPoolExecutor(len(inputs)) as pool:
        answers = list(pool.map(lambda x: predict(client, model, inputs={"x": x.tolist()}).json(), inputs))
    for x, answer in zip(inputs, answers, strict=True):
        assert answer.keys() == {"model", "version", "steps", "cached_steps", "outputs"}
        assert answer["steps"] == 0
        np.testing.assert_array_equal(np.float32(answer["outputs"]["scores"]), file({"x": x[None]})["scores"][0])


def test_catalogue_tells_what_an_encoder_takes(client):
    info = client.get("/v1/models/padded").json()
    assert info["inputs"] == [{"name": "x", "shape": [-1, FEATURES], "dtype": "float32"}]
    assert info["outputs"] == [{"name": "scores", "shape": [-1, CLASSES], "dtype": "float32"}]
    assert (info["states"], info["state_bytes"], info["serving"]["encoder"]) == ([], 0, "together")
    both = client.get("/v1/models/writes").json()
    assert [port["name"] for port in both["inputs"]] == ["ids", "token"]
    assert both["context"] == []


def test_steps_begin_with_what_an_encoder_makes(client):
    """In one request; and in two with a session, where the encoder's input is sent again."""
    ids, tokens = [3, 1, 4, 1, 5], [2, 7, 1, 8]
    encoder, step = (
        Trial(onnx.load_model_from_string(reader(attends=True))),
        Trial(onnx.load_model_from_string(writer())),
    )
    begun = encoder({"ids": np.array([ids]), "mask": np.zeros((1, 5), np.bool_)})
    h, expected = begun["h_out"], []
    for token in tokens:
        told = step({"token": np.array([[token]]), "memory": begun["memory_out"], "mask": begun["mask_out"], "h": h})
        h = told["h_next"]
        expected.append(told["scores"][0])
    whole = predict(client, "writes", inputs={"ids": ids, "token": tokens}, each=True).json()["outputs"]["scores"]
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)
    parts = []
    for start, end in ((0, 1), (1, 4)):
        body = {"inputs": {"ids": ids, "token": tokens[start:end]}, "session": "s", "each": True}
        parts += predict(client, "writes", **body).json()["outputs"]["scores"]
    assert parts == whole


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        ("padded", {"inputs": {}}, "inputs: input 'x' is missing; inputs are x"),
        ("padded", {"inputs": {"x": []}}, "inputs: input 'x' has 0 steps; allowed are 1 or more"),
        ("padded", {"inputs": {"x": [[0.5]]}}, "inputs: input 'x' has rows [1]; allowed is [5]"),
        ("padded", {"inputs": {"x": [["a"] * FEATURES]}}, "inputs: input 'x' holds what is no number"),
        ("padded", {"inputs": {"x": [[0] * FEATURES], "y": [1]}}, "inputs.y: the model is an encoder"),
        ("padded", {"inputs": {"x": [[0] * FEATURES]}, "session": "s"}, "session: the model is an encoder"),
        ("padded", {"inputs": {"x": [[0] * FEATURES]}, "steps": 3}, "steps: the model is an encoder"),
        ("padded", {"inputs": {"x": [[0] * FEATURES]}, "outputs": ["z"]}, "outputs.0: there is no output 'z'"),
        ("writes", {"inputs": {"token": [1]}}, "inputs: input 'ids' is missing; inputs are ids"),
        ("writes", {"inputs": {"ids": [1] * 13, "token": [1]}}, "'ids' has 13 steps; allowed are up to 12"),
        ("writes", {"inputs": {"ids": [0.5], "token": [1]}}, "input 'ids' is float64; allowed is int64"),
        ("writes", {"inputs": {"ids": [1]}}, "inputs: input 'token' is missing"),
        ("writes", {"inputs": {"ids": [1], "token": [1]}, "context": {"context.memory": []}}, "context: there is no"),
    ],
)
def test_bad_input_is_refused(client, model, body, sentence):
    answer = predict(client, model, **body)
    assert answer.status_code == 422, answer.text
    assert sentence in answer.json()["error"]["message"]
