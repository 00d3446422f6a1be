"""What orders a learner's answers: numbers or times, compared exactly.

Ids of 19 digits and stamps of nanoseconds are common, and a float has 16 digits: read through one, neighbours become
equal, and four answers one. So whole numbers and fractions are decimal numbers of any length, and of a time all digits
behind the second count.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, InvalidOperation
from typing import Literal

from carousel.models.codec.spelling import may_be_rounded
from carousel.training.errors import CorpusError

Kind = Literal["a number", "a time without a zone", "a time with a zone"]

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FRACTION = re.compile(r"[.,]([0-9]+)")
_SECONDS = re.compile(r".*([0-9]{2}:[0-9]{2}:[0-9]{2}|[T ][0-9]{6})")
"""What a fraction stands behind: ISO 8601 knows fractions of minutes, too, which are not read."""
_ZONE = re.compile(r" (UTC|[+-][0-9]{2}:?[0-9]{2})$")
"""As BigQuery and Ruby write it."""
_START = datetime(1970, 1, 1, tzinfo=UTC)


class OrderColumn:
    """A column whose cells are all numbers, all times with a zone, or all times without: others do not compare.

    Args:
        name: of the column, for the errors' sentences.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kind: Kind | None = None
        self._first = ""
        self.rounded = ""
        """A number that may have lost digits before it came here; empty where there is none."""

    def read(self, cell: str, where: str) -> Decimal:
        """The number, or the seconds since 1970.

        Args:
            cell: a number, or a date with or without a time as ISO 8601 writes them.
            where: the cell stands, for the error's sentence.

        Raises:
            CorpusError: it is neither, or of another kind than the cells before.
        """
        text = cell.strip()
        found = _number(text) or _time(text)
        if found is None:
            raise CorpusError(
                f"{where}: {self._name} is {cell!r}; allowed is a number, or a date and time as in "
                "2017-03-01 09:30:00, by which answers are ordered"
            )
        value, kind = found
        if kind == "a number" and not self.rounded and may_be_rounded(text):
            self.rounded = text
        if self._kind is None:
            self._kind, self._first = kind, where
        elif kind != self._kind:
            raise CorpusError(
                f"{where}: {self._name} is {cell!r}, {kind}, but in {self._first} it is {self._kind}; "
                "allowed is one kind, or answers cannot be ordered"
            )
        return value


def _number(text: str) -> tuple[Decimal, Kind] | None:
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text), "a number"
    except InvalidOperation:  # an exponent beyond all measure
        return None


def _time(text: str) -> tuple[Decimal, Kind] | None:
    """What datetime reads, and the digits that it drops: those behind the sixth of a second's fraction."""
    if not text.isascii():
        return None
    text = _ZONE.sub(lambda zone: "Z" if zone[1] == "UTC" else zone[1], text)
    fraction = _FRACTION.search(text)
    digits = ""
    if fraction is not None:
        if not _SECONDS.fullmatch(text, 0, fraction.start()):
            return None
        digits = fraction[1]
        text = text[: fraction.start()] + text[fraction.end() :]
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    kind: Kind = "a time without a zone" if time.tzinfo is None else "a time with a zone"
    since = (time.replace(tzinfo=UTC) if time.tzinfo is None else time) - _START
    whole = Decimal(since // timedelta(seconds=1))
    return Context(prec=40 + len(digits)).add(whole, Decimal(f"0.{digits or 0}")), kind
