"""Pages of other sites: closed by default, opened by a setting, on every route and every socket."""

from __future__ import annotations

import json

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

APP, EVIL = "https://app.example", "https://evil.example"


def _handshake(server, model="tiny", **headers):
    """The status of a socket's handshake, and the error's code where it is refused."""
    try:
        with connect(server.socket_url(model), proxy=None, additional_headers=headers):
            return 101, None
    except InvalidStatus as refused:
        return refused.response.status_code, json.loads(refused.response.body)["error"]["code"]


@pytest.mark.parametrize("model", ["tiny", "scenes", "tutor", "nobody"])
def test_socket_of_another_origin_is_refused(server, model, ended):
    assert _handshake(server, model, origin=EVIL) == (403, "foreign_origin")
    assert _handshake(server, model, origin="null") == (403, "foreign_origin")
    assert _handshake(server, model, origin="http://localhost:3000") == (403, "foreign_origin")
    ended(foreign_origin=3)


def test_socket_of_the_same_origin_or_of_none_is_opened(server):
    assert _handshake(server) == (101, None)
    assert _handshake(server, origin=server.url) == (101, None)
    assert _handshake(server, origin=server.url.replace("http:", "https:")) == (101, None)


def test_pages_of_other_origins_are_let_do_nothing(client, refused):
    preflight = {"origin": EVIL, "access-control-request-method": "POST"}
    response = client.options("/v1/completions", headers=preflight)
    refused(response, 405, "method_not_allowed")
    answers = [response, client.get("/v1/models", headers={"origin": EVIL})]
    assert not any(name.startswith("access-control") for answer in answers for name in answer.headers)


def test_server_of_this_machine_is_not_called_by_other_names(server, client, refused):
    for path in ("/v1/models", "/livez", "/nowhere"):
        refused(client.get(path, headers={"host": "evil.example"}), 403, "foreign_host")
    assert client.get("/v1/models", headers={"host": "localhost:1234"}).status_code == 200
    assert _handshake(server, host="evil.example", origin="http://evil.example") == (403, "foreign_host")


@pytest.fixture(scope="module")
def open_server(run_server, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "api_keys"
    keys.write_text("# nobody has one\n")
    with run_server(cors_origins=f"{APP},http://localhost:3000", api_keys_file=keys, admin_key="k" * 40) as instance:
        yield instance


def test_every_route_answers_the_preflight_of_a_named_origin(open_server):
    with httpx.Client(base_url=open_server.url, trust_env=False) as client:
        paths = [
            "/livez", "/metrics", "/v1/models", "/v1/models/tiny", "/v1/models/tiny/score", "/v1/completions",
            "/v1/models/tiny/next-token", "/v1/models/tutor/trace", "/v1/models/tutor/trace/a/mastery.svg",
            "/v1/models/scenes/captions", "/v1/models/scenes/captions/attention.svg", "/v1/models/tiny/sessions/a",
            "/v1/repository", "/v1/repository/models/tiny/load", "/v1/repository/models/tiny/unload",
        ]  # fmt: skip
        for path in paths:
            for method in ("GET", "POST", "DELETE"):
                asked = {"access-control-request-method": method, "access-control-request-headers": "x-stainless-os"}
                response = client.options(path, headers={"origin": APP, **asked})
                assert response.status_code == 200, path
                assert response.headers["access-control-allow-origin"] == APP
                assert method in response.headers["access-control-allow-methods"]
                assert response.headers["access-control-allow-headers"] == "x-stainless-os"
                assert "access-control-allow-credentials" not in response.headers
                refused = client.options(path, headers={"origin": EVIL, **asked})
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "foreign_origin")
        response = client.get("/v1/models", headers={"origin": APP})  # an error is for the page to read, too
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (401, APP)
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert "access-control-allow-origin" not in client.get("/v1/models", headers={"origin": EVIL}).headers
        assert client.get("/livez", headers={"host": "app.example"}).status_code == 200
        assert client.get("/livez", headers={"host": "evil.example"}).status_code == 403
    assert _handshake(open_server, origin=EVIL) == (403, "foreign_origin")
    assert _handshake(open_server, origin=APP) == (101, None)


def test_all_origins_may_be_named(run_server):
    with run_server(cors_origins="*") as server:
        assert _handshake(server, origin=EVIL, host="evil.example") == (101, None)
        answer = httpx.get(f"{server.url}/v1/models", headers={"origin": EVIL}, trust_env=False)
        assert answer.headers["access-control-allow-origin"] == "*"


def test_fields_that_the_operator_names_are_ignored(run_server, client, refused):
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 2, "temperature": 0}
    extra = {"metadata": {"a": "b"}, "store": True}
    message = refused(client.post("/v1/completions", json=body | extra), 422, "invalid_request")
    assert message.startswith("metadata: is no field that is known here")
    with run_server(ignored_fields="metadata,store,temperature") as server:
        url = f"{server.url}/v1/completions"
        answer = client.post(url, json=body | extra)
        assert answer.status_code == 200
        plain = client.post("/v1/completions", json=body)
        assert answer.json()["choices"] == plain.json()["choices"]
        refused(client.post(url, json=body | {"temprature": 1}), 422, "invalid_request")
        refused(client.post(url, json=body | {"temperature": -1}), 422, "invalid_request")  # what is known is heeded
        score = f"{server.url}/v1/models/tiny/score"
        refused(client.post(score, json={"text": "abc", "store": True}), 422, "invalid_request")
