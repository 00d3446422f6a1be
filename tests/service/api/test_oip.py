"""The Open Inference Protocol by its own client, unmodified, and by hand; against `predict` and against the files."""

import gzip
import json
import re
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.trial import Trial
from tests.export.adopt.strangers import FEATURES, sequence_network
from tests.export.adopt.test_encoder import tagger

STEPS = 9
KEY = "k" * 32


@pytest.fixture(scope="module")
def files():
    return {"lstm": sequence_network("LSTM", states=False), "gru": sequence_network("GRU", states=False)}


@pytest.fixture(scope="module")
def server(run_server, files, tiny_bundle, tiny_tracing_bundle, tmp_path_factory):
    root = tmp_path_factory.mktemp("oip")
    for name, content in files.items():
        path = root / f"{name}.onnx"
        path.write_bytes(content)
        assert main([str(path), "--repository", str(root / "bundles"), "--name", name, "--time", "x=1"]) == 0
    (root / "tagger.onnx").write_bytes(tagger())
    flags = [
        "--encoder-only",
        "--time",
        "x=1",
        "--lengths",
        "x",
        "--repository",
        str(root / "bundles"),
        "--name",
        "tags",
    ]
    assert main([str(root / "tagger.onnx"), *flags]) == 0
    for bundle in (tiny_bundle, tiny_tracing_bundle):
        (root / "bundles" / bundle.parent.name).symlink_to(bundle.parent, target_is_directory=True)
    with run_server(repository=root / "bundles", max_rows=4, admin_key=KEY) as instance:
        yield instance


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60.0) as instance:
        yield instance


@pytest.fixture(scope="module")
def plain(server):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as instance:
        yield instance


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(2).standard_normal((8, STEPS, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def truth(files, x):
    return {name: Trial(onnx.load_model_from_string(content))({"x": x})["scores"] for name, content in files.items()}


def fed(rows, *, binary=True, name="x", datatype="FP32"):
    tensor = triton.InferInput(name, list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


def step(client, model, rows, sequence, at, *, last=STEPS - 1, binary=True):
    answer = client.infer(
        model,
        fed(rows, binary=binary),
        outputs=None if binary else [triton.InferRequestedOutput("scores", binary_data=False)],
        sequence_id=sequence,
        sequence_start=at == 0,
        sequence_end=at == last,
    )
    return answer.as_numpy("scores")


def infer(plain, model="lstm", **body):
    return plain.post(f"/v2/models/{model}/infer", json=body)


def body_of(rows, **parameters):
    tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return {"inputs": [tensor], "parameters": parameters}


def test_server_says_who_it_is_and_what_it_can(client):
    told = client.get_server_metadata()
    assert told["name"] == "carousel"
    assert {"binary_tensor_data", "sequence", "sequence(string_id)", "model_repository"} == set(told["extensions"])
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("lstm")
    assert client.is_model_ready("lstm", "1")
    assert not client.is_model_ready("lstm", "2")
    assert not client.is_model_ready("nobody")


def test_ports_are_told_and_states_are_none(client, plain):
    told = client.get_model_metadata("lstm")
    assert told["versions"] == ["1"]
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, FEATURES]}]
    assert [output["name"] for output in told["outputs"]] == ["scores"]
    assert [port["datatype"] for port in client.get_model_metadata("tiny-tutor")["inputs"]] == ["INT64", "INT64"]
    assert client.get_model_metadata("tiny")["inputs"][0] == {"name": "token", "datatype": "INT64", "shape": [-1]}
    assert plain.get("/v2/models/lstm/versions/1").json() == told


def test_sequences_of_eight_threads_are_what_the_files_say(server, x, truth):
    """Numbers and texts, JSON and bytes, two models, in turn."""
    names = [7, "7", 2**64 - 1, "a name: with / what no session's may have", "é" * 200, 8, 9, "x"]

    def run(row):
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            model, binary = ("lstm", "gru")[row % 2], row % 3 > 0
            return [step(client, model, x[row, at : at + 1], names[row], at, binary=binary)[0] for at in range(STEPS)]

    with ThreadPoolExecutor(len(x)) as pool:
        for row, scores in enumerate(pool.map(run, range(len(x)))):
            np.testing.assert_array_equal(scores, truth[("lstm", "gru")[row % 2]][row])


def test_rows_without_a_sequence_are_sequences_of_one_step(client, x, truth):
    scores = client.infer("lstm", fed(x[:, 0])).as_numpy("scores")
    np.testing.assert_array_equal(scores, truth["lstm"][:, 0])


def test_sequence_is_what_predict_says(client, plain, x):
    ours = [step(client, "gru", x[1, at : at + 1], 11, at)[0] for at in range(STEPS)]
    told = plain.post("/v1/models/gru/predict", json={"inputs": {"x": x[1].tolist()}, "each": True}).json()
    np.testing.assert_array_equal(ours, np.float32(told["outputs"]["scores"]))


def test_start_begins_anew_and_end_forgets(client, x, truth):
    expected = truth["lstm"]
    for at in range(3):
        step(client, "lstm", x[0, at : at + 1], 21, at)
    np.testing.assert_array_equal(step(client, "lstm", x[1, :1], 21, 0)[0], expected[1, 0])
    np.testing.assert_array_equal(step(client, "lstm", x[1, 1:2], 21, 1, last=1)[0], expected[1, 1])
    with pytest.raises(InferenceServerException, match="sequence 21 of lstm was not started, or has ended") as refused:
        step(client, "lstm", x[1, 2:3], 21, 2)
    assert refused.value.status() == "404"
    one = client.infer("lstm", fed(x[2, :1]), sequence_id="once", sequence_start=True, sequence_end=True)
    np.testing.assert_array_equal(one.as_numpy("scores")[0], expected[2, 0])


def test_number_and_text_are_two_sequences(client, x):
    step(client, "lstm", x[0, :1], 31, 0)
    with pytest.raises(InferenceServerException, match="sequence '31' of lstm was not started"):
        step(client, "lstm", x[0, 1:2], "31", 1)


def test_failed_step_leaves_the_sequence_as_it_was(client, plain, x, truth):
    step(client, "lstm", x[0, :1], 41, 0)
    bad = np.full((1, FEATURES), np.nan, np.float32)
    with pytest.raises(InferenceServerException, match="not finite"):
        step(client, "lstm", bad, 41, 1)
    assert infer(plain, **body_of(x[0, :2], sequence_id=41)).status_code == 422
    with pytest.raises(InferenceServerException, match="not finite"):
        step(client, "lstm", bad, 41, 0)  # which was to begin it anew
    np.testing.assert_array_equal(step(client, "lstm", x[0, 1:2], 41, 1)[0], truth["lstm"][0, 1])


def test_tokens_and_attempts_are_steps_too(client, plain):
    ids = np.array([[1], [2], [0]], np.int64)[:, 0]
    logits = [
        client.infer(
            "tiny", fed(ids[at : at + 1], name="token", datatype="INT64"), sequence_id=5, sequence_start=at == 0
        )
        for at in range(3)
    ]
    told = plain.post("/v1/models/tiny/next-token", json={"tokens": ids.tolist(), "top": 1}).json()
    assert int(logits[-1].as_numpy("logits").argmax()) == told["candidates"][0]["token"]
    skill, correct = np.array([1], np.int64), np.array([1], np.int64)
    tensors = fed(skill, name="skill", datatype="INT64") + fed(correct, name="correct", datatype="INT64")
    seen = client.infer("tiny-tutor", tensors).as_numpy("probability")[0]
    traced = plain.post("/v1/models/tiny-tutor/trace", json={"attempts": [{"skill": 1, "correct": True}]}).json()
    np.testing.assert_allclose(seen, [each["probability"] for each in traced["predictions"]], rtol=1e-6)
    with pytest.raises(InferenceServerException, match="out of range"):
        client.infer("tiny", fed(np.array([10**6]), name="token", datatype="INT64"))


def test_answers_are_bytes_where_they_are_asked_for(plain, x):
    tensor = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [x[0, 0].tolist()]}
    asked = {"inputs": [tensor], "id": "mine", "parameters": {"binary_data_output": True, "anything": 1}}
    answer = plain.post("/v2/models/lstm/infer", json=asked)
    length = int(answer.headers["inference-header-content-length"])
    told = json.loads(answer.content[:length])
    assert (told["model_name"], told["model_version"], told["id"]) == ("lstm", "1", "mine")
    (output,) = told["outputs"]
    assert output["parameters"]["binary_data_size"] == len(answer.content) - length
    asked["outputs"] = [{"name": "scores", "parameters": {"binary_data": False}}]
    as_json = plain.post("/v2/models/lstm/versions/1/infer", json=asked)
    assert "inference-header-content-length" not in as_json.headers
    data = np.float32(as_json.json()["outputs"][0]["data"])
    np.testing.assert_array_equal(data, np.frombuffer(answer.content[length:], "<f4"))


def test_body_without_json_is_one_row(plain, x):
    answer = plain.post(
        "/v2/models/lstm/infer", content=x[0, 0].tobytes(), headers={"inference-header-content-length": "0"}
    )
    length = int(answer.headers["inference-header-content-length"])
    expected = infer(plain, **body_of(x[0, :1])).json()["outputs"][0]["data"]
    np.testing.assert_array_equal(np.frombuffer(answer.content[length:], "<f4"), np.float32(expected))


X = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.5] * FEATURES}


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 422, "inputs"),
        ({"inputs": []}, 422, "input 'x' is missing"),
        ({"inputs": [X | {"name": "y"}]}, 422, "there is no input 'y'; inputs are x"),
        ({"inputs": [X, X]}, 422, "comes twice"),
        ({"inputs": [X | {"datatype": "FP64"}]}, 422, "is FP64; allowed is FP32"),
        ({"inputs": [X | {"datatype": "BYTES"}]}, 422, "is BYTES; allowed is FP32"),
        ({"inputs": [X | {"shape": [FEATURES]}]}, 422, "allowed is \\[-1"),
        ({"inputs": [X | {"shape": [2, FEATURES]}]}, 422, "its shape is \\[2"),
        ({"inputs": [X | {"shape": [0, FEATURES], "data": []}]}, 422, "0 rows"),
        ({"inputs": [X | {"data": ["a"] * FEATURES}]}, 422, "holds something else"),
        ({"inputs": [X | {"data": [[1], [2, 3]]}]}, 422, "unequal lengths"),
        ({"inputs": [X | {"parameters": {"binary_data_size": 4}}]}, 422, "either data or"),
        ({"inputs": [X], "outputs": [{"name": "mood"}]}, 422, "there is no output 'mood'; outputs are scores"),
        ({"inputs": [X], "parameters": {"sequence_start": True}}, 422, "need a sequence_id"),
        ({"inputs": [X], "parameters": {"sequence_id": -1}}, 422, "sequence_id"),
        ({"inputs": [X], "parameters": {"sequence_id": 3}}, 404, "sequence 3 of lstm was not started"),
        ({"inputs": [X], "parameters": {"triton_x": 3}}, 422, "'triton_x' is not supported"),
        ({"inputs": [X], "parameters": {"headers": {}}}, 422, "'headers' is not supported"),
        ({"inputs": [X], "outputs": [{"name": "scores", "parameters": {"classification": 3}}]}, 422, "of an extension"),
        ({"inputs": [X], "unknown": 1}, 422, "unknown"),
    ],
)
def test_refusal_is_one_sentence(plain, body, status, sentence):
    answer = infer(plain, **body)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert re.search(sentence, answer.json()["error"]), answer.text


@pytest.mark.parametrize(
    ("content", "headers", "sentence"),
    [
        (b"{", {}, "not JSON"),
        (b"{}", {"inference-header-content-length": "9"}, "content-length is '9'"),
        (b"{}", {"inference-header-content-length": "x"}, "content-length is 'x'"),
        (b"\0" * 7, {"inference-header-content-length": "0"}, "has 7 bytes; it should have"),
        (b"{}", {"content-encoding": "br"}, "compressed"),
        (b"{}", {"content-encoding": "gzip"}, "not one whole gzip stream"),
        (gzip.compress(b"{}", mtime=0)[:-3], {"content-encoding": "gzip"}, "not one whole gzip stream"),
        (gzip.compress(b"{}", mtime=0) + b"{}", {"content-encoding": "GZIP"}, "not one whole gzip stream"),
        (gzip.compress(b"{}", mtime=0), {"content-encoding": "deflate"}, "not one whole deflate stream"),
        (b"", {"content-encoding": "deflate"}, "not one whole deflate stream"),
        (zlib.compress(b"{"), {"content-encoding": "deflate"}, "not JSON"),
    ],
)
def test_body_that_is_none_is_refused(plain, content, headers, sentence):
    answer = plain.post("/v2/models/lstm/infer", content=content, headers=headers)
    assert answer.status_code in (400, 422)
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compressed_body_is_what_it_was_before(client, x, truth, coding, binary):
    tensor = triton.InferInput("x", [8, FEATURES], "FP32")
    tensor.set_data_from_numpy(x[:, 0], binary_data=binary)
    result = client.infer("lstm", [tensor], request_compression_algorithm=coding, response_compression_algorithm=coding)
    assert result.as_numpy("scores").tobytes() == truth["lstm"][:, 0].tobytes()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_answer_is_compressed_where_that_is_asked_for(client, plain, x, truth, coding, binary):
    rows = np.tile(x[:, 0], (40, 1))
    tensor = triton.InferInput("x", list(rows.shape), "FP32").set_data_from_numpy(rows)
    outputs = [triton.InferRequestedOutput("scores", binary_data=binary)]
    result = client.infer("lstm", [tensor], outputs=outputs, response_compression_algorithm=coding)
    assert result.as_numpy("scores").tobytes() == np.tile(truth["lstm"][:, 0], (40, 1)).tobytes()
    body = body_of(rows, binary_data_output=binary)
    plainly = plain.post("/v2/models/lstm/infer", json=body, headers={"accept-encoding": "identity"})
    packed = plain.post("/v2/models/lstm/infer", json=body, headers={"accept-encoding": coding})
    assert packed.headers["content-encoding"] == coding
    assert int(packed.headers["content-length"]) < int(plainly.headers["content-length"])
    assert packed.content == plainly.content


@pytest.mark.parametrize("accepted", ["", "identity", "br", "gzip;q=0", "gzip; q=0.0, deflate;q=0"])
def test_answer_is_not_compressed_where_that_is_not_asked_for(plain, x, accepted):
    body = body_of(np.tile(x[:, 0], (40, 1)))
    answer = plain.post("/v2/models/lstm/infer", json=body, headers={"accept-encoding": accepted})
    assert "content-encoding" not in answer.headers
    assert len(answer.json()["outputs"]) == 1


def test_brief_answer_is_not_worth_compressing(plain, x):
    answer = plain.post("/v2/models/lstm/infer", json=body_of(x[:1, 0]), headers={"accept-encoding": "gzip"})
    assert answer.status_code == 200
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_body_that_unpacks_to_too_much_is_refused_before_it_has(plain, compress):
    coding = "gzip" if compress is gzip.compress else "deflate"
    sent = compress(b" " * (64 << 20))
    assert len(sent) < 1 << 17
    answer = plain.post("/v2/models/lstm/infer", content=sent, headers={"content-encoding": coding})
    assert answer.status_code == 413
    assert "unpacks to more than the 4,194,304 bytes" in answer.json()["error"]


def test_bytes_behind_the_json_are_those_that_it_says(plain):
    head = json.dumps(
        {"inputs": [{k: v for k, v in X.items() if k != "data"} | {"parameters": {"binary_data_size": 4 * FEATURES}}]}
    )
    for behind, sentence in ((b"", "has 0 bytes of the"), (bytes(4 * FEATURES + 1), "bytes lie behind")):
        answer = plain.post(
            "/v2/models/lstm/infer",
            content=head.encode() + behind,
            headers={"inference-header-content-length": str(len(head))},
        )
        assert answer.status_code == 422
        assert sentence in answer.json()["error"]


def test_whatever_is_wrong_on_a_path_of_the_protocol_is_one_text(plain):
    for path, status in (("/v2/models/nobody", 404), ("/v2/nothing", 404), ("/v2/models/lstm/versions/9", 404)):
        answer = plain.get(path)
        assert (answer.status_code, answer.json().keys()) == (status, {"error"})
    assert plain.get("/v2/models/lstm/infer").json().keys() == {"error"}
    assert plain.post("/v2/models/lstm/infer", content=bytes(5 << 20)).json().keys() == {"error"}


def test_repository_is_for_the_admin(client, plain):
    headers = {"Authorization": f"Bearer {KEY}"}
    with pytest.raises(InferenceServerException, match="there is no key"):
        client.get_model_repository_index()
    index = {entry["name"]: entry for entry in client.get_model_repository_index(headers=headers)}
    assert index["gru"] == {"name": "gru", "version": "1", "state": "READY", "reason": ""}
    client.unload_model("gru", headers=headers)
    assert not client.is_model_ready("gru")
    ready = plain.post("/v2/repository/index", json={"ready": True}, headers=headers).json()
    assert "gru" not in [entry["name"] for entry in ready]
    client.load_model("gru", headers=headers)
    assert client.is_model_ready("gru")
    with pytest.raises(InferenceServerException, match="parameters are not supported"):
        client.load_model("gru", config="{}", headers=headers)


def test_encoder_alone_takes_rows_whole(client, x):
    assert client.get_model_metadata("tags")["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, -1, FEATURES]}
    ]
    scores = client.infer("tags", fed(x[:, :5])).as_numpy("scores")
    np.testing.assert_array_equal(scores, Trial(onnx.load_model_from_string(tagger()))({"x": x[:, :5]})["scores"])
    with pytest.raises(InferenceServerException, match="keeps no state"):
        client.infer("tags", fed(x[:1]), sequence_id=1, sequence_start=True)
