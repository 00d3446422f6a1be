"""Encoders of strangers: their whole input in one call, rows of unequal lengths padded, an encoder beside a step."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.adopted import adopted
from carousel.export.adopt.encoder import adopt_encoder
from carousel.export.adopt.said import Said
from carousel.export.adopt.trial import Trial
from carousel.models.bundle import open_bundle
from tests.export.adopt.strangers import CLASSES, FEATURES, UNITS, Stranger
from tests.export.adopt.test_step import shapes

LENGTHS = [3, 9, 1, 6]


def tagger(operator: str = "LSTM", *, batch_first: bool = True) -> bytes:
    """A bidirectional layer over x, and scores of each place. [batch, time, classes]"""
    net = Stranger()
    x = net.takes("x", ["batch", "time", FEATURES] if batch_first else ["time", "batch", FEATURES])
    if batch_first:
        net.node("Transpose", [x], ["x_t"], perm=[1, 0, 2])
    net.recurrent(operator, "x_t" if batch_first else x, direction="bidirectional")
    net.node("Transpose", ["y"], ["y_b"], perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3])
    net.node("Reshape", ["y_b", net.constant("both", np.array([0, 0, 2 * UNITS]))], ["told"])
    net.node("MatMul", ["told", net.weight("V", 2 * UNITS, CLASSES)], ["scores"])
    net.gives("scores", ["batch", "time", CLASSES])
    return net.content()


def reader(*, true_is: str = "padded", attends: bool = False) -> bytes:
    """Ids and a mask -> what was read [batch, time, 2 UNITS], the mask, and their mean through a layer [batch, UNITS].

    The mean is over what the mask leaves: over places where it is false, or where it is true.
    """
    net = Stranger()
    net.takes("ids", ["batch", "time"], TensorProto.INT64)
    net.takes("mask", ["batch", "time"], TensorProto.BOOL)
    net.node("Gather", [net.weight("embedding", 9, FEATURES), "ids"], ["x"])
    net.node("Transpose", ["x"], ["x_t"], perm=[1, 0, 2])
    net.recurrent("GRU", "x_t", direction="bidirectional")
    net.node("Transpose", ["y"], ["y_b"], perm=[2, 0, 1, 3])
    net.node("Reshape", ["y_b", net.constant("both", np.array([0, 0, 2 * UNITS]))], ["memory_out"])
    if true_is == "padded":
        net.node("Not", ["mask"], ["real"])
    net.node("Cast", ["real" if true_is == "padded" else "mask"], ["weight"], to=TensorProto.FLOAT)
    net.node("Unsqueeze", ["weight", net.constant("last", np.array([-1]))], ["weights"])
    net.node("Mul", ["memory_out", "weights"], ["weighed"])
    time = net.constant("time", np.array([1]))
    net.node("ReduceSum", ["weighed", time], ["sum"], keepdims=0)
    net.node("ReduceSum", ["weights", time], ["count"], keepdims=0)
    net.node("Max", ["count", net.constant("few", np.float32(1))], ["counted"])
    net.node("Div", ["sum", "counted"], ["mean"])
    net.node("MatMul", ["mean", net.weight("bridge", 2 * UNITS, UNITS)], ["bridged"])
    net.node("Tanh", ["bridged"], ["h_out"])
    net.gives("memory_out", ["batch", "time", 2 * UNITS])
    net.gives("h_out", ["batch", UNITS])
    if attends:
        net.node("Identity", ["mask"], ["mask_out"])
        net.gives("mask_out", ["batch", "time"], TensorProto.BOOL)
    return net.content()


def writer(*, masks: bool = True, classes: int = CLASSES) -> bytes:
    """A number, what was read and where it is padded, and a state -> scores: attention, then a cell."""
    net = Stranger(1)
    net.takes("token", ["batch", "steps"], TensorProto.INT64)
    net.takes("memory", ["batch", "places", 2 * UNITS])
    net.takes("mask", ["batch", "places"], TensorProto.BOOL)
    net.takes("h", ["batch", UNITS])
    net.node("Gather", ["token", net.constant("at", np.int64(-1))], ["id"], axis=1)
    net.node("Gather", [net.weight("embedding", 9, UNITS), "id"], ["x"])
    net.node("MatMul", ["h", net.weight("Q", UNITS, 2 * UNITS)], ["query"])
    net.node("Unsqueeze", ["query", net.constant("two", np.array([2]))], ["column"])
    net.node("MatMul", ["memory", "column"], ["fits"])
    net.node("Squeeze", ["fits", "two"], ["fit"])
    if masks:
        net.node("Where", ["mask", net.constant("never", np.float32(-1e9)), "fit"], ["real_fit"])
    net.node("Softmax", ["real_fit" if masks else "fit"], ["share"], axis=-1)
    net.node("Unsqueeze", ["share", net.constant("one", np.array([1]))], ["row"])
    net.node("MatMul", ["row", "memory"], ["seen"])
    net.node("Squeeze", ["seen", "one"], ["looked"])
    net.node("MatMul", ["looked", net.weight("L", 2 * UNITS, UNITS)], ["lx"])
    net.node("MatMul", ["h", net.weight("R", UNITS, UNITS)], ["rh"])
    net.node("Sum", ["x", "lx", "rh"], ["sum"])
    net.node("Tanh", ["sum"], ["h_next"])
    net.node("MatMul", ["h_next", net.weight("V", UNITS, classes)], ["scores"])
    net.gives("scores", ["batch", classes])
    net.gives("h_next", ["batch", UNITS])
    return net.content()


def encoder_of(content, lengths=None, **said):
    lines: list[str] = []
    return adopt_encoder(content, Said(**said), lengths, lines.append), lines


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_padded_rows_are_the_file_alone(operator, batch_first):
    content = tagger(operator, batch_first=batch_first)
    encoder, lines = encoder_of(content, "x", times={"x": 1 if batch_first else 0})
    assert "rows       rows of 4 lengths padded together are what each is alone, bit for bit" in lines
    assert shapes(encoder.model.graph.input) == {"x": ["batch", "time", FEATURES], "x_length": ["batch"]}
    assert shapes(encoder.model.graph.output) == {"scores": ["batch", "time", CLASSES]}
    x = np.random.default_rng(3).standard_normal((len(LENGTHS), 9, FEATURES)).astype(np.float32)
    told = Trial(encoder.model)({"x": x, "x_length": np.array(LENGTHS, np.int32)})["scores"]
    file = Trial(onnx.load_model_from_string(content))
    for place, length in enumerate(LENGTHS):
        own = x[place : place + 1, :length]
        expected = file({"x": own if batch_first else own.transpose(1, 0, 2)})["scores"]
        expected = expected if batch_first else expected.transpose(1, 0, 2)
        np.testing.assert_array_equal(told[place, :length], expected[0])


def test_rows_of_equal_lengths_go_together_without_lengths():
    encoder, lines = encoder_of(tagger(), times={"x": 1})
    assert encoder.lengths is None
    assert any("rows of equal lengths together are what each is alone" in line for line in lines)


@pytest.mark.parametrize("true_is", ["padded", "real"])
def test_mask_is_filled_from_the_lengths(true_is):
    """Either way round, and sums over places, which padding moves by a bit, in an order that it does not."""
    content = reader(true_is=true_is)
    encoder, lines = encoder_of(content, "ids", times={"ids": 1})
    assert (
        f"mask       mask is filled from the lengths: {'true' if true_is == 'padded' else 'false'} where a" in lines[0]
    )
    assert list(encoder.inputs) == ["ids", "ids_length"]
    ids = np.random.default_rng(3).integers(0, 9, (len(LENGTHS), 9))
    told = Trial(encoder.model)({"ids": ids, "ids_length": np.array(LENGTHS, np.int32)})["h_out"]
    file = Trial(onnx.load_model_from_string(content))
    for place, length in enumerate(LENGTHS):
        mask = np.full((1, length), true_is == "real")
        np.testing.assert_allclose(
            told[place], file({"ids": ids[place : place + 1, :length], "mask": mask})["h_out"][0], rtol=0, atol=1e-6
        )


def test_encoder_whose_rows_mix_runs_one_a_call():
    net = Stranger()
    net.takes("x", ["time", "batch", FEATURES])
    net.recurrent("RNN", "x", direction="bidirectional")
    net.gives("y", ["time", 2, "batch", UNITS])
    encoder, lines = encoder_of(net.content(), times={"x": 0})
    assert encoder.alone == (
        "rows       rows of equal lengths together are not what each is alone: one a call" in lines
    )


def longer() -> bytes:
    """Gives half as many places as it takes."""
    net = Stranger()
    net.takes("x", ["batch", FEATURES, "time"])
    net.node("Conv", ["x", net.weight("w", UNITS, FEATURES, 2)], ["y"], strides=[2])
    net.gives("y", ["batch", UNITS, "time"])
    return net.content()


@pytest.mark.parametrize(
    ("content", "lengths", "times", "sentence"),
    [
        (tagger(), "x", {}, r"--lengths x: say which axis of it is time \(--time x=1\)"),
        (tagger(), None, {}, "free axis .*--time"),
        (longer(), None, {"x": 2}, r"output 'y' is \[1, 7, 1\] for 2 steps and \[1, 7, 2\] for 4"),
        (longer(), "x", {"x": 2}, "has no LSTM, GRU or RNN node to tell how long a row is"),
        (tagger(), None, {"z": 1}, "there is no input 'z'"),
    ],
)
def test_encoder_that_cannot_be_is_refused(content, lengths, times, sentence):
    with pytest.raises(Exception, match=sentence):
        encoder_of(content, lengths, times=times)


SPOKEN = Said(times={"ids": 1, "token": 1}, shapes={"memory": (12, 2 * UNITS), "mask": (12,)})


def both(encoder: bytes, step: bytes, said: Said = SPOKEN):
    return adopted(step, encoder, said, "ids", lambda _: None)


def test_encoder_beside_a_step_gives_what_the_step_takes(tmp_path):
    found = both(reader(attends=True), writer())
    assert found.encoder.outputs == ["context.memory", "context.mask", "state.h"]
    assert found.encoder.max_length == 12
    assert found.largest < 1e-5


@pytest.mark.parametrize(
    ("encoder", "step", "sentence"),
    [
        (reader(), writer(), "the encoder gives no 'mask', which every step reads: its outputs are memory_out, h_out"),
        (reader(attends=True), writer(masks=False), "the step does not mask what is filled up"),
        (tagger(), writer(), "there is no input 'ids'; inputs are token"),
    ],
)
def test_encoder_that_does_not_fit_is_refused(encoder, step, sentence):
    with pytest.raises(Exception, match=sentence):
        both(encoder, step)


def test_command_publishes_encoders(tmp_path, capsys):
    for name, content in (("tagger", tagger()), ("reader", reader(attends=True)), ("writer", writer())):
        (tmp_path / f"{name}.onnx").write_bytes(content)
    flags = ["--repository", str(tmp_path / "bundles"), "--name"]
    alone = [str(tmp_path / "tagger.onnx"), *flags, "tags", "--encoder-only", "--time", "x=1", "--lengths", "x"]
    assert main(alone) == 0
    manifest = open_bundle(tmp_path / "bundles" / "tags" / "1").manifest
    assert (manifest.step.graph, manifest.encoder.lengths, manifest.encoder.gives) == ("", "x_length", ("scores",))
    said = ["--time", "ids=1", "--time", "token=1", "--lengths", "ids", "--shape", f"memory=12,{2 * UNITS}"]
    said += ["--shape", "mask=12", "--encoder", str(tmp_path / "reader.onnx")]
    assert main([str(tmp_path / "writer.onnx"), *flags, "writes", *said]) == 0
    assert "ports      in ids, token; out scores" in capsys.readouterr().out
    assert main([str(tmp_path / "tagger.onnx"), *flags, "tags", "--time", "x=1", "--lengths", "x"]) == 1
    assert "--lengths x is of an encoder: give one" in capsys.readouterr().err
