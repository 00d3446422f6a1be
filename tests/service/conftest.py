"""A real server on a free port for the tests of the API, the tiny bundle it serves, and a real redis-server."""

from __future__ import annotations

import io
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_client
from PIL import Image

from carousel.service.api.routes.context import Context
from carousel.service.server.server import create_server
from carousel.service.settings import Settings
from tests.service.tiny_captioner import TinyCaptioner

REDIS_SERVER = shutil.which("redis-server")
DEADLINE_SECONDS = 20.0
SEND_BUFFER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server listens, and its insides for assertions on what clients cannot see."""

    port: int
    context: Context
    stop: Callable[[], None]
    """What a SIGTERM does: it begins to shut down."""
    grpc_port: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def socket_url(self, model: str) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/models/{model}/stream"


RunServer = Callable[..., AbstractContextManager[RunningServer]]


@contextmanager
def running(settings: Settings) -> Iterator[RunningServer]:
    server = create_server(settings)
    started = threading.Event()
    startup = server.startup

    async def startup_and_tell(sockets=None):  # type: ignore[no-untyped-def]
        await startup(sockets)
        started.set()

    server.startup = startup_and_tell  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(60), "the server did not start"
    # What the kernel holds for clients that do not read is made of events that have to be made first.
    server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def stop() -> None:
        server.should_exit = True

    try:
        yield RunningServer(
            server.servers[0].sockets[0].getsockname()[1],
            server.config.app.state.context,  # type: ignore[union-attr]
            stop,
            None if server.grpc is None else server.grpc.port,
        )
    finally:
        stop()
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def captioner() -> TinyCaptioner:
    """The model that is served as `scenes`, and the oracle of its captions."""
    return TinyCaptioner()


@pytest.fixture(scope="session")
def all_models(
    tiny_bundle: Path, tiny_tracing_bundle: Path, captioner: TinyCaptioner, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository of a language model, `tiny`, a tracing model, `tutor`, and captioning models: `scenes`, which
    attends; `blind`, which does not say where; `endless`, whose captions of 60,000 tokens never end."""
    repository = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_bundle.parent, repository / "tiny")
    shutil.copytree(tiny_tracing_bundle.parent, repository / "tutor")
    captioner.publish(repository, "scenes", beam_width=3, length_penalty=0.7)
    TinyCaptioner(attends=False).publish(repository, "blind")
    TinyCaptioner(end_bias=-1e4).publish(repository, "endless", max_new_tokens=60_000)
    return repository


@pytest.fixture(scope="session")
def run_server(all_models: Path) -> RunServer:
    """Starts a server of its own: `with run_server(max_rows=2) as server`."""

    def run(**overrides: object) -> AbstractContextManager[RunningServer]:
        values = {"repository": all_models, "port": 0, "max_rows": 8, "intra_op_threads": 1} | overrides
        return running(Settings(**values))  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def server(run_server: RunServer) -> Iterator[RunningServer]:
    """One server for all tests that leave it as they found it."""
    with run_server() as instance:
        yield instance


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """An image file of six parts, 2 rows of 3, each of a colour; of random colours, where a seed is given."""

    def draw(colours: Any = 0, kind: str = "PNG", size: tuple[int, int] = (36, 24), **options: Any) -> bytes:
        if isinstance(colours, int):
            colours = np.random.default_rng(colours).integers(0, 256, 18)
        parts = Image.fromarray(np.array(colours, np.uint8).reshape(2, 3, 3))
        buffer = io.BytesIO()
        parts.resize(size, Image.Resampling.NEAREST).save(buffer, kind, **options)
        return buffer.getvalue()

    return draw


def poll(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


class RedisServer:
    """A redis-server of the tests' own, on a free port, with its files in a temporary directory."""

    def __init__(self, directory: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            REDIS_SERVER or "",
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""),
            *("--logfile", "redis.log", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis_client.Redis(port=self.port)

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        poll(self._answers, "redis-server did not start")

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            self.client.close()
            self._process.send_signal(signal.SIGCONT)
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(DEADLINE_SECONDS)
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def elapse(self, seconds: float) -> None:
        """Let time pass for all keys, without waiting: each has so much less left to live."""
        for name in self.client.keys("*"):
            self.client.pexpire(name, max(0, self.client.pttl(name) - round(seconds * 1000)))

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis_client.RedisError:
            return False


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Starts a server with options of its own."""
    if REDIS_SERVER is None:
        pytest.skip("there is no redis-server here; Debian's package of that name brings it")
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        servers.append(RedisServer(tmp_path_factory.mktemp("redis"), *options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
