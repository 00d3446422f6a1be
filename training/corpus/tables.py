"""CSV files with a header: the rows, each with where it stands."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from carousel.training.errors import CorpusError

csv.field_size_limit(1 << 24)  # pyKT keeps a whole history in one cell

SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars"}
"""What other files of rows have between their cells."""

MAX_SHOWN = 40


def table(
    file: str, text: str, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each with where it stands.

    Args:
        file: its name.
        text: what it holds.
        columns: that must be there.
        optional: that are read where they are there.

    Raises:
        CorpusError: a column is missing or stands twice, or a row has too few or too many cells.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        header = list(reader.fieldnames or [])
        for column in columns:
            if column not in header:
                raise CorpusError(_lacking(file, column, header))
        for column in (*columns, *optional):
            if header.count(column) > 1:
                raise CorpusError(
                    f"{file}: has {header.count(column)} columns {column!r}; allowed is one: rename the others"
                )
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                raise CorpusError(f"{where}: has not as many cells as the header, {len(header)}")
            yield where, row
    except csv.Error as error:
        raise CorpusError(f"{file}, line {reader.reader.line_num}: is not CSV ({error})") from None


def _lacking(file: str, column: str, header: Sequence[str]) -> str:
    """What to say of a column that is not there: with quotes, as blanks around a name are seen by nobody else."""
    shown = ", ".join(map(repr, header[:MAX_SHOWN])) + (", ..." if len(header) > MAX_SHOWN else "")
    told = f"{file}: has no column {column!r}; its columns are {shown or 'none'}"
    other = next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
    return told if other is None else f"{told}; cells are to be separated by commas, not by {SEPARATORS[other]}"
