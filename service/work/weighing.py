"""How probable each token of a text is, given all before it: what scores and echoed completions are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carousel.service.engine.admission.admission import Admission
from carousel.service.engine.sequence import Alternative, FinishReason, Ids, Sequence, Snapshot
from carousel.service.prefixes.prefixes import Beginning
from carousel.service.served.repository import ServedModel
from carousel.service.work.generation import after_all, paid_before, run_quietly


@dataclass(frozen=True, slots=True)
class Weighed:
    """A text's tokens, weighed, and how to go on from it."""

    logprobs: list[float | None]
    """Of each token, in nats, minus infinity where it is impossible; None for one that has nothing before it."""
    beside: list[tuple[Alternative, ...]]
    """Of each token, the most probable ones in its place, where they were asked for."""
    beginning: Beginning | None
    """How a sequence starts that goes on from the text: but for the last id it is eaten. None where nothing was."""
    snapshot: Snapshot | None
    """The memory of the text, where it is to be kept and something was weighed."""


async def weigh(
    model: ServedModel,
    admission: Admission,
    text: Ids,
    before: Snapshot | None = None,
    *,
    alternatives: int = 0,
    keep_state: bool = False,
    alone: bool = True,
) -> Weighed | None:
    """Weigh the ids of a text; None where that was cancelled.

    Args:
        model: the model.
        admission: a place of one row; it may be used again afterwards.
        text: <int64>[N], N at least 1
        before: memory to go on from; None starts from zeros, and leaves the first id unweighed.
        alternatives: how many of the most probable tokens to tell in each place.
        keep_state: whether anybody goes on from it.
        alone: whether this is all of the request: what is sampled after it tells how long the request waited.

    Raises:
        ServiceError: step_failed, deadline_exceeded or model_unavailable.
    """
    ids = text if before is None else np.concatenate([before.pending, text])
    unweighed = max(0, len(text) - len(ids) + 1)
    if len(ids) == 1:
        return Weighed([None], [()], None, None)
    sequence = Sequence(
        ids, None, snapshot=before, keep_state=keep_state, alternatives=alternatives, paid=paid_before(before)
    )
    end = await run_quietly(model, admission, sequence)
    if end.reason is FinishReason.CANCELLED:
        return None
    if alone:
        model.metrics.queued(admission, sequence)
    assert end.logprobs is not None
    known = len(text) - unweighed  # what was left of an earlier text is not asked about
    return Weighed(
        logprobs=[*[None] * unweighed, *end.logprobs[-known:].tolist()],
        beside=[*[()] * unweighed, *(sequence.beside[-known:] if alternatives else [()] * known)],
        beginning=None if end.snapshot is None else after_all(ids, end.snapshot.state),
        snapshot=end.snapshot,
    )
