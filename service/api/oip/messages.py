"""The JSON of the Open Inference Protocol (version 2, REST), with Triton's extensions for binary tensors and sequences.

Whatever the protocol leaves to servers (an `id` and parameters of a client's own) is taken and passed over.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

MAX_TENSORS = 64
MAX_DIMENSIONS = 16
MAX_SEQUENCE_CHARACTERS = 1_000
Name = Annotated[StrictStr, Field(max_length=200)]


class _Parameters(BaseModel):
    """Parameters: those that are read, and any that are not."""

    model_config = ConfigDict(extra="allow")


class InputParameters(_Parameters):
    """Of a tensor that is sent."""

    binary_data_size: Annotated[StrictInt | None, Field(ge=0, description="Bytes of it, behind the JSON.")] = None


class OutputParameters(_Parameters):
    """Of a tensor that is asked for."""

    binary_data: Annotated[StrictBool | None, Field(description="Answer with bytes behind the JSON.")] = None


class RequestParameters(_Parameters):
    """Of a request."""

    sequence_id: Annotated[
        Annotated[StrictInt, Field(ge=0, lt=2**64)] | Annotated[StrictStr, Field(max_length=MAX_SEQUENCE_CHARACTERS)],
        Field(description="Whose state to go on from; 0 and an empty text are none. 7 and '7' are two sequences."),
    ] = 0
    sequence_start: Annotated[StrictBool, Field(description="Begin the sequence, anew where there is one.")] = False
    sequence_end: Annotated[StrictBool, Field(description="Forget the sequence after this step.")] = False
    priority: Annotated[StrictInt, Field(ge=0, description="Above 1: waits as long as anybody does whose is not.")] = 0
    timeout: Annotated[StrictInt, Field(ge=0, description="Microseconds that it may take; 0 is no limit.")] = 0
    binary_data_output: Annotated[
        StrictBool, Field(description="Answer with bytes, but for outputs that say otherwise.")
    ] = False


class InferInput(BaseModel):
    """A tensor that is sent: in `data`, or as bytes behind the JSON."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    shape: Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1, max_length=MAX_DIMENSIONS)]
    datatype: StrictStr
    parameters: InputParameters = InputParameters()
    data: Annotated[list[Any] | None, Field(description="Row by row, flat or nested.")] = None


class InferOutput(BaseModel):
    """A tensor that is asked for."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    parameters: OutputParameters = OutputParameters()


class InferRequest(BaseModel):
    """One step of each row; of a sequence, of one row."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[StrictStr, Field(max_length=1_000, description="Comes back with the answer.")] = ""
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InferInput], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[
        list[InferOutput] | None, Field(max_length=MAX_TENSORS, description="All where left out, or empty.")
    ] = None


class TensorMetadata(BaseModel):
    """A port: -1 in its shape is the number of rows."""

    name: str
    datatype: str
    shape: list[int]


class InferResponseOutput(TensorMetadata):
    """A tensor of an answer."""

    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """What a model says."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[InferResponseOutput]


class ServerMetadata(BaseModel):
    """Who answers, and which extensions of the protocol it knows."""

    name: str
    version: str
    extensions: list[str]


class ModelMetadata(BaseModel):
    """A model that is served. States are nobody's ports."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(BaseModel):
    """The process runs."""

    live: bool


class Ready(BaseModel):
    """The server, or a model, can be asked."""

    ready: bool


class ModelReady(Ready):
    """A model can be asked."""

    name: str


class IndexEntry(BaseModel):
    """A version of a model in the repository."""

    name: str
    version: str
    state: Annotated[str, Field(description="READY, or UNAVAILABLE.")]
    reason: str


class OipError(BaseModel):
    """What went wrong, in one text, as the protocol has it."""

    error: str
