"""How probable each token of a text is, given all before it: what scores and echoed completions are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carousel.service.engine.parameters import FinishReason, Ids, ScoreParameters, Scores
from carousel.service.engine.port import Place, Request, Snapshot
from carousel.service.engine.weighed_places import WeighedPlaces
from carousel.service.prefixes.prefixes import Beginning
from carousel.service.served.repository import ServedModel
from carousel.service.work.generation import after_all, paid_before, run_to_end


@dataclass(frozen=True, slots=True)
class Weighed:
    """A text's tokens, weighed, and how to go on from it."""

    logprobs: list[float | None]
    """Of each token, in nats, minus infinity where it is impossible; None for one that has nothing before it."""
    beside: WeighedPlaces
    """Of each token, the most probable ones in its place, where they were asked for."""
    beginning: Beginning | None
    """How a sequence starts that goes on from the text: but for the last id it is consumed. None where nothing was."""
    snapshot: Snapshot | None
    """The memory of the text, where it is to be kept and something was weighed."""


async def weigh(
    model: ServedModel,
    admission: Place,
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
        return Weighed([None], WeighedPlaces().last(0, empty=1), None, None)
    head = ScoreParameters(alternatives)
    request = Request(ids, head, snapshot=before, keep_state=keep_state, paid=paid_before(before))
    end = await run_to_end(model, admission, request)
    if end.reason is FinishReason.CANCELLED:
        return None
    if alone:
        model.metrics.queued(admission)
    scores = end.result
    assert isinstance(scores, Scores)
    known = len(text) - unweighed  # what was left of an earlier text is not asked about
    return Weighed(
        logprobs=[*[None] * unweighed, *scores.logprobs[-known:].tolist()],
        beside=scores.alternatives.last(known if alternatives else 0, empty=unweighed if alternatives else len(text)),
        beginning=None if end.snapshot is None else after_all(ids, end.snapshot.state),
        snapshot=end.snapshot,
    )
