"""Captioning models against their equations, and a step at a time against all steps at once."""

from __future__ import annotations

import pytest
import torch

from carousel.models.codec.image import Preprocessing
from carousel.models.errors import CheckpointError
from carousel.models.features import FrozenEncoder
from carousel.models.nn.captioning import CaptioningModel, CaptioningModelConfig
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint
from tests.trained import frozen_encoder, load_captioning_model

SIZES = {"embedding_size": 5, "hidden_size": 7, "value_size": 6, "key_size": 8}
ENCODER = FrozenEncoder(
    sha256="ab" * 32,
    preprocessing=Preprocessing(width=96, height=64, mean=(1, 2, 3)),
    input="input",
    feature="features",
    grid=(2, 3),
    size=4,
)


def model_of(**changes: object) -> CaptioningModel:
    """11 words, maps of 2 x 3 positions with 4 features each."""
    torch.manual_seed(0)
    model = CaptioningModel(CaptioningModelConfig(**{"vocabulary_size": 11, "rows": 2, "columns": 3, "feature_size": 4}
                                                  | SIZES | changes))  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data)
    return model


def gates_of(model: CaptioningModel, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = dict(model.stack.cells()[0].rnn.named_parameters())
    gates = weights["weight_ih_l0"] @ x + weights["weight_hh_l0"] @ h
    i, f, g, o = (gates + weights["bias_ih_l0"] + weights["bias_hh_l0"]).split(7)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def test_show_and_tell_is_its_equations() -> None:
    model = model_of(attention="none")
    features, ids = torch.randn(1, 6, 4), torch.tensor([[[1, 9, 4]]])
    logits, looked = model(features, ids, torch.ones_like(ids, dtype=torch.bool))
    h, c = torch.tanh(model.image.weight @ features[0].mean(0) / 2 + model.image.bias).split(7)
    for step, token in enumerate(ids[0, 0]):
        h, c = gates_of(model, model.embedding.weight[token], h, c)
        torch.testing.assert_close(logits[step], model.projection.weight @ h + model.projection.bias)
    assert looked is None


def test_show_attend_and_tell_is_its_equations() -> None:
    model = model_of(tied=True)
    features, ids = torch.randn(1, 6, 4), torch.tensor([[[1, 9, 4]]])
    logits, looked = model(features, ids, torch.ones_like(ids, dtype=torch.bool))
    attention = model.attention
    values = torch.stack([attention.values.weight @ a / 2 for a in features[0]]) + attention.position
    keys = torch.stack([attention.keys.weight @ v + attention.keys.bias for v in values])
    h, c = torch.tanh(model.image.weight @ values.mean(0) + model.image.bias).split(7)
    for step, token in enumerate(ids[0, 0]):
        word = model.embedding.weight[token]
        query = attention.query.weight @ torch.cat([h, word])
        energy = torch.stack([attention.energy.weight[0] @ torch.tanh(k + query) for k in keys])
        alpha = energy.exp() / energy.exp().sum()
        gate = torch.sigmoid(attention.gate.weight @ torch.cat([h, word]) + attention.gate.bias)
        seen = gate * sum(a * v for a, v in zip(alpha, values, strict=True))
        h, c = gates_of(model, torch.cat([word, seen]), h, c)
        deep = torch.tanh(model.readout.weight @ torch.cat([h, seen]) + model.readout.bias + word)
        torch.testing.assert_close(logits[step], model.embedding.weight @ deep + model.projection.bias)
        torch.testing.assert_close(looked[0, 0, step], alpha)


@pytest.mark.parametrize("attention", ["none", "soft"])
def test_own_encoder_is_pooled_by_the_maximum_and_a_foreign_one_by_the_mean(attention: str) -> None:
    own = model_of(attention=attention, channels=(5, 4))
    foreign = model_of(attention=attention)
    features = torch.randn(3, 6, 4)
    for model, pooled in ((own, lambda x: x.max(1).values), (foreign, lambda x: x.sum(1) / 6)):
        state, context = model.begin(features)
        first = torch.tanh(model.image(pooled(context["values"] if context else features)))
        torch.testing.assert_close(torch.cat([state["h0"], state["c0"]], 1), first)


def test_word_is_detected_where_it_is_likeliest() -> None:
    model = model_of(channels=(5, 4))
    features = torch.randn(3, 6, 4)
    everywhere = torch.stack([model.detector(2 * features[:, place]) for place in range(6)])
    torch.testing.assert_close(model.detect(features), everywhere.max(0).values)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("attention", ["none", "soft"])
def test_captioning_step_by_step_is_teacher_forcing(cell: str, attention: str) -> None:
    model = model_of(cell=cell, attention=attention, input_dropout=0.5, output_dropout=0.5, image_dropout=0.5).eval()
    features, ids = torch.randn(3, 6, 4), torch.randint(0, 11, (3, 2, 4))
    logits, looked = model(features, ids, torch.ones_like(ids, dtype=torch.bool))
    whole = logits.view(3, 2, 4, 11)
    for caption in range(2):
        state, context = model.encode(features)
        for step in range(4):
            seen, state, alpha = model.step(ids[:, caption, step], state, context)
            torch.testing.assert_close(seen, whole[:, caption, step])
            if attention == "none":
                assert alpha is None
                continue
            torch.testing.assert_close(alpha, looked[:, caption, step].view(3, 2, 3))
            torch.testing.assert_close(alpha.sum((1, 2)), torch.ones(3))


def test_captioning_step_takes_several_rows_of_an_image_side_by_side() -> None:
    model = model_of().eval()
    state, context = model.encode(torch.randn(3, 6, 4))
    token = torch.tensor([[1, 2], [3, 4], [5, 6]])
    both = {name: part.repeat_interleave(2, 0) for name, part in state.items()}
    together, _, alpha = model.step(token.flatten(), both, context)
    for row in range(2):
        alone, _, alone_alpha = model.step(token[:, row], state, context)
        torch.testing.assert_close(together.view(3, 2, 11)[:, row], alone)
        torch.testing.assert_close(alpha.view(3, 2, 2, 3)[:, row], alone_alpha)


def test_captioning_gives_logits_of_steps_present_caption_after_caption() -> None:
    model = model_of().eval()
    features, ids = torch.randn(2, 6, 4), torch.randint(0, 11, (2, 2, 3))
    whole, _ = model(features, ids, torch.ones_like(ids, dtype=torch.bool))
    present = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]], dtype=torch.bool)
    some, _ = model(features, ids, present)
    torch.testing.assert_close(some, whole.view(2, 2, 3, 11)[present])


def test_captioning_takes_pooled_features_where_it_does_not_attend() -> None:
    model = model_of(attention="none").eval()
    features = torch.randn(3, 6, 4)
    from_map, _ = model.encode(features)
    pooled, _ = model.encode(features.mean(1))
    for name in from_map:
        torch.testing.assert_close(pooled[name], from_map[name])


def test_captioning_over_pixels_is_its_network_and_the_rest() -> None:
    model = model_of(channels=(8, 4), rows=4, columns=6).eval()
    pixels = torch.randn(3, 3, 13, 22)
    over_pixels, context = model.encode(pixels)
    features = model.network(pixels)
    assert features.shape == (3, 24, 4)
    over_features, _ = model.begin(features / 2)
    for name in over_pixels:
        assert torch.equal(over_pixels[name], over_features[name])
    assert {name: part.shape for name, part in context.items()} == {"values": (3, 24, 6), "keys": (3, 24, 8)}


def test_scheduled_sampling_reads_its_own_words_alone_where_it_is_certain() -> None:
    model = model_of().eval()
    features, present = torch.randn(3, 6, 4), torch.ones(3, 2, 4, dtype=torch.bool)
    ids = torch.randint(0, 11, (3, 2, 4))
    others = torch.cat([ids[..., :1], (ids[..., 1:] + 1) % 11], 2)

    def logits_of(ids: torch.Tensor, sampled: float, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(features, ids, present, sampled)[0]

    assert torch.equal(logits_of(ids, 1.0, seed=1), logits_of(others, 1.0, seed=1))
    assert not torch.equal(logits_of(ids, 1.0, seed=1), logits_of(ids, 1.0, seed=2))
    assert not torch.equal(logits_of(ids, 0.5, seed=1), logits_of(others, 0.5, seed=1))


def test_show_and_tell_in_one_call_is_itself_step_by_step() -> None:
    model = model_of(attention="none").eval()
    features, ids = torch.randn(3, 6, 4), torch.randint(0, 11, (3, 2, 4))
    present = torch.ones_like(ids, dtype=torch.bool)
    one_call, _ = model(features, ids, present)
    step_by_step, _ = model(features, ids, present, 1e-30)  # so seldom that it is never
    torch.testing.assert_close(step_by_step, one_call)


def test_scheduled_sampling_draws_from_what_the_step_before_said() -> None:
    model = model_of().eval()
    with torch.no_grad():
        model.projection.weight.zero_()
        model.projection.bias.fill_(-1e4)
        model.projection.bias[7] = 0.0  # it can say nothing else
    features, ids = torch.randn(2, 6, 4), torch.randint(0, 7, (2, 2, 3))
    present = torch.ones_like(ids, dtype=torch.bool)
    sevens = torch.cat([ids[..., :1], torch.full_like(ids[..., 1:], 7)], 2)
    torch.testing.assert_close(model(features, ids, present, 1.0)[1], model(features, sevens, present)[1])


@pytest.mark.parametrize("dropout", ["image_dropout", "input_dropout", "output_dropout"])
@pytest.mark.parametrize("attention", ["none", "soft"])
def test_captioning_drops_only_in_training(dropout: str, attention: str) -> None:
    model = model_of(**{dropout: 0.5, "attention": attention})
    features, ids = torch.randn(2, 6, 4), torch.randint(0, 11, (2, 2, 3))
    present = torch.ones_like(ids, dtype=torch.bool)
    assert not torch.equal(model(features, ids, present)[0], model(features, ids, present)[0])
    model.eval()
    assert torch.equal(model(features, ids, present)[0], model(features, ids, present)[0])


def test_captioning_counts_its_parameters() -> None:
    image, cell, words = 4 * 14 + 14, 4 * 7 * (5 + 7 + 2), 11 * 5 + 11 * (7 + 1)
    assert model_of(attention="none").parameter_count == image + cell + words
    attention = 4 * 6 + 6 * 6 + (6 * 8 + 8) + 12 * 8 + 8 + (12 * 6 + 6)
    image, cell = 6 * 14 + 14, 4 * 7 * (5 + 6 + 7 + 2)
    readout, words = (7 + 6) * 5 + 5, 11 * 5 + 11
    assert model_of(tied=True).parameter_count == attention + image + cell + readout + words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary_size": 0}, r"model\.vocabulary_size is 0; it should be greater than or equal to 1"),
        ({"columns": 0}, r"model\.columns is 0"),
        ({"output_dropout": 1.0}, r"model\.output_dropout is 1\.0; it should be less than 1"),
        ({"cell": "rnn"}, r"model\.cell is 'rnn'"),
        ({"attention": "hard"}, r"model\.attention is 'hard'; it should be 'none' or 'soft'"),
        ({"channels": [8, 0]}, r"model\.channels\.1 is 0"),
        ({"channels": [8, 16]}, r"model: feature_size is 4; the last of channels is 16"),
        ({"attention": "none", "tied": True}, r"model: tied without attention takes embedding_size = hidden_size"),
        ({"heads": 2}, r"model\.heads is not a key"),
    ],
)
def test_captioning_configuration_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        CaptioningModelConfig.from_json({"vocabulary_size": 11, "rows": 2, "columns": 3, "feature_size": 4, **change})


def test_captioning_configuration_is_read_as_it_was_written() -> None:
    config = CaptioningModelConfig(
        vocabulary_size=11,
        rows=2,
        columns=3,
        feature_size=9,
        channels=(5, 9),
        cell="gru",
        attention="none",
        image_dropout=0.25,
    )
    assert CaptioningModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("encoder", [None, ENCODER])
def test_captioning_model_is_loaded_with_its_codec(make_captioning_checkpoint, tmp_path, encoder) -> None:
    written = read_checkpoint(make_captioning_checkpoint(tmp_path / "best.safetensors", encoder=encoder))
    model, codec = load_captioning_model(written)
    assert not model.training
    assert frozen_encoder(written) == encoder
    assert codec.preprocessing == (ENCODER.preprocessing if encoder else Preprocessing(width=24, height=16))
    assert (codec.begin_id, codec.end_id) == (1, 2)
    assert codec.caption([3, 4, 8, 2, 5]) == "a dog runs"
    assert all(torch.equal(value, written.tensors[f"model.{name}"]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "language"}, "model configuration: model.attention is not a key"),
        ({"begin": "<bos>"}, "not hold a whole captioning model: the vocabulary has no token '<bos>'"),
        ({"preprocessing": {"width": 0, "height": 5}}, "checkpoint does not hold a whole captioning model: "),
        ({"encoder": {"sha256": "?"}}, "checkpoint does not hold a whole captioning model: "),
        ({"tokenizer": "{}"}, "not hold a whole captioning model: not a tokenizer"),
    ],
)
def test_captioning_model_refuses_a_header_that_does_not_fit(
    make_captioning_checkpoint, tmp_path, change: dict[str, object], sentence: str
) -> None:
    written = read_checkpoint(make_captioning_checkpoint(tmp_path / "best.safetensors"))
    with pytest.raises(CheckpointError, match=sentence):
        load_captioning_model(Checkpoint(written.tensors, {**written.header, **change}))
    without = {name: value for name, value in written.header.items() if name != "model"}
    with pytest.raises(CheckpointError, match="its header has no 'model'"):
        load_captioning_model(Checkpoint(written.tensors, without))
