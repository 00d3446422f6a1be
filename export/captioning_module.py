"""What a captioning model makes of an image, as the graph that is served; a step of it is the model's own.

Axes: B batch rows, H hidden units, P image positions, D features of a position, C of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carousel.models.nn.captioning import CaptioningModel, Context
from carousel.models.nn.recurrent import RecurrentState


class EncoderModule(nn.Module):
    """What a CaptioningModel makes of an image before the first word: of pixels, or of a frozen encoder's features.

    A mean over positions is a product with 1 / P: onnxruntime's ReduceMean sums in another order for one row than for
    several, and then a caption would depend on who else is in the batch.
    """

    share: Tensor

    def __init__(self, model: CaptioningModel) -> None:
        super().__init__()
        self.model = model
        positions = model.config.positions
        self.register_buffer("share", torch.full((1, positions), 1 / positions))
        self.eval()

    def forward(self, images: Tensor) -> tuple[RecurrentState, Context]:
        """Encode. <float32>[B, 3, height, width], [B, P, D] or [B, D] -> the first state, and the context."""
        model = self.model
        features = model.features(images)
        context = {} if model.attention is None else model.attention.context(features)
        pooled = self._pool(context.get("values", features))  # [B, C or D]
        return model.first_state(pooled), context

    def _pool(self, positions: Tensor) -> Tensor:
        """<float32>[B, P, size] -> [B, size]; pooled already: as it is."""
        if positions.dim() == 2:
            return positions
        return positions.amax(1) if self.model.network is not None else torch.matmul(self.share, positions).squeeze(1)
