"""What is used of uvicorn beyond its documents. It is pinned exactly: each of these may change with any version."""

from __future__ import annotations

import ast
import asyncio
import inspect
import textwrap
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from carousel.service.server.chunks import ChunkProtocol, ChunkWriter
from carousel.service.server.http_protocol import HttpProtocol, _until_the_end
from carousel.service.server.server import Server
from carousel.service.server.stream_protocol import StreamProtocol

ROOT = Path(__file__).parents[2]
HEAD = b"Host: test\r\n"
UPGRADE = HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

USED = {
    "HttpToolsProtocol": {
        "_start_asgi_task", "client", "connection_lost", "connection_made", "connections", "cycle", "data_received",
        "flow", "handle_websocket_upgrade", "headers", "loop", "on_body", "on_headers_complete", "on_message_begin",
        "on_message_complete", "parser", "pipeline", "scope", "send_400_response", "server_state", "transport", "url",
    },
    "RequestResponseCycle": {
        "chunked_encoding", "disconnected", "expected_content_length", "flow", "message_event", "response_complete",
        "response_started", "scope", "transport",
    },
    "WebSocketsSansIOProtocol": {
        "conn", "data_received", "disconnected", "handshake_complete", "handshake_initiated", "loop", "run_asgi",
        "scope", "send_receive_event_to_app", "transport", "writable",
    },
    "Server": {
        "config", "handle_exit", "lifespan", "server_state", "servers", "should_exit", "shutdown", "started", "startup",
    },
    "ServerState": {"connections", "default_headers"},
    "FlowControl": {"read_paused", "resume_reading", "write_paused"},
    "HttpRequestParser": {"should_upgrade"},
    "ServerProtocol": {"max_message_size", "state"},
    "Config": {"backlog", "host", "http_protocol_class"},
}  # fmt: skip


class Transport(asyncio.Transport):
    """Nowhere."""

    def get_extra_info(self, name, default=None):
        return {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}.get(name, default)

    def write(self, data):
        pass

    def close(self):
        pass

    def is_closing(self):
        return False


async def application(scope, receive, send):
    await asyncio.Event().wait()


@pytest.fixture
async def parts():
    """One of each kind, as a request and a WebSocket's handshake leave them."""
    config = uvicorn.Config(application, http=HttpToolsProtocol, ws=WebSocketsSansIOProtocol, log_config=None)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    loop = asyncio.get_running_loop()
    http = HttpToolsProtocol(config, ServerState(), {}, loop)
    http.connection_made(Transport())
    http.data_received(b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n")
    socket = WebSocketsSansIOProtocol(config, ServerState(), {}, loop)
    socket.connection_made(Transport())
    socket.data_received(b"GET / HTTP/1.1\r\n" + UPGRADE + b"\r\n")
    found = [http, http.cycle, socket, server, http.server_state, http.flow, http.parser, socket.conn, config]
    server.servers = []  # startup() makes it
    yield {type(one).__name__: one for one in found}
    for task in [*http.tasks, *socket.tasks]:
        task.cancel()
    await asyncio.gather(*http.tasks, *socket.tasks, return_exceptions=True)
    if socket.ping_timer is not None:
        socket.ping_timer.cancel()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in USED.items() for name in sorted(names)])
def test_what_is_used_of_uvicorn_is_there(parts, kind, name):
    assert kind in parts, f"uvicorn {version('uvicorn')} has no {kind} where there was one; service/ subclasses it"
    assert hasattr(parts[kind], name), (
        f"uvicorn {version('uvicorn')} has no {kind}.{name}, which service/server/ "
        "uses: see what has become of it before the pin in pyproject.toml is raised"
    )


def test_uvicorn_is_pinned_to_the_version_that_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"uvicorn=={version('uvicorn')}" in project["dependencies"]


OURS = [
    (HttpProtocol, "self", "HttpToolsProtocol"),
    (ChunkProtocol, "self", "HttpToolsProtocol"),
    (ChunkWriter, "protocol", "HttpToolsProtocol"),
    (ChunkWriter, "cycle", "RequestResponseCycle"),
    (HttpProtocol, "running", "RequestResponseCycle"),
    (HttpProtocol, "cycle", "RequestResponseCycle"),
    (_until_the_end, "cycle", "RequestResponseCycle"),
    (StreamProtocol, "self", "WebSocketsSansIOProtocol"),
    (Server, "self", "Server"),
    (Server, "config", "Config"),
]


@pytest.mark.parametrize(("source", "variable", "kind"), OURS)
def test_nothing_else_of_uvicorn_is_used(source, variable, kind):
    """Every attribute of what is uvicorn's is either our own or in the list above."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(source)))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == variable
    }
    assert used
    own = {name for one in (HttpProtocol, ChunkProtocol, StreamProtocol, Server) for name in vars(one)}
    own |= {"_drain", "_grace_seconds", "_open_grpc", "_protocol", "grpc"} | {
        name for one in OURS[:2] for name in one[0].__annotations__
    }
    assert used - own <= USED[kind], "add it to the list above"
