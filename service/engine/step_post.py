"""When what a step told is handed to the event loop: not always at once."""

from __future__ import annotations

from collections.abc import Callable

from service.engine.sequence import StepOutput, StepReport

MAX_HELD_REPORTS = 64
"""Steps that gave nobody a token are reported together with the next that did: a prompt need not wake the event loop
at each of its tokens. This many at most."""

MIN_HELD_TOKENS = 32
"""Fewer tokens of a step are posted at once: the event loop is done with them before the next run, a short one, is."""


class StepPost:
    """Holds back what can wait. Belongs to the engine's thread.

    Args:
        send: hands over what a step told, with the reports of all steps since the last time.
    """

    def __init__(self, send: Callable[[StepOutput, list[StepReport]], None]) -> None:
        self._send = send
        self._reports: list[StepReport] = []
        self._last: StepOutput | None = None
        """What the last step told, until the next one is about to run."""

    def put(self, output: StepOutput, *, last: bool) -> None:
        """A step has told this, and will be followed by another, or is the `last` for now.

        What a step told to many goes out when the next one is about to run (`flush`): the event loop then has the
        interpreter's lock to itself, instead of taking it from what is to be done before the run.
        """
        self._last = output
        if last or output.batch is None or len(output.batch.tokens) < MIN_HELD_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Nothing is held back any longer, unless it is reports alone."""
        output, self._last = self._last, None
        if output is None:
            return
        if output.report is not None:
            self._reports.append(output.report)
        if output.batch is None and not output.finished and len(self._reports) < MAX_HELD_REPORTS:
            return
        reports, self._reports = self._reports, []
        self._send(output, reports)
