"""`manifest.json`: what a bundle's graphs cannot say of themselves (models/README.md has the table)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from carousel.models.codec.spec import AnyCodecSpec
from carousel.models.figures import Figures
from carousel.models.head import AnyHeadSpec
from carousel.models.part import Part

MANIFEST = "manifest.json"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What a model and a bundle's file may be called: one path component that cannot climb out of its directory."""

MAX_TEMPERATURE = 1_000
"""Of sampling: a masked logit (-inf) divided by what overflows float32 would be no number."""
MAX_LENGTH_PENALTY = 10
"""Of a beam: far above what is of use, and no length to its power overflows."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
PortName = Annotated[str, Field(min_length=1, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Precision = Literal["fp32", "int8"]
"""Of the products' weights and inputs. States, inputs and outputs of a graph are the same in either."""


class FileEntry(Part):
    """One file of the bundle as it was when published."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class StoredRow(Part):
    """A state's first row, in a file of numpy's `.npy` format."""

    file: Name


class StateSpec(Part):
    """A state: the input that holds it before a step, the output that holds it after."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    before: Annotated[PortName, Field(alias="in")]
    after: Annotated[PortName, Field(alias="out")]
    initial: Literal["zeros", "encoder"] | StoredRow = "zeros"


class StepSpec(Part):
    """The graph of one step."""

    graph: Name = "step.onnx"
    inputs: tuple[PortName, ...]
    """What a step is fed, in order; none for a network that goes on by itself."""
    outputs: tuple[PortName, ...]
    """What it says, but the states."""
    states: Annotated[tuple[StateSpec, ...], Field(min_length=1)]
    context: tuple[PortName, ...] = ()
    """What every step of a sequence reads and none rewrites."""
    non_finite: tuple[PortName, ...] = ()
    """Inputs that may hold NaN and infinity, as for what was not measured; all others refuse them."""


NO_STEP = StepSpec.model_construct(graph="", inputs=(), outputs=(), states=(), context=())
"""That of a bundle which is an encoder alone."""


class EncoderSpec(Part):
    """The graph that takes a whole input in one call."""

    graph: Name = "encoder.onnx"
    inputs: Annotated[tuple[PortName, ...], Field(min_length=1)]
    lengths: PortName | None = None
    """The input that says how long each row of a free time axis is."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Most places of that axis; None for as many as a request may have."""
    gives: Annotated[tuple[PortName, ...], Field(min_length=1)]
    """Its outputs: the states and the context that a step begins with, under the step's names; all, without a step."""


class Limits(Part):
    """What one request may ask of this model."""

    max_prompt_tokens: Annotated[int, Field(ge=1)] = 262_144
    """Longest prompt; tracing: most attempts of one history."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 65_536
    """Most tokens to sample; captioning: longest caption, its end token counted."""
    max_beam_width: Annotated[int, Field(ge=1)] = 16


class DecodingDefaults(Part):
    """Decoding parameters of a request that names none."""

    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    beam_width: Annotated[int, Field(ge=1)] = 1
    """Captioning: 1 is greedy."""
    length_penalty: Annotated[float, Field(ge=0, le=MAX_LENGTH_PENALTY)] = 0.0
    """Captioning: a beam's score is its log-probability over its length to this power."""


class Parity(Part):
    """How far the exported graph was from what it was made of, measured at export over a run with the state carried."""

    steps: int
    rows: int
    max_abs_error: float
    row_independent: bool


class Provenance(Part):
    """Where the weights came from."""

    recipe: str
    corpus_sha256: Sha256
    parameters: int
    cell: str
    steps: int


class Manifest(Part):
    """`manifest.json`, format 2. Format 1 is read through `models.format1`."""

    format: Literal[2] = 2
    task: Name
    """What the model is for. The service has routes for the tasks that it knows."""
    encoder: EncoderSpec | None = None
    step: StepSpec = NO_STEP
    prefill: tuple[Name, ...] = ()
    """Graphs that take many steps in a call, from the lowest up; none where prompts are fed to `step`."""
    ports: Mapping[PortName, Name] = Field(default_factory=dict)
    """By port the name of its codec."""
    codecs: Mapping[Name, AnyCodecSpec] = Field(default_factory=dict)
    head: AnyHeadSpec
    limits: Limits = Limits()
    decoding: DecodingDefaults = DecodingDefaults()
    precision: Precision = "fp32"
    parity: Parity | None = None
    figures: Figures | None = None
    provenance: Provenance | None = None
    weights: Name | None = None
    """The file that holds initializers of the graphs (models/weights.py); None where graphs hold all their own."""
    files: Mapping[Name, FileEntry]

    @model_validator(mode="after")
    def _has_a_graph(self) -> Manifest:
        if not self.step.graph and self.encoder is None:
            raise ValueError("a bundle has a step, an encoder, or both, and this has neither")
        return self

    @property
    def needed_files(self) -> tuple[str, ...]:
        """Files that a part of it names, each once."""
        named = [*([self.step.graph] if self.step.graph else []), *self.prefill]
        named += [] if self.encoder is None else [self.encoder.graph]
        named += [file for codec in self.codecs.values() for file in codec.files]
        named += [state.initial.file for state in self.step.states if isinstance(state.initial, StoredRow)]
        return tuple(dict.fromkeys(named if self.weights is None else [*named, self.weights]))
