"""A connection serves one request after another, whatever the answers are; HEAD is answered wherever GET is."""

from __future__ import annotations

import http.client
import json

import httpx
import pytest

LIVE = ("GET", "/livez", b"", {})
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "path",
    [
        "/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/tiny", "/docs", "/docs/page.js",
        "/docs/swagger-ui.css", "/openapi.json",
    ],
)  # fmt: skip
def test_head_is_answered_like_get_without_the_body(client, path):
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == got.headers["content-length"]


def test_head_of_a_session_and_its_picture(client, trace):
    trace(attempts=[{"skill": 0, "correct": True}], session="headed")
    for path in ("/v1/models/tutor/sessions/headed", "/v1/models/tutor/trace/headed/mastery.svg"):
        assert client.head(path).status_code == 200
    assert client.head("/v1/models/tutor/sessions/nobody").status_code == 404


def test_head_of_the_admins_routes(run_server):
    key = "k" * 40
    with run_server(admin_key=key) as server:
        for headers, status in (({"authorization": f"Bearer {key}"}, 200), ({}, 401)):
            response = httpx.head(f"{server.url}/v1/repository", headers=headers, trust_env=False)
            assert (response.status_code, response.content) == (status, b"")


REFUSED = {
    "malformed_json": ("POST", "/v1/completions", b"{", JSON),
    "invalid_request": ("POST", "/v1/completions", json.dumps({"model": "tiny", "prompt": 5}).encode(), JSON),
    "unknown_model": ("POST", "/v1/models/nobody/score", json.dumps({"text": "a" * 500_000}).encode(), JSON),
    "not_found": ("POST", "/nowhere", b"x" * 1_000_000, JSON),
    "method_not_allowed": ("PUT", "/v1/models/tiny/score", b"x" * 1_000_000, JSON),
    "upgrade_required": ("GET", "/v1/models/tiny/stream", b"", {}),
    "wrong_task": ("POST", "/v1/models/tutor/score", json.dumps({"text": "a"}).encode(), JSON),
    "malformed_form": ("POST", "/v1/models/scenes/captions", b"x" * 100_000,
                       {"content-type": "multipart/form-data; boundary=b"}),
    "body_too_large": ("POST", "/v1/completions", b"x" * 5_000_000, JSON),
}  # fmt: skip


def _ask_twice(port, request):
    """A request's code, and then, on the same connection unless it said that it closes, that of a sound one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    method, path, body, headers = request
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    code = json.loads(response.read())["error"]["code"]
    closes = response.getheader("connection") == "close"
    socket = connection.sock
    assert (socket is None) == closes
    method, path, body, headers = LIVE
    connection.request(method, path, body, headers)
    assert connection.getresponse().status == 200
    assert closes or connection.sock is socket
    connection.close()
    return code, closes


@pytest.mark.parametrize("code", REFUSED)
def test_connection_goes_on_after_an_error_or_says_that_it_does_not(server, code):
    assert _ask_twice(server.port, REFUSED[code]) == (code, code == "body_too_large")


def test_connection_goes_on_after_a_defect(run_server, monkeypatch, caplog):
    def fail(name):
        raise LookupError("a defect")

    with run_server(cors_origins="https://app.example") as server:
        monkeypatch.setattr(server.context.repository, "get", fail)
        for request in (
            ("GET", "/v1/models/tiny", b"", {}),
            ("POST", "/v1/models/tiny/score", json.dumps({"text": "abc"}).encode(), JSON),
            ("POST", "/v1/completions", json.dumps({"model": "tiny", "prompt": "abc"}).encode(), JSON),
        ):
            assert _ask_twice(server.port, request) == ("internal_error", False)
        origin = "https://app.example"
        response = httpx.get(f"{server.url}/v1/models/tiny", headers={"origin": origin}, trust_env=False)
        assert response.status_code == 500
        assert response.headers["access-control-allow-origin"] == origin
        assert response.headers["x-request-id"]
        assert response.headers["x-content-type-options"] == "nosniff"
    assert sum("unexpected LookupError" in record.message for record in caplog.records) == 4
    assert not [record for record in caplog.records if record.name == "uvicorn.error" and record.levelname == "ERROR"]
