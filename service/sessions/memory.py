"""What a recurrent model remembers of one learner or writer, and which model may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from carousel.models.bundle import Bundle
from carousel.service.engine.parameters import Ids
from carousel.service.engine.port import Snapshot
from carousel.service.engine.states.pool import StateSpec
from carousel.service.sessions.errors import ModelMismatch

NO_IDS: Ids = np.zeros(0, np.int64)

OUTPUT = "output"
"""A row that a memory may hold beside the model's states: what the model said after the last id it consumed."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model it is: what a memory is stamped with and checked against.

    `digest` is the sha256 of the bundle's manifest, which holds those of all its files; `states` are one row each.
    """

    name: str
    version: int
    digest: str
    states: Mapping[str, StateSpec]

    @property
    def state_bytes(self) -> int:
        """What a sequence's states take."""
        return sum(spec.row_bytes for spec in self.states.values())

    @classmethod
    def of(cls, bundle: Bundle) -> ModelIdentity:
        """The identity of an open bundle."""
        states = {
            spec.name: StateSpec(tuple(size or 0 for size in spec.shape[1:]), spec.dtype) for spec in bundle.states
        }
        return cls(bundle.model, bundle.version, bundle.digest, states)


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """A snapshot and the few facts around it. Its size does not depend on how much the model has consumed.

    Args:
        model: name of the model that made it.
        version: that model's version.
        digest: that model's digest, in hexadecimal.
        snapshot: one row of every state, and the ids not yet consumed.
        steps: ids consumed since the memory began.
        created_at: when it began, Unix seconds.
        updated_at: when it was last written, Unix seconds.
        context: the last ids, which a detokeniser must know to go on. <int64>[at most a few]
    """

    model: str
    version: int
    digest: str
    snapshot: Snapshot
    steps: int
    created_at: float
    updated_at: float
    context: Ids


def remember(
    model: ModelIdentity,
    snapshot: Snapshot,
    *,
    consumed: int,
    now: float,
    before: Memory | None = None,
    context: Ids = NO_IDS,
) -> Memory:
    """The memory after a request: what to commit to a session or to sign.

    Args:
        model: the model that ran.
        snapshot: how it ended.
        consumed: ids that this request made it consume.
        now: Unix seconds.
        before: the memory that the request went on from; None where it began from zeros.
        context: the last ids of the text.
    """
    return Memory(
        model=model.name,
        version=model.version,
        digest=model.digest,
        snapshot=snapshot,
        steps=consumed + (0 if before is None else before.steps),
        created_at=now if before is None else before.created_at,
        updated_at=now,
        context=context,
    )


def check_fit(memory: Memory, model: ModelIdentity) -> None:
    """Refuse a memory that the model must not go on from.

    A memory fits when its digest is the model's, its states (OUTPUT is none) have the model's names, shapes and types,
    and all its numbers are finite: an int8 graph's logits are numbers whatever the state holds, so the engine, which
    looks at them alone, would not notice. Name and version do not matter: a bundle that was copied, renamed or
    renumbered byte for byte is the same network. A bundle of equal shapes and another digest is not: its numbers would
    be read as something that they do not mean.

    Raises:
        ModelMismatch
    """
    if memory.digest != model.digest:
        raise ModelMismatch(
            f"the memory was made by {memory.model} version {memory.version} (digest {memory.digest[:12]}) and served "
            f"is {model.name} version {model.version} (digest {model.digest[:12]}); start anew without it"
        )
    rows = {name: row for name, row in memory.snapshot.state.items() if name != OUTPUT}
    if rows.keys() != model.states.keys() or any(
        row.shape != model.states[name].shape or row.dtype != model.states[name].dtype for name, row in rows.items()
    ):
        seen = {name: StateSpec(row.shape, row.dtype.name) for name, row in rows.items()}
        raise ModelMismatch(
            f"the memory holds the states {_describe(seen)} and {model.name} version {model.version} has "
            f"{_describe(model.states)}; start anew without it"
        )
    broken = [name for name, row in memory.snapshot.state.items() if not np.isfinite(row).all()]
    if broken:
        raise ModelMismatch(
            f"the memory's {', '.join(broken)} holds numbers that are not finite, which no model can go on from; "
            "start anew without it"
        )


def _describe(states: Mapping[str, StateSpec]) -> str:
    return ", ".join(f"{name} {spec.dtype}{list(spec.shape)}" for name, spec in sorted(states.items()))
