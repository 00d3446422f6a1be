"""What an encoder gives, and how it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from carousel.service.engine.parameters import Array, Ids
from carousel.service.engine.port import Snapshot

NO_IDS: Ids = np.zeros(0, np.int64)


class EncodingFailed(Exception):
    """The encoder fails on this image; others are not affected."""


class EncoderStopped(Exception):
    """The encoder does not run: it was closed, or fails on an image of zeros too."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """What a sequence begins with: one row of every state, and of what steps read and never rewrite."""

    states: Mapping[str, Array]
    context: Mapping[str, Array]

    @property
    def snapshot(self) -> Snapshot:
        """The states for a Request to start from."""
        return Snapshot(self.states, NO_IDS)


@dataclass(frozen=True, slots=True)
class EncoderReport:
    """What one batch cost, retries of its images counted."""

    images: int
    seconds: float
