"""The stranger's file is run in a process of its own, with a bound on its time and its memory.

    python -m carousel.export.adopt.child REQUEST.json DIRECTORY

runs it; what it finds is told line by line on standard output, and lies in the directory afterwards: `graph.onnx`,
`found.json` and `initial.npz`. A refusal is one sentence on standard error, and status 3.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import numpy as np
import onnx

from carousel.export.adopt.encoder import adopt_encoder
from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.network import adopt_step
from carousel.export.adopt.said import Said
from carousel.export.adopt.trial import Array

MAX_SECONDS = 300.0
MAX_MEMORY_BYTES = 8 << 30
REFUSED = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be adopted.

    Args:
        file: the ONNX file.
        said: what the caller says of it.
        encoder: whether it is an encoder, not a step.
        lengths: of an encoder, the input whose rows may be of unequal lengths.
    """

    file: Path
    said: Said
    encoder: bool = False
    lengths: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A graph, and what its ports are (adopt.build.Built, adopt.encoder.Encoder)."""

    graph: bytes
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    states: Sequence[tuple[str, str]]
    context: Sequence[str]
    initial: Mapping[str, Array]
    lengths: str | None
    timed: frozenset[str]
    steps: int
    rows: int
    largest: float
    """How far from the file, over so many steps of so many rows."""


def run(
    request: Request,
    tell: Callable[[str], None],
    *,
    max_seconds: float = MAX_SECONDS,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
) -> Result:
    """Adopt a file in a process of its own.

    Args:
        request: what is to be adopted.
        tell: is told of each stage what it found.
        max_seconds: that it may take.
        max_memory_bytes: that it may address.

    Raises:
        AdoptionRefused: it cannot be served, takes too long or too much, or ends its process.
    """
    with TemporaryDirectory() as name:
        directory = Path(name)
        asked = {**asdict(request), "file": str(request.file.absolute()), "memory": max_memory_bytes}
        (directory / "request.json").write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", "carousel.export.adopt.child", str(directory / "request.json"), name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            late = Timer(max_seconds, process.kill)
            late.start()
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                tell(line.rstrip("\n"))
            told = process.stderr.read().strip()
            process.wait()
            over = not late.is_alive() and process.returncode < 0
            late.cancel()
        if process.returncode == REFUSED:
            raise AdoptionRefused(told)
        if over:
            raise AdoptionRefused(f"the network was not through within {max_seconds:g} s; allow more (--seconds)")
        if process.returncode:
            last = told.splitlines()[-1] if told else f"status {process.returncode}"
            raise AdoptionRefused(
                f"its process ended before it was through ({last}); it may have needed more than "
                f"{max_memory_bytes / 2**30:.3g} GiB (--memory)"
            )
        return _read(directory)


def _read(directory: Path) -> Result:
    found = json.loads((directory / "found.json").read_text(encoding="utf-8"))
    with np.load(directory / "initial.npz") as initial:
        rows = {name: initial[name] for name in initial.files}
    return Result(
        graph=(directory / "graph.onnx").read_bytes(),
        states=[(before, after) for before, after in found.pop("states")],
        timed=frozenset(found.pop("timed")),
        initial=rows,
        **found,
    )


def main(arguments: Sequence[str]) -> int:
    """Adopt what the request says. Returns the exit status."""
    asked = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    directory = Path(arguments[1])
    memory: int = asked.pop("memory")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    said = Said(**{**asked["said"], "shapes": {name: tuple(row) for name, row in asked["said"]["shapes"].items()}})

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        content = Path(asked["file"]).read_bytes()
        graph, found, initial = _adopted(content, said, asked["encoder"], asked["lengths"], tell)
    except (AdoptionRefused, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    (directory / "graph.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    (directory / "found.json").write_text(json.dumps(found), encoding="utf-8")
    arrays: dict[str, Any] = dict(initial)
    np.savez(directory / "initial.npz", **arrays)
    return 0


def _adopted(
    content: bytes, said: Said, encoder: bool, lengths: str | None, tell: Callable[[str], None]
) -> tuple[onnx.ModelProto, dict[str, Any], Mapping[str, Array]]:
    if encoder:
        made = adopt_encoder(content, said, lengths, tell)
        found = {
            "inputs": made.inputs, "outputs": made.outputs, "states": [], "context": [], "lengths": made.lengths,
            "timed": sorted(made.timed), "steps": 1, "rows": 0, "largest": 0.0,
        }  # fmt: skip
        return made.model, found, {}
    adopted = adopt_step(content, said, tell)
    built, compared = adopted.built, adopted.compared
    stepped: dict[str, Any] = {
        "inputs": built.inputs, "outputs": built.outputs, "states": list(built.states),
        "context": list(built.context),
        "lengths": None, "timed": [], "steps": compared.steps, "rows": compared.rows, "largest": compared.largest,
    }  # fmt: skip
    return built.model, stepped, built.initial


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
