"""Behind a real nginx with its default settings, which speaks HTTP/1.0 to what it is a proxy for."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from carousel.service.server.http_protocol import HttpProtocol

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
LONG = 60_000

CONFIGURATION = """
daemon off;
pid {home}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    }}
}}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx here; Debian's package of that name brings it")


@pytest.fixture(scope="module")
def versions():
    """The HTTP versions of the requests that the server was sent."""
    seen: list[str] = []
    start = HttpProtocol._start_asgi_task

    def note(protocol, cycle, app):
        seen.append(cycle.scope["http_version"])
        start(protocol, cycle, app)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpProtocol, "_start_asgi_task", note)
        yield seen


@pytest.fixture(scope="module")
def proxy(server, versions, tmp_path_factory, eventually) -> Iterator[httpx.Client]:
    """A client of nginx before the session's server."""
    home = tmp_path_factory.mktemp("nginx")
    home.chmod(0o755)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "nginx.conf").write_text(CONFIGURATION.format(home=home, port=port, upstream=server.port))
    with (home / "log").open("w") as log:
        process = subprocess.Popen([NGINX, "-c", str(home / "nginx.conf"), "-e", "stderr"], stderr=log)

    def listens() -> bool:
        assert process.poll() is None, (home / "log").read_text()
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(listens)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def test_answers_come_whole_through_nginx(proxy, client, versions):
    body = {"model": "tiny", "prompt": "abcd", "max_tokens": 20, "seed": 3}
    direct, through = (one.post("/v1/completions", json=body) for one in (client, proxy))
    assert through.status_code == 200
    assert through.json()["choices"] == direct.json()["choices"]
    assert proxy.get("/readyz").json() == {"status": "ok"}
    assert proxy.post("/v1/completions", json={"model": "tiny"}).status_code == 400
    assert set(versions[-3:]) == {"1.0"}


def events(lines):
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"stop": ["zzzz"]}, {"logprobs": 2}])
def test_stream_through_nginx_is_the_stream(proxy, client, versions, fields):
    body = {"model": "tiny", "prompt": "abcd", "max_tokens": 300, "seed": 3, "stream": True, **fields}
    direct, through = (one.post("/v1/completions", json=body) for one in (client, proxy))
    assert versions[-1] == "1.0"
    assert through.headers["content-type"] == direct.headers["content-type"]
    told, expected = events(through.text.splitlines()), events(direct.text.splitlines())

    def by_choice(chunks):
        """Choices of a request come in any order, and the tokens of each in their own."""
        return sorted((chunk["choices"][0] for chunk in chunks), key=lambda choice: choice["index"])

    assert len(told) > 300 or fields
    assert by_choice(told) == by_choice(expected)
    assert through.text.splitlines()[-2] == "data: [DONE]"


def test_caption_streams_through_nginx(proxy, client, picture, versions):
    def said(one):
        response = one.post(
            "/v1/models/scenes/captions", files={"image": picture()}, data={"stream": "true", "temperature": "0"}
        )
        return [event for event in events(response.text.splitlines()) if event["type"] != "accepted"]

    assert said(proxy) == said(client)
    assert said(proxy)[-1]["type"] == "finished"
    assert versions[-1] == "1.0"


def test_tokens_come_through_nginx_as_they_are_sampled_and_who_leaves_is_noticed(proxy, server, eventually, versions):
    body = {"model": "tiny", "prompt": "abcd", "max_tokens": LONG, "stream": True}
    with proxy.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")  # long before the last: nginx holds nothing back
        engine = server.context.repository.models["tiny"].engine
        assert engine.describe().running == 1
    eventually(lambda: engine.describe().running == 0)
    assert versions[-1] == "1.0"


def test_stream_that_is_refused_has_its_status_through_nginx(proxy, refused):
    refused(proxy.post("/v1/completions", json={"model": "none", "prompt": "a", "stream": True}), 404, "unknown_model")
