"""Soft attention over the positions of an image (Show, Attend and Tell: Xu et al. 2015, arXiv:1502.03044).

Axes: N images, K rows (captions) of each image, P positions, D features of a position, C of a value, A of a key, Q of
what is asked with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SoftAttention(nn.Module):
    """Where to look, from what has been said so far.

    Once an image:  v_i = W_v a_i + p_i,  k_i = W_k v_i + b
    Each step:      e_i = w . tanh(k_i + W_q q),  alpha = softmax(e),  z = sigmoid(W_g q + b_g) * sum_i alpha_i v_i

    a_i are the image's features, and p_i, learnt, tells a position from the others. The question q is [h; E y]: the
    state and the word that the step is about to read. The paper asks with h alone, which has not read that word: after
    "a red" it could not look for what is red. The gate is a vector, one number for each entry of z, where the paper has
    one for all.

    Args:
        feature_size: D.
        positions: P.
        value_size: C.
        key_size: A.
        question_size: Q.
    """

    def __init__(self, feature_size: int, positions: int, value_size: int, key_size: int, question_size: int) -> None:
        super().__init__()
        self.values = nn.Linear(feature_size, value_size, bias=False)
        self.position = nn.Parameter(0.1 * torch.randn(positions, value_size))
        self.keys = nn.Linear(value_size, key_size)
        self.query = nn.Linear(question_size, key_size, bias=False)
        self.energy = nn.Linear(key_size, 1, bias=False)
        self.gate = nn.Linear(question_size, value_size)

    def context(self, features: Tensor) -> dict[str, Tensor]:
        """What every step reads of the images, and none need compute again.

        Args:
            features: <float32>[N, P, D]

        Returns:
            `values` <float32>[N, P, C] and `keys` <float32>[N, P, A]
        """
        values = self.values(features) + self.position  # [N, P, C]
        return {"values": values, "keys": self.keys(values)}

    def forward(self, question: Tensor, context: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Look at the images once.

        Args:
            question: <float32>[N * K, Q], an image's rows side by side
            context: of the N images.

        Returns:
            z <float32>[N * K, C], and alpha <float32>[N * K, P]
        """
        keys, values = context["keys"], context["values"]
        images, positions, _ = keys.shape
        query = self.query(question).view(images, -1, 1, keys.shape[2])  # [N, K, 1, A]
        energy = self.energy(torch.tanh(keys[:, None] + query))[..., 0]  # [N, K, P]
        alpha = torch.softmax(energy, dim=2)
        seen = (alpha @ values).flatten(0, 1)  # [N * K, C]
        return torch.sigmoid(self.gate(question)) * seen, alpha.view(-1, positions)

    def step(self) -> StepAttention:
        """One look as it is served."""
        return StepAttention(self)


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
