"""A server as its own process: started, waited for, asked for its metrics and its memory, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

from carousel.benchmarks.load import Target

START_SECONDS = 120.0
STOP_SECONDS = 15.0
LOG_BYTES = 4000
"""How much of a dead server's output its error shows."""

BUNDLE_VARIABLE = "BENCHMARKS_BUNDLE"
"""Names the bundle to the peer whose framework reads the command line itself."""

Side = Literal["carousel", "naive", "torch", "litserve", "bentoml"]
SERVICE = ["service"]
BENTOML = ["bentoml", "serve", "carousel.benchmarks.peers.bento:Words", "--host", "127.0.0.1"]


class ServerFailed(Exception):
    """A server ended, or was not ready in time."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """What the service's engine says of its steps, as sums since its start or between two moments."""

    steps: float
    step_seconds: float
    """Whole steps, wall time."""
    overhead_seconds: float
    """The part of them that was not onnxruntime."""

    def since(self, earlier: StepTime) -> StepTime:
        """What was added after `earlier`."""
        return StepTime(
            self.steps - earlier.steps,
            self.step_seconds - earlier.step_seconds,
            self.overhead_seconds - earlier.overhead_seconds,
        )


def left_out(side: Side) -> str | None:
    """Why a side cannot run here; None if it can."""
    needed = {"torch": ("torch", "train"), "litserve": ("litserve", "peers"), "bentoml": ("bentoml", "peers")}
    package, extra = needed.get(side, ("onnxruntime", ""))
    if find_spec(package) is None:
        return f"{side} is left out: {package} is not installed (it comes with the extra {extra!r})"
    return None


@contextmanager
def running(side: Side, bundle: Path, checkout: Path | None = None) -> Iterator[Target]:
    """The service or a peer on a free port, ready; ended when the block is left.

    All run as they come; the service obeys whatever other `CAROUSEL_` settings are in the environment.

    Args:
        side: which of them.
        bundle: `<repository>/<model>/<version>`; the service takes the repository.
        checkout: a directory with another commit's code to run; None runs this one's.

    Raises:
        ServerFailed: it ended or was not ready in time; the message ends in what it printed.
    """
    named = ["--bundle", str(bundle)]
    command, settings = {
        "carousel": (SERVICE, service_settings(bundle)),
        "naive": (["carousel.benchmarks.naive", *named], {}),
        "torch": (["carousel.benchmarks.peers.torch_eager"], {}),
        "litserve": (["carousel.benchmarks.peers.lit_serve", *named], {}),
        # The framework tells its makers how it is used, unless it is told not to.
        "bentoml": (BENTOML, {BUNDLE_VARIABLE: str(bundle), "BENTOML_DO_NOT_TRACK": "True"}),
    }[side]
    with launched(command, settings, bundle, checkout) as target:
        yield replace(target, wire="events") if side in ("litserve", "bentoml") else target


def service_settings(bundle: Path) -> dict[str, str]:
    """What makes the service serve the repository of a bundle, and eat every prompt: all streams send the same one."""
    return {"CAROUSEL_REPOSITORY": str(bundle.parent.parent), "CAROUSEL_STATE_CACHE_BYTES": "0"}


@contextmanager
def launched(
    module: Sequence[str], settings: Mapping[str, str], bundle: Path, checkout: Path | None = None
) -> Iterator[Target]:
    """A server on a free port, ready; ended when the block is left.

    Args:
        module: what to run with `python -m`, with its arguments; `--port` is added for all but the service.
        settings: for its environment.
        bundle: `<repository>/<model>/<version>`, of what is asked for.
        checkout: where to run it, with the Python of its `.venv` if it has one; None is here, with this one.

    Raises:
        ServerFailed: it ended or was not ready in time; the message ends in what it printed.
    """
    target = Target(_free_port(), bundle.parent.name)
    own = checkout / ".venv" / "bin" / "python" if checkout else None
    command = [str(own) if own and own.exists() else sys.executable, "-m", *module]
    environment = {**os.environ, **settings, "CAROUSEL_HOST": target.host, "CAROUSEL_PORT": str(target.port)}
    if module != SERVICE:
        command += ["--port", str(target.port)]
    with TemporaryFile() as log:
        # A group of its own: some frameworks start further processes, which are measured and ended with the first.
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _ready(target):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    output = log.read().decode(errors="replace")[-LOG_BYTES:]
                    raise ServerFailed(f"{' '.join(command)} was not ready within {START_SECONDS:g} s:\n{output}")
                time.sleep(0.05)
            yield replace(target, group=process.pid)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def resident_bytes(target: Target) -> int:
    """The memory that a server's processes hold, added up: what two of them share counts twice. Reads /proc."""
    total = 0
    for process, _ in _processes(target):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def processor_seconds(target: Target) -> float:
    """The processor time, user and system, that a server's processes have taken so far. Reads /proc."""
    ticks = sum(int(fields[11]) + int(fields[12]) for _, fields in _processes(target))
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes(target: Target) -> Iterator[tuple[Path, list[str]]]:
    """A server's processes in /proc, each with its `stat` from the state on (state, parent, group, ...)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):  # a process may end meanwhile
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(after_name[2]) == target.group:
                    yield entry, after_name


def step_time(target: Target) -> StepTime:
    """The service's own account of its steps so far."""
    return read_step_time(exposition(target), target.model)


def exposition(target: Target) -> str:
    """What the service says on /metrics."""
    with urllib.request.urlopen(f"http://{target.host}:{target.port}/metrics", timeout=10) as response:
        content: bytes = response.read()
        return content.decode()


def read_step_time(exposition: str, model: str) -> StepTime:
    """The step histograms of `model` in a Prometheus text, summed over their other labels."""
    totals = dict.fromkeys(("carousel_step_seconds", "carousel_engine_overhead_seconds"), 0.0)
    steps = 0.0
    for family in text_string_to_metric_families(exposition):
        if family.name not in totals:
            continue
        for sample in family.samples:
            if sample.labels.get("model", model) != model:
                continue
            if sample.name == f"{family.name}_sum":
                totals[family.name] += sample.value
            elif sample.name == "carousel_engine_overhead_seconds_count":
                steps += sample.value
    return StepTime(steps, totals["carousel_step_seconds"], totals["carousel_engine_overhead_seconds"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ready(target: Target) -> bool:
    try:
        with urllib.request.urlopen(f"http://{target.host}:{target.port}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
