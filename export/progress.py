"""How far an export is: int8 is measured for a minute or more, and silence looks like a fault."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

SECONDS_BETWEEN_LINES_OF_A_FILE = 10.0


class Progress:
    """Somebody who is told how far it is; this one says nothing."""

    def stage(self, what: str, total: int = 0, unit: str = "") -> None:
        """A stage begins, of `total` units where they can be counted."""

    def advance(self, count: int) -> None:
        """So many units of the stage are done."""


SILENT = Progress()


class ConsoleProgress(Progress):
    """Tells standard error: a line for each stage, and a bar where its units are counted."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def stage(self, what: str, total: int = 0, unit: str = "") -> None:
        """Begin a line, or a bar."""
        self._close()
        tqdm.write(f"export: {what}", file=sys.stderr)
        if total:
            interval = 0.2 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES_OF_A_FILE
            self._bar = tqdm(total=total, unit=f" {unit}", mininterval=interval, dynamic_ncols=True)

    def advance(self, count: int) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> ConsoleProgress:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
