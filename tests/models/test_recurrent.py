"""The recurrent layers against the cell equations written out, and the state that is carried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carousel.models.errors import ShapeMismatch
from carousel.models.nn.cells.cell import CELLS, Cell
from carousel.models.nn.recurrent import RecurrentStack, RecurrentState, detach

BATCH, STEPS, INPUT, SIZES = 3, 5, 2, [4, 7]


@pytest.fixture(params=sorted(CELLS))
def cell(request: pytest.FixtureRequest) -> str:
    return request.param


def make_stack(cell: str, **settings: float) -> RecurrentStack:
    torch.manual_seed(1)
    stack = RecurrentStack(cell, INPUT, SIZES, **settings)
    for parameter in stack.parameters():  # biases too, so that a forgotten one shows
        torch.nn.init.normal_(parameter, std=0.6)
    return stack


def make_state(stack: RecurrentStack) -> RecurrentState:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(BATCH, *shape, generator=generator) for name, shape in stack.state_shapes.items()}


def steps_of(generator_seed: int = 3) -> Tensor:
    return torch.randn(BATCH, STEPS, INPUT, generator=torch.Generator().manual_seed(generator_seed))


def lstm_step(layer: Cell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    w = dict(layer.rnn.named_parameters())
    gates = x @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
    i, f, g, o = gates.chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(layer: Cell, x: Tensor, h: Tensor) -> Tensor:
    w = dict(layer.rnn.named_parameters())
    xr, xz, xn = (x @ w["weight_ih_l0"].T + w["bias_ih_l0"]).chunk(3, dim=1)
    hr, hz, hn = (h @ w["weight_hh_l0"].T + w["bias_hh_l0"]).chunk(3, dim=1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    return (1 - z) * (xn + r * hn).tanh() + z * h


def elman_step(layer: Cell, x: Tensor, h: Tensor) -> Tensor:
    w = dict(layer.rnn.named_parameters())
    return (x @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]).tanh()


def test_stack_follows_the_cell_equations(cell: str) -> None:
    stack = make_stack(cell).eval()
    state, x = make_state(stack), steps_of()
    y, after = stack(x, state)
    seen = dict(state)
    for step in range(STEPS):
        below = x[:, step]
        for depth, layer in enumerate(stack.cells()):
            if cell == "lstm":
                seen[f"h{depth}"], seen[f"c{depth}"] = lstm_step(layer, below, seen[f"h{depth}"], seen[f"c{depth}"])
            else:
                equations = {"gru": gru_step, "elman": elman_step}[cell]
                seen[f"h{depth}"] = equations(layer, below, seen[f"h{depth}"])
            below = seen[f"h{depth}"]
        torch.testing.assert_close(y[:, step], below)
    assert after.keys() == seen.keys()
    for name, value in seen.items():
        torch.testing.assert_close(after[name], value)


def test_stack_carries_its_state_over_a_cut(cell: str) -> None:
    stack = make_stack(cell).eval()
    state, x = make_state(stack), steps_of()
    whole, at_the_end = stack(x, state)
    first, between = stack(x[:, :2], state)
    second, after = stack(x[:, 2:], between)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    for name, value in at_the_end.items():
        torch.testing.assert_close(after[name], value)


def test_stack_rows_do_not_see_one_another(cell: str) -> None:
    stack = make_stack(cell).eval()
    state, x = make_state(stack), steps_of()
    y, _ = stack(x, state)
    alone, _ = stack(x[1:2], {name: value[1:2] for name, value in state.items()})
    torch.testing.assert_close(alone, y[1:2])


def test_stack_names_its_states(cell: str) -> None:
    expected = {"h0": 4, "c0": 4, "h1": 7, "c1": 7} if cell == "lstm" else {"h0": 4, "h1": 7}
    stack = make_stack(cell)
    assert stack.state_shapes == {name: (size,) for name, size in expected.items()}
    zeros = stack.initial_state(6)
    assert {name: tuple(value.shape) for name, value in zeros.items()} == {n: (6, s) for n, s in expected.items()}
    assert all(not value.any() for value in zeros.values())


@pytest.mark.parametrize("wrong", ["missing", "extra", "batch", "size"])
def test_stack_refuses_a_state_that_is_not_its_own(cell: str, wrong: str) -> None:
    stack = make_stack(cell)
    state = make_state(stack)
    if wrong == "missing":
        del state["h1"]
    elif wrong == "extra":
        state["h2"] = torch.zeros(BATCH, 7)
    elif wrong == "batch":
        state = {name: value[:2] for name, value in state.items()}
    else:
        state["h0"] = torch.zeros(BATCH, 7)
    with pytest.raises(ShapeMismatch, match=r"this stack with 3 rows takes"):
        stack(steps_of(), state)


def test_layer_starts_with_an_open_forget_gate_and_orthogonal_recurrence() -> None:
    layer = CELLS["lstm"](3, 5)
    weights = dict(layer.rnn.named_parameters())
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    assert bias.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10  # i, f, g, o
    for gate in weights["weight_hh_l0"].split(5):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5))


def test_weight_drop_drops_recurrent_weights_in_training_only(cell: str) -> None:
    stack = make_stack(cell, weight_drop=0.5)
    state, x = make_state(stack), steps_of()
    plain, _ = make_stack(cell).eval()(x, state)
    torch.testing.assert_close(stack.eval()(x, state)[0], plain)
    stack.train()
    torch.manual_seed(5)
    dropped, _ = stack(x, state)
    assert not torch.allclose(dropped, plain)
    dropped.sum().backward()
    for layer in stack.cells():
        gradients = {name: weight.grad for name, weight in layer.rnn.named_parameters()}
        unused = (gradients["weight_hh_l0"] == 0).float().mean().item()
        assert 0.2 < unused < 0.8  # a dropped weight has no gradient at any step: one mask for all of them
        assert (gradients["weight_ih_l0"] != 0).all()


def test_weight_drop_leaves_no_trace_in_evaluation(cell: str) -> None:
    stack = make_stack(cell, weight_drop=0.5)
    state, x = make_state(stack), steps_of()
    parameters = {name: value.clone() for name, value in stack.state_dict().items()}
    before = stack.eval()(x, state)[0]
    stack.train()(x, state)
    assert torch.equal(stack.eval()(x, state)[0], before)
    after = stack.state_dict()
    assert after.keys() == parameters.keys()
    assert all(torch.equal(after[name], value) for name, value in parameters.items())


def test_dropout_falls_between_layers_and_after_the_last() -> None:
    torch.manual_seed(4)
    between = make_stack("gru", hidden_dropout=0.6).train()
    after = make_stack("gru", output_dropout=0.6).train()
    state, x = make_state(between), steps_of()
    y, states = between(x, state)
    z, other_states = after(x, state)
    assert (y != 0).all()
    assert not torch.allclose(states["h1"], other_states["h1"])
    masked = z == 0
    assert masked.any()
    assert torch.equal(masked, masked[:, :1].expand_as(masked))  # locked: the same units at every step


def test_detach_cuts_history_and_widens_to_float32() -> None:
    state = {"h0": (torch.ones(2, 3, requires_grad=True) * 2).bfloat16()}
    cut = detach(state)["h0"]
    assert not cut.requires_grad
    assert cut.dtype == torch.float32
    assert cut.tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_one_step_is_what_the_fused_kernel_computes(cell: str) -> None:
    torch.manual_seed(0)
    layer = CELLS[cell](5, 7)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter.data)
    state = tuple(torch.randn(3, 7) for _ in layer.states)
    x = torch.randn(4, 3, 5)
    whole, after = layer(x, state)
    for step in range(4):
        y, state = layer(x[step : step + 1], state)
        torch.testing.assert_close(y[0], whole[step])
    for seen, expected in zip(state, after, strict=True):
        torch.testing.assert_close(seen, expected)


def test_one_step_keeps_the_cell_in_float32_under_autocast() -> None:
    layer = CELLS["lstm"](5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        _, (_, c) = layer(torch.randn(1, 3, 5), (torch.zeros(3, 7), torch.zeros(3, 7)))
    assert c.dtype == torch.float32
