"""What the engine is asked for and what it gives back: plain values, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen from the logits.

    In this order: repetition penalty (Keskar et al. 2019, arXiv:1909.05858), temperature, top-k (Fan et al. 2018,
    arXiv:1805.04833), top-p (Holtzman et al. 2020, arXiv:1904.09751), min-p (Nguyen et al. 2024, arXiv:2407.01082).

    Args:
        max_tokens: how many tokens to sample at most, at least 1.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens (and what ties with the last of them); 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches p.
        min_p: keep tokens at least min_p times as probable as the most probable one.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen before; 1 changes nothing.
        seed: with the position, determines every random number of the sequence.
        alternatives: how many of the most probable tokens to report beside each sampled one.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    alternatives: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A sequence's whole memory: one row of every state, and the ids that the model has not yet eaten."""

    state: Mapping[str, Array]
    pending: Ids


@dataclass(frozen=True, slots=True)
class BeamParameters:
    """Beam search: the most probable sentences rather than one of them (service/README.md has the definition).

    Args:
        width: k, the hypotheses that are kept from step to step, at least 1; 1 is greedy. Each takes a row.
        max_tokens: length at which every hypothesis ends, `end` counted, at least 1.
        end: the token that finishes a hypothesis.
        length_penalty: a, from 0 to 10; a hypothesis' score is its log-probability over its length to this power.
        best: how many hypotheses to tell.
    """

    width: int
    max_tokens: int
    end: int
    length_penalty: float = 0.0
    best: int = 1


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"
    SLOW_READER = "slow_reader"
    DEADLINE = "deadline"
    OVERLOAD = "overload"


class Mark(NamedTuple):
    """A moment of an engine."""

    at: float
    """Seconds of `time.perf_counter`."""
    steps: int
    """That it had reported until then."""
    step_rows: int
    """Rows of all these steps together."""


@dataclass(slots=True)
class Marks:
    """When a sequence had come how far, on the event loop; None where it has not."""

    admitted_at: float
    submitted_at: float
    cached: int
    """Ids of the prompt that were not eaten again."""
    first_token: Mark | None = None
    ended: Mark | None = None
    reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Readout:
    """What to read off the outputs of a model that says something after every id: a tracing model.

    Args:
        targets: which output to read after each id; None reads none. <int64>[N], each in [0, S)
        columns: outputs to read after every id; None reads none. <int64>[K], each in [0, S)
        last: how many of the last outputs to report whole, at least 1.
    """

    targets: Ids | None = None
    columns: Ids | None = None
    last: int = 1


@dataclass(eq=False, repr=False, slots=True)  # list.index makes a text of what it does not find
class Sequence:
    """One request as the engine sees it: ids to eat, then ids to sample or to search, or outputs to read.

    Args:
        prompt: ids to eat, each one that the model takes, at least one (two to be scored). <int64>[N]
        sampling: how to sample after the prompt; None samples nothing.
        readout: what to read, where nothing is sampled; None scores: prompt[1:] is weighed, the last id is not eaten.
        alternatives: of a sequence that is scored, how many of the most probable ids to tell beside each weighed one.
        beam: how to search, where nothing is sampled or read. A search tells nothing but its end, knows an end of its
            own, is not asked `stop` and reports no snapshot.
        end: the id that, once sampled, ends the sequence; None where none does.
        stop: called with each sampled id on the engine's thread; True ends the sequence. It sees ids only: what a
            stop string is, the engine does not know.
        snapshot: memory to start from; None starts from zeros.
        context: one row of each part of what the model reads and never rewrites; None gives it zeros. It is no part of
            a snapshot: who goes on from one gives it again.
        attention: whether each token comes with where the model looked, if the model says so.
        whole: whether what is sampled is told at the end alone, as `said`: nobody reads it token by token.
        keep_state: whether the end reports a snapshot to go on from.
        keep_prompt: whether that snapshot is the prompt's, its last id not eaten: what was sampled is forgotten.
        looks: after how many ids of the prompt to take a copy of the state, ascending, each less than N.
        eaten: how many ids of the prompt `snapshot` has eaten already; they are fed to nobody, and count as seen.
        paid: how many ids of the prompt somebody has been charged for already.
        on_end: called on the event loop when it has ended, in whatever way, if it was ever submitted.
        marks: where somebody wants to know when it had come how far.
        batch: whether it waits for a row for as long as any sequence waits that is not batch.

    The engine keeps its own marks here: when the sequence got a row, the memory that it got it with (`snapshot`), how
    many prompt ids it has taken (`eaten`), how many it has sampled (a beam: how long its hypotheses grew), what it
    weighed, read and, being `whole`, said, and the states it took a copy of, by the number of ids eaten. They are
    complete, and nobody's but the caller's, from the first event on.
    """

    prompt: Ids
    sampling: SamplingParameters | None
    readout: Readout | None = None
    alternatives: int = 0
    end: int | None = None
    stop: Callable[[int], bool] | None = None
    snapshot: Snapshot | None = None
    keep_state: bool = False
    keep_prompt: bool = False
    beam: BeamParameters | None = None
    context: Mapping[str, Array] | None = None
    attention: bool = False
    looks: tuple[int, ...] = ()
    on_end: Callable[[Sequence], None] | None = None
    marks: Marks | None = None
    whole: bool = False
    batch: bool = False
    ahead: bool | None = None
    """Whether ids of its prompt are being eaten ahead of its joining, which waits for it; None before it is known."""
    joined_at: float | None = None
    asked: int = field(init=False)
    """How many ids it may eat and sample."""
    eaten: int = 0
    paid: int = 0
    sampled: int = 0
    values: list[npt.NDArray[np.float64]] = field(default_factory=list)
    beside: list[tuple[Alternative, ...]] = field(default_factory=list)
    """Of each weighed id, the most probable ones in its place."""
    curve: list[Floats] = field(default_factory=list)
    outputs: list[Floats] = field(default_factory=list)
    said: list[tuple[int, float, Floats | None]] = field(default_factory=list)
    """Tokens, their log-probabilities, and where the steps that chose them looked, for a sequence that asked."""
    looked: dict[int, Mapping[str, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        last = len(self.prompt) - 1
        search = self.sampling or self.beam
        self.asked = len(self.prompt) - self.eaten + (0 if search is None else search.max_tokens)
        if self.keep_prompt and last not in self.looks:
            self.looks = (*self.looks, last)

    @property
    def rows(self) -> int:
        """How many rows it takes."""
        return 1 if self.beam is None else self.beam.width

    @property
    def prompt_snapshot(self) -> Snapshot | None:
        """The memory of the prompt alone, where it is to be kept and has been reached."""
        state = self.looked.get(len(self.prompt) - 1) if self.keep_prompt else None
        return None if state is None else Snapshot(state, self.prompt[-1:])

    @property
    def spent(self) -> int:
        """How many ids it took in and gave out, for who pays by them."""
        weighed = self.quiet and self.readout is None and self.eaten == len(self.prompt) - 1  # the last, and not eaten
        return max(0, self.eaten + weighed - self.paid) + self.sampled

    @property
    def quiet(self) -> bool:
        """Whether it is weighed or read: nothing is added to its prompt."""
        return self.sampling is None and self.beam is None


class Alternative(NamedTuple):
    """One of the most probable tokens at a position. (A tuple for the same reason as TokenEvent.)"""

    token: int
    logprob: float


class TokenEvent(NamedTuple):
    """One sampled token. (A tuple, because one is made per token: it takes a quarter of a frozen dataclass' time.)

    `logprob` is the natural logarithm of the model's own probability, before penalty, temperature and truncation;
    `attention` is where the step that chose it looked, for a sequence that asked <float32>[rows, columns].
    """

    token: int
    logprob: float
    alternatives: tuple[Alternative, ...] = ()
    attention: Floats | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One sentence that a beam search found.

    `tokens` are without `end`; `logprob` (nats) and the length that `score` divides by count it where it was reached.
    """

    tokens: tuple[int, ...]
    logprob: float
    score: float
    reason: FinishReason
    """STOP where `end` was reached, LENGTH where the search was cut off."""
    attention: Floats | None
    """Where the model looked for each token, for a sequence that asked <float32>[len(tokens), rows, columns]."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a Readout asked for: after each id, the output at its target; the curve; the last outputs, oldest first."""

    values: Floats | None
    """<float32>[N]"""
    curve: Floats | None
    """<float32>[N, K]"""
    outputs: Floats
    """<float32>[min(last, N), S]"""


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The end of a sequence: the last event it gets.

    `logprobs` are the scores of prompt[1:] in nats, for a sequence that was scored <float64>[N - 1]; `reading` is what
    a sequence with a readout asked for; `hypotheses` are what a beam search found, best first: then the reason is STOP,
    or LENGTH where the search was cut off.
    """

    reason: FinishReason
    detail: str = ""
    snapshot: Snapshot | None = None
    logprobs: npt.NDArray[np.float64] | None = None
    reading: Reading | None = None
    hypotheses: tuple[Hypothesis, ...] = ()


Event = TokenEvent | FinishEvent


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step cost and did, for whoever keeps figures.

    `runner_seconds` is the part of `step_seconds` spent inside the runner; the rest is the engine's own overhead. A
    beam counts as one sequence: one prompt token or one generated token, in as many rows as it is wide. `eaten_ahead`
    are prompt tokens that no row ate, since the last step: those of who was about to join.
    """

    rows: int
    prompt_tokens: int
    generated_tokens: int
    step_seconds: float
    runner_seconds: float
    eaten_ahead: int = 0

    @property
    def phase(self) -> str:
        """`prefill` when every row ate prompt, `decode` when every row went on, else `mixed`."""
        if self.generated_tokens == 0:
            return "prefill"
        return "decode" if self.prompt_tokens == 0 else "mixed"


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The tokens that one step sampled: parallel lists, one entry per sequence that sampled."""

    sequences: list[Sequence]
    tokens: list[int]
    logprobs: list[float]
    alternatives: Mapping[int, tuple[Alternative, ...]]
    """By place in the lists, for the sequences that asked."""
    attention: Mapping[int, Floats]
    """By place in the lists, for the sequences that asked. <float32>[rows, columns] each"""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Everything one step has to tell: first its tokens, then who ended; the report is None when nothing was run."""

    batch: TokenBatch | None
    finished: list[tuple[Sequence, FinishEvent]]
    report: StepReport | None
