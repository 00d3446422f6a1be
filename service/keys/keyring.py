"""The keys in force: those of the file, read again when it changes."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from carousel.service.keys.caller import Caller
from carousel.service.keys.key_file import Key, KeyFileError, digest_of, read_keys

logger = logging.getLogger("carousel.keys")

LOOK_SECONDS = 1.0
"""How often a request makes the file be looked at: a key that leaves it is good for so long at most."""

_INDEX_BYTES = 8
"""Of a digest, by which a line is found. The rest is compared in constant time, so that what a comparison takes says
nothing about how much of a digest was right."""

_Stamp = tuple[int, int, int]


class Keyring:
    """Finds the caller of a key.

    A file that can no longer be read or that is wrong changes nothing but the log: the keys read last go on.

    Args:
        path: of the file.
        clock: seconds; never goes back.

    Raises:
        KeyFileError: names the line.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._entries: dict[bytes, tuple[Key, Caller]] = {}
        self._stamp = self._load()
        self._look_at = clock() + LOOK_SECONDS
        self._complaint = ""

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes) -> Caller | None:
        """Whose key it is; None where it is nobody's."""
        self.refresh()
        digest = digest_of(key)
        entry = self._entries.get(digest[:_INDEX_BYTES])
        if entry is None or not hmac.compare_digest(entry[0].digest, digest):
            return None
        return entry[1]

    def refresh(self) -> None:
        """Read the file again if it has changed; looks at most every LOOK_SECONDS."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        try:
            if _stamp(os.stat(self._path)) == self._stamp:
                return
            self._stamp = self._load()
        except (KeyFileError, OSError) as error:
            if str(error) != self._complaint:
                logger.error("API keys were not read again, and those read last go on: %s", error)
                self._complaint = str(error)
            return
        self._complaint = ""
        logger.info("%d API keys read again from %s", len(self), self._path)

    def _load(self) -> _Stamp:
        """Read the file. Who was there stays the same caller, with what was used, unless the key has changed hands."""
        with self._path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            keys = read_keys(self._path, file.read())
        before, self._entries = self._entries, {}
        for key in keys:
            old, caller = before.get(key.digest[:_INDEX_BYTES], (None, None))
            if old is not None and caller is not None and (old.name, old.tenant) == (key.name, key.tenant):
                del before[key.digest[:_INDEX_BYTES]]
                if key.limits != old.limits:
                    caller.limit(key.limits)
            else:
                caller = Caller(key, self._clock, self.refresh)
            self._entries[key.digest[:_INDEX_BYTES]] = key, caller
        for _, caller in before.values():
            caller.revoked = True
        return stamp


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino
