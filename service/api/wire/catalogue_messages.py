"""What is told of the served models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class StateInfo(BaseModel):
    """One recurrent state: its name, shape of one row, and type."""

    name: str
    shape: list[int]
    dtype: str


class ServingInfo(BaseModel):
    """How a model is run on this machine."""

    rows: Annotated[
        Literal["together", "padded", "alone"],
        Field(
            description="`together`: all that run share a step. `padded`: likewise, and one that runs alone is run "
            "twice. `alone`: each has steps of its own, because its result would depend on the others."
        ),
    ]
    provider: Annotated[str, Field(description="Where steps run: `cpu` or `cuda`.")]
    prefill: Annotated[
        Literal["graphs", "steps", "none"],
        Field(description="How long prompts are consumed: many tokens a call, or one a step; `none`: it has no graph."),
    ]
    encoder: Annotated[
        Literal["together", "alone", "none"], Field(description="Whether images share a call of the encoder.")
    ]
    encoder_provider: Annotated[str, Field(description="Where the encoder runs: `cpu`, `cuda` or `none`.")]
    max_rows: Annotated[int, Field(description="Sequences that run at once.")]
    reasons: Annotated[
        dict[str, str], Field(description="Why a part is not as it might be, by the names above; empty if all are.")
    ]


class PortInfo(BaseModel):
    """What goes in or out of a step or an encoder: its name, shape of one row (-1: as long as one likes), and type."""

    name: str
    shape: list[int]
    dtype: str


class ModelInfo(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    task: str
    version: int
    digest: str
    precision: str
    vocabulary_size: Annotated[int | None, Field(description="Of a language or captioning model.")]
    skills: Annotated[list[str] | None, Field(description="Of a tracing model: the names; a skill's id is its place.")]
    preprocessing: Annotated[
        dict[str, Any] | None, Field(description="Of a captioning model: how an image is made ready for it.")
    ]
    attention: Annotated[
        list[int] | None, Field(description="Rows and columns of the maps of a model that says where it looks.")
    ]
    inputs: Annotated[
        list[PortInfo] | None, Field(description="Of a model of prediction: what each step is fed, one row.")
    ]
    context: Annotated[list[PortInfo] | None, Field(description="Likewise: what all steps of a sequence read.")]
    outputs: Annotated[list[PortInfo] | None, Field(description="Likewise: what each step says.")]
    serving: ServingInfo
    state_bytes: Annotated[int, Field(description="What the states of one sequence take.")]
    states: list[StateInfo]
    limits: dict[str, Any]
    decoding: Annotated[
        dict[str, Any] | None, Field(description="How a language or captioning model samples by default.")
    ]
    validation: dict[str, Any] | None
    provenance: dict[str, Any] | None


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]
