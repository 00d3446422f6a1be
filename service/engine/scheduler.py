"""Who is in the batch: two queues of sequences that wait and a compact list of sequences that run.

Iteration-level scheduling (Yu et al., OSDI 2022) of recurrent cells (Gao et al., EuroSys 2018): sequences join and
leave between steps. A sequence's memory is one row of constant size (a beam's: one a hypothesis), so there is nothing
to page or to preempt.
"""

from __future__ import annotations

from collections import deque

from carousel.service.engine.sequence import Sequence


class Scheduler:
    """Row r of the batch is a row of `running[r]`: a sequence stands there once for each row it has."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.waiting: deque[Sequence] = deque()
        self.waiting_batch: deque[Sequence] = deque()
        """Those that are `batch`: the first of them joins when none of the others waits."""
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, first come, first served: while the first waits for all its rows, so do all.

        Batch sequences have a queue of their own, behind the other.

        Raises:
            ValueError: it needs more rows than there are.
        """
        if sequence.rows > self.max_rows:
            raise ValueError(f"the beam is {sequence.rows:,} rows wide; allowed are {self.max_rows:,}")
        self._queue(sequence).append(sequence)

    @property
    def anybody_waits(self) -> bool:
        """Whether there is who has no rows yet."""
        return bool(self.waiting or self.waiting_batch)

    def admit(self) -> list[tuple[range, Sequence]]:
        """Let waiting sequences into free rows; returns who joined, with the rows.

        Who is not ready, as its prompt is being consumed, keeps its place in the queue, and has its rows kept free.
        """
        joined, free = [], self.max_rows - len(self.running)
        for queue in (self.waiting, self.waiting_batch):
            unready = []
            while queue and (count := queue[0].rows) <= free:
                sequence = queue.popleft()
                free -= count
                if sequence.ahead:
                    unready.append(sequence)
                    continue
                first = len(self.running)
                joined.append((range(first, first + count), sequence))
                self.running += [sequence] * count
            crowded = bool(queue)
            queue.extendleft(reversed(unready))
            if crowded:
                break  # while the first waits for as many rows as it needs, so do all behind it
        return joined

    def remove(self, row: int) -> int:
        """Take the row out; the last row takes its place. Returns which row was the last."""
        last = len(self.running) - 1
        self.running[row] = self.running[last]
        self.running.pop()
        return last

    def rows_of(self, row: int) -> list[int]:
        """All rows of the sequence that has this one, from the last on: in this order they can be removed."""
        sequence = self.running[row]
        if sequence.rows == 1:
            return [row]
        return [each for each in range(len(self.running) - 1, -1, -1) if self.running[each] is sequence]

    def withdraw(self, sequence: Sequence) -> bool:
        """Take a waiting sequence out of the queue; False if it does not wait."""
        try:
            self._queue(sequence).remove(sequence)
        except ValueError:
            return False
        return True

    def withdraw_all(self) -> list[Sequence]:
        """Take all waiting sequences out of the queues, in the order in which they would have joined."""
        withdrawn = [*self.waiting, *self.waiting_batch]
        self.waiting.clear()
        self.waiting_batch.clear()
        return withdrawn

    def _queue(self, sequence: Sequence) -> deque[Sequence]:
        return self.waiting_batch if sequence.batch else self.waiting
