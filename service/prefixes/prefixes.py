"""Which beginning of a prompt need not be consumed again, and which states of the rest are worth keeping.

A recurrent state is as long after four thousand ids as after four, and it is exact to the id: whoever goes on from it
gets, bit for bit, what consuming all of them would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from carousel.service.engine.parameters import Ids, State
from carousel.service.engine.port import Snapshot
from carousel.service.keys.caller import current_caller
from carousel.service.prefixes.cache import STRIDE, PrefixCache, Prompt, Scope

MIN_LENGTH = 4
"""Ids from which on a state is kept. To find and to keep one takes the event loop about 30 microseconds (`python -m
benchmarks.prefix`), which a small model's step of 64 rows takes for two of them. Below twice that, the room is worth
more to longer ones."""

SHARE = 8
"""Checkpoints on the way through one prompt take at most such a part of the cache: states may be large, and others have
prompts too."""

MAX_STRIDES = 16
"""Checkpoints on the way through one prompt, so that the second which shares a beginning need not wait for a third.
They are STRIDE ids apart, as often as the engine visits a row anyhow; in a longer prompt, further."""


def _drop(length: int, state: State) -> None:
    """Keep nothing."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a sequence that starts from zeros may start instead. The default: from zeros, and nothing is kept.

    Args:
        length: ids of the prompt that need not be consumed: `Request.consumed`.
        snapshot: the memory after them; None where there are none.
        checkpoints: `Request.checkpoints`.
        put: where the states go, by how many ids have led to them.
    """

    length: int = 0
    snapshot: Snapshot | None = None
    checkpoints: tuple[int, ...] = ()
    put: Callable[[int, State], None] = _drop

    def keep(self, states: Mapping[int, State]) -> None:
        """Keep the states on the way through the prompt, told with the first event of a request that did not fail.

        A state that is not finite is not kept: an int8 graph's logits are numbers whatever the state holds.
        """
        for length in self.checkpoints:
            state = states.get(length)
            if state is not None and all(np.isfinite(row).all() for row in state.values()):
                self.put(length, state)


FROM_ZEROS = Beginning()


class Prefixes:
    """One model's part of the cache.

    Args:
        cache: shared by all models.
        digest: the model's.
        state_bytes: what a sequence's states take.
        on_lookup: called with the tokens of each prompt that is looked up, and how many need not be consumed.
    """

    def __init__(
        self, cache: PrefixCache, digest: str, state_bytes: int, on_lookup: Callable[[int, int], None]
    ) -> None:
        self._cache = cache
        self._digest = digest
        self._strides = min(MAX_STRIDES, cache.max_bytes // SHARE // max(1, state_bytes))
        self._room = cache.max_bytes > state_bytes
        self._on_lookup = on_lookup

    def begin(self, prompt: Ids, salt: str | None, fed: Prompt | None = None) -> Beginning:
        """How a sequence that consumes this prompt from zeros is to start.

        Args:
            prompt: <int64>[N]
            salt: callers that give different ones never meet.
            fed: what each step is fed, where that is not the id itself. [N]
        """
        key = prompt if fed is None else fed
        end = len(prompt) - 1
        if end < MIN_LENGTH or not self._room:
            return FROM_ZEROS
        scope = Scope(self._digest, current_caller().tenant, salt)
        match = self._cache.find(scope, key)
        self._on_lookup(len(prompt), match.length)
        stride = max(STRIDE, -(-end // self._strides)) if self._strides else end
        checkpoints = {*range(stride, end, stride), match.known, end}  # `known`: where prompts part, the next may meet
        return Beginning(
            length=match.length,
            snapshot=None if match.state is None else Snapshot(match.state, prompt[match.length :]),
            checkpoints=tuple(sorted(at for at in checkpoints if at > match.length and at >= MIN_LENGTH)),
            put=lambda length, state: self._cache.put(scope, key[:length], state),
        )

    def drop(self) -> None:
        """Forget every state: the model is no longer served."""
        self._cache.drop(self._digest)
