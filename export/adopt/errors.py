"""Why a stranger's network is not adopted."""

from __future__ import annotations

from carousel.models.errors import CarouselError


class AdoptionRefused(CarouselError):
    """The graph cannot be served as a step, or not as it was said: which node or tensor, and what to do."""


class NotTheFile(AdoptionRefused):
    """The graph is not what the file is."""
