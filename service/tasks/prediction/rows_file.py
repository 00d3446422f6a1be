"""Files of rows for `carousel run`: CSV of numbers, `.npy`, or numbers as bytes. Read and written piece by piece.

Axes: N rows of a file, m of a piece.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from carousel.models.errors import CarouselError
from carousel.models.output_file import open_output
from carousel.service.engine.parameters import Array
from carousel.service.engine.states.pool import StateSpec

PIECE = 4096
"""Rows that are held at once."""

Pieces = Iterator[Mapping[str, Array]]
"""Rows of each port, one piece after another. [m, ...] each"""

Line = tuple[int, Sequence[str]]
"""Its number in the file, and its cells."""

Write = Callable[[Mapping[str, Array]], None]


class RowsError(CarouselError):
    """The file is none of rows of the model's ports."""


def columns_of(ports: Mapping[str, StateSpec]) -> list[str]:
    """What columns are called: a port's name, or that with a place for each number of its row, `x.0`, `x.1`, ..."""
    return [
        name if not spec.shape else f"{name}.{place}"
        for name, spec in ports.items()
        for place in range(math.prod(spec.shape))
    ]


def read_rows(source: Path, ports: Mapping[str, StateSpec]) -> tuple[int | None, Pieces]:
    """A file's rows, and how many there are; None where only reading tells.

    Args:
        source: `.csv` (and whatever has another ending than the others'): numbers, below a line of names or not;
            `.npy`: [N, ...] of the only port; `.raw`, `.bin`: the only port's rows, little-endian.
        ports: of the model.

    Raises:
        RowsError: it is otherwise, told with its line and column. OSError
    """
    if source.suffix not in (".npy", ".raw", ".bin"):
        return None, _read_csv(source, ports)
    if len(ports) != 1:
        raise RowsError(
            f"{source}: the model has {len(ports)} inputs ({', '.join(ports)}); give a CSV of their columns"
        )
    ((name, spec),) = ports.items()
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    if source.suffix == ".npy":
        try:
            rows = np.load(source, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise RowsError(f"{source}: is no .npy file of numbers ({error})") from None
    else:
        size, width = source.stat().st_size, math.prod(spec.shape) * dtype.itemsize
        if size % width:
            raise RowsError(f"{source}: has {size:,} bytes; a row of {name} has {width:,}")
        rows = np.memmap(source, dtype, "r", shape=(size // width, *spec.shape)) if size else np.zeros((0, *spec.shape))
    if rows.ndim != 1 + len(spec.shape) or rows.shape[1:] != spec.shape:
        raise RowsError(f"{source}: is {list(rows.shape)}; rows of {name} are {list(spec.shape)}, one after another")
    return len(rows), ({name: np.array(rows[at : at + PIECE])} for at in range(0, len(rows), PIECE))


def _read_csv(source: Path, ports: Mapping[str, StateSpec]) -> Pieces:
    wanted = columns_of(ports)
    with source.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        places: Sequence[int] = range(len(wanted))
        numbered = ((lines.line_num, line) for line in lines if line)
        try:
            held = list(islice(numbered, 1))
            if held and not all(map(_is_number, held[0][1])):
                places, held = _places(source, held[0][1], wanted), []
            while held := [*held, *islice(numbered, PIECE - len(held))]:
                yield _ports(source, held, places, wanted, ports)
                held = []
        except (csv.Error, UnicodeDecodeError) as error:
            raise RowsError(f"{source}: line {lines.line_num}: {error}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _places(source: Path, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where the wanted columns are; other ones are passed over. Of one port with other names: all, in their order."""
    names = [name.strip() for name in names]
    missing = [name for name in wanted if name not in names]
    if not missing:
        twice = [name for name in wanted if names.count(name) > 1]
        if twice:
            raise RowsError(f"{source}: line 1: there are two columns {twice[0]!r}")
        return [names.index(name) for name in wanted]
    ports = {name.rpartition(".")[0] or name for name in wanted}
    if len(ports) == 1 and len(names) == len(wanted) and len(missing) == len(wanted):
        return list(range(len(wanted)))
    raise RowsError(f"{source}: line 1: there is no column {missing[0]!r}; columns are {', '.join(wanted)[:300]}")


def _ports(
    source: Path, lines: Sequence[Line], places: Sequence[int], wanted: Sequence[str], ports: Mapping[str, StateSpec]
) -> Mapping[str, Array]:
    """Rows of each port."""
    try:
        columns = iter(np.array([[line[place] for place in places] for _, line in lines], np.float64).T)
    except (IndexError, ValueError):
        raise _mistake(source, lines, places, wanted) from None
    given = {}
    for name, spec in ports.items():
        width, dtype = math.prod(spec.shape), np.dtype(spec.dtype)
        numbers = np.stack(list(islice(columns, width)), axis=1)
        with np.errstate(all="ignore"):
            rows = numbers.astype(dtype)
        wrong = ~np.isfinite(rows) if dtype.kind == "f" else rows != numbers
        if wrong.any():
            row, place = (int(at[0]) for at in np.nonzero(wrong))
            column = [each for each in wanted if each == name or each.startswith(f"{name}.")][place]
            told = f"{numbers[row, place]:g} is no number that {spec.dtype} has"
            raise RowsError(f"{source}: line {lines[row][0]}, column {column}: {told}")
        given[name] = rows.reshape(len(lines), *spec.shape)
    return given


def _mistake(source: Path, lines: Sequence[Line], places: Sequence[int], wanted: Sequence[str]) -> RowsError:
    for at, line in lines:
        for place, name in zip(places, wanted, strict=True):
            if place >= len(line):
                return RowsError(f"{source}: line {at} has {len(line)} columns; {name} is column {place + 1}")
            if not _is_number(line[place]):
                return RowsError(f"{source}: line {at}, column {name}: {line[place][:40]!r} is no number")
    raise AssertionError("a line was refused that has nothing wrong")


@contextmanager
def write_rows(target: Path, ports: Mapping[str, StateSpec], count: int | None) -> Iterator[Write]:
    """What writes pieces of rows to a file, which appears when it is whole.

    Args:
        target: `.npy` of one port, or CSV.
        ports: to be written.
        count: of rows; needed for `.npy`, whose head says it.

    Raises:
        RowsError: it cannot hold them. OutputError, OSError
    """
    if target.suffix == ".npy":
        if len(ports) != 1:
            raise RowsError(f"{target}: a .npy file has one output; choose with --outputs, of {', '.join(ports)}")
        ((name, spec),) = ports.items()
        with open_output(target) as file:
            yield _npy_writer(file, name, spec, count)
        return
    with open_output(target) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns_of(ports))

        def write(rows: Mapping[str, Array]) -> None:
            table = [rows[name].reshape(len(rows[name]), -1) for name in ports]
            for line in zip(*(part.tolist() for part in table), strict=True):
                # Nine digits tell every float32 from every other, seventeen every float64.
                writer.writerow(
                    f"{number:.{9 if part.dtype.itemsize < 8 else 17}g}" if isinstance(number, float) else int(number)
                    for part, numbers in zip(table, line, strict=True)
                    for number in numbers
                )

        yield write
        text.detach()  # which flushes it; the file is not ours to close


def _npy_writer(file: BinaryIO, name: str, spec: StateSpec, count: int | None) -> Write:
    assert count is not None
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *spec.shape)}
    npy.write_array_header_1_0(file, header)

    def write(rows: Mapping[str, Array]) -> None:
        file.write(np.ascontiguousarray(rows[name], dtype).tobytes())

    return write
