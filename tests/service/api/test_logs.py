"""What is logged: each request's end once, as text or as JSON, and never what was sent."""

import io
import json
import logging
from datetime import datetime

import httpx
import pytest

from carousel.service.keys.caller import Caller
from carousel.service.keys.key_file import Key, key_line, new_key
from carousel.service.observability.logs import JsonFormatter
from carousel.service.observability.requests import RequestLine, RequestRecord


@pytest.fixture
def lines():
    """Attaches a JSON log to the service's loggers; gives what was written, as objects."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("carousel")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_line_is_one_object_whatever_is_in_the_message(lines):
    logging.getLogger("carousel.test").warning("two\nlines %s", '"\u2028\x1b[31m')
    (line,) = lines()
    assert (line["level"], line["logger"]) == ("warning", "carousel.test")
    assert line["message"] == 'two\nlines "\u2028\x1b[31m'
    assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0


def test_exception_is_in_its_line(lines):
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        logging.getLogger("carousel.test").exception("failed")
    (line,) = lines()
    assert line["exception"].splitlines()[-1] == "RuntimeError: a defect"


def test_request_says_the_same_as_text_and_as_fields():
    record = RequestRecord("1f", "tiny", "3", "/v1/completions", "ok", 0.0, status=200, method="POST", client="::1")
    line = RequestLine(record, 0.01234567)
    assert str(line) == (
        "POST /v1/completions status=200 client=::1 model=tiny version=3 outcome=ok seconds=0.0123 request_id=1f"
    )
    assert "key" not in line.fields()
    record.caller = Caller(Key("ada", "school", bytes(32)))
    assert str(line).endswith("request_id=1f tenant=school key=ada")
    assert line.fields() == {
        "method": "POST", "endpoint": "/v1/completions", "status": 200, "client": "::1", "model": "tiny",
        "version": "3", "outcome": "ok", "seconds": 0.012346, "request_id": "1f", "tenant": "school", "key": "ada",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/nowhere", "/nowhere"),
        ("/a b\n outcome=ok \x1b[31m", "/a%20b%0A%20outcome%3Dok%20%1B%5B31m"),
        ("/caf\u00e9\u2028\ud800", "/caf%C3%A9%E2%80%A8%3F"),
        ("/" + "x" * 500, "/" + "x" * 199 + "..."),
        ("/" + " " * 500, "/" + "%20" * 66 + "%..."),
    ],
)
def test_path_of_no_route_is_escaped_and_cut(path, told):
    record = RequestRecord("1f", outcome="not_found", status=404, method="GET", client="10.0.0.1", path=path)
    line = RequestLine(record, 0.5)
    assert str(line).startswith(f"GET unknown path={told} status=404 client=10.0.0.1 model=unknown")
    assert (line.fields()["endpoint"], line.fields()["path"]) == ("unknown", told)


def test_what_never_came_to_be_a_request_has_a_line():
    line = RequestLine(RequestRecord("1f", outcome="malformed_http", status=400, client="10.0.0.1"), 0.5)
    assert str(line).startswith("- unknown status=400 client=10.0.0.1 model=unknown")
    assert (line.fields()["method"], line.fields()["status"]) == (None, 400)


def test_requests_are_logged_with_their_caller_and_without_what_they_sent(run_server, tmp_path, lines):
    key, secret = new_key(), "abcabcabc"
    path = tmp_path / "keys"
    path.write_text(key_line("ada", "school", key))
    headers = {"Authorization": f"Bearer {key}"}
    with run_server(api_keys_file=path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"model": "tiny", "prompt": secret, "max_tokens": 2}
        ids = [
            client.post("/v1/completions", json=body, headers=headers).headers["x-request-id"],
            client.post("/v1/completions", json=body | {"secret": secret}, headers=headers).headers["x-request-id"],
            client.post("/v1/completions", json=body).headers["x-request-id"],
            client.get(f"/nowhere/x y?{secret}", headers=headers).headers["x-request-id"],
            client.get(f"/v1/models/tiny/sessions/{secret}?{secret}").headers["x-request-id"],
            client.put(f"/v1/models/tiny/sessions/{secret}", headers=headers).headers["x-request-id"],
        ]
    ended = [line for line in lines() if line["logger"] == "carousel.requests"]
    assert [line["request_id"] for line in ended] == ids
    assert [line["outcome"] for line in ended] == [
        "ok", "invalid_request", "missing_key", "not_found", "missing_key", "method_not_allowed",
    ]  # fmt: skip
    session = "/v1/models/{model}/sessions/{session}"
    assert [(line["method"], line["endpoint"], line["status"], line.get("path")) for line in ended] == [
        ("POST", "/v1/completions", 200, None),
        ("POST", "/v1/completions", 400, None),
        ("POST", "/v1/completions", 401, None),
        ("GET", "unknown", 404, "/nowhere/x%20y"),
        ("GET", session, 401, None),
        ("PUT", session, 405, None),
    ]
    assert {line["client"] for line in ended} == {"127.0.0.1"}
    assert [(line.get("tenant"), line.get("key")) for line in ended] == [
        ("school", "ada"), ("school", "ada"), (None, None), ("school", "ada"), (None, None), ("school", "ada"),
    ]  # fmt: skip
    assert [(line["model"], line["version"]) for line in ended] == [("tiny", "1")] * 2 + [("unknown", "unknown")] * 4
    assert all(0 < line["seconds"] < 60 for line in ended)
    everything = json.dumps(lines())
    assert secret not in everything
    assert key not in everything


def test_sockets_are_logged_with_what_they_are_closed_with(run_server, tmp_path, lines, connect, eventually):
    key = new_key()
    path = tmp_path / "keys"
    path.write_text(key_line("ada", "school", key))
    with run_server() as server:
        socket = connect(server)
        socket.generate("abc", max_tokens=2)
        socket.send(type="nonsense")
        socket.refusal()
    with run_server(api_keys_file=path) as server:
        connect(server).refusal()
    eventually(lambda: len([line for line in lines() if line["logger"] == "carousel.requests"]) == 3)
    ended = [line for line in lines() if line["logger"] == "carousel.requests"]
    endpoint = "/v1/models/{model}/stream"
    assert [(line["method"], line["endpoint"], line["status"], line["client"]) for line in ended] == [
        ("WS", endpoint, status, "127.0.0.1") for status in (101, 4422, 4401)
    ]


def test_what_is_refused_before_it_is_a_request_is_logged_with_its_client(run_server, lines, raw_client, eventually):
    with run_server() as server:
        client = raw_client(server)
        client.socket.sendall(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n")
        eventually(lambda: any(line["logger"] == "carousel.requests" for line in lines()))
    (line,) = [line for line in lines() if line["logger"] == "carousel.requests"]
    assert (line["method"], line["endpoint"], line["status"], line["client"]) == (None, "unknown", 431, "127.0.0.1")
    assert "path" not in line


def test_defect_is_logged_as_a_500(run_server, lines, monkeypatch):
    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("carousel.service.tasks.language.probability.admit", fail)
    with run_server() as server:
        httpx.post(f"{server.url}/v1/models/tiny/next-token", json={"text": "a"}, trust_env=False)
    (line,) = [line for line in lines() if line["logger"] == "carousel.requests"]
    assert (line["status"], line["outcome"]) == (500, "internal_error")
