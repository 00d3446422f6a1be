"""How long one thread may keep the interpreter's lock while another waits for it: a matter of the whole process.

While somebody reads tokens one by one, not long: with Python's 5 ms, a step that has returned from onnxruntime could
wait longer for the event loop than it took to run. While nobody does, no reader waits for the end of a single step; and
a thread that is stopped in the middle of its work, and another that is woken for that, cost more than they bring.
"""

from __future__ import annotations

import sys

SHORT_SECONDS = 0.0001
LONG_SECONDS = 0.001


class LockTurns:
    """Counts those who read tokens one by one. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._readers = 0

    def enter(self) -> None:
        """One more reads."""
        self._readers += 1
        sys.setswitchinterval(SHORT_SECONDS)

    def leave(self) -> None:
        """One of them has come to the end."""
        self._readers -= 1
        if not self._readers:
            sys.setswitchinterval(LONG_SECONDS)


LOCK_TURNS = LockTurns()
"""Of this process."""
