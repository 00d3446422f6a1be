"""A cell is one file: what its name alone gives, and what a cell may be that no kernel of torch's knows."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from carousel.export.checks.parity import measure_parity
from carousel.export.onnx_graph import export_step
from carousel.models.nn.cells.cell import CELLS, Cell, States
from carousel.models.nn.language import LanguageModel, LanguageModelConfig, generate
from carousel.models.registry import UnknownName


class FastWeights(Cell):
    """Ba et al. 2016, less the normalisation: a' = 0.9 a + 0.5 h h^T,  h' = tanh(W x + a' h)

    It remembers a matrix, and what it puts out comes last.
    """

    states = ("a", "h")

    def __init__(self, input_size: int, hidden_size: int, weight_drop: float = 0.0) -> None:
        super().__init__(input_size, hidden_size, weight_drop)
        self.read = nn.Linear(input_size, hidden_size)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"a": (self.hidden_size, self.hidden_size), "h": (self.hidden_size,)}

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        said = []
        for each in x:
            y, state = self.step()(each, state)
            said.append(y)
        return torch.stack(said), state

    def step(self) -> nn.Module:
        return StepFastWeights(self.read)


class StepFastWeights(nn.Module):
    def __init__(self, read: nn.Linear) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        a, h = state
        a = 0.9 * a + 0.5 * h[:, :, None] * h[:, None]
        h = torch.tanh(self.read(x) + (a @ h[:, :, None])[:, :, 0])
        return h, (a, h)


@pytest.fixture
def fast_weights(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(CELLS.choices, "fast-weights", FastWeights)
    return "fast-weights"


def model_of(cell: str) -> LanguageModel:
    torch.manual_seed(2)
    config = LanguageModelConfig(vocabulary_size=11, cell=cell, embedding_size=5, hidden_size=7, layers=2)
    return LanguageModel(config).eval()


def test_cells_are_found_by_the_files_that_define_them() -> None:
    assert list(CELLS) == ["elman", "gru", "lstm"]
    with pytest.raises(UnknownName, match=r"^it should be 'elman', 'gru' or 'lstm' \(perhaps 'elman'\?\)$"):
        CELLS["elmann"]


def test_cell_of_ones_own_learns_and_is_exported(fast_weights: str) -> None:
    model = model_of(fast_weights)
    shapes = {"a0": (7, 7), "h0": (7,), "a1": (7, 7), "h1": (7,)}
    assert model.stack.state_shapes == shapes
    assert {name: tuple(part.shape) for name, part in model.initial_state(3).items()} == {
        name: (3, *shape) for name, shape in shapes.items()
    }
    parity = measure_parity(model, export_step(model.step_module()), steps=64)
    assert parity.row_independent
    ids = torch.randint(0, 11, (3, 9))
    logits, _ = model(ids[:, :-1], model.initial_state(3))
    nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_weights_are_dropped_of_cells_that_have_some(fast_weights: str) -> None:
    with pytest.raises(ValidationError, match=r"weight_drop is 0\.5, but cell 'fast-weights' has no weights to drop"):
        LanguageModelConfig(vocabulary_size=11, cell=fast_weights, weight_drop=0.5)
    with pytest.raises(ValueError, match=r"weight_drop is 0\.5; this cell has no recurrent matrix"):
        FastWeights(5, 7, 0.5)


def test_elman_is_what_torch_calls_an_rnn() -> None:
    cell, reference = CELLS["elman"](5, 7), nn.RNN(5, 7)
    reference.load_state_dict({name.removeprefix("rnn."): value for name, value in cell.state_dict().items()})
    x, h = torch.randn(6, 3, 5), torch.randn(3, 7)
    y, (after,) = cell(x, (h,))
    expected, (left,) = reference(x, h[None])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(after, left)
    step = cell.step()
    for position in range(6):
        said, (h,) = step(x[position], (h,))
        torch.testing.assert_close(said, expected[position])


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_cell_continues_greedily_as_its_step_does(cell: str) -> None:
    model = model_of(cell)
    step, state, tokens = model.step_module(), model.initial_state(1), [3, 1, 4]
    with torch.inference_mode():
        for token in tokens:
            logits, state = step(torch.tensor([token]), state)
        said = []
        for _ in range(8):
            said.append(int(logits.argmax()))
            logits, state = step(torch.tensor(said[-1:]), state)
    assert said == generate(model, tokens, 8)
