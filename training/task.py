"""What a task is: the data to learn from, the network, its loss, and the figure to improve.

Each directory of `tasks/` holds one, which registers itself in TASKS by the name that recipes give in `run.task`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from torch import Tensor

from carousel.models.nn.checkpoint import Checkpoint
from carousel.models.nn.network import NETWORKS, Network
from carousel.models.nn.validation import CaptioningValidationData, ValidationData
from carousel.models.registry import Registry
from carousel.training.errors import RunError
from carousel.training.sections import Recipe

CarriedState = dict[str, Tensor]
R = TypeVar("R", bound=Recipe)
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A validation's result."""

    criterion: float
    """Lower is better."""
    figures: Mapping[str, float]
    """By name, for logs and for the checkpoint's header."""
    summary: str
    """For people."""
    nats: float = 0.0
    """Which of two equal criteria is better: the one of fewer nats. 0 where the criterion is in nats itself."""


class Task(ABC, Generic[R, W]):
    """A network, the windows that it learns from, and the data that it is measured on."""

    recipe_type: ClassVar[type[Recipe]]
    """Which sections its recipes have beside those of all."""
    unit: ClassVar[str]
    """What a window is counted in, for the progress display."""
    recipe: R
    criterion_name: str
    """What is improved."""
    module: Network
    corpus_sha256: str
    """Of the training files."""
    validation_sha256: str
    """Of the validation files; as the other where they are a part of the training files."""
    windows_per_epoch: int
    """Updates per epoch."""
    tokens_per_window: int
    """What one update reads, on average; for the progress display."""
    description: str
    """What was read, for people; a line or several."""

    @classmethod
    @abstractmethod
    def open(cls, recipe: R, saved: Checkpoint | None) -> Self:
        """Read the data and make the network.

        Args:
            recipe: what to do, of `recipe_type`.
            saved: the run to go on with; None where one begins.

        Raises:
            RecipeError: what the recipe asks for does not fit the files.
            CorpusError: the files cannot be used.
            RunError: they are not those of the run to go on with.
        """

    @abstractmethod
    def windows(self, epoch: int, start: int) -> Iterator[W]:
        """The windows of an epoch from `start` on, a function of the arguments alone."""

    def initial_state(self) -> CarriedState:
        """The state before an epoch's first window; nothing, where none is carried from window to window."""
        return {}

    @abstractmethod
    def loss(self, window: W, state: CarriedState) -> tuple[Tensor, CarriedState]:
        """The loss of a window <float32>[], and the state after it without its history."""

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Score the validation data with the module's present weights; draws no random number."""

    @abstractmethod
    def validation_data(self) -> ValidationData | CaptioningValidationData:
        """What `evaluate` measures on, for export."""

    @abstractmethod
    def published(self, evaluation: Evaluation) -> dict[str, Any]:
        """What the task says of a checkpoint's header (models/nn/header): codecs, files, ports, head, figures."""

    def kept(self) -> dict[str, Any]:
        """JSON values that `open` finds again in `saved`, beside what all tasks keep."""
        return {}

    def resume_header(self) -> dict[str, Any]:
        """What a resumption must find again: the corpus by digest, and what the task keeps."""
        corpus = {"corpus_sha256": self.corpus_sha256, "validation_sha256": self.validation_sha256}
        return {"task": self.recipe.run.task, **corpus, **self.kept()}

    def export_header(self, evaluation: Evaluation, steps: int) -> dict[str, Any]:
        """What export needs beside the weights (models/nn/header)."""
        return {
            "format": 2,
            "task": self.recipe.run.task,
            "network": {"kind": NETWORKS.name_of(type(self.module)), "config": self.module.config.to_json()},
            **self.published(evaluation),
            "provenance": {
                "recipe": self.recipe.name,
                "corpus_sha256": self.corpus_sha256,
                "parameters": self.module.parameter_count,
                "cell": self.module.stack.cell,
                "steps": steps,
            },
        }


TASKS: Registry[type[Task[Any, Any]]] = Registry("carousel.training.tasks")
"""By the name that a recipe's `run.task` gives."""


def require_same_corpus(train_sha256: str, validation_sha256: str, saved: Checkpoint | None) -> None:
    """See that the files are those of the run to go on with.

    Raises:
        RunError: they are others.
    """
    for key, seen in (("corpus_sha256", train_sha256), ("validation_sha256", validation_sha256)):
        if saved is not None and seen != saved.header[key]:
            raise RunError(
                f"the corpus's {key} is {seen}, but the run was started with {saved.header[key]}; "
                "restore the files to resume, or start anew with another --output"
            )
