"""Raw streams and what bounds them: idle sockets, deadlines, a drain, quotas, places, reloads, clients that do not
read; and ports that may hold what is not finite."""

import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as open_socket

from carousel.models.bundle import publish
from carousel.models.manifest import Manifest
from carousel.service.keys.key_file import key_line, new_key
from tests.port_models import FLOAT, graph, node

SIZE = 3


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """`sum`: its state is the sum of the numbers that it was fed, those that are none left out in `holes`."""
    root = tmp_path_factory.mktemp("sums")
    ports = {"x": (FLOAT, [SIZE]), "sum": (FLOAT, [SIZE])}, {"told": (FLOAT, [SIZE]), "sum1": (FLOAT, [SIZE])}
    zero = {"zero": np.zeros(1, np.float32)}
    nodes = [node("IsNaN", "x", "hole"), node("Where", "hole zero x", "whole"), node("Add", "sum whole", "sum1")]
    content = graph([*nodes, node("Identity", "sum1", "told")], *ports, zero)
    for name, allowed in (("sum", []), ("holes", ["x"])):
        states = [{"in": "sum", "out": "sum1"}]
        step = {"inputs": ["x"], "outputs": ["told"], "states": states, "non_finite": allowed}
        told = {"task": "sums", "step": step, "head": {"kind": "tensors", "from": ["told"]}, "files": {}}
        publish(root, name, Manifest.model_validate(told), {"step.onnx": content})
    return root


class Sums:
    """A client that sends ones."""

    def __init__(self, socket):
        self.socket = socket

    def start(self, **start):
        self.socket.send(json.dumps({"type": "start", "raw": True, "binary": True, **start}))
        return self.receive()

    def send(self, value=1.0):
        self.socket.send(np.full(SIZE, value, "<f4").tobytes())

    def receive(self):
        told = self.socket.recv(timeout=60)
        return json.loads(told) if isinstance(told, str) else np.frombuffer(told, "<f4").tolist()

    def ask(self, value=1.0):
        self.send(value)
        return self.receive()

    def closed(self):
        with pytest.raises(ConnectionClosed) as caught:
            self.socket.recv(timeout=60)
        return caught.value.rcvd.code


@contextmanager
def sums(server, model="sum", **options):
    with open_socket(server.socket_url(model), proxy=None, compression=None, **options) as socket:
        yield Sums(socket)


def test_stream_that_says_nothing_ends_and_keeps_its_session(run_server, repository):
    with run_server(repository=repository, socket_idle_seconds=0.3) as server:
        with sums(server) as client:
            client.start(session="quiet")
            assert client.ask() == [1.0] * SIZE
            assert client.receive() == {"type": "finished", "reason": "cancelled", "steps": 1, "session": "quiet"}
            assert client.receive()["code"] == "request_timeout"
            assert client.closed() == 4408
        with sums(server) as client:
            client.start(session="quiet")
            assert client.ask() == [2.0] * SIZE


def test_stream_outlives_the_deadline_of_requests_but_not_its_own(run_server, repository):
    with run_server(repository=repository, deadline_seconds=0.2) as server, sums(server) as client:
        client.start()
        done = threading.Event()
        assert not done.wait(0.5)  # nothing is waited for: time is what passes
        assert client.ask() == [1.0] * SIZE
        with sums(server) as other:
            other.start(timeout_seconds=0.2)
            error = other.receive()
            assert (error["code"], "index" in error) == ("deadline_exceeded", False)
            assert other.closed() == 4504
        assert client.ask() == [2.0] * SIZE


def test_grace_that_runs_out_ends_a_stream_like_a_cancel(run_server, repository):
    with run_server(repository=repository, shutdown_grace_seconds=1) as server, sums(server) as client:
        client.start(return_state=True)
        assert client.ask() == [1.0] * SIZE
        server.stop()
        finished = client.receive()
        assert (finished["type"], finished["reason"], finished["steps"]) == ("finished", "cancelled", 1)
        assert finished["state"]
        assert client.receive()["code"] == "shutting_down"
        assert client.closed() == 4503


def test_frames_beyond_a_quota_are_refused_and_the_stream_goes_on(run_server, repository, tmp_path):
    key = new_key()
    path = tmp_path / "keys"
    path.write_text(f"{key_line('ada', 'school', key)} tokens_per_day=3\n")
    headers = {"Authorization": f"Bearer {key}"}
    with (
        run_server(repository=repository, api_keys_file=path) as server,
        sums(server, additional_headers=headers) as client,
    ):
        client.start(session="paid")
        told = [client.ask() for _ in range(5)]
        assert told[:3] == [[1.0] * SIZE, [2.0] * SIZE, [3.0] * SIZE]
        for error in told[3:]:
            assert (error["code"], error["index"], error["retryable"]) == ("quota_exceeded", 3, True)
        client.socket.send(json.dumps({"type": "finish"}))
        assert client.receive()["steps"] == 3


def test_one_stream_more_than_there_may_be_is_refused(run_server, repository, monkeypatch):
    with run_server(repository=repository) as server:
        monkeypatch.setattr(server.context.repository.models["sum"].engine, "_max_live", 2)
        with sums(server) as one, sums(server) as two, sums(server) as three:
            one.start()
            two.start()
            three.socket.send(json.dumps({"type": "start", "raw": True, "binary": True}))
            for _ in range(3):
                three.send()  # without waiting to be accepted
            error = three.receive()
            assert (error["code"], error["retryable"]) == ("capacity_exceeded", True)
            assert "2 raw streams run; allowed are 2" in error["message"]
            assert one.ask() == [1.0] * SIZE
            one.socket.send(json.dumps({"type": "finish"}))
            one.receive()
            assert one.start()["type"] == "accepted"


def test_more_streams_than_rows_all_live(run_server, repository):
    with run_server(repository=repository, max_rows=2) as server:
        many = [open_socket(server.socket_url("sum"), proxy=None, compression=None) for _ in range(40)]
        clients = [Sums(each.__enter__()) for each in many]
        for client in clients:
            client.start()
        for turn in range(5):
            for place, client in enumerate(clients):
                client.send(place)
            for place, client in enumerate(clients):
                assert client.receive() == [place * (turn + 1.0)] * SIZE
        for each in many:
            each.__exit__(None, None, None)


def test_frames_that_are_sent_ahead_are_answered_in_order_and_who_reads_nothing_stops_itself(run_server, repository):
    count = 20_000
    with run_server(repository=repository) as server, sums(server) as quick, sums(server) as other:
        quick.start()
        other.start()
        sender = threading.Thread(target=lambda: [quick.send() for _ in range(count)])
        sender.start()
        assert other.ask() == [1.0] * SIZE
        for number in range(count):
            assert quick.receive() == [number + 1.0] * SIZE
        sender.join()
        assert other.ask() == [2.0] * SIZE


def test_port_may_hold_what_is_not_finite_where_the_manifest_says_so(run_server, repository):
    with run_server(repository=repository) as server:
        with sums(server) as client:
            client.start()
            assert client.ask(np.nan)["code"] == "invalid_request"
            assert client.ask(3e38) == [np.float32(3e38)] * SIZE
            error = client.ask(3e38)  # its sum is infinite
            assert (error["code"], error["index"]) == ("step_failed", 1)
            assert client.ask(0) == [np.float32(3e38)] * SIZE
        with sums(server, "holes") as client:
            client.start()
            assert [client.ask(value) for value in (1.0, np.nan, 2.0)] == [[1.0] * SIZE, [1.0] * SIZE, [3.0] * SIZE]


def test_reload_leaves_a_stream_the_version_that_it_began_on(run_server, repository, eventually):
    with run_server(repository=repository) as server, sums(server) as client:
        client.start()
        repository_of = server.context.repository
        repository_of_loop = next(iter(repository_of.models.values())).engine._loop
        gone = repository_of.models["sum"]
        repository_of_loop.call_soon_threadsafe(repository_of.withdraw, "sum")
        eventually(lambda: "sum" not in repository_of.models)
        assert client.ask() == [1.0] * SIZE
        assert gone in repository_of.retiring.values()
        client.socket.send(json.dumps({"type": "finish"}))
        assert client.receive()["steps"] == 1
        eventually(lambda: gone not in repository_of.retiring.values())
