"""`manifest.json`: what a bundle's graphs cannot say of themselves (models/README.md has the table)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from carousel.models.codec.image import Preprocessing
from carousel.models.step import Task

MANIFEST = "manifest.json"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What a model and a bundle's file may be called: one path component that cannot climb out of its directory."""

MAX_TEMPERATURE = 1_000
"""Of sampling: a masked logit (-inf) divided by what overflows float32 would be no number."""
MAX_LENGTH_PENALTY = 10
"""Of a beam: far above what is of use, and no length to its power overflows."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Precision = Literal["fp32", "int8"]
"""Of the products' weights and inputs. States, inputs and outputs of a graph are the same in either."""


Measure = Literal["relative perplexity", "AUC", "BLEU-4"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Part):
    """One file of the bundle as it was when published."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class TextCodecSpec(_Part):
    """Text in, text out, through a tokenizer of the `tokenizers` library."""

    kind: Literal["text"] = "text"
    tokenizer: Name = "tokenizer.json"

    @property
    def file(self) -> str:
        """The bundle's file that the codec is read from."""
        return self.tokenizer


class InteractionCodecSpec(_Part):
    """Attempts in, P(correct) of the next one out, over a list of skills."""

    kind: Literal["interaction"] = "interaction"
    skills: Name = "skills.json"

    @property
    def file(self) -> str:
        """The bundle's file that the codec is read from."""
        return self.skills


class ImageCodecSpec(_Part):
    """An image in, a caption out."""

    kind: Literal["image"] = "image"
    tokenizer: Name = "tokenizer.json"
    preprocessing: Preprocessing
    begin: str
    """The token that a caption's first step eats."""
    end: str
    """The token that ends a caption."""

    @property
    def file(self) -> str:
        """The bundle's file that the codec is read from."""
        return self.tokenizer


def _codec_kind(value: object) -> object:
    """Which codec a manifest speaks of: text where it does not say, as before there was another."""
    return value.get("kind", "text") if isinstance(value, dict) else getattr(value, "kind", None)


CodecSpec = Annotated[
    Annotated[TextCodecSpec, Tag("text")]
    | Annotated[InteractionCodecSpec, Tag("interaction")]
    | Annotated[ImageCodecSpec, Tag("image")],
    Discriminator(_codec_kind),
]


class Limits(_Part):
    """What one request may ask of this model."""

    max_prompt_tokens: Annotated[int, Field(ge=1)] = 262_144
    """Longest prompt; tracing: most attempts of one history."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 65_536
    """Most tokens to sample; captioning: longest caption, its end token counted."""
    max_beam_width: Annotated[int, Field(ge=1)] = 16


class DecodingDefaults(_Part):
    """Decoding parameters of a request that names none."""

    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    beam_width: Annotated[int, Field(ge=1)] = 1
    """Captioning: 1 is greedy."""
    length_penalty: Annotated[float, Field(ge=0, le=MAX_LENGTH_PENALTY)] = 0.0
    """Captioning: a beam's score is its log-probability over its length to this power."""


class Parity(_Part):
    """How far the exported graph was from the torch model, measured at export over a run with the state carried."""

    steps: int
    rows: int
    max_abs_error: float
    row_independent: bool


class LanguageValidation(_Part):
    """Figures on the training run's validation text."""

    tokens: int
    nats_per_token: float
    perplexity: float
    bits_per_character: float


class TracingValidation(_Part):
    """Figures on the training run's validation learners: each attempt but a learner's first, predicted."""

    attempts: int
    """How many were predicted."""
    auc: float
    """Area under the ROC curve, over all of them together."""
    accuracy: float
    """Share on the right side of 0.5."""
    log_loss: float
    """Nats per attempt."""


class CaptioningValidation(_Part):
    """Figures on the training run's validation images."""

    images: int
    beam_width: int
    """That the captions were decoded with."""
    length_penalty: float
    bleu_1: float
    bleu_4: float
    """Of the whole corpus, in [0, 100]."""
    nats_per_token: float
    """Of the reference captions, end tokens counted."""


class Quantization(_Part):
    """What rounding to int8 cost, measured at export on the training run's validation data."""

    fp32: LanguageValidation | TracingValidation | CaptioningValidation
    """The model's figures before it; `validation` holds those after it, measured alike."""
    measure: Measure
    """What `worsening` is in: perplexity divided by fp32's, less 1, or the AUC or points of BLEU-4 that were lost. Of
    captions and answers perplexity where the figure of their own cannot move."""
    worsening: float
    """Negative where int8 happens to be better."""
    allowed: float
    """Above it export would have refused."""


class Provenance(_Part):
    """Where the weights came from."""

    recipe: str
    corpus_sha256: Sha256
    parameters: int
    cell: str
    steps: int


_PARTS: Mapping[Task, tuple[type[_Part], type[_Part]]] = {
    "language": (TextCodecSpec, LanguageValidation),
    "tracing": (InteractionCodecSpec, TracingValidation),
    "captioning": (ImageCodecSpec, CaptioningValidation),
}
"""Task -> its codec and its validation figures."""


class Manifest(_Part):
    """`manifest.json`. Unknown keys are refused: a field that is not understood must not be ignored."""

    format: Literal[1] = 1
    task: Task
    codec: CodecSpec
    limits: Limits = Limits()
    decoding: DecodingDefaults = DecodingDefaults()
    precision: Precision = "fp32"
    parity: Parity | None = None
    validation: LanguageValidation | TracingValidation | CaptioningValidation | None = None
    """Of what is served: training's own figures for fp32, measured at export for int8."""
    quantization: Quantization | None = None
    provenance: Provenance | None = None
    weights: Name | None = None
    """The file that holds initializers of the graphs (models/weights.py); None where graphs hold all their own."""
    files: dict[Name, FileEntry]

    @model_validator(mode="after")
    def _parts_fit_task(self) -> Manifest:
        codec, validation = _PARTS[self.task]
        if not isinstance(self.codec, codec):
            raise ValueError(f"codec is of kind {self.codec.kind!r}, which is not that of task {self.task!r}")
        before = self.quantization.fp32 if self.quantization else None
        if not (isinstance(self.validation, validation | None) and isinstance(before, validation | None)):
            raise ValueError(f"validation holds figures that are not those of task {self.task!r}")
        return self
