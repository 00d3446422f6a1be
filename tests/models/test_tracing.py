"""DKT against its equations, and a history in pieces against the same in one."""

from __future__ import annotations

import pytest
import torch

from carousel.models.errors import CheckpointError, ShapeMismatch
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint
from carousel.models.nn.tracing import TracingModel, TracingModelConfig
from tests.trained import load_tracing_model


def model_of(**changes: object) -> TracingModel:
    torch.manual_seed(0)
    return TracingModel(TracingModelConfig(skill_count=5, embedding_size=6, hidden_size=7, **changes))


def test_tracing_model_is_the_equations_of_dkt() -> None:
    model = model_of()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data)
    ids = torch.tensor([[3, 9, 0]])
    logits, state = model(ids, model.initial_state(1))
    weights = dict(model.stack.cells()[0].rnn.named_parameters())
    h, c = torch.zeros(7), torch.zeros(7)
    for step, id_ in enumerate(ids[0]):
        x = model.embedding.weight[id_]
        gates = weights["weight_ih_l0"] @ x + weights["weight_hh_l0"] @ h
        i, f, g, o = (gates + weights["bias_ih_l0"] + weights["bias_hh_l0"]).split(7)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(logits[0, step], model.projection.weight @ h + model.projection.bias)
    torch.testing.assert_close(state["h0"][0], h)
    torch.testing.assert_close(state["c0"][0], c)


def test_shared_tracing_model_is_the_plain_one_with_the_shared_parts_added() -> None:
    model = model_of(shared=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data)
    plain = model_of()
    plain.stack.load_state_dict(model.stack.state_dict())
    rows = [model.embedding.weight[id_] + model.answer[id_ % 2] for id_ in range(10)]
    plain.embedding.weight.data = torch.stack(rows)
    plain.projection.weight.data = model.projection.weight + model.readout
    plain.projection.bias.data = model.projection.bias.data.clone()
    ids = torch.randint(0, 10, (3, 4))
    expected, _ = plain(ids, plain.initial_state(3))
    torch.testing.assert_close(model(ids, model.initial_state(3))[0], expected)
    model.fold()
    assert model.config == plain.config
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    assert torch.equal(model(ids, model.initial_state(3))[0], expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_tracing_model_goes_on_where_it_stopped(cell: str, layers: int) -> None:
    model = model_of(cell=cell, layers=layers).eval()
    ids = torch.randint(0, 10, (3, 11))
    whole, after = model(ids, model.initial_state(3))
    assert whole.shape == (3, 11, 5)
    first, state = model(ids[:, :4], model.initial_state(3))
    second, state = model(ids[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    for name in after:
        torch.testing.assert_close(state[name], after[name])


def test_tracing_model_drops_only_in_training() -> None:
    model = model_of(input_dropout=0.5, output_dropout=0.5, weight_drop=0.5)
    ids = torch.randint(0, 10, (3, 4))
    assert not torch.equal(model(ids, model.initial_state(3))[0], model(ids, model.initial_state(3))[0])
    model.eval()
    assert torch.equal(model(ids, model.initial_state(3))[0], model(ids, model.initial_state(3))[0])


def test_tracing_model_leaves_whole_attempts_unread_in_training() -> None:
    model = model_of(attempt_dropout=0.4)
    ids = torch.full((50, 1), 7)
    seen = model(ids, model.initial_state(50))[0]
    read = model.eval()(ids, model.initial_state(50))[0]
    model.embedding.weight.data.zero_()
    unread = model(ids, model.initial_state(50))[0]
    was_read = (seen - read).abs().amax((1, 2)) < (seen - unread).abs().amax((1, 2))
    assert 20 < was_read.sum() < 40
    torch.testing.assert_close(seen, torch.where(was_read[:, None, None], read, unread))


def test_tracing_model_counts_its_parameters() -> None:
    assert model_of().parameter_count == 10 * 6 + 4 * 7 * (6 + 7 + 2) + 5 * (7 + 1)


def test_tracing_model_refuses_the_state_of_another_batch() -> None:
    model = model_of()
    with pytest.raises(ShapeMismatch, match="this stack with 3 rows takes"):
        model(torch.zeros(3, 2, dtype=torch.int64), model.initial_state(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skill_count": 0}, r"model\.skill_count is 0; it should be greater than or equal to 1"),
        ({"hidden_size": 0}, r"model\.hidden_size is 0"),
        ({"output_dropout": 1.0}, r"model\.output_dropout is 1\.0; it should be less than 1"),
        ({"cell": "rnn"}, r"model\.cell is 'rnn'"),
        ({"heads": 2}, r"model\.heads is not a key"),
    ],
)
def test_tracing_model_configuration_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TracingModelConfig.from_json({"skill_count": 5, **change})


def test_tracing_model_configuration_is_read_as_it_was_written() -> None:
    config = TracingModelConfig(skill_count=5, cell="gru", embedding_size=3, layers=2, output_dropout=0.25)
    assert TracingModelConfig.from_json(config.to_json()) == config


def test_tracing_model_is_loaded_with_its_codec(make_tracing_checkpoint, tmp_path) -> None:
    written = read_checkpoint(make_tracing_checkpoint(tmp_path / "best.safetensors"))
    model, codec = load_tracing_model(written)
    assert not model.training
    assert codec.skill_id("area") == 4
    assert all(torch.equal(value, written.tensors[f"model.{name}"]) for name, value in model.state_dict().items())


def test_shared_tracing_model_is_loaded_folded(make_tracing_checkpoint, tmp_path) -> None:
    written = read_checkpoint(make_tracing_checkpoint(tmp_path / "best.safetensors"))
    model = TracingModel(TracingModelConfig.from_json({**written.header["model"], "shared": True}))
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    header = {**written.header, "model": model.config.to_json()}
    loaded, _ = load_tracing_model(Checkpoint(tensors, header))
    assert set(loaded.state_dict()) == {name.removeprefix("model.") for name in written.tensors}
    torch.testing.assert_close(loaded.embedding.weight[5], model.embedding.weight[5] + model.answer[1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "language"}, "a whole language model: its header has no 'tokenizer'"),
        ({"model": {"skill_count": 6}}, "checkpoint does not hold a whole tracing model"),
        ({"skills": "[]"}, "checkpoint does not hold a whole tracing model: the list of skills is empty"),
        ({"skills": None}, "checkpoint does not hold a whole tracing model"),
    ],
)
def test_tracing_model_refuses_a_header_that_does_not_fit(
    make_tracing_checkpoint, tmp_path, change: dict[str, object], sentence: str
) -> None:
    written = read_checkpoint(make_tracing_checkpoint(tmp_path / "best.safetensors"))
    with pytest.raises(CheckpointError, match=sentence):
        load_tracing_model(Checkpoint(written.tensors, {**written.header, **change}))
