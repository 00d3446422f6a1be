"""Who has no key gets nowhere; who has one gets everywhere; a key in force today may be revoked tomorrow."""

import re
from contextlib import ExitStack

import httpx
import pytest
from fastapi.routing import APIWebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as websockets_connect

from carousel.service.app import create_app
from carousel.service.gates.key_gate import OPEN_PATHS
from carousel.service.keys import keyring
from carousel.service.keys.key_file import key_line, new_key
from carousel.service.settings import Settings
from tests.service.api.conftest import StreamClient

ADA = new_key()
WRONG = [
    ({}, "missing_key"),
    ({"Authorization": ADA}, "missing_key"),
    ({"Authorization": "Basic YTpi"}, "missing_key"),
    ({"X-API-Key": ADA}, "missing_key"),
    ({"Authorization": "Bearer"}, "missing_key"),
    ({"Authorization": f"Bearer {ADA[:-1]}"}, "unknown_key"),
    ({"Authorization": f"Bearer {ADA} {ADA}"}, "unknown_key"),
    ({"Authorization": f"Bearer {new_key()}"}, "unknown_key"),
    ({"Authorization": "Bearer " + "x" * 7_900}, "unknown_key"),
]


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(key_line("ada", "school", ADA) + "\n")
    return path


@pytest.fixture(scope="module")
def guarded(run_server, keys_file):
    """A server that asks for keys."""
    with run_server(api_keys_file=keys_file) as server:
        yield server


@pytest.fixture
def visitor(guarded):
    """An HTTP client without a key."""
    with httpx.Client(base_url=guarded.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def open_socket(guarded):
    """Opens sockets with these headers or subprotocols, and closes them at the test's end."""
    with ExitStack() as stack:

        def open_with(headers=None, path="/v1/models/tiny/stream", subprotocols=None, instance=guarded):
            return StreamClient(
                stack.enter_context(
                    websockets_connect(
                        f"ws://127.0.0.1:{instance.port}{path}",
                        additional_headers=headers,
                        subprotocols=subprotocols,
                        proxy=None,
                        compression=None,
                    )
                )
            )

        yield open_with


@pytest.fixture(scope="module")
def routes(all_models):
    """Every route of the application, with its path's parameters filled in."""
    app = create_app(Settings(repository=all_models))
    names = {"model": "tiny", "session": "s", "version": "1", "file": "swagger-ui.css"}
    found = [(re.sub(r"{(\w+)}", lambda part: names[part[1]], route.path), route) for route in app.routes]
    assert len(found) > 12
    return found


def test_every_route_but_those_of_health_needs_a_key(routes, visitor, open_socket, refused):
    asked = set()
    for path, route in routes:
        if isinstance(route, APIWebSocketRoute):
            error, code = open_socket(path=path).refusal()
            assert (error["code"], error["retryable"], code) == ("missing_key", False, 4401)
            asked.add(path)
            continue
        for method in route.methods | {"OPTIONS", "PUT", "TRACE"}:
            response = visitor.request(method, path)
            if path in OPEN_PATHS:
                assert response.status_code == (200 if method == "GET" else 405)
                continue
            assert response.status_code == 401, (method, path)
            if path.startswith("/v2"):
                assert method == "HEAD" or "no API key" in response.json()["error"]
            elif method != "HEAD":
                refused(response, 401, "missing_key")
            asked.add(path)
    assert {"/docs", "/openapi.json", "/metrics", "/v1/models", "/v1/completions", "/v1/models/tiny/stream"} <= asked


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/livez/", "//livez", "/livez/../metrics", "/LIVEZ", "/livez%2f..%2fmetrics", "/readyz;/metrics"],
)
def test_path_that_does_not_exist_or_looks_like_an_open_one_needs_a_key(visitor, refused, path):
    refused(visitor.get(path), 401, "missing_key")


@pytest.mark.parametrize(("headers", "code"), WRONG)
def test_wrong_key_is_refused_with_a_challenge(visitor, refused, headers, code):
    for response in (
        visitor.get("/v1/models", headers=headers),
        visitor.post("/v1/completions", headers=headers, content=b"{" * 50_000),
    ):
        message = refused(response, 401, code)
        assert ADA[:-1] not in message
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert ("invalid_token" in response.headers["www-authenticate"]) == (code == "unknown_key")
        assert response.headers["x-request-id"]


@pytest.mark.parametrize(("headers", "code"), [pair for pair in WRONG if len(str(pair[0])) < 1_000])
def test_socket_with_a_wrong_key_ends_with_an_error_and_4401(open_socket, headers, code):
    error, close_code = open_socket(headers).refusal()
    assert (error["code"], close_code) == (code, 4401)


def test_key_opens_every_route(routes, visitor):
    for path, route in routes:
        if not isinstance(route, APIWebSocketRoute):
            for method in route.methods:
                response = visitor.request(method, path, headers={"Authorization": f"bearer {ADA}"})
                assert response.status_code not in (401, 429)
    headers = {"Authorization": f"Bearer {ADA}"}
    assert visitor.get("/metrics", headers=headers).status_code == 200
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 3}
    assert visitor.post("/v1/completions", headers=headers, json=body).status_code == 200


@pytest.mark.parametrize(
    ("headers", "subprotocols", "chosen"),
    [
        ({"Authorization": f"Bearer {ADA}"}, None, None),
        (None, ["carousel", f"carousel.key.{ADA}"], "carousel"),
        (None, [f"carousel.key.{ADA}", "carousel"], "carousel"),
        (None, [f"carousel.key.{ADA}"], None),
    ],
)
def test_socket_with_a_key_runs_and_never_repeats_it(open_socket, headers, subprotocols, chosen):
    stream = open_socket(headers, subprotocols=subprotocols)
    assert stream.generate("abc", max_tokens=5)[-1]["reason"] == "length"
    assert stream.socket.subprotocol == chosen
    assert ADA not in str(stream.socket.response.headers)


def test_socket_of_a_browser_with_a_wrong_key_is_told_so(open_socket):
    stream = open_socket(subprotocols=["carousel", f"carousel.key.{new_key()}"])
    assert stream.socket.subprotocol == "carousel"
    error, code = stream.refusal()
    assert (error["code"], code) == ("unknown_key", 4401)


def test_key_in_the_query_is_no_key(visitor, open_socket, refused):
    refused(visitor.get(f"/v1/models?key={ADA}&access_token={ADA}"), 401, "missing_key")
    assert open_socket(path=f"/v1/models/tiny/stream?key={ADA}").refusal()[1] == 4401


def test_socket_of_a_browser_works_where_no_key_is_asked_for(server, open_socket):
    stream = open_socket(subprotocols=["carousel", "carousel.key.x"], instance=server)
    assert stream.socket.subprotocol == "carousel"
    assert stream.generate("abc", max_tokens=2)[-1]["reason"] == "length"


def test_socket_to_a_path_without_a_route_is_refused_as_ever_once_it_has_a_key(open_socket):
    with pytest.raises(InvalidStatus) as error:
        open_socket({"Authorization": f"Bearer {ADA}"}, path="/nowhere")
    assert error.value.response.status_code == 403


def test_refusals_are_counted_and_nothing_of_a_key_is(visitor, open_socket):
    visitor.get("/v1/models")
    visitor.get("/v1/models", headers={"Authorization": f"Bearer {ADA}x"})
    text = visitor.get("/metrics", headers={"Authorization": f"Bearer {ADA}"}).text
    for code in ("missing_key", "unknown_key"):
        assert re.search(rf'requests_total{{endpoint="unknown",model="unknown",outcome="{code}"', text)
    assert ADA not in text
    assert "ada" not in text


def test_revoked_key_is_refused_on_an_open_socket_too(
    run_server, keys_file, tmp_path, open_socket, eventually, monkeypatch
):
    monkeypatch.setattr(keyring, "LOOK_SECONDS", 0.0)
    path = tmp_path / "keys"
    path.write_text(keys_file.read_text())
    headers = {"Authorization": f"Bearer {ADA}"}
    with run_server(api_keys_file=path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        stream = open_socket(headers, instance=server)
        assert stream.generate("abc", max_tokens=2)[-1]["reason"] == "length"
        assert client.get("/v1/models", headers=headers).status_code == 200
        path.write_text("")
        eventually(lambda: client.get("/v1/models", headers=headers).status_code == 401)
        stream.start("abc", kind="feed")
        error, code = stream.refusal()
        assert (error["code"], code) == ("unknown_key", 4401)
        path.write_text(keys_file.read_text() + " " * 9)
        eventually(lambda: client.get("/v1/models", headers=headers).status_code == 200)
