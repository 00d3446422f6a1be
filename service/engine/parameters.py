"""What each head is asked for, and what it gives in the end: plain frozen values.

A head is what becomes of a model's outputs (engine/heads). Axes: N ids of a prompt, O of an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from carousel.service.engine.weighed_places import Alternative as Alternative  # a value like those below
from carousel.service.engine.weighed_places import WeighedPlaces

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]


class FinishReason(Enum):
    """Why a request, or a hypothesis, ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"
    SLOW_READER = "slow_reader"
    DEADLINE = "deadline"
    OVERLOAD = "overload"


class HeadParameters:
    """What all heads' parameters tell the engine; the defaults are of one that looks at every output of one row."""

    __slots__ = ()

    @property
    def rows(self) -> int:
        """How many it takes."""
        return 1

    @property
    def new_ids(self) -> int:
        """How many ids it may add to the prompt, at most."""
        return 0

    @property
    def streams(self) -> bool:
        """Whether it tells tokens as they come."""
        return False

    @property
    def resumable(self) -> bool:
        """Whether its end can bring a snapshot."""
        return True

    @property
    def targets_only(self) -> int:
        """How many of the prompt's last ids are never consumed."""
        return 0

    @property
    def left_to_steps(self) -> int | None:
        """How many of the prompt's last ids need a step each, for what the model says after them; None: all."""
        return None


@dataclass(frozen=True, slots=True)
class SamplingParameters(HeadParameters):
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

    @property
    def new_ids(self) -> int:
        """See HeadParameters."""
        return self.max_tokens

    @property
    def streams(self) -> bool:
        """See HeadParameters."""
        return True

    @property
    def left_to_steps(self) -> int | None:
        """See HeadParameters."""
        return 1


@dataclass(frozen=True, slots=True)
class BeamParameters(HeadParameters):
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

    @property
    def rows(self) -> int:
        """See HeadParameters."""
        return self.width

    @property
    def new_ids(self) -> int:
        """See HeadParameters."""
        return self.max_tokens

    @property
    def resumable(self) -> bool:
        """See HeadParameters."""
        return False


@dataclass(frozen=True, slots=True)
class ScoreParameters(HeadParameters):
    """Weigh prompt[1:], each given all before it; the last id is not consumed. The prompt has at least two.

    Args:
        alternatives: how many of the most probable ids to tell in the place of each.
    """

    alternatives: int = 0

    @property
    def targets_only(self) -> int:
        """See HeadParameters."""
        return 1


@dataclass(frozen=True, slots=True)
class ReadParameters(HeadParameters):
    """What to read off the outputs of a model that says something after every id: a tracing model.

    Args:
        targets: which output to read after each id; None reads none. <int64>[N], each in [0, O)
        columns: outputs to read after every id; None reads none. <int64>[K], each in [0, O)
        last: how many of the last outputs to report whole, at least 1.
    """

    targets: Ids | None = None
    columns: Ids | None = None
    last: int = 1

    @property
    def left_to_steps(self) -> int | None:
        """See HeadParameters."""
        return self.last if self.targets is None and self.columns is None else None


@dataclass(frozen=True, slots=True)
class TensorParameters(HeadParameters):
    """Give outputs of the model as they are.

    Args:
        outputs: their names, of those that the model has; at least one.
        each: whether those of each step are wanted, or of the last alone.
    """

    outputs: tuple[str, ...]
    each: bool = False

    @property
    def left_to_steps(self) -> int | None:
        """See HeadParameters."""
        return None if self.each else 1


@dataclass(frozen=True, slots=True)
class LiveParameters(HeadParameters):
    """Of a live sequence (engine/live.py): it has no prompt, is fed while it lives, and has no row between its steps.

    Args:
        outputs: names of those to give, at least one, each once.
        each: whether those of each step are wanted, or of the last that is fed at a time.
    """

    outputs: tuple[str, ...]
    each: bool = True

    @property
    def rows(self) -> int:
        """See HeadParameters."""
        return 0

    @property
    def streams(self) -> bool:
        """See HeadParameters."""
        return True


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a buffered request sampled: tokens, their log-probabilities, and where the steps that chose them looked."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    attention: tuple[Floats, ...]
    """<float32>[rows, columns] each; none where that was not asked for, or the model does not say."""


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
    """Where the model looked for each token, for a request that asked <float32>[len(tokens), rows, columns]."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a beam search found, best first."""

    hypotheses: tuple[Hypothesis, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """How probable prompt[1:] is."""

    logprobs: npt.NDArray[np.float64]
    """In nats <float64>[N - 1]."""
    alternatives: WeighedPlaces
    """The most probable ids in each place, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What ReadParameters asked for: after each id, the output at its target; the columns; the last outputs, oldest
    first."""

    values: Floats | None
    """<float32>[N]"""
    curve: Floats | None
    """<float32>[N, K]"""
    outputs: Floats
    """<float32>[min(last, N), O]"""


@dataclass(frozen=True, slots=True)
class Tensors:
    """The outputs that TensorParameters asked for, by name: of each step, or of the last. [N, ...] or [1, ...] each"""

    outputs: Mapping[str, Array]


Result = Sampled | Found | Scores | Reading | Tensors

State = Mapping[str, Array]
"""One row of every state. Not to be written to."""
