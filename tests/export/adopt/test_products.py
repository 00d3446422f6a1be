"""Convolutions as products: the same but for the order of sums, and taken only where they are faster."""

import numpy as np
import onnx
import pytest

from carousel.export.adopt import network
from carousel.export.adopt.network import adopt_step
from carousel.export.adopt.products import convolutions_as_products, time_ratio
from carousel.export.adopt.said import Said
from carousel.export.adopt.trial import Trial
from tests.export.adopt.strangers import UNITS, Stranger


def convolution(size, kernel, channels, out, *, bias=True, **attributes):
    """[batch, channels, *size] -> a convolution of it."""
    net = Stranger()
    net.takes("x", ["batch", channels, *size])
    weights = net.weight("w", out, channels // attributes.get("group", 1), *kernel)
    net.node("Conv", ["x", weights, *([net.weight("b", out)] if bias else [])], ["y"], **attributes)
    net.gives("y", ["batch", out, *[None for _ in size]])
    return onnx.load_model_from_string(net.content())


WHOLE, GATHERED = {"Reshape", "MatMul", "Add"}, {"Reshape", "Gather", "MatMul", "Add", "Transpose"}


@pytest.mark.parametrize(
    ("model", "operators"),
    [
        (convolution([4], [3], 9, 8, pads=[1, 1]), WHOLE),
        (convolution([4], [3], 9, 8, pads=[2, 0], strides=[2], dilations=[2]), WHOLE),
        (convolution([4], [3], 6, 6, pads=[1, 1], group=2, auto_pad="NOTSET"), {"Conv"}),  # half of it were zeros
        (convolution([2], [2], 6, 6, group=3), {"Conv"}),
        (convolution([3, 3], [2, 3], 4, 5, pads=[0, 1, 0, 1]), WHOLE),
        (convolution([4], [3], 3, 8, auto_pad="SAME_UPPER"), WHOLE),
        (convolution([64], [16], 1, 6, strides=[8]), GATHERED),
        (convolution([64], [16], 1, 6, strides=[6]), GATHERED),
        (convolution([60], [9], 1, 6, strides=[6], pads=[3, 2]), GATHERED | {"Pad"}),
        (convolution([16], [3], 5, 6, pads=[1, 1]), GATHERED | {"Pad"}),
        (convolution([18], [3], 5, 6, dilations=[3]), GATHERED),
        (convolution([16], [3], 5, 6, strides=[3], bias=False), GATHERED - {"Add"}),
        (convolution([64], [16], 1, 6, strides=[2]), {"Conv"}),  # too many frames
        (convolution([64], [16], 1, 6, strides=[8], auto_pad="SAME_UPPER"), {"Conv"}),
        (convolution([9, 9], [3, 3], 2, 5), {"Conv"}),
    ],
)
def test_convolution_is_the_same_as_products(model, operators):
    written, count, of = convolutions_as_products(model)
    assert {node.op_type for node in written.graph.node} == operators
    assert (count, of) == (int(operators != {"Conv"}), 1)
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(8).standard_normal((3, *sizes)).astype(np.float32)
    np.testing.assert_allclose(Trial(written)({"x": x})["y"], Trial(model)({"x": x})["y"], rtol=0, atol=2e-5)
    assert time_ratio(model, written) > 0


def test_convolution_with_weights_from_outside_stays():
    model = convolution([4], [3], 9, 8)
    model.graph.node.insert(0, onnx.helper.make_node("Neg", ["w"], ["w_turned"]))
    model.graph.node[1].input[1] = "w_turned"
    assert convolutions_as_products(model)[1:] == (0, 1)


def listening(*, convolves=True):
    """[batch, 40] samples and a state -> [batch, 7]: a filter over the samples, then a step."""
    net = Stranger()
    net.takes("audio", ["batch", 40])
    net.takes("h_in", ["batch", UNITS])
    net.node("Unsqueeze", ["audio", net.constant("one", np.array([1]))], ["wave"])
    net.node("Conv", ["wave", net.weight("basis", UNITS, 1, 16)], ["heard"], strides=[8]) if convolves else None
    net.node("ReduceMax", ["heard" if convolves else "wave"], ["level"], axes=[2], keepdims=0)
    net.node("MatMul", ["h_in", net.weight("R", UNITS, UNITS)], ["rh"])
    net.node("Add", ["level", "rh"], ["sum"])
    net.node("Tanh", ["sum"], ["h_out"])
    net.gives("h_out", ["batch", UNITS])
    net.gives("level", ["batch", UNITS])
    return net.content()


@pytest.mark.parametrize(
    ("convolves", "ratio", "told"),
    [
        (True, 0.5, "products   1 of 1 convolutions: a step of 64 rows takes 0.50 of the time"),
        (True, 1.5, "products   1 of 1 convolutions: a step of 64 rows takes 1.50 of the time: left as they were"),
        (False, 0.5, "products   none of 0 convolutions is over a few frames: nothing is written otherwise"),
    ],
)
def test_products_are_taken_where_they_are_faster(convolves, ratio, told, monkeypatch):
    monkeypatch.setattr(network, "time_ratio", lambda *_: ratio)
    lines: list[str] = []
    found = adopt_step(listening(convolves=convolves), Said(products=True), lines.append)
    assert told in lines
    kept = {node.op_type for node in found.built.model.graph.node}
    assert ("Conv" in kept) == (convolves and ratio > 1)
    assert found.compared.largest < 1e-5
