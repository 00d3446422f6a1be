"""A captioning model as the two graphs that are served: its encoder, and one step of its decoder.

Axes: B batch rows, V vocabulary, E embedding, H hidden units, P image positions, D features of a position, C of a
value, A of a key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carousel.export.step_module import StepModule
from carousel.models.nn.attention import SoftAttention
from carousel.models.nn.captioning import LAYER, CaptioningModel, Memories
from carousel.models.nn.recurrent import RecurrentState


class CaptioningStep(StepModule):
    """One step of a CaptioningModel."""

    def __init__(self, model: CaptioningModel) -> None:
        super().__init__(model, "captioning", {"token": model.config.vocabulary_size})
        config = model.config
        self.look = StepAttention(model.attention) if model.attention is not None else None
        self.readout = model.readout
        if self.look is not None:
            self.memory_shapes = {
                "values": (config.positions, config.value_size),
                "keys": (config.positions, config.key_size),
            }
            self.grid = (config.rows, config.columns)

    def forward(
        self, token: Tensor, state: RecurrentState, memories: Memories | None = None
    ) -> tuple[Tensor, RecurrentState] | tuple[Tensor, RecurrentState, Tensor]:
        """Make one step.

        Args:
            token: the token to read. <int64>[B]
            state: what the previous step or the encoder left. <float32>[B, H] each
            memories: `values` <float32>[B, P, C] and `keys` <float32>[B, P, A]; None without attention.

        Returns:
            Logits of the next token <float32>[B, V], the state after this one, and with attention where this step
            looked <float32>[B, rows, columns].
        """
        x = self.embedding(token)  # [B, E]
        if self.look is None or self.grid is None or self.readout is None or memories is None:
            y, after = self.stack(x, state)  # [B, H]
            return self.projection(y), after
        question = torch.cat([state[LAYER], x], dim=1)  # [B, H + E]
        seen, alpha = self.look(question, memories["values"], memories["keys"])  # [B, C], [B, P]
        y, after = self.stack(torch.cat([x, seen], dim=1), state)
        said = torch.tanh(self.readout(torch.cat([y, seen], dim=1)) + x)  # [B, E]
        return self.projection(said), after, alpha.unflatten(1, self.grid)


class StepAttention(nn.Module):
    """One look of SoftAttention, each row at an image of its own. Query and gate are one product."""

    def __init__(self, attention: SoftAttention) -> None:
        super().__init__()
        query, gate = attention.query.weight, attention.gate.weight
        self.sizes = [len(query), len(gate)]
        self.weight = nn.Parameter(torch.cat([query, gate]))  # [A + C, H + E]
        self.bias = nn.Parameter(torch.cat([query.new_zeros(len(query)), attention.gate.bias]))  # [A + C]
        self.energy = attention.energy

    def forward(self, question: Tensor, values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Look. <float32>[B, H + E], values [B, P, C], keys [B, P, A] -> what was seen [B, C], and where [B, P]."""
        asked = nn.functional.linear(question, self.weight, self.bias)  # [B, A + C]
        query, gate = torch.split(asked, self.sizes, dim=1)
        energy = self.energy(torch.tanh(keys + query[:, None])).squeeze(2)  # [B, P]
        alpha = torch.softmax(energy, dim=1)
        seen = (alpha[:, None] @ values).squeeze(1)  # [B, C]
        return torch.sigmoid(gate) * seen, alpha


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

    def forward(self, images: Tensor) -> tuple[RecurrentState, Memories]:
        """Encode. <float32>[B, 3, height, width], [B, P, D] or [B, D] -> the first state, and the memories."""
        model = self.model
        features = model.features(images)
        memories = {} if model.attention is None else model.attention.memories(features)
        pooled = self._pool(memories.get("values", features))  # [B, C or D]
        sizes = model.stack.state_sizes
        parts = torch.tanh(model.image(pooled)).chunk(len(sizes), dim=1)  # [B, H] each
        return dict(zip(sizes, parts, strict=True)), memories

    def _pool(self, positions: Tensor) -> Tensor:
        """<float32>[B, P, size] -> [B, size]; pooled already: as it is."""
        if positions.dim() == 2:
            return positions
        return positions.amax(1) if self.model.network is not None else torch.matmul(self.share, positions).squeeze(1)
