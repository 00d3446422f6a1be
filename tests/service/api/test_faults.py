"""What breaks around a running service: files, clocks, the event loop, clients that come only to vanish.

No other request may fail, nothing may leak, and readiness must tell the truth. (A runner that raises at some step, or
is broken: test_health.py; Redis gone and back: test_shared_sessions.py; versions that are bad or deleted:
test_reloads.py; clients that are slow: test_slow_clients.py; a publisher that is killed: tests/models/test_bundle.py.)
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import pytest

from carousel.service.engine.runner import OnnxRunner
from carousel.service.engine.threads.engine_thread import MAX_UNDELIVERED_STEPS
from carousel.service.keys.key_file import key_line, new_key
from carousel.service.observability.loop_lag import INTERVAL_SECONDS

CLIENTS = int(os.environ.get("VANISHING_CLIENTS", "1000"))
"""`VANISHING_CLIENTS=10000 pytest tests/service/api/test_faults.py -k vanish` for more."""


@pytest.fixture
def http(run_server):
    """A server of the test's own, with an HTTP client."""

    def start(**settings):
        server = stack.enter_context(run_server(**settings))
        return server, stack.enter_context(httpx.Client(base_url=server.url, timeout=60, trust_env=False))

    with ExitStack() as stack:
        yield start


def test_bundle_deleted_under_a_running_service_fails_no_request(http, all_models, tmp_path, connect, picture):
    repository = shutil.copytree(all_models, tmp_path / "models")
    server, client = http(repository=repository)
    running = connect(server)
    running.start("abc", max_tokens=2_000, seed=1)
    assert running.receive()["type"] == "accepted"
    shutil.rmtree(repository)
    assert running.rest()[-1]["reason"] == "length"
    assert client.post("/v1/models/tiny/score", json={"text": "abcabc" * 30}).status_code == 200
    assert client.post("/v1/models/tutor/trace", json={"attempts": [{"skill": 0, "correct": True}]}).status_code == 200
    assert client.post("/v1/models/scenes/captions", files={"image": picture()}).status_code == 200
    assert client.get("/v1/models/tiny").status_code == 200
    assert client.get("/readyz").status_code == 200


def test_numbers_that_are_not_finite_fail_their_own_request(http, connect, monkeypatch, refused):
    class Runner(OnnxRunner):
        def bind(self, arrays):
            step = super().bind(arrays)

            def spoil() -> None:
                step()
                arrays.outputs["logits"][arrays.inputs["token"] == 12] = np.nan  # 12 is 'k'

            return spoil

    monkeypatch.setattr("carousel.service.served.opening.OnnxRunner", Runner)
    server, client = http()
    fields = {"max_tokens": 600, "temperature": 0}  # which never samples 'k'
    expected = connect(server).generate("abc", **fields)[1:]
    neighbour = connect(server)
    neighbour.start("abc", **fields)
    for path, body in {
        "/v1/models/tiny/next-token": {"text": "aak"},
        "/v1/models/tiny/score": {"text": "akb"},
        "/v1/completions": {"model": "tiny", "prompt": "aak"},
    }.items():
        refused(client.post(path, json=body), 500, "step_failed", retryable=True)
    failing = connect(server)
    failing.start("aak")
    assert failing.refusal()[0]["code"] == "step_failed"
    assert neighbour.rest()[1:] == expected
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("jump_seconds", [86_400.0, -86_400.0])
def test_clock_that_jumps_ends_no_session_and_no_stream(http, connect, monkeypatch, jump_seconds):
    server, client = http()
    body = {"session": "ada", "attempts": [{"skill": 0, "correct": True}]}
    assert client.post("/v1/models/tutor/trace", json=body).status_code == 200
    running = connect(server)
    running.start("abc", max_tokens=2_000, seed=1)
    assert running.receive()["type"] == "accepted"
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump_seconds)
    assert client.post("/v1/models/tutor/trace", json=body).status_code == 200
    session = client.get("/v1/models/tutor/sessions/ada").json()
    assert session["steps"] == 2
    assert 0 < session["expires_in_seconds"] <= 3_600
    token = client.post("/v1/models/tutor/trace", json={**body, "session": None, "return_state": True}).json()["state"]
    monkeypatch.undo()
    body = {"state": token, "attempts": body["attempts"]}
    assert client.post("/v1/models/tutor/trace", json=body).status_code == 200
    assert running.rest()[-1]["reason"] == "length"


@pytest.fixture
def slow_steps(monkeypatch):
    """Servers started from now on take steps so slow that no stream is over, or its reader behind, before the fault."""

    class Runner(OnnxRunner):
        def bind(self, arrays):
            step = super().bind(arrays)

            def wait() -> None:
                threading.Event().wait(0.001)
                step()

            return wait

    monkeypatch.setattr("carousel.service.served.opening.OnnxRunner", Runner)


def test_event_loop_that_is_blocked_holds_the_engine_back_and_loses_nothing(slow_steps, http, connect, eventually):
    server, client = http()
    engine = server.context.repository.models["tiny"].engine
    expected = connect(server).generate("abc", max_tokens=600, seed=1)[1:]
    running = connect(server)
    running.start("abc", max_tokens=600, seed=1)
    assert running.receive()["type"] == "accepted"
    eventually(lambda: engine.describe().running == 1)  # not before: what the loop has not handed over cannot run
    blocked, release = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        release.wait(60)

    engine._loop.call_soon_threadsafe(block)
    try:
        assert blocked.wait(60)
        eventually(lambda: engine._thread._undelivered == MAX_UNDELIVERED_STEPS or engine.describe().running == 0)
        assert engine.describe().running == 1, "the stream was over before the loop was blocked"
    finally:
        release.set()
    assert running.rest() == expected
    assert client.get("/readyz").status_code == 200


def test_event_loop_that_was_blocked_is_told_by_its_lag(http):
    server, client = http()
    seen, ended = [], threading.Event()

    def look() -> None:
        lag = server.context.metrics.registry.get_sample_value("carousel_event_loop_lag_seconds_sum")
        seen.append((time.monotonic(), lag))

    def block() -> None:
        look()
        threading.Event().wait(0.5)
        seen.append((time.monotonic(), 0))
        ended.set()

    server.context.repository.models["tiny"].engine._loop.call_soon_threadsafe(block)
    assert ended.wait(60)
    assert client.get("/metrics").status_code == 200  # a timer that is due comes before a socket that is ready
    look()
    (began, before), (freed, _), (_, after) = seen
    assert after - before >= freed - began - INTERVAL_SECONDS


def test_engine_thread_that_is_killed_is_told_and_harms_no_other_model(slow_steps, http, connect, eventually, refused):
    server, client = http()
    engine = server.context.repository.models["tiny"].engine
    running, waiting = connect(server), [connect(server) for _ in range(12)]
    running.start("abc", max_tokens=60_000)
    assert running.receive()["type"] == "accepted"
    for stream in waiting:
        stream.start("abc", max_tokens=60_000)
    eventually(lambda: engine.describe().admitted == 13)
    killed = ctypes.c_ulong(engine._thread._thread.ident)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(killed, ctypes.py_object(SystemExit)) == 1
    for stream in (running, *waiting):
        error, code = stream.refusal()
        assert (error["code"], code) == ("model_unavailable", 4503)
    failures = client.get("/readyz").json()["failures"]
    assert set(failures) == {"tiny"}
    assert client.get("/livez").status_code == 503
    assert "carousel_ready 0.0" in client.get("/metrics").text
    refused(client.post("/v1/completions", json={"model": "tiny", "prompt": "a"}), 503, "model_unavailable", True)
    assert client.post("/v1/models/tutor/trace", json={"attempts": [{"skill": 0, "correct": True}]}).status_code == 200
    eventually(lambda: engine.describe().admitted == 0)


FILLING = """
import os, resource, signal, sys
from pathlib import Path
from carousel.models.bundle import open_bundle, publish

repository, source, limit = sys.argv[1:]
bundle = open_bundle(Path(source))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))  # a write beyond it fails, in the kernel
try:
    publish(Path(repository), "tiny", bundle.manifest, bundle.files)
except OSError as error:
    sys.exit(f"OSError {error.errno}")
"""


def test_disk_that_is_full_while_a_version_is_published_leaves_the_old_one(http, all_models, tmp_path, connect):
    repository = shutil.copytree(all_models, tmp_path / "models")
    server, client = http(repository=repository, watch_seconds=0.01)
    sizes = sorted(path.stat().st_size for path in (repository / "tiny" / "1").iterdir())
    running = connect(server)
    running.start("abc", max_tokens=2_000, seed=1)
    for limit in (0, 1, sizes[0] - 1, sizes[-1] - 1, sizes[-1]):
        command = [sys.executable, "-c", FILLING, repository, repository / "tiny" / "1", str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if limit < sizes[-1]:
            assert (done.returncode, done.stderr.strip()) == (1, f"OSError {errno.EFBIG}")
            assert [path.name for path in (repository / "tiny").iterdir()] == [
                "1"
            ]  # nothing half is left, hidden or not
            assert server.context.repository.models["tiny"].bundle.version == 1
            assert server.context.repository.refusals == {}
    assert done.returncode == 0, done.stderr
    assert running.rest()[-1]["reason"] == "length"
    assert client.get("/readyz").status_code == 200


def test_clock_that_jumps_refills_no_quota(http, tmp_path, monkeypatch, refused):
    key = new_key()
    line = key_line("ada", "school", key)
    (tmp_path / "keys").write_text(f"{line} requests_per_second=0.001 burst=1 tokens_per_day=1000\n")
    _, client = http(api_keys_file=tmp_path / "keys")
    client.headers["authorization"] = f"Bearer {key}"
    assert client.post("/v1/models/tiny/score", json={"text": "abc"}).status_code == 200
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 86_400.0)
    refused(client.post("/v1/models/tiny/score", json={"text": "abc"}), 429, "rate_limited", True)


def test_clients_that_connect_and_vanish_leave_nothing(http, connect, eventually):
    server, client = http(max_connections=CLIENTS + 100)
    engine = server.context.repository.models["tiny"].engine
    assert client.get("/readyz").status_code == 200
    files = len(os.listdir("/proc/self/fd"))
    neighbour = connect(server)
    neighbour.start("abc", max_tokens=4_000, seed=1)
    post = (
        b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 80\r\n\r\n"
    )
    body = b'{"model": "tiny", "prompt": "abc", "max_tokens": 4000, "stream": true, "n": 1}'.ljust(80)
    upgrade = (
        b"GET /v1/models/tiny/stream HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    said = [b"", b"\x16\x03\x01", post[:40], post, post + body[:30], post + body, upgrade[:50], upgrade]

    def vanish(number: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port), 60) as one:
            one.sendall(said[number % len(said)])
            if random.Random(number).random() < 0.7:  # without a goodbye
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(vanish, range(CLIENTS)))
    assert neighbour.rest()[-1]["reason"] == "length"
    eventually(lambda: (engine.describe().admitted, engine.describe().running) == (0, 0))
    neighbour.socket.close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= files + 2)
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/completions", json={"model": "tiny", "prompt": "a"}).status_code == 200


def test_sessions_made_as_fast_as_can_be_are_bounded_and_all_answered(http):
    server, client = http(max_sessions=500)
    attempts = [{"skill": 1, "correct": True}]
    for batch in range(4):
        learners = [{"session": f"learner-{batch}-{number}", "attempts": attempts} for number in range(1_000)]
        response = client.post("/v1/models/tutor/trace", json={"learners": learners})
        assert response.status_code == 200, response.text[:300]
        assert len(response.json()["learners"]) == 1_000
    registry = server.context.metrics.registry
    assert registry.get_sample_value("carousel_sessions") == 500
    assert registry.get_sample_value("carousel_sessions_evicted_total", {"reason": "lru"}) == 3_500
    assert client.get("/v1/models/tutor/sessions/learner-3-999").json()["steps"] == 1
    assert client.get("/v1/models/tutor/sessions/learner-0-0").status_code in (404, 410)
