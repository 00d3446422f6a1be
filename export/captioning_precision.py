"""What int8 costs a captioning model, and the one range that its step graph must be told.

Axes: N images, K captions of each, B = N * K rows, T steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from carousel.export.forward import GraphCaptioner
from carousel.export.precision import judge, require_trainings_own
from carousel.export.progress import SILENT, Progress
from carousel.models.bleu import bleu
from carousel.models.codec.caption import CaptionCodec
from carousel.models.figures import CaptioningValidation, Quantization
from carousel.models.manifest import DecodingDefaults
from carousel.models.nn.beam import Captioner, best_captions
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.validation import CaptioningValidationData

IMAGES_AT_ONCE = 50
"""Bounds the memory of what is remembered of them and changes nothing else."""


def measure_captioning_quantization(
    model: CaptioningModel,
    step: bytes,
    encoder: bytes | None,
    codec: CaptionCodec,
    data: CaptioningValidationData,
    trained: CaptioningValidation | None,
    decoding: DecodingDefaults,
    max_tokens: int,
    max_worsening: float | None = None,
    progress: Progress = SILENT,
) -> tuple[CaptioningValidation, Quantization]:
    """The figures of the int8 graphs, and how they compare with their model's.

    Args:
        model: in evaluation mode.
        step: its int8 step graph.
        encoder: its int8 encoder graph, with which an image's caption is int8 from its pixels on; None where the
            encoder is not in int8, and torch's stands for it.
        codec: of its captions.
        data: what both are measured on.
        trained: the figures that training recorded for the model.
        decoding: how training decoded them.
        max_tokens: longest caption, its end token counted.
        max_worsening: of BLEU-4, in points; refuse above it. export.precision.MAX_WORSENING where None.
        progress: is told.

    Raises:
        CheckpointError: the data are not those that training measured the model on.
        WorseInt8: the graphs are worse than the model by more than that.
    """
    progress.stage("measuring the model on the validation data", len(data.images), "images")
    before = captioning_figures(model, codec, data, decoding, max_tokens, progress)
    require_trainings_own(before, trained)
    progress.stage("measuring int8 on them", len(data.images), "images")
    after = captioning_figures(GraphCaptioner(model, step, encoder), codec, data, decoding, max_tokens, progress)
    return after, judge(before, after, max_worsening)


def captioning_figures(
    captioner: Captioner,
    codec: CaptionCodec,
    data: CaptioningValidationData,
    decoding: DecodingDefaults,
    max_tokens: int,
    progress: Progress = SILENT,
) -> CaptioningValidation:
    """The validation figures: captions decoded as training decodes them, people's captions read as it reads them."""
    total, tokens, captions = 0.0, 0, []
    for logits, targets, _ in _read(captioner, data):
        total += functional.cross_entropy(logits.double(), targets, reduction="sum").item()
        tokens += int((targets >= 0).sum())
    for images in torch.split(data.images, IMAGES_AT_ONCE):
        best = best_captions(
            captioner,
            images,
            codec.begin_id,
            codec.end_id,
            max_tokens,
            width=decoding.beam_width,
            length_penalty=decoding.length_penalty,
        )
        captions += [codec.caption(hypothesis.ids) for hypothesis in best]
        progress.advance(len(images))
    one, _, _, four = bleu(captions, data.references)
    return CaptioningValidation(
        images=len(captions),
        beam_width=decoding.beam_width,
        length_penalty=decoding.length_penalty,
        bleu_1=one,
        bleu_4=four,
        nats_per_token=total / tokens,
    )


def largest_seen(model: CaptioningModel, data: CaptioningValidationData) -> float:
    """The largest entry, either sign, of what attention hands on while the model reads people's captions.

    Args:
        model: in evaluation mode; one without attention sees nothing, and that is 1.
        data: of the images and captions.
    """
    if model.attention is None:
        return 1.0
    looks: list[Tensor] = []

    def remember(_module: object, _inputs: object, outputs: Any) -> None:
        looks.append(outputs[0])  # [B, C]

    largest = 0.0
    handle = model.attention.register_forward_hook(remember)
    try:
        for _, _, reading in _read(model, data):
            largest = max(largest, looks.pop()[reading].abs().max().item())
    finally:
        handle.remove()
    return largest or 1.0


@torch.inference_mode()
def _read(captioner: Captioner, data: CaptioningValidationData) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Step after step: logits <float32>[B, V], what should be said <int64>[B], and which rows' captions are not yet
    over <bool>[B], of which there is one at least."""
    parts = zip(*(torch.split(part, IMAGES_AT_ONCE) for part in (data.images, data.ids, data.targets)), strict=True)
    for images, ids, targets in parts:
        state, memories = captioner.encode(images)
        state = {name: part.repeat_interleave(ids.shape[1], 0) for name, part in state.items()}  # [B, H]
        tokens, expected = ids.flatten(0, 1), targets.flatten(0, 1)  # [B, T]
        to_come = (expected >= 0).flip(1).cumsum(1).flip(1) > 0
        for at in range(int(to_come.any(0).sum())):
            logits, state, _ = captioner.step(tokens[:, at], state, memories)
            yield logits, expected[:, at], to_come[:, at]
