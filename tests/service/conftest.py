"""A real server on a free port for the tests of the API, and the tiny bundle it serves."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.api.context import Context
from service.server import create_server
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server listens, and its insides for assertions on what clients cannot see."""

    port: int
    context: Context

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
    try:
        yield RunningServer(
            server.servers[0].sockets[0].getsockname()[1],
            server.config.app.state.context,  # type: ignore[union-attr]
        )
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def two_models(tiny_bundle: Path, tiny_tracing_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a language model, `tiny`, and a tracing model, `tutor`."""
    repository = tmp_path_factory.mktemp("two-models")
    shutil.copytree(tiny_bundle.parent, repository / "tiny")
    shutil.copytree(tiny_tracing_bundle.parent, repository / "tutor")
    return repository


@pytest.fixture(scope="session")
def run_server(two_models: Path) -> RunServer:
    """Starts a server of its own: `with run_server(max_rows=2) as server`."""

    def run(**overrides: object) -> AbstractContextManager[RunningServer]:
        values = {"repository": two_models, "port": 0, "max_rows": 8, "intra_op_threads": 1} | overrides
        return running(Settings(**values))  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def server(run_server: RunServer) -> Iterator[RunningServer]:
    """One server for all tests that leave it as they found it."""
    with run_server() as instance:
        yield instance
