"""A server as its own process: started, waited for, asked for its metrics, ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import Target

START_SECONDS = 60.0
STOP_SECONDS = 15.0
LOG_BYTES = 4000
"""How much of a dead server's output its error shows."""

Side = Literal["carousel", "naive"]
SERVICE = ["service"]


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


@contextmanager
def running(side: Side, bundle: Path) -> Iterator[Target]:
    """The service or the naive peer on a free port, ready; ended when the block is left.

    Both run as they come; the service obeys whatever other `CAROUSEL_` settings are in the environment.

    Args:
        side: which of the two.
        bundle: `<repository>/<model>/<version>`; the service takes the repository.

    Raises:
        ServerFailed: it ended or was not ready in time; the message ends in what it printed.
    """
    if side == "naive":
        command, settings = ["benchmarks.naive", "--bundle", str(bundle)], {}
    else:
        command, settings = SERVICE, service_settings(bundle)
    with launched(command, settings, bundle) as target:
        yield target


def service_settings(bundle: Path) -> dict[str, str]:
    """What makes the service serve the repository of a bundle, and eat every prompt: all streams send the same one."""
    return {"CAROUSEL_REPOSITORY": str(bundle.parent.parent), "CAROUSEL_STATE_CACHE_BYTES": "0"}


@contextmanager
def launched(module: Sequence[str], settings: Mapping[str, str], bundle: Path) -> Iterator[Target]:
    """A server on a free port, ready; ended when the block is left.

    Args:
        module: what to run with `python -m`, with its arguments; `--port` is added for all but the service.
        settings: for its environment.
        bundle: `<repository>/<model>/<version>`, of what is asked for.

    Raises:
        ServerFailed: it ended or was not ready in time; the message ends in what it printed.
    """
    target = Target(_free_port(), bundle.parent.name)
    command = [sys.executable, "-m", *module]
    environment = {**os.environ, **settings, "CAROUSEL_HOST": target.host, "CAROUSEL_PORT": str(target.port)}
    if module != SERVICE:
        command += ["--port", str(target.port)]
    with TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _ready(target):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    output = log.read().decode(errors="replace")[-LOG_BYTES:]
                    raise ServerFailed(f"{' '.join(command)} was not ready within {START_SECONDS:g} s:\n{output}")
                time.sleep(0.05)
            yield target
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def step_time(target: Target) -> StepTime:
    """The service's own account of its steps so far."""
    with urllib.request.urlopen(f"http://{target.host}:{target.port}/metrics", timeout=10) as response:
        return read_step_time(response.read().decode(), target.model)


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
