"""What int8 costs a captioning model, and the ranges of what no bound is known of.

Axes: N images, K captions of each, B = N * K rows, T steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from carousel.export.forward import GraphCaptioner
from carousel.export.measure import MEASURES, Measure, relative_perplexity
from carousel.export.passes.int8 import LargestMet
from carousel.export.precision import MAX_WORSENING
from carousel.export.progress import SILENT, Progress
from carousel.models.bleu import bleu
from carousel.models.codec.caption import CaptionCodec
from carousel.models.figures import CaptioningValidation
from carousel.models.figures import Measure as Unit
from carousel.models.manifest import DecodingDefaults
from carousel.models.nn.beam import Captioner, best_captions
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.load import Trained, caption_codec
from carousel.models.nn.validation import CaptioningValidationData
from carousel.models.step import ENCODER_GRAPH, STEP_GRAPH

IMAGES_AT_ONCE = 50
"""Bounds the memory of what is remembered of them and changes nothing else."""


class CaptioningMeasure(Measure[CaptioningValidation, CaptioningValidationData]):
    """Of the validation images."""

    figures = CaptioningValidation
    data = CaptioningValidationData
    unit = "images"

    def measured(
        self, trained: Trained, graphs: Mapping[str, bytes] | None, data: CaptioningValidationData, progress: Progress
    ) -> CaptioningValidation:
        """See Measure. An encoder that is not among the graphs is the network's own, in torch."""
        network = trained.network
        assert isinstance(network, CaptioningModel)
        captioner = (
            network if graphs is None else GraphCaptioner(network, graphs[STEP_GRAPH], graphs.get(ENCODER_GRAPH))
        )
        codec, longest = caption_codec(trained), trained.limits.max_new_tokens
        return captioning_figures(captioner, codec, data, trained.decoding, longest, progress)

    def kept(self, figures: CaptioningValidation) -> tuple[int, float]:
        """See Measure."""
        return figures.images, figures.nats_per_token

    def told(self, figures: CaptioningValidation) -> str:
        """See Measure."""
        return (
            f"BLEU-4 {figures.bleu_4:.2f}, {figures.nats_per_token:.4f} nats per token over {figures.images:,} images"
        )

    def worsening(self, before: CaptioningValidation, after: CaptioningValidation) -> tuple[Unit, float]:
        """See Measure."""
        if before.bleu_4 > MAX_WORSENING["BLEU-4"]:
            return "BLEU-4", before.bleu_4 - after.bleu_4
        return "relative perplexity", relative_perplexity(before.nats_per_token, after.nats_per_token)


MEASURES.register("captioning")(CaptioningMeasure())


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


def measured_on_captions(model: CaptioningModel, data: CaptioningValidationData) -> LargestMet:
    """Looks for the largest entries of a step's values while it reads people's captions.

    Args:
        model: encodes the images.
        data: of the images and captions.
    """

    def measure(step: onnx.ModelProto, values: Sequence[str]) -> dict[str, float]:
        captioner, largest = GraphCaptioner(model, step.SerializeToString(), watched=values), torch.zeros(len(values))
        for _, _, reading in _read(captioner, data):
            seen = torch.stack([captioner.seen[name][reading].abs().max() for name in values])
            largest = torch.maximum(largest, seen)  # NaN stays
        return dict(zip(values, largest.tolist(), strict=True))

    return measure


@torch.inference_mode()
def _read(captioner: Captioner, data: CaptioningValidationData) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Step after step: logits <float32>[B, V], what should be said <int64>[B], and which rows' captions are not yet
    over <bool>[B], of which there is one at least."""
    parts = zip(*(torch.split(part, IMAGES_AT_ONCE) for part in (data.images, data.ids, data.targets)), strict=True)
    for images, ids, targets in parts:
        state, context = captioner.encode(images)
        state = {name: part.repeat_interleave(ids.shape[1], 0) for name, part in state.items()}  # [B, H]
        tokens, expected = ids.flatten(0, 1), targets.flatten(0, 1)  # [B, T]
        to_come = (expected >= 0).flip(1).cumsum(1).flip(1) > 0
        for at in range(int(to_come.any(0).sum())):
            logits, state, _ = captioner.step(tokens[:, at], state, context)
            yield logits, expected[:, at], to_come[:, at]
