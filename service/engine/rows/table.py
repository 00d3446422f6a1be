"""What the engine knows of each active row, as parallel arrays, so that a step never loops over sequences.

Row r of every array belongs to the sequence in row r of the state pool. Ids wait in `pending`, CHUNK at a time: prompt
ids, then one sampled id after another, so that prefill, decode, scoring and tracing are the same thing to a step.

Axes: R max_rows, n active rows, C chunk, O outputs of a step (a vocabulary's or a list of skills' size).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carousel.service.engine.rows.plan import BlockPlan, Mask, Rows, block_rows, plain_block, plan_block
from carousel.service.engine.sequence import FinishReason, Floats, Ids, Sequence

CHUNK = 128
"""Ids (and random numbers) that a row holds ready; a row is visited in Python once per chunk, not once per step."""

NO_END = -1
"""No token's id: nothing that is sampled is the row's last by itself."""

NOT_FINITE = "the outputs were not finite"

Ended = dict[int, tuple[FinishReason, str]]
"""Rows that end with a step, and why."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What some active row wants, worked out when a row joins or leaves: a step asks for no more than is wanted."""

    quiet: Mask | None
    """Which rows sample nothing; None where all sample. <bool>[n]"""
    whole: Mask | None
    """Which rows are told at their end alone; None where none is. <bool>[n]"""
    ends: bool
    stops: bool
    attentive: bool


class RowTable:
    """The parallel arrays. Rows 0 to n - 1 are active; the caller keeps them compact with `release`."""

    def __init__(self, max_rows: int, output_size: int) -> None:
        self._output_size = output_size
        self._range = np.arange(max_rows)
        self.pending = np.zeros((max_rows, CHUNK), np.int64)
        self.targets = np.zeros((max_rows, CHUNK), np.int64)
        self.values = np.zeros((max_rows, CHUNK), np.float64)
        """What was weighed or read after each id of the chunk."""
        self.uniforms = np.zeros((max_rows, CHUNK), np.float64)
        self.cursor = np.zeros(max_rows, np.int64)
        self.filled = np.zeros(max_rows, np.int64)
        self.unfilled = np.zeros(max_rows, np.int64)
        """Prompt ids that do not lie in `pending` yet."""
        self.scoring = np.zeros(max_rows, np.bool_)
        self.reading = np.zeros(max_rows, np.bool_)
        self.comparing = np.zeros(max_rows, np.bool_)
        """Scoring rows that want to know what else was probable."""
        self.recording = np.zeros(max_rows, np.bool_)
        """Rows of readouts that want more than one output whole, or a curve."""
        self.generated = np.zeros(max_rows, np.int64)
        self.max_tokens = np.zeros(max_rows, np.int64)
        self.temperature = np.zeros(max_rows, np.float32)
        """0, too, where nothing is sampled: such a row does not keep a block of greedy ones from being one."""
        self.top_k = np.zeros(max_rows, np.int64)
        self.top_p = np.ones(max_rows, np.float64)
        self.min_p = np.zeros(max_rows, np.float32)
        self.penalty = np.ones(max_rows, np.float32)
        self.alternatives = np.zeros(max_rows, np.int64)
        self.plain = np.zeros(max_rows, np.bool_)
        """Which rows draw from the model's own probabilities and tell no alternatives: most do, and need no plan."""
        self.end = np.full(max_rows, NO_END, np.int64)
        """Which token is each row's last."""
        self.stops = np.zeros(max_rows, np.bool_)
        """Which rows ask after each token whether it is their last."""
        self.attentive = np.zeros(max_rows, np.bool_)
        """Which rows want to know where the model looked."""
        self.whole = np.zeros(max_rows, np.bool_)
        """Which rows keep what they say to their end."""
        self.seen: Mask | None = None
        """Which tokens each row has eaten <bool>[R, V]; made when the first penalty is asked for."""
        self.record: Floats | None = None
        """The outputs of the chunk in each recording row <float32>[R, C, O]; made when first asked for."""
        self._plans: list[BlockPlan] = []
        self._traits: Traits | None = None
        self._arrays: list[npt.NDArray[np.generic]] = [
            value for value in vars(self).values() if isinstance(value, np.ndarray) and value is not self._range
        ]
        """Of which a row that moves takes its part along."""

    def acquire(self, row: int, sequence: Sequence) -> None:
        """Fill a row for a sequence that joins."""
        self._plans, self._traits = [], None
        sampling = sequence.sampling
        readout = sequence.readout
        self.scoring[row] = sequence.quiet and readout is None
        self.comparing[row] = self.scoring[row] and sequence.alternatives > 0
        self.reading[row] = readout is not None
        self.recording[row] = readout is not None and (readout.columns is not None or readout.last > 1)
        if self.recording[row] and self.record is None:
            self.record = np.zeros((len(self._range), CHUNK, self._output_size), np.float32)
        self.generated[row] = 0
        self.end[row] = NO_END if sequence.end is None else sequence.end
        self.stops[row] = sequence.stop is not None
        self.attentive[row] = sequence.attention
        skipped = sequence.prompt[: sequence.eaten]
        self.whole[row] = sequence.whole
        self.fill(row, sequence)
        if sampling is None:
            return  # its parameters are zeros
        self.max_tokens[row] = sampling.max_tokens
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
            self.seen = np.zeros((len(self._range), self._output_size), np.bool_)
            self._arrays.append(self.seen)
        if self.seen is not None:
            self.seen[row] = False
            self.seen[row, skipped] = True
        self.draw(row, sequence)

    def release(self, row: int, last: int) -> None:
        """Take a row back: the last active row moves into its place."""
        self._plans, self._traits = [], None
        for array in self._arrays:
            if row != last:
                array[row] = array[last]
            array[last] = 0
        if self.record is not None and row != last and self.recording[row]:
            self.record[row] = self.record[last]

    def fill(self, row: int, sequence: Sequence) -> None:
        """Put the next chunk of the prompt into a row that has eaten the last one."""
        end = len(sequence.prompt)
        if self.scoring[row]:
            end -= 1  # a score's last id is only a target
        stop = next((look for look in sequence.looks if look > sequence.eaten), end)  # for a look at the state
        chunk = sequence.prompt[sequence.eaten : min(stop, end, sequence.eaten + CHUNK)]
        self.pending[row, : len(chunk)] = chunk
        if self.scoring[row]:
            self.targets[row, : len(chunk)] = sequence.prompt[sequence.eaten + 1 : sequence.eaten + 1 + len(chunk)]
        elif sequence.readout is not None and sequence.readout.targets is not None:
            self.targets[row, : len(chunk)] = sequence.readout.targets[sequence.eaten : sequence.eaten + len(chunk)]
        self.cursor[row] = 0
        self.filled[row] = len(chunk)
        sequence.eaten += len(chunk)
        self.unfilled[row] = end - sequence.eaten

    def draw(self, row: int, sequence: Sequence) -> None:
        """Put the next chunk of random numbers into a row: number i of a sequence depends on its seed and i alone.

        Philox is counter-based (Salmon et al. 2011), so chunk k starts at its own counter and nothing is replayed. A
        greedy row needs none.
        """
        assert sequence.sampling is not None
        if sequence.sampling.temperature == 0.0:
            return
        counter = int(self.generated[row]) // 4  # a Philox counter yields four 64-bit words
        raw = np.random.Philox(key=sequence.sampling.seed, counter=counter).random_raw(CHUNK)
        self.uniforms[row] = (raw >> np.uint64(11)) * 2.0**-53  # [0, 1), 53 bits

    def plans(self, n: int) -> list[BlockPlan]:
        """What sampling has to do to the active rows, block by block."""
        if not self._plans:
            step = block_rows(self._output_size)
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
                    self._output_size,
                )
                for rows in blocks
            ]
        return self._plans

    def traits(self, n: int) -> Traits:
        """What the active rows want."""
        if self._traits is None:
            quiet = self.scoring[:n] | self.reading[:n]
            self._traits = Traits(
                quiet=quiet if quiet.any() else None,
                whole=self.whole[:n].copy() if self.whole[:n].any() else None,
                ends=bool((self.end[:n] != NO_END).any()),
                stops=bool(self.stops[:n].any()),
                attentive=bool(self.attentive[:n].any()),
            )
        return self._traits

    def next_ids(self, n: int) -> Ids:
        """What each active row eats in this step. <int64>[n]"""
        return self.pending[self._range[:n], self.cursor[:n]]

    def next_uniforms(self, n: int) -> npt.NDArray[np.float64]:
        """The random number that each active row would sample with. <float64>[n]"""
        return self.uniforms[self._range[:n], self.generated[:n] % CHUNK]

    def mark_seen(self, ids: Ids) -> None:
        """Remember what each active row eats, where penalties need it."""
        if self.seen is not None:
            self.seen[self._range[: len(ids)], ids] = True

    def advance(self, n: int) -> None:
        """One id of each active row is eaten."""
        self.cursor[:n] += 1

    def empty(self, n: int) -> Mask:
        """Which active rows have nothing left to eat in their chunk. <bool>[n]"""
        return np.equal(self.cursor[:n], self.filled[:n])

    def push(self, rows: Rows, tokens: Ids) -> None:
        """Queue a sampled id in each of these (empty) rows."""
        self.pending[rows, 0] = tokens
        self.cursor[rows] = 0
        self.filled[rows] = 1
        self.generated[rows] += 1

    def mirror(self, row: int, others: Rows) -> None:
        """Let other rows of the same beam eat next what this one eats."""
        self.push(others, np.broadcast_to(self.pending[row, self.cursor[row]], len(others)))

    def pending_ids(self, row: int) -> Ids:
        """A copy of what a row has queued and not eaten."""
        return self.pending[row, self.cursor[row] : self.filled[row]].copy()
