"""How well a captioning model predicts people's captions, and what it says itself.

Axes: N images, S steps that are present.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from carousel.models.codec.caption import CaptionCodec
from carousel.models.nn.beam import Hypothesis, best_captions
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.strict import NotNegative, Strict
from carousel.training.tasks.captioning.batches import IGNORED, Images, Marks, rectangle


class Decoding(Strict):
    """How validation captions are generated, and what a published model does unasked."""

    beam_width: Annotated[int, Field(ge=1, le=16)] = 3
    """1 is greedy."""
    length_penalty: NotNegative = 0.0
    """A caption's score is its log-probability over its length to this power."""
    criterion: Literal["bleu_4", "nats_per_token"] = "bleu_4"
    """By which validation figure the best weights are known; of equals, those with fewer nats. nats_per_token
    also where BLEU-4 is 0 whatever the model says, as no validation caption has four words."""


CHUNK_IMAGES = 100
"""Images a pass: bounds memory."""


def chunks(images: Images, count: int) -> Iterator[tuple[slice, Tensor]]:
    """All images, in their first version, some at a time, each time with their places."""
    for start in range(0, count, CHUNK_IMAGES):
        places = range(start, min(start + CHUNK_IMAGES, count))
        yield slice(places.start, places.stop), images.read(places, [0] * len(places))


@torch.inference_mode()
def nats_per_token(
    model: CaptioningModel, images: Images, captions: Sequence[Sequence[Sequence[int]]], marks: Marks
) -> float:
    """Mean cross-entropy of all captions' tokens, end tokens counted and words outside the vocabulary left out.

    Args:
        model: in evaluation mode.
        images: the pictures.
        captions: of each picture, the words' ids of each caption.
        marks: the framing ids.
    """
    total, tokens = 0.0, 0
    device = model.projection.bias.device
    for places, some in chunks(images, len(captions)):
        said = rectangle(captions[places], marks).to(device)
        logits, _ = model(some.to(device), said.ids, said.present)  # [S, V]
        targets = said.targets[said.present]
        total += functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").item()
        tokens += int((targets != IGNORED).sum())
    return total / tokens


def decode(
    model: CaptioningModel, images: Images, count: int, codec: CaptionCodec, max_tokens: int, width: int, penalty: float
) -> list[Hypothesis]:
    """The best caption of each image (models.nn.beam.best_captions)."""
    device = model.projection.bias.device
    said: list[Hypothesis] = []
    for _, some in chunks(images, count):
        said += best_captions(
            model, some.to(device), codec.begin_id, codec.end_id, max_tokens, width=width, length_penalty=penalty
        )
    return said
