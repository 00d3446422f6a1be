import pytest
import torch

from carousel.models.nn.language import LanguageModel, LanguageModelConfig


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_step_module_repeated_is_the_model(cell: str, tied: bool, layers: int) -> None:
    torch.manual_seed(3)
    model = LanguageModel(
        LanguageModelConfig(vocabulary_size=11, cell=cell, embedding_size=5, hidden_size=7, layers=layers, tied=tied)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data)
    step = model.step_module()
    ids = torch.randint(0, 11, (2, 9))
    state = {name: torch.randn(2, *shape) for name, shape in model.stack.state_shapes.items()}
    with torch.inference_mode():
        expected, expected_after = model(ids, state)
        for position in range(9):
            logits, state = step(ids[:, position], state)
            torch.testing.assert_close(logits, expected[:, position])
    assert list(state) == list(expected_after) == list(step.state_shapes)
    for name, part in state.items():
        torch.testing.assert_close(part, expected_after[name])


def test_step_module_has_no_dropout() -> None:
    config = LanguageModelConfig(
        vocabulary_size=11,
        embedding_size=5,
        hidden_size=7,
        **dict.fromkeys(["embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop"], 0.9),
    )
    model = LanguageModel(config).train()
    step = model.step_module()
    token, state = torch.tensor([3, 4]), model.initial_state(2)
    first, _ = step(token, state)
    again, _ = step(token, state)
    assert torch.equal(first, again)
