"""The file of API keys: one line a key, which holds its hash and never the key.

    # name     tenant   sha256 of the key (64 hexadecimal digits)    limits, each of which may be left out
    ada-2026   school   9f86d081...                                  requests_per_second=20 burst=40 # a comment

A key is 32 bytes of the system's randomness. Nobody can guess one, whatever a guess costs: a plain SHA-256 gives away
nothing, and the slow, salted hashes that passwords need would only make every request slow.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import re
import secrets
from dataclasses import dataclass, fields
from pathlib import Path

from carousel.models.errors import CarouselError

KEY_PREFIX = "carousel_"
"""Tells people, and what looks for leaked secrets, what a key is."""

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_COLUMNS = 3


class KeyFileError(CarouselError):
    """The file of API keys cannot be used."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may do; None is without bound.

    Args:
        requests_per_second: as a steady rate.
        burst: requests that may come at once after a pause; a second's worth, and at least 1, where it is not given.
        tokens_per_minute: tokens (tracing: attempts) that models take in and give out.
        tokens_per_day: the same.
    """

    requests_per_second: float | None = None
    burst: float | None = None
    tokens_per_minute: float | None = None
    tokens_per_day: float | None = None


_LIMITS = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True, slots=True)
class Key:
    """One line.

    Args:
        name: what logs call the key.
        tenant: whose sessions, state tokens and caches a caller with this key has.
        digest: SHA-256 of the key, 32 bytes.
        limits: what it may do.
    """

    name: str
    tenant: str
    digest: bytes
    limits: Limits = Limits()


def new_key() -> str:
    """A key that nobody has yet."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key: bytes) -> bytes:
    """What a file holds in place of a key: 32 bytes."""
    return hashlib.sha256(key).digest()


def key_line(name: str, tenant: str, key: str) -> str:
    """The line of a key without limits.

    Raises:
        KeyFileError: a name that a line cannot hold.
    """
    for what, value in (("name", name), ("tenant", tenant)):
        if not NAME.match(value):
            raise KeyFileError(_bad_name(what, value))
    return f"{name} {tenant} {digest_of(key.encode()).hex()}"


def read_keys(path: Path, content: bytes) -> list[Key]:
    """The keys that a file's content names.

    Args:
        path: for the error.
        content: of the file, in UTF-8, with or without a byte order mark. Empty lines mean nothing, nor does what
            follows a word that begins with #.

    Raises:
        KeyFileError: names the line.
    """
    keys: list[Key] = []
    lines: dict[str | bytes, int] = {}
    marks: tuple[tuple[str, str | bytes], ...]
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what Windows PowerShell's >> writes
        raise KeyFileError(f"{path} is in UTF-16; allowed is UTF-8: save it in that encoding")
    for number, raw in enumerate(content.split(b"\n"), 1):
        words = raw.removeprefix(codecs.BOM_UTF8).decode(errors="backslashreplace").split()
        comment = next((place for place, word in enumerate(words) if word.startswith("#")), len(words))
        if not comment:
            continue
        try:
            key = _key(words[:comment])
            marks = ("name", key.name), ("key", key.digest)
            for what, mark in marks:
                if mark in lines:
                    raise KeyFileError(f"the {what} is that of line {lines[mark]:,}; each may come once")
                lines[mark] = number
        except KeyFileError as error:
            raise KeyFileError(f"{path}, line {number:,}: {error}") from None
        keys.append(key)
    return keys


def _key(words: list[str]) -> Key:
    if len(words) < _COLUMNS:
        raise KeyFileError(
            f"has {len(words)} of the words NAME TENANT SHA256; make a line with python -m service key NAME --tenant T"
        )
    name, tenant, digest = words[:_COLUMNS]
    for what, value in (("name", name), ("tenant", tenant)):
        if not NAME.match(value):
            raise KeyFileError(_bad_name(what, value))
    if not _DIGEST.match(digest):  # what stands there may be a key: it is not repeated
        raise KeyFileError(
            f"the third word has {len(digest):,} characters and is no SHA-256 in 64 digits 0-9 a-f; "
            "a key itself does not belong here"
        )
    return Key(name, tenant, bytes.fromhex(digest), _limits(words[_COLUMNS:]))


def _limits(words: list[str]) -> Limits:
    values: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in _LIMITS or name in values:
            raise KeyFileError(f"limit {name[:64]!a} is unknown or repeated; allowed, once each: {', '.join(_LIMITS)}")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 < value < math.inf) or (name == "burst" and value < 1):
            raise KeyFileError(f"{name} is {text[:64]!a}; allowed are numbers above 0, of burst from 1 on")
        values[name] = value
    if "burst" in values and "requests_per_second" not in values:
        raise KeyFileError("burst is given without requests_per_second; give both, or neither")
    return Limits(**values)


def _bad_name(what: str, value: str) -> str:
    return f"{what} {value[:64]!a} is not 1 to 64 of the characters A-Z a-z 0-9 . _ -"
