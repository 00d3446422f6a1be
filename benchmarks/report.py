"""What one benchmark measured, as JSON; tables.py prints it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from carousel.benchmarks.load import Generation
from carousel.benchmarks.record import LoadResult
from carousel.benchmarks.server import Side, StepTime
from carousel.models.cores import usable_cores
from carousel.models.manifest import Precision

VERSIONS = ("numpy", "fastapi", "uvicorn", "uvloop", "websockets")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures come from: figures of two machines do not compare, ratios may."""

    processor: str
    cores: int
    """That this process may use."""
    python: str
    versions: dict[str, str]
    load_average: float
    """Processes that wanted a core in the minute before the run: far above 0, others were measured along."""

    @classmethod
    def this(cls) -> Machine:
        """The machine that runs this process."""
        return cls(
            processor=_processor(),
            cores=usable_cores(),
            python=platform.python_version(),
            # Not by the distribution: that for GPUs has another name.
            versions={"onnxruntime": onnxruntime.__version__} | {name: version(name) for name in VERSIONS},
            load_average=os.getloadavg()[0],
        )

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.cores} cores ({self.processor}), load average {self.load_average:.1f} before the run; "
            f"Python {self.python}, {versions}"
        )


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """One closed loop against one server. `steps` is what the service says of its own steps in that time."""

    side: Side
    precision: Precision
    streams: int
    round: int
    result: LoadResult
    steps: StepTime | None
    resident_bytes: tuple[int, int, int]
    """What the server's processes held before the first stream, as the window began, and as it ended."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """One open loop against the service."""

    load: float
    """Of `Report.capacity_tokens_per_second`."""
    rate: float
    """Generations asked for, per second."""
    arrivals: int
    result: LoadResult


@dataclass(frozen=True, slots=True)
class BareRun:
    """The step graph alone: row-steps per second at so many rows."""

    precision: Precision
    rows: int
    round: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one command measured."""

    machine: Machine
    model: str
    generation: Generation
    bare: Sequence[BareRun]
    closed: Sequence[ClosedRun]
    open: Sequence[OpenRun]
    open_precision: Precision
    capacity_tokens_per_second: float | None
    """Of the closed loop that the open loops' loads are fractions of."""
    remarks: Sequence[str]
    """Which peers were left out and which runs were given up, and why."""

    def to_json(self) -> str:
        """All runs, not only their medians."""
        return json.dumps(asdict(self), indent=2)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
