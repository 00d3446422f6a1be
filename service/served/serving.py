"""How a model is run on this machine: what was tried when it was opened, and what it has had to do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from carousel.service.engine.probe import Company

Prefilled = Literal["graphs", "steps", "none"]
"""How long prompts are consumed: many ids a call; one a step, though the bundle has graphs for more; or it has none."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is run. Each word is a label of `carousel_model_info`, too.

    Args:
        rows: how rows share calls of the step graph.
        provider: where steps run, as CAROUSEL_PROVIDERS calls it.
        prefill: how long prompts are consumed.
        encoder: how inputs share calls of the encoder graph.
        encoder_provider: where that runs.
        max_rows: sequences that run at once.
        reasons: for each part that is not as it might be, a sentence why.
    """

    rows: Company = "together"
    provider: str = "cpu"
    prefill: Prefilled = "none"
    encoder: Literal["together", "alone", "none"] = "none"
    encoder_provider: str = "none"
    max_rows: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """The words among them."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, str)}
