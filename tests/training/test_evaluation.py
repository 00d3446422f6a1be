"""The validation figure against a token-by-token oracle."""

from __future__ import annotations

import math

import pytest
import torch

from carousel.models.nn import score as scoring
from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from carousel.models.nn.score import TorchForward, score_text


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_score_is_that_of_a_service_going_token_by_token(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK_STEPS", 7)
    torch.manual_seed(1)
    model = LanguageModel(
        LanguageModelConfig(vocabulary_size=11, cell=cell, embedding_size=4, hidden_size=6, output_dropout=0.5)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    ids = torch.randint(11, (31,))
    model.eval()
    state, nats = model.initial_state(1), 0.0
    with torch.inference_mode():
        for token, following in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
            logits, state = model(torch.tensor([[token]]), state)
            nats -= torch.log_softmax(logits[0, 0], dim=-1)[following].item()
    seen = score_text(TorchForward(model, 1), ids, characters=50)
    assert seen.tokens == 30
    assert seen.nats_per_token == pytest.approx(nats / 30, rel=1e-6)
    assert seen.perplexity == pytest.approx(math.exp(nats / 30), rel=1e-5)
    assert seen.bits_per_character == pytest.approx(nats / math.log(2) / 50, rel=1e-6)


def test_score_of_a_hopeless_model_stays_a_number() -> None:
    model = LanguageModel(LanguageModelConfig(vocabulary_size=3, cell="gru", embedding_size=2, hidden_size=2))
    torch.nn.init.constant_(model.projection.weight, 0)
    model.projection.bias.data = torch.tensor([0.0, 1e4, 0.0])
    seen = score_text(TorchForward(model, 1), torch.tensor([0, 2, 0]), characters=3)
    assert seen.nats_per_token == 1e4
    assert math.isfinite(seen.perplexity)
