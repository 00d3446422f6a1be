"""Lists of names, by position: of skills, of classes, of numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence

MAX_NAME_CHARACTERS = 500


def check_names(what: str, names: Sequence[object]) -> tuple[str, ...]:
    """Names, each once: 1 to 500 characters that have a UTF-8 form.

    Args:
        what: they are names of, one of them.
        names: to be checked.

    Raises:
        ValueError: there is none, or one is not allowed.
    """
    if not names:
        raise ValueError(f"the list of {what}s is empty; allowed is one name or more")
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        checked = _checked(what, name, place)
        if checked in places:
            raise ValueError(f"{what} {place} is called {checked!r}, as {what} {places[checked]} is; names are unique")
        places[checked] = place
    return tuple(places)


def names_of(what: str, content: str) -> list[object]:
    """The array that a file of names holds, unchecked.

    Raises:
        ValueError: the content is no JSON array.
    """
    try:
        names = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"is not JSON; allowed is an array of {what} names") from None
    if not isinstance(names, list):
        raise ValueError(f"holds a JSON {type(names).__name__}; allowed is an array of {what} names")
    return names


def to_json(names: Sequence[str]) -> str:
    """The file of names, one a line."""
    return json.dumps(names, ensure_ascii=False, indent=1) + "\n"


def _checked(what: str, name: object, place: int) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{what} {place} is {name!r}; allowed is a name, a string")
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise ValueError(
            f"the name of {what} {place} has {len(name):,} characters; allowed are 1 to {MAX_NAME_CHARACTERS}"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name of {what} {place} holds half of a surrogate pair; allowed is text") from None
    return name
