"""Why the engine does not take a sequence, or ends it before it is done."""

from __future__ import annotations

from typing import Literal


class EngineFull(Exception):
    """As many sequences run and wait as may.

    Args:
        wait_seconds: how long one more would wait.
        impatient: whether it is only the request's own timeout that is shorter.
    """

    reason: Literal["full", "wait"] = "full"

    def __init__(self, message: str, wait_seconds: float, *, impatient: bool = False) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        self.impatient = impatient


class WaitTooLong(EngineFull):
    """There are places, but a row would come too late."""

    reason = "wait"


class DeadlineExceeded(Exception):
    """The time of whoever has a place is over."""


class BeamTooWide(Exception):
    """A beam asks for more rows than the engine has: waiting would not help."""


class EngineStopped(Exception):
    """The engine does not run: it was closed, or its runner is broken."""
