"""Names and ids as files spell them: which spellings are one name, and which only look like one.

A data frame or a spreadsheet writes a column of whole numbers in which a cell was empty as `33.0`, and a Mac composes
`é` of two characters. Either is the name that it was. Whatever else looks alike (`033`, `area`, `Area `) may be meant:
it is kept apart, and said.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal

_POINT_ZERO = re.compile(r"([+-]?[0-9]+)\.0*")
_FRACTION = re.compile(r"[+-]?[0-9]*\.0*[1-9][0-9]*")
_NUMBER = re.compile(r"[+-]?([0-9]+(e[+-][0-9]{1,3})?|([0-9]+\.[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?)")
"""Java writes 1.5E18, others 1.5e+18 and 1e+18; 1e18 alone may be a name."""
_DECIMAL_COMMA = re.compile(r"([+-]?[0-9]+),([0-9]+)")
EXACT_BELOW = 1 << 53
"""A float64 tells all whole numbers below it apart."""

_BETWEEN = re.compile(r"[\s_\-\u2010-\u2015]+")


def one_id(text: str) -> str:
    """What tells a learner or an answer apart: no blanks around it, composed (NFC), a whole number without `.0`."""
    plain = unicodedata.normalize("NFC", text.strip())
    whole = _POINT_ZERO.fullmatch(plain)
    return whole[1] if whole else plain


def one_name(names: Iterable[str]) -> dict[str, str]:
    """What each name of a whole list is read as.

    As `one_id`; but where some numbers have a fraction, `1.0` beside `1.1` is a name of its own and stays.
    """
    composed = {name: unicodedata.normalize("NFC", name.strip()) for name in names}
    if any(_FRACTION.fullmatch(name) for name in composed.values()):
        return composed
    return {name: one_id(name) for name in composed}


def may_be_rounded(text: str) -> bool:
    """Whether a number is written as programs write it that keep 16 digits: several ids may have become this one."""
    plain = text.strip().lower()
    if not _NUMBER.fullmatch(plain):
        return False
    return "e" in plain or ("." in plain and abs(Decimal(plain)) >= EXACT_BELOW)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of different names that a person might take for one: other case, blanks, dashes, zeros, unseen signs."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_outline(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _outline(name: str) -> str:
    seen = "".join(char for char in name if unicodedata.category(char) != "Cf")  # zero-width blanks, soft hyphens
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold()).strip()
    plain = _DECIMAL_COMMA.sub(r"\1.\2", plain) if _DECIMAL_COMMA.fullmatch(plain) else plain
    if _NUMBER.fullmatch(plain):
        return str(Decimal(plain).normalize())
    return _BETWEEN.sub(" ", plain)


def spelling_remarks(what: str, read_as: Mapping[str, str]) -> list[str]:
    """What to tell a person about a list of names.

    Args:
        what: the names are of, in the plural: `skills`.
        read_as: each spelling that was seen, and what it is read as.
    """
    remarks = []
    changed = sorted(name for name, plain in read_as.items() if plain != name.strip())
    if changed:
        shown = ", ".join(f"{name!r} as {read_as[name]!r}" for name in changed[:3])
        remarks.append(f"{what} are read in one spelling, {len(changed):,} of them in another: {shown}{_more(changed)}")
    rounded = sorted(name for name in read_as if may_be_rounded(name))
    if rounded:
        remarks.append(
            f"{what} are written as rounded numbers, {len(rounded):,} of them, such as {rounded[0]!r}; if they are "
            "ids, whoever wrote the file may have made several one"
        )
    groups = look_alikes(read_as.values())
    if groups:
        shown = ", ".join(" and ".join(map(repr, group[:3])) for group in groups[:3])
        remarks.append(
            f"{what} that look alike are kept apart, {len(groups):,} groups: {shown}{_more(groups)}; "
            "spell them alike if they are one"
        )
    return remarks


def _more(listed: list[str] | list[list[str]]) -> str:
    return ", ..." if len(listed) > 3 else ""
