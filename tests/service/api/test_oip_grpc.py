"""The Open Inference Protocol over gRPC by its own client, unmodified; against the files, and against REST."""

import asyncio
import queue
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.trial import Trial
from carousel.service.keys.key_file import key_line, new_key
from tests.export.adopt.strangers import FEATURES, sequence_network

STEPS = 7
KEY = "k" * 32


@pytest.fixture(scope="module")
def file():
    return sequence_network("LSTM", states=False)


@pytest.fixture(scope="module")
def repository(file, tiny_bundle, tmp_path_factory):
    root = tmp_path_factory.mktemp("oip-grpc")
    (root / "lstm.onnx").write_bytes(file)
    flags = ["--repository", str(root / "bundles"), "--name", "lstm", "--time", "x=1"]
    assert main([str(root / "lstm.onnx"), *flags]) == 0
    (root / "bundles" / "tiny").symlink_to(tiny_bundle.parent, target_is_directory=True)
    return root / "bundles"


@pytest.fixture(scope="module")
def server(run_server, repository):
    with run_server(repository=repository, max_rows=4, grpc_port=0, admin_key=KEY) as instance:
        yield instance


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as instance:
        yield instance


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(2).standard_normal((8, STEPS, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def truth(file, x):
    return Trial(onnx.load_model_from_string(file))({"x": x})["scores"]


def client_of(server):
    return triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")


def fed(rows, name="x", datatype="FP32"):
    tensor = triton.InferInput(name, list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows)
    return [tensor]


def typed(values, shape, *, datatype="FP32", field="fp32_contents", model="lstm", name="x", **request):
    asked = service_pb2.ModelInferRequest(model_name=model, **request)
    tensor = asked.inputs.add(name=name, datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    return asked


def test_server_and_models_are_told(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("lstm")
    assert client.is_model_ready("lstm", "1")
    assert not client.is_model_ready("lstm", "2")
    assert not client.is_model_ready("nobody")
    told = client.get_server_metadata()
    assert told.name == "carousel"
    assert "sequence(string_id)" in told.extensions
    model = client.get_model_metadata("lstm", as_json=True)
    assert model["versions"] == ["1"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", str(FEATURES)]}]
    index = client.get_model_repository_index(headers={"authorization": f"Bearer {KEY}"})
    assert {(entry.name, entry.state) for entry in index.models} == {("lstm", "READY"), ("tiny", "READY")}


def test_rows_without_a_sequence_are_first_steps(client, x, truth):
    answer = client.infer("lstm", fed(x[:, 0]), request_id="mine")
    np.testing.assert_array_equal(answer.as_numpy("scores"), truth[:, 0])
    assert answer.get_response().id == "mine"
    named = client.infer("lstm", fed(x[:, 0]), outputs=[triton.InferRequestedOutput("scores")])
    np.testing.assert_array_equal(named.as_numpy("scores"), truth[:, 0])


def test_sequences_of_eight_threads_are_what_the_file_says(server, x, truth):
    names = [7, "7", 2**63 - 1, "a name: with / what no session's may have", "é" * 200, 8, 9, "x"]

    def run(row):
        with client_of(server) as client:
            return [
                client.infer(
                    "lstm",
                    fed(x[row, at : at + 1]),
                    sequence_id=names[row],
                    sequence_start=at == 0,
                    sequence_end=at == STEPS - 1,
                ).as_numpy("scores")[0]
                for at in range(STEPS)
            ]

    with ThreadPoolExecutor(len(x)) as pool:
        for row, scores in enumerate(pool.map(run, range(len(x)))):
            np.testing.assert_array_equal(scores, truth[row])


def test_stream_answers_in_order_and_goes_on_behind_an_error(server, x, truth):
    answers = queue.Queue()
    with client_of(server) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("lstm", fed(x[0, :1]), sequence_id=77)  # not started
        for at in range(STEPS):
            flags = {"sequence_start": at == 0, "sequence_end": at == STEPS - 1}
            for row, name in enumerate((70, "seventy")):
                client.async_stream_infer("lstm", fed(x[row, at : at + 1]), sequence_id=name, **flags)
        _, error = answers.get(timeout=60)
        assert "sequence 77 of lstm was not started" in str(error)
        for at in range(STEPS):
            for row in range(2):
                result, error = answers.get(timeout=60)
                assert error is None
                np.testing.assert_array_equal(result.as_numpy("scores")[0], truth[row, at])


def test_typed_contents_are_the_same_numbers(stub, x, truth):
    answer = stub.ModelInfer(typed(x[0, 0].tolist(), [1, FEATURES]))
    assert answer.raw_output_contents[0] == truth[0, 0].tobytes()


def test_ids_are_int64(client, stub):
    assert client.get_model_metadata("tiny").inputs[0].datatype == "INT64"
    raw = client.infer("tiny", fed(np.array([2]), "token", "INT64")).get_response()
    asked = typed([2], [1], datatype="INT64", field="int64_contents", model="tiny", name="token")
    assert stub.ModelInfer(asked).raw_output_contents == raw.raw_output_contents


@pytest.mark.parametrize(
    ("asked", "code", "sentence"),
    [
        (typed([1.0], [1, FEATURES], model="nobody"), "NOT_FOUND", "nobody"),
        (typed([1.0], [1, FEATURES], model_version="2"), "NOT_FOUND", "version '2' of lstm is not served"),
        (typed([1.0], [1, FEATURES]), "INVALID_ARGUMENT", "has 4 bytes; it should have"),
        (typed([1.0], [1, FEATURES], name="y"), "INVALID_ARGUMENT", "there is no input 'y'"),
        (
            typed([1.0], [1, FEATURES], field="fp64_contents"),
            "INVALID_ARGUMENT",
            "goes into fp32_contents; it has fp64",
        ),
        (
            typed([1.0], [1, FEATURES], raw_input_contents=[b"", b""]),
            "INVALID_ARGUMENT",
            "raw_input_contents are 2, of 1",
        ),
        (typed([1.0], [1, FEATURES], raw_input_contents=[b""]), "INVALID_ARGUMENT", "goes into raw_input_contents"),
        (typed([300], [1], datatype="INT8", field="int_contents"), "INVALID_ARGUMENT", "that INT8 does not hold"),
        (typed([np.nan] * FEATURES, [1, FEATURES]), "INVALID_ARGUMENT", "x"),
        (
            typed([1.0], [1, FEATURES], parameters={"mine": service_pb2.InferParameter(double_param=np.inf)}),
            "INVALID_ARGUMENT",
            "no finite number",
        ),
        (
            typed(
                [1.0] * FEATURES, [1, FEATURES], parameters={"sequence_id": service_pb2.InferParameter(int64_param=5)}
            ),
            "NOT_FOUND",
            "sequence 5 of lstm was not started",
        ),
        (
            typed(
                [1.0] * FEATURES, [1, FEATURES], parameters={"sequence_id": service_pb2.InferParameter(int64_param=-5)}
            ),
            "INVALID_ARGUMENT",
            "sequence_id",
        ),
        (
            typed([1.0] * FEATURES, [1, FEATURES], parameters={"headers": service_pb2.InferParameter(bool_param=True)}),
            "INVALID_ARGUMENT",
            "'headers' is not supported",
        ),
        (typed([0.0] * (2 << 20), [1, FEATURES]), "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_refusal_is_a_code_and_a_sentence(stub, asked, code, sentence):
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(asked)
    assert refused.value.code().name == code
    assert sentence in refused.value.details()


@pytest.mark.parametrize("name", ["", "lstm/", "lstm/versions/1", "../lstm", "é\n"])
def test_name_of_no_model_leads_nowhere(client, x, name):
    assert not client.is_model_ready(name)
    for ask in (lambda: client.get_model_metadata(name), lambda: client.infer(name, fed(x[:, 0]))):
        with pytest.raises(InferenceServerException) as refused:
            ask()
        assert refused.value.status() == "StatusCode.NOT_FOUND"


def test_sentences_are_those_of_rest(client, server):
    with pytest.raises(InferenceServerException) as refused:
        client.infer("lstm", fed(np.zeros((1, 1), np.float32)))
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0.0]}]}
    assert refused.value.message() == httpx.post(f"{server.url}/v2/models/lstm/infer", json=body).json()["error"]


def test_compressed_messages_are_refused_and_not_unpacked(client, x):
    with pytest.raises(InferenceServerException) as refused:
        client.infer("lstm", fed(x[:, 0]), compression_algorithm="gzip")
    assert "UNIMPLEMENTED" in refused.value.status()


def test_calls_are_counted_as_requests(client, server, x):
    def count():
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("carousel_requests_total{") and 'endpoint="/v2/models/{model}/infer"' in line
        )

    before = count()
    client.infer("lstm", fed(x[:, 0]))
    assert count() == before + 1


def test_keys_and_tenants_are_asked_for(run_server, repository, x, tmp_path):
    keys = {tenant: new_key() for tenant in ("ours", "theirs")}
    (tmp_path / "keys").write_text("".join(f"{key_line(name, name, key)}\n" for name, key in keys.items()))
    headers = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
    served = run_server(repository=repository, grpc_port=0, api_keys_file=tmp_path / "keys")
    with served as server, client_of(server) as client:
        assert client.is_server_live()
        for wrong in (None, {"authorization": "Bearer nobody's"}):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("lstm", fed(x[:, 0]), headers=wrong)
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        client.infer("lstm", fed(x[:1, 0]), sequence_id=7, sequence_start=True, headers=headers["ours"])
        with pytest.raises(InferenceServerException) as refused:
            client.infer("lstm", fed(x[:1, 0]), sequence_id=7, headers=headers["theirs"])
        assert refused.value.status() == "StatusCode.NOT_FOUND"
        client.infer("lstm", fed(x[:1, 0]), sequence_id=7, headers=headers["ours"])


def test_time_that_a_request_has_is_kept(client, x):
    with pytest.raises(InferenceServerException) as refused:
        client.infer("lstm", fed(x[:, 0]), timeout=1)
    assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"


@pytest.fixture
def hanging(monkeypatch):
    """Steps that never end; when one has begun, and when one was cancelled."""
    begun, cancelled = threading.Event(), threading.Event()

    async def infer(*_, **__):
        begun.set()
        try:
            await asyncio.Future()
        finally:
            cancelled.set()

    monkeypatch.setattr("carousel.service.api.oip.routes.infer", infer)
    return begun, cancelled


def test_client_that_leaves_ends_its_request(stub, hanging):
    begun, cancelled = hanging
    call = stub.ModelInfer.future(typed([1.0] * FEATURES, [1, FEATURES]))
    assert begun.wait(30)
    assert not cancelled.is_set()
    call.cancel()
    assert cancelled.wait(30)


def test_who_waits_when_the_grace_is_over_is_told(run_server, repository, hanging):
    begun, _ = hanging
    with run_server(repository=repository, grpc_port=0, shutdown_grace_seconds=0) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call = GRPCInferenceServiceStub(channel).ModelInfer.future(typed([1.0] * FEATURES, [1, FEATURES]))
            assert begun.wait(30)
            server.stop()
            error = call.exception(timeout=30)
        assert error.code().name == "UNAVAILABLE"
        assert "is shutting down" in error.details()


def test_idle_stream_is_ended(run_server, repository):
    ended, answers = threading.Event(), []

    def told(result, error):
        answers.append(error)
        ended.set()

    with (
        run_server(repository=repository, grpc_port=0, socket_idle_seconds=0.05) as server,
        client_of(server) as client,
    ):
        client.start_stream(told)
        assert ended.wait(30)
    assert "the stream had nothing to do for 0.05 s" in str(answers[0])


def test_server_stops_with_its_streams(run_server, repository, x):
    answers = queue.Queue()
    with run_server(repository=repository, grpc_port=0) as server:
        client = client_of(server)
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("lstm", fed(x[:, 0]))
        assert answers.get(timeout=30)[1] is None
    _, error = answers.get(timeout=30)
    assert error is not None
    client.close()


def test_port_that_is_taken_is_told(repository):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "service", "--repository", str(repository), "--port", "0"],
            env={"CAROUSEL_GRPC_PORT": str(port), "PATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 1
    assert f"gRPC cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_missing_extra_is_told(monkeypatch):
    monkeypatch.setattr("carousel.service.settings.find_spec", lambda name: None)
    from carousel.service.settings import Settings

    with pytest.raises(ValueError, match="needs the extra `grpc`"):
        Settings(grpc_port=0)
