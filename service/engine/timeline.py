"""When a request had come how far, on the event loop: what its spans are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from carousel.service.engine.parameters import FinishReason


class Moment(NamedTuple):
    """A moment of an engine."""

    at: float
    """Seconds of `time.perf_counter`."""
    steps: int
    """That it had reported until then."""
    step_rows: int
    """Rows of all these steps together."""


@dataclass(slots=True)
class Timeline:
    """One request's; None where it has not come so far. Belongs to the event loop."""

    rows: int
    """That it takes."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's, which were not consumed again."""
    generates: bool
    """Whether it adds ids to its prompt."""
    admitted_at: float
    submitted_at: float
    joined_at: float | None = None
    first_token: Moment | None = None
    ended: Moment | None = None
    reason: FinishReason | None = None
    new_tokens: int = 0
    """Until it ended."""
