"""Consumes long prompts beside the steps of others, on a thread of its own: no stream waits while somebody joins."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from carousel.service.engine.port import Request
from carousel.service.engine.prefill.prefill import MAX_TOKENS, Prefill

logger = logging.getLogger("carousel.engine")


class PrefillThread:
    """Takes prompts forward from when it is nudged, as long as there are any and the engine is busy with steps.

    Args:
        prefill: knows the prompts.
        busy: whether the engine's thread is in steps: else it consumes them itself, sooner.
        name: of the thread.
    """

    def __init__(self, prefill: Prefill, busy: Callable[[], bool], name: str) -> None:
        self._prefill = prefill
        self._busy = busy
        self._wake = threading.Condition()
        self._nudged = self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._prefill.consume_beside = self.nudge
        self._thread.start()

    def begin(self, id: int, request: Request, *, batch: bool) -> None:
        """This one will be queued at once."""
        self._prefill.begin(id, request, batch=batch)
        if self._prefill.pending and self._busy():
            self.nudge()

    def nudge(self) -> None:
        """There may be something to consume."""
        if not self._nudged:  # read without the lock: it is set for as long as the thread has yet to look
            with self._wake:
                self._nudged = True
                self._wake.notify()

    def close(self) -> None:
        """Stop the thread, and wait for it."""
        self._prefill.consume_beside = None  # a circle would keep its graphs until the garbage is collected
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                while not self._closed and self._busy() and self._prefill.advance(MAX_TOKENS):
                    pass
        except BaseException:  # who waits for this thread would wait for ever
            logger.exception("the thread that consumes prompts failed; prompts are fed step by step")
            self._prefill.give_up()

    def _wait(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._nudged or self._closed)
            self._nudged = False
            return not self._closed
