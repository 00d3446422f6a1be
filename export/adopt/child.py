"""The stranger's file is run in a process of its own, with a bound on its time and its memory.

    python -m carousel.export.adopt.child REQUEST.json DIRECTORY

runs it; what it finds is told line by line on standard output, and lies in the directory afterwards: `found.json` and,
of the step, of many of them in a call and of the encoder, a graph and the rows that states begin with. A refusal is
one sentence on standard error, and status 3.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import numpy as np

from carousel.export.adopt.adopted import Graph, Result, adopted
from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.said import Said

MAX_SECONDS = 300.0
MAX_MEMORY_BYTES = 8 << 30
REFUSED = 3
PARTS = ("step", "encoder", "many")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be adopted.

    Args:
        file: the ONNX file.
        said: what the caller says of it.
        encoder: another file, that of an encoder beside this step; None for none.
        encoder_only: whether the file is an encoder, not a step.
        lengths: of an encoder, the input whose rows may be of unequal lengths.
    """

    file: Path
    said: Said
    encoder: Path | None = None
    encoder_only: bool = False
    lengths: str | None = None


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
        asked = {
            **asdict(request),
            "file": str(request.file.absolute()),
            "encoder": None if request.encoder is None else str(request.encoder.absolute()),
            "memory": max_memory_bytes,
        }
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
    graphs: dict[str, Graph | None] = {}
    for part in PARTS:
        told = found.pop(part)
        if told is not None:
            with np.load(directory / f"{part}.npz") as initial:
                rows = {name: initial[name] for name in initial.files}
            told |= {"states": [(before, after) for before, after in told["states"]], "initial": rows}
            told = Graph((directory / f"{part}.onnx").read_bytes(), **told)
        graphs[part] = told
    return Result(step=graphs["step"], encoder=graphs["encoder"], many=graphs["many"], **found)


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
        beside = None if asked["encoder"] is None else Path(asked["encoder"]).read_bytes()
        result = adopted(content, beside, said, asked["lengths"], tell, encoder_only=asked["encoder_only"])
    except (AdoptionRefused, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    found = {each.name: getattr(result, each.name) for each in fields(result)}
    for part in PARTS:
        graph = found[part]
        if graph is not None:
            (directory / f"{part}.onnx").write_bytes(graph.content)
            arrays: dict[str, Any] = dict(graph.initial)
            np.savez(directory / f"{part}.npz", **arrays)
            kept = {each.name: getattr(graph, each.name) for each in fields(graph)}
            found[part] = {name: value for name, value in kept.items() if name not in ("content", "initial")}
    (directory / "found.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
