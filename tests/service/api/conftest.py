"""Clients of the session's server, the torch oracle of what it serves, and a check that nothing leaks."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import hypothesis
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websockets_connect

Eventually = Callable[..., None]


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Waits until a condition holds; fails when it does not within `seconds`."""

    def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"did not come true within {seconds} s"
            time.sleep(0.002)

    return wait


@pytest.fixture
def ended(server, eventually):
    """Waits until the requests that have ended since the test began are these, by outcome."""
    before = _outcomes(server)
    grown: Counter[str] = Counter()

    def is_so(expected: dict[str, int]) -> bool:
        nonlocal grown
        grown = _outcomes(server) - before
        return grown == expected

    def wait(**expected: int) -> None:
        try:
            eventually(lambda: is_so(expected))
        except AssertionError:
            pytest.fail(f"requests ended with {dict(grown)}, not with {expected}")

    return wait


def _outcomes(instance) -> Counter[str]:
    requests = instance.context.metrics.requests  # of all that there is to collect, a thirtieth
    counts: Counter[str] = Counter()
    for sample in (sample for metric in requests.collect() for sample in metric.samples):
        if sample.name == "carousel_requests_total" and sample.value:
            counts[sample.labels["outcome"]] += int(sample.value)
    return counts


@pytest.fixture(scope="session")
def outcomes():
    """How many requests of a server have ended so far, by outcome."""
    return _outcomes


@pytest.fixture(autouse=True)
def _nothing_leaks(server, eventually):
    """After every test: no place, no row is taken, and nothing was counted as the server's own defect."""
    defects = _outcomes(server)["internal_error"]
    yield
    engines = [model.engine for model in server.context.repository.models.values()]
    eventually(
        lambda: all(engine.describe().admitted == 0 and engine.describe().running == 0 for engine in engines),
        seconds=30,
    )
    assert _outcomes(server)["internal_error"] == defects


@pytest.fixture(scope="session")
def client(server) -> Iterator[httpx.Client]:
    """An HTTP client of the session's server."""
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as instance:
        yield instance


@pytest.fixture(scope="session")
def draw() -> Callable[..., list[Any]]:
    """Examples of a strategy, the same in every run.

    All are drawn before the first is sent: the server, in this process, draws random numbers of its own, and Hypothesis
    watches over who does while it draws.
    """

    def examples(strategy: hypothesis.strategies.SearchStrategy[Any], count: int) -> list[Any]:
        drawn: list[Any] = []

        @hypothesis.settings(
            max_examples=count,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def note(example: Any) -> None:
            drawn.append(example)

        note()
        return drawn

    return examples


OPENAI_STATUSES = {"prompt_too_long": 400, "wrong_task": 404}
"""Of completions, where they are other than everywhere; and 400 for 422."""


def check_refused(response: httpx.Response, status: int, code: str, retryable: bool = False) -> str:
    """Hold a response against the one shape of errors, and on OpenAI's routes against OpenAI's; gives its message."""
    path = response.url.path
    if path == "/v1/completions":
        status = OPENAI_STATUSES.get(code, 400 if status == 422 else status)
    assert response.status_code == status, response.text[:500]
    error = response.json()["error"]
    message = error["message"]
    expected = {"code": code, "message": message, "retryable": retryable}
    if path == "/v1/completions" or (path.startswith("/v1/models") and path.count("/") <= 3):
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
        expected |= {"type": kind, "param": error["param"]}
        assert response.headers["x-should-retry"] == str(retryable).lower()
    assert response.json() == {"error": expected}
    assert isinstance(message, str)
    assert 0 < len(message) < 1500
    assert "\n" not in message
    return message


@pytest.fixture
def refused() -> Callable[..., str]:
    """The above."""
    return check_refused


@pytest.fixture
def trace(client) -> Callable[..., dict[str, Any]]:
    """Posts to the tracing model and gives the answer."""

    def post(**body: Any) -> dict[str, Any]:
        response = client.post("/v1/models/tutor/trace", json=body)
        assert response.status_code == 200, response.text[:500]
        answer = response.json()
        assert isinstance(answer, dict)
        return answer

    return post


@pytest.fixture
def steps(server) -> Callable[[], int]:
    """How many ids the tracing model has eaten so far."""
    labels = {"model": "tutor", "version": "1", "kind": "prompt"}
    return lambda: int(server.context.metrics.registry.get_sample_value("carousel_tokens_total", labels))


class StreamClient:
    """A WebSocket client that speaks JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def start(self, prompt: str | list[int] = "abc", kind: str = "start", **sampling: Any) -> None:
        self.send(type=kind, sampling=sampling, **{"prompt" if isinstance(prompt, str) else "tokens": prompt})

    def receive(self) -> dict[str, Any]:
        event = json.loads(self.socket.recv(timeout=60))
        assert isinstance(event, dict)
        return event

    def rest(self) -> list[dict[str, Any]]:
        """The events up to `finished`; an `error` among them fails."""
        events = [self.receive()]
        while events[-1]["type"] != "finished":
            assert events[-1]["type"] != "error", events[-1]
            events.append(self.receive())
        return events

    def generate(self, prompt: str | list[int] = "abc", kind: str = "start", **sampling: Any) -> list[dict[str, Any]]:
        """The events of one generation: accepted, token*, finished."""
        self.start(prompt, kind, **sampling)
        return self.rest()

    def refusal(self) -> tuple[dict[str, Any], int]:
        """The error that ends the stream, after whatever comes before it, and the close code."""
        events = [self.receive()]
        while events[-1]["type"] != "error":
            assert events[-1]["type"] != "finished", events[-1]
            events.append(self.receive())
        return events[-1], self.close_code()

    def close_code(self) -> int:
        """The code the server closes with; anything else that comes before fails."""
        with pytest.raises(ConnectionClosed) as caught:
            self.socket.recv(timeout=60)
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code


@pytest.fixture
def caption(client) -> Callable[..., list[dict[str, Any]]]:
    """Posts files as a form; gives the captions of the one, or the list of those of all."""

    def post(*files: bytes, model: str = "scenes", **options: Any) -> Any:
        parts = [("image", ("photo", file)) for file in files]
        fields = {name: str(value) for name, value in options.items()}
        response = client.post(f"/v1/models/{model}/captions", files=parts, data=fields)
        assert response.status_code == 200, response.text[:500]
        answer = response.json()
        assert (answer["model"], answer["version"]) == (model, 1)
        assert len(answer["images"]) == len(files)
        found = [image["captions"] for image in answer["images"]]
        return found[0] if len(files) == 1 else found

    return post


@pytest.fixture
def connect(server) -> Iterator[Callable[..., StreamClient]]:
    """Opens WebSocket streams, of the session's server where no other is given, and closes them at the test's end."""
    with ExitStack() as stack:

        def open_stream(instance=server, model: str = "tiny") -> StreamClient:
            url = instance.socket_url(model)
            return StreamClient(
                stack.enter_context(websockets_connect(url, proxy=None, compression=None, open_timeout=60))
            )

        yield open_stream


class RawClient:
    """A TCP connection whose every byte the test decides, with as little buffering as the kernel allows."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # The server's send buffer grows with the segment size; small segments keep it small.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", port))

    def post(self, path: str, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        self.socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)

    def upgrade(self, path: str) -> None:
        """The WebSocket handshake; what the server sends after it stays unread."""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            assert byte, "the handshake was not answered"
            head += byte
        assert b"101" in head.splitlines()[0]

    def frame(self, message: dict[str, Any]) -> None:
        """One text frame, masked with zeros."""
        payload = json.dumps(message).encode()
        assert len(payload) < 126
        self.socket.sendall(bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    def reset(self) -> None:
        """Vanish without a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()


@pytest.fixture
def raw_client(server) -> Iterator[Callable[..., RawClient]]:
    """Opens raw connections and closes them at the test's end."""
    with ExitStack() as stack:

        def open_connection(instance=server) -> RawClient:
            connection = RawClient(instance.port)
            stack.callback(connection.socket.close)
            return connection

        yield open_connection


class Oracle:
    """The model that `tiny` was exported from, in torch, run over whole histories."""

    def __init__(self, checkpoint) -> None:
        from carousel.models.nn.checkpoint import read_checkpoint
        from tests.trained import load_language_model

        self.model, self.codec = load_language_model(read_checkpoint(checkpoint))

    def logits(self, ids: list[int]):
        """After each prefix of `ids`. <float64>[N, V]"""
        import torch

        with torch.inference_mode():
            logits, _ = self.model(torch.tensor([ids]), self.model.initial_state(1))
            return logits[0].double()

    def logprobs(self, ids: list[int]):
        """log p of every token after each prefix of `ids`. <float64>[N, V]"""
        return self.logits(ids).log_softmax(dim=-1)

    def greedy(self, ids: list[int], steps: int) -> tuple[list[int], list[float]]:
        """The most probable continuation, and the log-probability of each of its tokens.

        The model is small enough to say much the same after any text; its log-probabilities are what tells histories
        apart.
        """
        from carousel.models.nn.language import generate

        tokens = generate(self.model, ids, steps)
        positions = range(len(ids) - 1, len(ids) + steps - 1)
        return tokens, self.logprobs(ids + tokens)[positions, tokens].tolist()


@pytest.fixture(scope="session")
def oracle(make_checkpoint, tmp_path_factory) -> Oracle:
    """Of the `tiny` bundle: the same shape, the same seed."""
    return Oracle(make_checkpoint(tmp_path_factory.mktemp("oracle") / "tiny.safetensors"))


BAD_SAMPLING = [
    *[("max_tokens", value) for value in ("0", "-1", "1000000000", "1" + "0" * 30, "true", '"5"', "5.5", "NaN", "[]")],
    *[
        ("temperature", value)
        for value in ("-0.5", "1000.1", "3.5e38", "NaN", "Infinity", "-Infinity", "1e400", '"1"', "true", "{}")
    ],
    *[("top_k", value) for value in ("-1", "14", "1" + "0" * 30, "1.5", "false")],
    *[("top_p", value) for value in ("0", "-0.1", "1.0001", "NaN", "Infinity", '"1"')],
    *[("min_p", value) for value in ("-0.1", "1.1", "NaN")],
    *[("repetition_penalty", value) for value in ("0", "-1", "NaN", "Infinity")],
    *[("seed", value) for value in ("-2", str(2**63), "1.5", "true")],
    *[("stop", value) for value in ('[""]', '["a", 5]', '{"a": 1}', '["' + "a" * 257 + '"]', '["\\ud800"]')],
    ("stop", json.dumps(["a"] * 10_000)),
    ("stop", json.dumps([f"{number}" for number in range(17)])),
    ("temprature", "1"),
]
"""Sampling fields that no endpoint takes, the value as it stands in the JSON text: NaN has no other form."""


@pytest.fixture(params=BAD_SAMPLING, ids=lambda pair: f"{pair[0]}={pair[1][:20]}")
def bad_sampling(request) -> tuple[str, str]:
    """A sampling field's name and a value, as JSON text, that must be refused."""
    return request.param


@contextmanager
def _unchanged(open_stream: Callable[..., StreamClient]) -> Iterator[None]:
    expected = open_stream().generate("abc", seed=7, max_tokens=300)
    stream = open_stream()
    stream.start("abc", seed=7, max_tokens=300)
    yield
    events = stream.rest()
    assert events[1:] == expected[1:]


@pytest.fixture
def unchanged(connect) -> Callable[[], Any]:
    """Runs a block while another client's stream runs; fails when that stream's tokens are not what they are alone."""
    return lambda: _unchanged(connect)
