"""Large JSON in slices: no piece of work holds the interpreter's lock for long, on whichever thread it is done.

A thread that parses JSON, or validates what came of it, gives the lock to nobody until it is through: megabytes in one
piece, and every stream has a gap. Between slices others have their turn.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import islice
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]
from typing import Any

SLICE = 1 << 14
"""Characters that are parsed in one piece: a tenth of a millisecond, for attempts of a learner."""

LARGE = 1 << 15
"""Bytes of a message from which on it is taken in slices, on a thread: what is shorter is through in a millisecond."""

LARGE_ANSWER = 2000
"""Numbers and texts of an answer from which on it is written so."""

PIECES = 4096
"""Of JSON that are joined at a time."""

MAX_DEPTH = 900
"""Lists and objects within one another; Python's own parser gives up a little above."""

MAX_LISTS = 20_000
"""Lists, and objects that hold others, in one message: five times as many as the largest that is allowed holds.

The search for garbage looks at each of them, in one piece that stops every thread: 70 ms for a million.
"""

FEW_LISTS = 64
"""In a slice, which are not worth counting."""

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class TooManyLists(ValueError):
    """A message holds more lists than any that is allowed."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_LISTS:,} lists, or objects that hold others; no message needs as many")


@dataclass(slots=True)
class _Lists:
    """How many lists, and objects that hold others, have been parsed."""

    count: int = 0

    def add(self, value: Any, text: str, start: int, end: int) -> None:
        """Count those of what was parsed from here to there."""
        plain = len(value) if type(value) is list else 1  # flat objects, such as attempts, are not looked at
        most = text.count("[", start, end) + max(0, text.count("{", start, end) - plain)
        below = [value] if most > FEW_LISTS else []
        self.count += 0 if below else most
        while below and self.count <= MAX_LISTS:
            one = below.pop()
            held = [part for part in (one if type(one) is list else one.values()) if type(part) in (list, dict)]
            self.count += type(one) is list or bool(held)
            below += held
        if self.count > MAX_LISTS:
            raise TooManyLists


def loads(content: bytes | str) -> Any:
    """What `json.loads` makes of it, in slices.

    Raises:
        TooManyLists
        ValueError, RecursionError: as `json.loads`.
    """
    encoding = json.detect_encoding(content) if isinstance(content, bytes) else ""
    text = content.decode(encoding, "surrogatepass") if isinstance(content, bytes) else content
    value, end = _value(text, _skip(text, 0), 0, _Lists())
    end = _skip(text, end)
    if end != len(text):
        raise JSONDecodeError("Extra data", text, end)
    return value


def _skip(text: str, start: int) -> int:
    """Where the blanks end that begin here; in slices, too: there may be megabytes of them."""
    while True:
        match = _SPACE.match(text, start, start + SLICE)
        assert match is not None
        if match.end() < start + SLICE:
            return match.end()
        start = match.end()


def _value(text: str, start: int, depth: int, lists: _Lists) -> tuple[Any, int]:
    """The value that begins here, and where it ends."""
    first = text[start : start + 1]
    if first == '"':
        return _string(text, start + 1)
    if first not in ("{", "["):
        return _whole(text, start)
    window = text[start : start + SLICE]
    try:
        value, end = _SCAN(window, 0)
    except (StopIteration, ValueError, RecursionError):  # it is longer than that, or wrong: who looks closer will tell
        if depth >= MAX_DEPTH:
            raise RecursionError from None
        return (_object if first == "{" else _array)(text, start + 1, depth + 1, lists)
    lists.add(value, text, start, start + end)
    return value, start + end


def _whole(text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = _SCAN(text, start)
    except StopIteration as stop:
        raise JSONDecodeError("Expecting value", text, stop.value) from None
    return value, end


def _object(text: str, start: int, depth: int, lists: _Lists) -> tuple[dict[str, Any], int]:
    """The object whose brace has come."""
    found: dict[str, Any] = {}
    at, more = _skip(text, start), True
    if text[at : at + 1] == "}":
        return found, at + 1
    while more:
        if text[at : at + 1] != '"':
            raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        key, at = _string(text, at + 1)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise JSONDecodeError("Expecting ':' delimiter", text, at)
        found[key], at = _value(text, _skip(text, at + 1), depth, lists)
        at, more = _behind(text, at, "}")
    return found, at


def _array(text: str, start: int, depth: int, lists: _Lists) -> tuple[list[Any], int]:
    """The array whose bracket has come."""
    found: list[Any] = []
    at, more = _skip(text, start), True
    if text[at : at + 1] == "]":
        return found, at + 1
    while more:
        entries, at = _entries(text, at, lists)
        if not entries:
            entry, at = _value(text, at, depth, lists)
            entries = [entry]
        found += entries
        at, more = _behind(text, at, "]")
    return found, at


def _behind(text: str, start: int, close: str) -> tuple[int, bool]:
    """Behind an entry that ends here: where the next one begins, or what holds them ends; and whether there is one."""
    at = _skip(text, start)
    mark = text[at : at + 1]
    if mark == close:
        return at + 1, False
    if mark != ",":
        raise JSONDecodeError("Expecting ',' delimiter", text, at)
    return _skip(text, at + 1), True


def _entries(text: str, start: int, lists: _Lists) -> tuple[list[Any], int]:
    """As many whole entries of an array as a slice holds, and where they end; none where that is not easily told.

    If what lies before a comma is JSON between brackets, it is whole entries and the comma is the array's own: what a
    text of JSON means does not depend on what follows. Where the array itself ends before, all the better.
    """
    end = start + SLICE
    for close in ("},", "],", '",', ","):
        cut = text.rfind(close, start, end) + len(close) - 1
        if cut > start:
            try:
                entries, length = _SCAN(f"[{text[start:cut]}]", 0)
            except (StopIteration, ValueError, RecursionError):
                continue
            lists.add(entries, text, start, cut)
            return entries, start + length - 2
    return [], start


def _string(text: str, start: int) -> tuple[str, int]:
    """The string whose quote has come."""
    pieces: list[str] = []
    while True:
        end = start + SLICE
        match = _PLAIN.match(text, start, end)
        assert match is not None
        if match.end() < end:  # a quote, an escape, or what may not be in a string
            break
        pieces.append(match[0])
        start = end
    if text[match.end() : match.end() + 1] == '"':
        return "".join([*pieces, match[0]]), match.end() + 1
    rest, end = _escaped(text, start)
    return "".join([*pieces, rest]), end


def _escaped(text: str, start: int) -> tuple[str, int]:
    """The rest of a string, in which there are escapes."""
    pieces: list[str] = []
    while (cut := _between_escapes(text, start)) > start and '"' not in _UNESCAPED.sub("", text[start:cut]):
        pieces.append(scanstring(f'{text[start:cut]}"', 0, True)[0])
        start = cut
    rest, end = scanstring(text, start, True)
    return "".join([*pieces, rest]), end


_UNESCAPED = re.compile(r"\\.", re.DOTALL)


def _between_escapes(text: str, start: int) -> int:
    """Where a slice of a string may end: not within an escape, nor between the two of a surrogate pair.

    `start` where the slice would be the last, or there is no such place.
    """
    end = start + SLICE
    if end >= len(text):
        return start
    for at in range(end, max(start, end - 64), -1):
        if text[at] != "\\" and "\\" not in text[max(0, at - 12) : at]:
            return at
        if text[at] == "\\" and text[at - 1] != "\\" and not _HIGH.fullmatch(text, at - 6, at):
            return at
    return start


_HIGH = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")


def dumps(value: Any) -> str:
    """What `frames.dumps` makes of it, in slices; its pieces, too, are joined some at a time."""
    pieces = _ENCODER.iterencode(value)
    return "".join(iter(lambda: "".join(islice(pieces, PIECES)), ""))


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Its `iterencode` goes from one value to the next in Python, where `encode` is one call."""
