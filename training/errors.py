"""What can be wrong with a training run before it starts, and the one thing that can go wrong in it.

    CarouselError
    ├── RecipeError     a recipe or an override that cannot be used
    ├── CorpusError     a text that cannot be trained on
    └── RunError        a run directory that does not fit what was asked, or a run that diverged

Every message is one sentence: what was seen, what was allowed, what to do.
"""

from carousel.models.errors import CarouselError


class RecipeError(CarouselError):
    """A recipe, or an override of it, that cannot be used."""


class CorpusError(CarouselError):
    """A text that cannot be trained on."""


class RunError(CarouselError):
    """A run directory that does not fit what was asked, or a run that diverged."""
