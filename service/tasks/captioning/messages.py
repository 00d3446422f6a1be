"""What goes over the wire of the captioning routes, in both directions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter, WrapValidator, model_validator

from carousel.models.codec.caption import caption_codec
from carousel.models.manifest import MAX_LENGTH_PENALTY
from carousel.service.api.wire.lists import few_told
from carousel.service.api.wire.messages import Cancel, UrgencyFields
from carousel.service.api.wire.sampling import SamplingFields, Temperature, check_top_k
from carousel.service.engine.parameters import BeamParameters
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.captioning.captions import CaptionParameters, check_attention

MAX_IMAGES = 128

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")

Base64 = Annotated[str, Field(description="An image file in base64, or as a data URI of it. Nothing is ever fetched.")]


class CaptionFields(SamplingFields, UrgencyFields):
    """How to caption, and what to tell. What is left out is the model's default (its manifest's `decoding`)."""

    temperature: Annotated[
        Temperature | None, Field(description="Above 0, or 1 with another field of sampling: sample one caption.")
    ] = None
    beam_width: Annotated[
        int | None, Field(ge=1, description="Hypotheses that the search keeps; 1 is greedy. A beam does not sample.")
    ] = None
    length_penalty: Annotated[
        float | None,
        Field(
            ge=0,
            le=MAX_LENGTH_PENALTY,
            allow_inf_nan=False,
            description="A caption's score is its log-probability over its length to this power.",
        ),
    ] = None
    n: Annotated[int, Field(ge=1, description="Captions of each image, the best first; at most beam_width.")] = 1
    max_tokens: Annotated[int | None, Field(ge=1, description="Longest caption, its end counted.")] = None
    attention: Annotated[bool, Field(description="Tell where the model looked for each token.")] = False
    stream: Annotated[
        bool, Field(description="Tell each token as it comes, as server-sent events: one image, greedy or sampled.")
    ] = False

    def caption_parameters(self, model: ServedModel) -> CaptionParameters:
        """What the fields ask of the engine.

        Raises:
            ValueError: a value that this model does not allow, or two that do not go together.
            RequestError: no_attention.
        """
        manifest = model.bundle.manifest
        fields = type(self).model_fields  # clients that are generated send what is the default, too
        sampling = [name for name in SAMPLING if getattr(self, name) not in (None, fields[name].default)]
        width = self.beam_width
        if sampling and (width or 1) > 1:
            raise ValueError(
                f"{sampling[0]} and a beam_width of {width:,} do not go together: a beam finds the most probable "
                "captions and samples none; leave one of them out"
            )
        if width is None:
            width = 1 if sampling or self.stream else manifest.decoding.beam_width
        if self.stream and width > 1:
            raise ValueError(f"stream is for beam_width 1, and it is {width:,}: a beam has no words before its end")
        widest = min(manifest.limits.max_beam_width, model.engine.describe().max_rows)
        if width > widest:
            raise ValueError(
                f"beam_width is {width:,}; allowed are 1 to {widest:,} (manifest limits.max_beam_width, and the rows "
                "that the server runs at once)"
            )
        if self.n > width:
            raise ValueError(f"n is {self.n:,}; allowed are 1 to beam_width, which is {width:,}")
        if self.attention:
            check_attention(model)
        sampled = self.parameters(
            manifest,
            default_max_tokens=manifest.limits.max_new_tokens,
            default_temperature=1.0 if sampling else 0.0,
        )
        check_top_k(sampled.top_k, caption_codec(model.bundle).text.vocabulary_size)
        penalty = manifest.decoding.length_penalty if self.length_penalty is None else self.length_penalty
        if width > 1:
            end_id = caption_codec(model.bundle).end_id
            beam = BeamParameters(width, sampled.max_tokens, end_id, penalty, self.n)
            return CaptionParameters(beam, penalty, self.attention)
        return CaptionParameters(sampled, penalty, self.attention)


class CaptionsRequest(CaptionFields):
    """Ask for captions of one image or of many: all are captioned, or none is."""

    image: Base64 | None = None
    images: (
        Annotated[list[Base64], Field(min_length=1, max_length=MAX_IMAGES, fail_fast=True), WrapValidator(few_told)]
        | None
    ) = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.image is None) == (self.images is None):
            raise ValueError("give either image or images")
        return self


class StreamSampling(SamplingFields):
    """The `sampling` object of a captioning model's stream."""


class CaptionStart(UrgencyFields):
    """Caption the image given here; without one, the next binary frame, in this way."""

    type: Literal["start"]
    image: Base64 | None = None
    sampling: StreamSampling = StreamSampling()
    attention: Annotated[bool, Field(description="Let each token tell where the model looked.")] = False

    @property
    def fields(self) -> CaptionFields:
        """As the fields of a request."""
        given = self.sampling.model_dump(include=self.sampling.model_fields_set)
        return CaptionFields(**given, attention=self.attention, stream=True)


CaptionStreamMessage: TypeAdapter[CaptionStart | Cancel] = TypeAdapter(
    Annotated[CaptionStart | Cancel, Field(discriminator="type")]
)


class TokenAttention(BaseModel):
    """Where the model looked before it said a token: shares over the image's parts, rows from the top, of sum 1."""

    text: str
    map: list[list[float]]


class CaptionInfo(BaseModel):
    """One caption."""

    text: str
    logprob: Annotated[float, Field(description="Of the whole caption, its end counted, in nats.")]
    score: Annotated[float, Field(description="What captions of an image are ordered by: see length_penalty.")]
    finish_reason: Annotated[Literal["stop", "length"], Field(description="`length` where it was cut off.")]
    tokens: Annotated[list[int], Field(description="Ids, without the end token.")]
    attention: Annotated[list[TokenAttention] | None, Field(description="For each token, where asked for.")] = None


class CaptionedImage(BaseModel):
    """The captions of one image, the best first."""

    captions: list[CaptionInfo]


class CaptionsResponse(BaseModel):
    """The captions of all images, in the order of the request."""

    model: str
    version: int
    images: list[CaptionedImage]
