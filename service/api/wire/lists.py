"""Long lists of a message: validated in slices, and of their wrong entries the first told, and how many there are.

pydantic stops at the first wrong entry, or makes an error of each: of a list of a million, a million, which holds
everybody up. So a list is validated up to the first wrong entry, and from there on one by one: of a few the mistakes
are told, and of some more it is counted that there are any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

ENTRIES = 1000
"""Of a list that are validated in one piece; and that are looked at from the first wrong one on: 2 ms."""

MAX_WRONG = 8
"""Entries whose mistakes are told."""

MORE = "more_entries"
"""The type of the error that says how many more entries are wrong (`count`, at least)."""

Validate = Callable[[Any], Any]


def in_slices(value: Any, validate: Validate) -> Any:
    """Validate a list some entries at a time: a pydantic.WrapValidator for entries that validation does not change.

    What pydantic makes of entries is not kept: a hundred thousand new objects are as many for the search for garbage to
    look at, which stops every thread. The schema within has no limits of length, and `fail_fast`.
    """
    if not isinstance(value, list) or len(value) <= ENTRIES:
        return each_told(value, validate)
    for start in range(0, len(value), ENTRIES):
        try:
            validate(value[start : start + ENTRIES])
        except ValidationError as error:
            _tell(value, validate, error, start, ENTRIES)
    return value


def each_told(value: Any, validate: Validate) -> Any:
    """Validate a list in one piece: a pydantic.WrapValidator for entries that take a moment (`fail_fast`)."""
    try:
        return validate(value)
    except ValidationError as error:
        _tell(value, validate, error, 0, ENTRIES)


def few_told(value: Any, validate: Validate) -> Any:
    """The same for entries that may be large: when enough of them are told, no more are looked at."""
    try:
        return validate(value)
    except ValidationError as error:
        _tell(value, validate, error, 0, 0)


def _tell(value: Any, validate: Validate, error: ValidationError, start: int, count: int) -> NoReturn:
    """Raise the mistakes of the first wrong entries, and how many more of the next `count` are wrong.

    Args:
        value: the list, or what came instead of it.
        validate: a list of entries.
        error: what was found, in what begins at `start`.
        start: of the slice that it was found in.
        count: entries that are looked at from the first wrong one on; where 0, until enough are told.
    """
    place = error.errors(include_url=False, include_context=False)[0]["loc"]
    if not isinstance(value, list) or not place:  # it is about the list itself
        raise error
    first = start + int(place[0])
    errors: list[InitErrorDetails] = []
    wrong, at = 0, first
    while at < len(value) and (at < first + count if count else wrong < MAX_WRONG):
        try:
            validate([value[at]])
        except ValidationError as one:
            wrong += 1
            if wrong <= MAX_WRONG:
                errors += [_moved(each, at) for each in one.errors(include_url=False)]
        at += 1
    if wrong > MAX_WRONG or at < len(value):
        more = PydanticCustomError(MORE, "more are wrong", {"count": max(0, wrong - MAX_WRONG)})
        errors.append(InitErrorDetails(type=more, input=None))
    raise ValidationError.from_exception_data(error.title, errors) from None


def _moved(error: Any, place: int) -> InitErrorDetails:
    """An error of a list of one entry, in the whole list."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == MORE:
        kind = PydanticCustomError(MORE, error["msg"], context)
    return InitErrorDetails(type=kind, loc=(place, *error["loc"][1:]), input=error["input"], ctx=context)
