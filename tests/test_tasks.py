"""A task's name stands in the task's own files and nowhere else; and files are small enough to be read in one go."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "training", "export", "service")
TASKS = frozenset(path.name for path in (ROOT / "service/tasks").iterdir() if (path / "task.py").exists())

OWN = re.compile(
    r"(service|training)/tasks/\w+/|export/(adopt/|measures/)|models/nn/(captioning|language|tracing)\.py"
    r"|models/(format1|nn/header)\.py"  # translators of what knew three tasks by name
    r"|models/(codec/\w+|head)\.py"
)
"""A task's own files, and those of codecs and heads."""

OF_ITS_KIND = re.compile(r"(Codec|Head|CodecSpec|HeadSpec)$")
"""Classes that nobody asks `isinstance` of, but whoever owns them."""

ALLOWED = {"models": 2, "training": 1, "export": 0, "service": 1}
"""Lines that still name one. Fewer are welcome, none is the aim: lower the number with each that goes."""

MAX_LINES = 350


def _product_files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def _named(source: str) -> set[int]:
    """Lines that compare a task's name, key something by it, or ask what kind of codec or head a thing is."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(name)) if name in TASKS:
                lines.add(node.lineno)
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
                names = (one.id for one in ast.walk(kinds) if isinstance(one, ast.Name))
                if any(map(OF_ITS_KIND.search, names)):
                    lines.add(node.lineno)
    return lines


def _telemetry(line: str) -> bool:
    """FastAPI's switch for spans is called as a task is."""
    return line.strip().startswith("telemetry=")


def _lines(room: str) -> list[str]:
    found = []
    for path in sorted((ROOT / room).rglob("*.py")):
        name, source = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        if OWN.match(name):
            continue
        text = source.splitlines()
        found += [f"{name}:{line}" for line in sorted(_named(source)) if not _telemetry(text[line - 1])]
    return found


def test_names_of_tasks_are_found():
    assert {"language", "captioning", "tracing"} <= TASKS
    source = (
        'if task == "tracing":\n    pass\n\nx = {"language": 1}\nisinstance(codec, TextCodec)\nisinstance(codec, str)\n'
    )
    assert _named(source) == {1, 4, 5}


@pytest.mark.parametrize("room", ROOMS)
def test_tasks_are_named_in_their_own_files_alone(room):
    found = _lines(room)
    assert len(found) <= ALLOWED[room], found


def test_files_are_read_in_one_go():
    long = {
        str(path.relative_to(ROOT))
        for path in _product_files()
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }
    assert not long, long
