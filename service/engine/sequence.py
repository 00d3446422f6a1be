"""What a step works on, which is the engine's thread's alone; and what it leads to, which that thread hands over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from carousel.service.engine.fed import Answer
from carousel.service.engine.parameters import Alternative, Floats, State
from carousel.service.engine.port import Ended, Request, Snapshot, StepReport


@dataclass(eq=False, repr=False, slots=True)  # list.index makes a text of what it does not find
class Sequence:
    """A request as the engine runs it. No other thread sees it.

    Args:
        id: of the request's events.
        request: what was asked for.
        batch: whether it waits for a row for as long as any sequence waits that is not batch.
    """

    id: int
    request: Request
    batch: bool
    consumed: int = field(init=False)
    """Ids of the prompt that lie behind it, or in its row."""
    state: State | None = field(init=False)
    """What its row begins with; None for zeros."""
    wanted: frozenset[int] = field(init=False)
    """After how many ids of the prompt to take a copy of the state."""
    checkpoints: dict[int, State] = field(default_factory=dict)
    """Those that were taken."""
    ahead: bool = False
    """Whether ids of its prompt are being consumed ahead of its joining, which waits for it."""

    def __post_init__(self) -> None:
        request = self.request
        self.consumed = request.consumed
        self.state = None if request.snapshot is None else request.snapshot.state
        self.wanted = request.wanted

    @property
    def rows(self) -> int:
        """How many it takes."""
        return self.request.head.rows

    @property
    def asked(self) -> int:
        """How many ids it may consume and add from here on."""
        return len(self.request.prompt) - self.consumed + self.request.head.new_ids

    @property
    def prompt_snapshot(self) -> Snapshot | None:
        """That of the prompt alone, where it is to be kept and has been reached."""
        prompt = self.request.prompt
        state = self.checkpoints.get(len(prompt) - 1) if self.request.keep_prompt else None
        return None if state is None else Snapshot(state, prompt[-1:])


class Joined(NamedTuple):
    """A sequence has its rows."""

    id: int
    at: float
    """Of the engine's clock."""
    asked: int
    """How many ids it may consume and add."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The tokens that one step sampled: parallel lists, one entry per sequence that sampled."""

    ids: list[int]
    """Of the sequences."""
    tokens: list[int]
    logprobs: list[float]
    alternatives: Mapping[int, tuple[Alternative, ...]]
    """By place in the lists, for the sequences that asked."""
    attention: Mapping[int, Floats]
    """By place in the lists, for the sequences that asked. <float32>[rows, columns] each"""
    checkpoints: Mapping[int, Mapping[int, State]]
    """By place in the lists, with the first token of the sequences that asked."""

    @property
    def plain(self) -> bool:
        """Whether there is nothing but tokens and their log-probabilities."""
        return not (self.alternatives or self.attention or self.checkpoints)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Everything one step has to tell: who joined, its tokens, what live sequences were answered, who ended; the report
    is None when nothing was run."""

    joined: list[Joined]
    batch: TokenBatch | None
    finished: list[tuple[int, Ended]]
    report: StepReport | None
    answers: list[tuple[int, Answer]] = field(default_factory=list)

    @property
    def tells(self) -> bool:
        """Whether somebody waits for it."""
        return self.batch is not None or bool(self.answers or self.finished or self.joined)
