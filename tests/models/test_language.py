"""The language model: logits, tied weights, configuration, and the slow oracle that generates."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from carousel.models.errors import CheckpointError
from carousel.models.nn.language import LanguageModel, LanguageModelConfig, generate


def make_model(**settings: object) -> LanguageModel:
    torch.manual_seed(1)
    values = {"vocabulary_size": 11, "embedding_size": 4, "hidden_size": 6, "layers": 2, **settings}
    model = LanguageModel(LanguageModelConfig(**values))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("tied", [False, True])
def test_model_composes_embedding_stack_and_projection(cell: str, tied: bool) -> None:
    model = make_model(cell=cell, tied=tied).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 10], [0, 8, 7, 7, 3]])  # [B, T] = [3, 5]
    state = model.initial_state(3)
    logits, after = model(ids, state)
    y, expected = model.stack(model.embedding(ids), state)
    table = model.embedding.weight if tied else model.projection.weight
    torch.testing.assert_close(logits, functional.linear(y, table, model.projection.bias))
    assert logits.shape == (3, 5, 11)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value)


def test_model_with_tied_weights_counts_them_once_and_narrows_its_last_layer() -> None:
    tied, free = make_model(tied=True), make_model(tied=False)
    assert tied.projection.weight is tied.embedding.weight
    assert tied.config.hidden_sizes == [6, 4]
    assert free.config.hidden_sizes == [6, 6]
    lstm = 4 * 6 * (4 + 6) + 8 * 6
    assert tied.parameter_count == 11 * 4 + lstm + 4 * 4 * (6 + 4) + 8 * 4 + 11
    assert free.parameter_count == 11 * 4 + lstm + 4 * 6 * (6 + 6) + 8 * 6 + 11 * 6 + 11


@pytest.mark.parametrize("setting", ["embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout"])
def test_model_dropout_acts_in_training_only(setting: str) -> None:
    model = make_model(**{setting: 0.5})
    ids, state = torch.arange(11)[None], model.initial_state(1)
    plain = make_model().eval()(ids, state)[0]
    torch.testing.assert_close(model.eval()(ids, state)[0], plain)
    assert not torch.allclose(model.train()(ids, state)[0], plain)


def test_embedding_dropout_leaves_the_tied_projection_whole() -> None:
    model = make_model(tied=True, embedding_dropout=0.9).train()
    logits, _ = model(torch.arange(11)[None], model.initial_state(1))
    y = torch.linalg.lstsq(model.embedding.weight, (logits[0] - model.projection.bias).T).solution
    torch.testing.assert_close((model.embedding.weight @ y).T, logits[0] - model.projection.bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("vocabulary_size", 0), ("layers", 0), ("hidden_size", -1), ("weight_drop", 1.0), ("input_dropout", -0.1)],
)
def test_config_refuses_values_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(CheckpointError, match=rf"model configuration: model\.{setting} is {value}; it should be "):
        LanguageModelConfig.from_json({"vocabulary_size": 5, setting: value})


def test_config_refuses_an_unknown_cell() -> None:
    with pytest.raises(CheckpointError, match=r"model\.cell is 'rnn'; it should be 'elman', 'gru' or 'lstm'$"):
        LanguageModelConfig.from_json({"vocabulary_size": 5, "cell": "rnn"})


def test_config_survives_json() -> None:
    config = LanguageModelConfig(vocabulary_size=17, cell="gru", tied=True, weight_drop=0.25, layers=3)
    assert LanguageModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("values", [{"vocabulary_size": 3, "heads": 2}, {}, {"vocabulary_size": 0}])
def test_config_refuses_json_that_is_none_of_its_own(values: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="model configuration"):
        LanguageModelConfig.from_json(values)


def test_generate_takes_the_most_probable_token_at_temperature_zero() -> None:
    model = make_model(cell="gru").eval()
    prompt = [2, 7, 1]
    tokens = generate(model, prompt, 6)
    logits, state = model(torch.tensor([prompt]), model.initial_state(1))
    for token in tokens:  # the same with the state carried
        assert token == int(logits[0, -1].argmax())
        logits, state = model(torch.tensor([[token]]), state)


def test_generate_samples_by_seed_and_temperature() -> None:
    model = make_model()
    assert generate(model, [1], 20, temperature=2.0, seed=3) == generate(model, [1], 20, temperature=2.0, seed=3)
    assert generate(model, [1], 20, temperature=2.0, seed=3) != generate(model, [1], 20, temperature=2.0, seed=4)
    assert generate(model, [1], 20, temperature=1e-4, seed=3) == generate(model, [1], 20)
