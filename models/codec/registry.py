"""Every kind of codec. One more is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from carousel.models.codec.image import ImageCodecSpec
from carousel.models.codec.interaction import InteractionCodecSpec
from carousel.models.codec.labels import LabelsCodecSpec
from carousel.models.codec.numbers import NumbersCodecSpec
from carousel.models.codec.spec import CodecSpec
from carousel.models.codec.tags import TagsCodecSpec
from carousel.models.codec.text import TextCodecSpec
from carousel.models.part import by_kind

CODECS: Mapping[str, type[CodecSpec]] = {
    spec.names_kind: spec
    for spec in (
        TextCodecSpec,
        InteractionCodecSpec,
        ImageCodecSpec,
        NumbersCodecSpec,
        LabelsCodecSpec,
        TagsCodecSpec,
    )
}


def codec_spec(value: object) -> CodecSpec:
    """What a manifest says of a codec, read by its kind.

    Raises:
        ValueError: there is no such kind, or it is said otherwise.
    """
    return by_kind(value, CODECS, "a codec")


AnyCodecSpec = Annotated[SerializeAsAny[CodecSpec], BeforeValidator(codec_spec)]
"""A field of a manifest."""
