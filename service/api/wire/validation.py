"""What is wrong with a message, all of it, in the names that its client used and with the limits that it passed.

pydantic reports an error for each branch of a union, under names of its own, and says of some limits only that there
is one. Here the branches of one place are one mistake, and each mistake says what is allowed and what came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carousel.service.api.wire.lists import MORE
from carousel.service.errors import RequestError

MAX_MISTAKES = 8
"""That are told of one message; of the rest, how many there are."""

MAX_NAME_CHARACTERS = 100
"""A client's own field or tag may be as long as a body."""

MAX_MISTAKE_CHARACTERS = 300

MAX_NUMBER_CHARACTERS = 30

UNKNOWN = "is no field that is known here; leave it out (/docs has all)"

Place = tuple[str | int, ...]

Error = Mapping[str, Any]
"""One of `pydantic.ValidationError.errors()`."""

_TYPES = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "none": "null",
}
"""What pydantic's errors of type are about, by their first word."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with a message.

    Args:
        field: where, in the client's names, joined by dots; empty for the message itself.
        text: what is allowed, and what came.
    """

    field: str
    text: str
    about: str = ""
    """Of a mistake of the whole message, the field that it is about."""
    more: int | None = None
    """Of the mistake that there are more than are told: how many at least."""

    def __str__(self) -> str:
        told = f"{self.field}: {self.text}" if self.field else self.text
        return told if len(told) <= MAX_MISTAKE_CHARACTERS else told[:MAX_MISTAKE_CHARACTERS] + "..."


def mistakes(errors: Sequence[Error], value: Any) -> list[Mistake]:
    """Each mistake once, in the order of pydantic's errors.

    Args:
        errors: pydantic's, with their inputs.
        value: the whole message.
    """
    places = [_place(error, value) for error in errors]
    wanted: dict[Place, list[str]] = {}
    """By place, the types of a union's branches, of which none came."""
    found: dict[tuple[Place, str], Mistake] = {}
    for place, error in zip(places, errors, strict=True):
        if error["type"] == MORE:
            found[place, MORE] = Mistake(_field(place), "", more=error["ctx"]["count"])
            continue
        if (kind := _wanted_type(error)) is None:
            found.setdefault((place, error["type"]), Mistake(_field(place), _text(error), _about(error)))
        elif not any(_is_of_a_branch(other, one, place) for other, one in zip(places, errors, strict=True)):
            kinds = wanted.setdefault(place, [])
            if kind not in kinds:
                kinds.append(kind)
            read = error["type"].endswith("_parsing")  # a form's fields are texts, all of them
            seen = "what came cannot be read as that" if read else f"is {_seen(error['input'])}"
            text = f"must be {' or '.join(kinds)}, and {seen}"
            found[place, "type"] = Mistake(_field(place), text)
    return list(found.values())


def invalid(errors: Sequence[Error], value: Any) -> RequestError:
    """The refusal of a message that pydantic found these errors in."""
    found = mistakes(errors, value)
    return RequestError("invalid_request", told(found), param=found[0].field or found[0].about or None)


def told(found: Sequence[Mistake]) -> str:
    """One sentence for all mistakes; of more than MAX_MISTAKES, the first, and how many more there are."""
    known = [mistake for mistake in found if mistake.more is None]
    text = "; ".join(map(str, known[:MAX_MISTAKES]))
    more = max(0, len(known) - MAX_MISTAKES) + sum(mistake.more or 0 for mistake in found)
    if len(known) == len(found):
        return f"{text} (and {more:,} more)" if more else text
    return f"{text} (and at least {more:,} more)" if more else f"{text} (and perhaps more)"


def parsed(text: str | bytes) -> Any:
    """A message that pydantic has parsed and not shown; None where this parser does not take it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def printable(text: str) -> str:
    """A client's text as it may be told: it may hold line ends, or half of a surrogate pair, which is no UTF-8."""
    if len(text) > MAX_NAME_CHARACTERS:
        text = text[:MAX_NAME_CHARACTERS] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _place(error: Error, value: Any) -> Place:
    """Where an error is, without what pydantic calls a union's branches: those lead nowhere in the message."""
    return _lead(error["loc"], value, missing=error["type"] == "missing")[1]


def _lead(words: Sequence[str | int], value: Any, *, missing: bool) -> tuple[tuple[bool, int], Place]:
    """Where words lead in a value, and how well: to the last of them, and by how many.

    A client may call a field what pydantic calls a branch: of two ways the one that leads further is meant.
    """
    if not words:
        return (True, 0), ()
    word, *rest = words
    (last, count), place = _lead(rest, value, missing=missing)
    best = ((last and bool(rest), count), place)
    inside = isinstance(value, dict) and (word in value or (missing and not rest))
    if inside or (isinstance(value, list) and isinstance(word, int) and word < len(value)):
        below = value[word] if isinstance(value, list) and isinstance(word, int) else value.get(word)
        (last, count), place = _lead(rest, below, missing=missing)
        best = max(best, ((last, count + 1), (word, *place)), key=lambda way: way[0])
    return best


def _about(error: Error) -> str:
    """The field that a validator of the whole message names (messages.NotAllowed)."""
    return str(getattr(error.get("ctx", {}).get("error"), "field", ""))


def _field(place: Sequence[str | int]) -> str:
    return ".".join(printable(str(word)) for word in place)


def _wanted_type(error: Error) -> str | None:
    """The type that an error misses; None where it is about something else."""
    name, _, rest = error["type"].partition("_")
    if error["type"] == "none_required" or rest in ("type", "from_float", "parsing", "attributes_type"):
        return _TYPES.get(name)
    return None


def _is_of_a_branch(at: Place, error: Error, place: Place) -> bool:
    """Whether an error is of a branch whose type did come at a place: it is about more than that, or lies below."""
    return at[: len(place)] == place and (at != place or _wanted_type(error) is None)


def _text(error: Error) -> str:
    if error["loc"] and error["loc"][-1] == "[key]":
        return UNKNOWN
    context = error.get("ctx", {})
    if (template := _TEXTS.get(error["type"])) is not None:
        return template(context, error["input"])
    return str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")


def _bound(words: str, name: str) -> Callable[[Mapping[str, Any], Any], str]:
    def text(context: Mapping[str, Any], value: Any) -> str:
        limit = context[name]
        shown = f"{limit:,}" if isinstance(limit, int) else f"{limit:,.12g}"
        return f"must be {words} {shown}, and is {_seen_number(value)}"

    return text


def _length(words: str, name: str) -> Callable[[Mapping[str, Any], Any], str]:
    def text(context: Mapping[str, Any], value: Any) -> str:
        one, many = ("character", "characters") if isinstance(value, str) else ("entry", "entries")
        limit, length = context[name], len(value) if isinstance(value, str | list | dict) else None
        seen = "" if length is None else f"has {length:,} {one if length == 1 else many}; "
        return f"{seen}allowed are {words} {limit:,}"

    return text


_TEXTS: dict[str, Callable[[Mapping[str, Any], Any], str]] = {
    "missing": lambda _context, _value: "is missing",
    "extra_forbidden": lambda _context, _value: UNKNOWN,
    "greater_than": _bound("above", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("below", "lt"),
    "less_than_equal": _bound("at most", "le"),
    "finite_number": lambda _context, value: f"must be a finite number, and is {_seen_number(value)}",
    "too_short": _length("at least", "min_length"),
    "too_long": _length("at most", "max_length"),
    "string_too_short": _length("at least", "min_length"),
    "string_too_long": _length("at most", "max_length"),
    "string_unicode": lambda _context, _value: "holds half of a surrogate pair, which is no character",
    "literal_error": lambda context, value: f"must be {context['expected']}, and is {_seen(value)}",
    "union_tag_invalid": lambda context, _value: f"{_unquoted(context)} must be one of {context['expected_tags']}",
    "union_tag_not_found": lambda context, _value: f"{_unquoted(context)} is missing",
}


def _unquoted(context: Mapping[str, Any]) -> str:
    """The name of a discriminator, which pydantic puts in quotes."""
    return str(context["discriminator"]).strip("'")


def _seen_number(value: Any) -> str:
    """The same of a number, which in a form is a text that spells one."""
    if isinstance(value, str) and len(value) <= MAX_NUMBER_CHARACTERS:
        try:
            float(value)
        except ValueError:
            return _seen(value)
        return value.strip()
    return _seen(value)


def _seen(value: Any) -> str:
    """What came: of a text never more than that it is one."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of many digits"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else json.dumps(value)
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"
