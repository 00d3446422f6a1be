"""What goes over the wire of the tracing routes, in both directions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    WrapValidator,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from carousel.service.api.wire.lists import each_told, few_told, in_slices
from carousel.service.api.wire.messages import CacheFields, MemoryFields, MemoryTold, UrgencyFields

MAX_LEARNERS = 1000
MAX_SKILLS = 10_000

Skill = Annotated[str | int, Field(description="A skill's name, or its id: its place in the model's list.")]
Skills = Annotated[list[Skill], Field(min_length=1, max_length=MAX_SKILLS, fail_fast=True), WrapValidator(each_told)]


@with_config(ConfigDict(extra="forbid", strict=True))
class Attempt(TypedDict):
    """One answer of a learner."""

    skill: Skill
    correct: StrictBool


class TraceFields(MemoryFields, CacheFields):
    """One learner: what was answered, and what to tell."""

    attempts: Annotated[list[Attempt], Field(description="Oldest first.", fail_fast=True), WrapValidator(in_slices)]
    skills: Annotated[Skills | None, Field(description="Skills to predict; all where left out.")] = None
    each: Annotated[bool, Field(description="Tell P(correct) of each attempt as it stood before it.")] = False
    curve: Annotated[Skills | None, Field(description="Skills whose P(correct) to tell after each attempt.")] = None
    unknown_skill: Annotated[
        Literal["error", "ignore"], Field(description="What to do about an attempt at a skill the model does not know.")
    ] = "error"


class TraceRequest(TraceFields, UrgencyFields):
    """A request for one learner."""


class Learner(TraceFields):
    """One of many."""

    id: Annotated[str | int | None, Field(description="Comes back with the answer.")] = None


class LearnersRequest(UrgencyFields):
    """A request for many learners: all are answered, or none is and nothing is kept."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_of_one(cls, value: Any) -> Any:
        if isinstance(value, dict) and (of_one := [name for name in TraceFields.model_fields if name in value]):
            raise ValueError(f"{' and '.join(of_one)} stand beside learners; give them in each of learners instead")
        return value

    learners: Annotated[
        list[Learner], Field(min_length=1, max_length=MAX_LEARNERS, fail_fast=True), WrapValidator(few_told)
    ]


def _kind(value: Any) -> str:
    return "many-learners" if isinstance(value, dict) and "learners" in value else "one-learner"


TraceBody = Annotated[
    Annotated[TraceRequest, Tag("one-learner")] | Annotated[LearnersRequest, Tag("many-learners")],
    Discriminator(_kind),
]
"""The tags have a hyphen, by which messages to clients leave them out (handlers.validation_message)."""


class Prediction(BaseModel):
    """P(correct) of the next attempt at a skill."""

    skill: str
    probability: float


class EachAttempt(BaseModel):
    """P(correct) of an attempt as it stood before it; null where there was nothing to predict it from."""

    skill: str | int
    correct: bool
    probability: float | None


class Curve(BaseModel):
    """P(correct) at a skill after each attempt that the model knows."""

    skill: str
    probabilities: list[float]


class LearnerAnswer(MemoryTold):
    """What the model says of one learner."""

    id: str | int | None = None
    attempts: Annotated[int, Field(description="How many were taken in.")]
    cached_tokens: Annotated[int, Field(description="Those of them that were not consumed again.")]
    ignored: Annotated[int | None, Field(description="How many were not, where that was allowed.")] = None
    predictions: list[Prediction]
    each: list[EachAttempt] | None = None
    curve: list[Curve] | None = None


class TraceResponse(LearnerAnswer):
    """The answer to a request for one learner."""

    model: str
    version: int


class LearnersResponse(BaseModel):
    """The answer to a request for many, in the request's order."""

    model: str
    version: int
    learners: list[LearnerAnswer]
