"""How each row that samples chooses its tokens.

Axes: R max_rows, n active rows, C chunk, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from carousel.service.engine.parameters import Ids, SamplingParameters
from carousel.service.engine.rows.plan import BlockPlan, Mask, block_rows, plain_block, plan_block
from carousel.service.engine.rows.table import CHUNK, Columns, RowTable


class SamplingTable(Columns):
    """Parameters, random numbers and tokens seen.

    Args:
        rows: how many ids each row has sampled.
        max_rows: R.
        vocabulary_size: V.
    """

    def __init__(self, rows: RowTable, max_rows: int, vocabulary_size: int) -> None:
        self.uniforms = np.zeros((max_rows, CHUNK), np.float64)
        self.temperature = np.zeros(max_rows, np.float32)
        """0, too, where nothing is sampled: such a row does not keep a block of greedy ones from being one."""
        self.top_k = np.zeros(max_rows, np.int64)
        self.top_p = np.ones(max_rows, np.float64)
        self.min_p = np.zeros(max_rows, np.float32)
        self.penalty = np.ones(max_rows, np.float32)
        self.alternatives = np.zeros(max_rows, np.int64)
        self.plain = np.zeros(max_rows, np.bool_)
        """Which rows draw from the model's own probabilities and tell no alternatives: most do, and need no plan."""
        super().__init__()
        self.seen: Mask | None = None
        """Which tokens each row has consumed <bool>[R, V]; made when the first penalty is asked for."""
        self._rows = rows
        self._size = (max_rows, vocabulary_size)
        self._plans: list[BlockPlan] = []

    def acquire(self, row: int, sampling: SamplingParameters, consumed: Ids) -> None:
        """Fill a row for a sequence that joins, which has consumed these ids before."""
        self.temperature[row] = sampling.temperature
        self.top_k[row] = sampling.top_k
        self.top_p[row] = sampling.top_p
        self.min_p[row] = sampling.min_p
        self.penalty[row] = sampling.repetition_penalty
        self.alternatives[row] = sampling.alternatives
        self.plain[row] = sampling.temperature == sampling.top_p == sampling.repetition_penalty == 1.0 and not (
            sampling.top_k or sampling.min_p or sampling.alternatives
        )
        if sampling.repetition_penalty != 1.0 and self.seen is None:
            self.seen = np.zeros(self._size, np.bool_)
            self._columns.append(self.seen)
        if self.seen is not None:
            self.seen[row] = False
            self.seen[row, consumed] = True
        self.draw(row, sampling)

    def changed(self) -> None:
        """Other rows are active than before, or in other places."""
        self._plans = []

    def draw(self, row: int, sampling: SamplingParameters) -> None:
        """Put the next chunk of random numbers into a row: number i of a sequence depends on its seed and i alone.

        Philox is counter-based (Salmon et al. 2011), so chunk k starts at its own counter and nothing is replayed. A
        greedy row needs none.
        """
        if sampling.temperature == 0.0:
            return
        counter = int(self._rows.added[row]) // 4  # a Philox counter yields four 64-bit words
        raw = np.random.Philox(key=sampling.seed, counter=counter).random_raw(CHUNK)
        self.uniforms[row] = (raw >> np.uint64(11)) * 2.0**-53  # [0, 1), 53 bits

    def plans(self, n: int) -> list[BlockPlan]:
        """What sampling has to do to the active rows, block by block."""
        if not self._plans or self._plans[-1].rows.stop != n:
            size = self._size[1]
            step = block_rows(size)
            blocks = (slice(start, min(start + step, n)) for start in range(0, n, step))
            self._plans = [
                plain_block(rows)
                if self.plain[rows].all()
                else plan_block(
                    rows,
                    self.temperature[rows],
                    self.top_k[rows],
                    self.top_p[rows],
                    self.min_p[rows],
                    self.penalty[rows],
                    size,
                )
                for rows in blocks
            ]
        return self._plans

    def mark_seen(self, ids: Ids) -> None:
        """Remember what each active row consumes, where penalties need it. <int64>[n]"""
        if self.seen is not None:
            self.seen[self._rows.range[: len(ids)], ids] = True

    def next_uniforms(self, n: int) -> npt.NDArray[np.float64]:
        """The random number that each active row would sample with. <float64>[n]"""
        return self.uniforms[self._rows.range[:n], self._rows.added[:n] % CHUNK]
