"""A trained network and its codec, as most tests want them."""

from __future__ import annotations

from carousel.models.codec.caption import CaptionCodec
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.codec.text import TextCodec
from carousel.models.features import FrozenEncoder
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.checkpoint import Checkpoint
from carousel.models.nn.language import LanguageModel
from carousel.models.nn.load import caption_codec, load
from carousel.models.nn.tracing import TracingModel


def load_language_model(checkpoint: Checkpoint) -> tuple[LanguageModel, TextCodec]:
    trained = load(checkpoint)
    assert isinstance(trained.network, LanguageModel)
    return trained.network, trained.codec(TextCodec)


def load_tracing_model(checkpoint: Checkpoint) -> tuple[TracingModel, InteractionCodec]:
    trained = load(checkpoint)
    assert isinstance(trained.network, TracingModel)
    return trained.network, trained.codec(InteractionCodec)


def load_captioning_model(checkpoint: Checkpoint) -> tuple[CaptioningModel, CaptionCodec]:
    trained = load(checkpoint)
    assert isinstance(trained.network, CaptioningModel)
    return trained.network, caption_codec(trained)


def frozen_encoder(checkpoint: Checkpoint) -> FrozenEncoder | None:
    return load(checkpoint).encoder
