"""What keeps a row from being alone what it is in company, and what can be done about it.

onnxruntime's RNN rounds otherwise in a batch of one: written as products and an activation it does not, and is faster.
A dynamic int8 network scales by the largest value of the whole batch: with float weights it does not.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.graphs import attribute, constant, copy_of, initializers, producers, prune, set_nodes
from carousel.export.adopt.trial import Array, Arrays, Trial, take

DYNAMIC = {"DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"}


def dequantize(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """With float weights for dynamically quantised products; and how many nodes that changed."""
    model = copy_of(model)
    graph = model.graph
    held = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(graph).items()}
    made = producers(graph)
    nodes: list[onnx.NodeProto] = []
    changed = 0
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLSTM":
            nodes.append(_float_lstm(graph, node, held))
            changed += 1
        elif node.op_type == "MatMulInteger":
            source = made.get(node.input[0])
            weight = held.get(node.input[1])
            if source is None or source.op_type != "DynamicQuantizeLinear" or weight is None:
                nodes.append(node)
                continue
            zero = (
                held.get(node.input[3], np.zeros((), weight.dtype))
                if len(node.input) > 3
                else np.zeros((), weight.dtype)
            )
            name = constant(graph, f"{node.output[0]}.float", weight.astype(np.float32) - zero.astype(np.float32))
            nodes.append(helper.make_node("MatMul", [source.input[0], name], list(node.output), name=node.name))
            changed += 1
        else:
            nodes.append(node)
    integers = {
        name
        for node in nodes
        if node.op_type in ("ConvInteger", "QLinearMatMul", "MatMulInteger")
        for name in node.input
    }
    for node in list(nodes):
        if node.op_type == "DynamicQuantizeLinear" and node.output[0] not in integers:
            nodes.remove(node)
            one = constant(graph, f"{node.output[1]}.one", np.float32(1))
            nodes.insert(0, helper.make_node("Identity", [one], [node.output[1]]))
    set_nodes(graph, nodes)
    prune(graph)
    return model, changed


def _float_lstm(graph: onnx.GraphProto, node: onnx.NodeProto, held: Arrays) -> onnx.NodeProto:
    names = [*node.input, *[""] * (12 - len(node.input))]
    weights = []
    for source, scale, zero in ((1, 8, 9), (2, 10, 11)):
        value = held[names[source]].astype(np.float32)  # [directions, inputs, 4 H]
        scales = held[names[scale]].astype(np.float32)
        zeros = held[names[zero]].astype(np.float32) if names[zero] else np.zeros_like(scales)
        if scales.ndim == 1:
            scales, zeros = scales.reshape(-1, 1), zeros.reshape(-1, 1)
        value = (value - zeros[:, None, :]) * scales[:, None, :]
        weights.append(constant(graph, f"{node.output[0] or node.name}.float{source}", value.transpose(0, 2, 1).copy()))
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    inputs = [names[0], *weights, *names[3:8]]
    while inputs and not inputs[-1]:
        inputs.pop()
    return helper.make_node("LSTM", inputs, list(node.output), name=node.name, **attributes)


def written_out_rnn(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """With each RNN node of a graph of one step as products and an activation; and how many there were."""
    model = copy_of(model)
    graph = model.graph
    held = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(graph).items()}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        weights = [held.get(name) for name in node.input[1:3]] if node.op_type == "RNN" else []
        if len(weights) != 2 or any(weight is None for weight in weights):
            nodes.append(node)
            continue
        count += 1
        nodes += _cell(graph, node, held, f"rnn{count}")
    set_nodes(graph, nodes)
    prune(graph)
    return model, count


def _cell(graph: onnx.GraphProto, node: onnx.NodeProto, held: Arrays, prefix: str) -> list[onnx.NodeProto]:
    if attribute(node, "direction", b"forward") != b"forward" or attribute(node, "clip") is not None:
        raise AdoptionRefused(
            f"RNN {node.name!r} runs backwards or clips: its rows are not alone what they are in company"
        )
    input_weight, hidden_weight = held[node.input[1]][0], held[node.input[2]][0]  # [H, I], [H, H]
    units = hidden_weight.shape[0]
    bias = held[node.input[3]][0] if len(node.input) > 3 and node.input[3] else np.zeros(2 * units, np.float32)
    activation = (attribute(node, "activations") or [b"Tanh"])[0].decode()
    if activation not in ("Tanh", "Relu", "Sigmoid"):
        raise AdoptionRefused(
            f"RNN {node.name!r} has the activation {activation}: only Tanh, Relu and Sigmoid can be written out"
        )

    def named(name: str, value: Array) -> str:
        return constant(graph, f"{prefix}.{name}", value)

    x, h, summed = f"{prefix}.x", f"{prefix}.h", f"{prefix}.sum"
    made = [
        helper.make_node("Reshape", [node.input[0], named("x_shape", np.array([-1, input_weight.shape[1]]))], [x]),
        helper.make_node("Reshape", [node.input[5], named("h_shape", np.array([-1, units]))], [h]),
        helper.make_node("MatMul", [x, named("W", input_weight.T.copy())], [f"{prefix}.from_x"]),
        helper.make_node("MatMul", [h, named("R", hidden_weight.T.copy())], [f"{prefix}.from_h"]),
        helper.make_node("Add", [f"{prefix}.from_x", f"{prefix}.from_h"], [f"{prefix}.products"]),
        helper.make_node("Add", [f"{prefix}.products", named("B", bias[:units] + bias[units:])], [summed]),
        helper.make_node(activation, [summed], [f"{prefix}.next"]),
    ]
    for place, shape in enumerate(([1, 1, -1, units], [1, -1, units])):
        if len(node.output) > place and node.output[place]:
            made.append(
                helper.make_node(
                    "Reshape", [f"{prefix}.next", named(f"y{place}_shape", np.array(shape))], [node.output[place]]
                )
            )
    return made


REDUCED = {"ReduceMean", "ReduceSum"}
"""Sums over an axis that is not the last are taken in another order in company; as products they are not."""


def as_product(model: onnx.ModelProto, name: str, feeds: Arrays) -> onnx.ModelProto | None:
    """With a sum or mean over one axis as a product with a column of ones or shares; None where it is over more.

    Args:
        model: a step graph.
        name: of the node.
        feeds: inputs of one row, to see the sizes of its axes with.
    """
    model = copy_of(model)
    graph = model.graph
    node = next((each for each in graph.node if each.name == name), None)
    if node is None or node.op_type not in REDUCED:
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        held = initializers(graph).get(node.input[1])
        axes = None if held is None else numpy_helper.to_array(held).tolist()
    probe = copy_of(model)
    del probe.graph.output[:]
    probe.graph.output.add().name = node.input[0]
    prune(probe.graph)
    shape = Trial(probe, plain=True)(feeds)[node.input[0]].shape
    wide = [axis for axis in {each % len(shape) for each in axes or range(len(shape))} if shape[axis] > 1]
    if len(wide) != 1 or wide[0] == 0 or len(axes or ()) > 1:
        return None
    axis, size = wide[0], shape[wide[0]]
    share = 1.0 if node.op_type == "ReduceSum" else 1.0 / size
    column = constant(graph, f"{name}.shares", np.full((size, 1), share, np.float32))
    order = [*(each for each in range(len(shape)) if each != axis), axis]
    back = [order.index(each) for each in range(len(shape))]
    moved, summed, result = f"{name}.moved", f"{name}.summed", f"{name}.back"
    made = [
        helper.make_node("Transpose", [node.input[0]], [moved], perm=order),
        helper.make_node("MatMul", [moved, column], [summed]),
        helper.make_node("Transpose", [summed], [result], perm=back),
    ]
    if attribute(node, "keepdims", 1):
        made[-1].output[0] = node.output[0]
    else:
        lasting = constant(
            graph, f"{name}.shape", np.array([-1, *(shape[each] for each in range(1, len(shape)) if each != axis)])
        )
        made.append(helper.make_node("Reshape", [result, lasting], [node.output[0]]))
    nodes: list[onnx.NodeProto] = []
    for each in graph.node:
        nodes += made if each.name == name else [each]
    set_nodes(graph, nodes)
    prune(graph)
    return model


def sums_in_order(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """With each sum or mean over an axis that is counted from the first taken in order; and how many there were.

    The last of running sums: where a row is padded with zeros it is what it is without.
    """
    model = copy_of(model)
    graph = model.graph
    held = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(graph).items()}
    nodes: list[onnx.NodeProto] = []
    count = 0
    opset = next(each.version for each in model.opset_import if not each.domain)
    for node in graph.node if opset >= 13 else ():
        axes = attribute(node, "axes") if node.op_type in REDUCED else None
        if node.op_type in REDUCED and axes is None and len(node.input) > 1 and node.input[1] in held:
            axes = held[node.input[1]].tolist()
        if not axes or len(axes) > 1 or axes[0] < 1:
            nodes.append(node)
            continue
        count += 1
        name = node.output[0]
        axis, last, end = (
            constant(graph, f"{name}.{kind}", np.array(value, np.int64))
            for kind, value in (("axis", axes), ("last", [-1]), ("end", [2**31]))
        )
        steps = [
            helper.make_node("CumSum", [node.input[0], axis], [f"{name}.sums"]),
            helper.make_node("Slice", [f"{name}.sums", last, end, axis], [f"{name}.sum"]),
        ]
        result = f"{name}.sum"
        if node.op_type == "ReduceMean":
            result = f"{name}.mean"
            steps += [
                helper.make_node("Shape", [node.input[0]], [f"{name}.shape"]),
                helper.make_node("Gather", [f"{name}.shape", axis], [f"{name}.size"]),
                helper.make_node("Cast", [f"{name}.size"], [f"{name}.float"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Div", [f"{name}.sum", f"{name}.float"], [result]),
            ]
        keeps = bool(attribute(node, "keepdims", 1))
        steps.append(helper.make_node("Identity" if keeps else "Squeeze", [result, *([] if keeps else [axis])], [name]))
        nodes += steps
    if count:
        set_nodes(graph, nodes)
        prune(graph)
    return model, count


def first_mixing(model: onnx.ModelProto, feeds: Arrays, row: int) -> onnx.NodeProto | None:
    """The first node of a step graph that gives this row otherwise alone than in company, though it gets it the same.

    Looked at are tensors of the outer graph with an axis that grows with the batch.
    """
    probe = optimised(model)
    shown = [name for node in probe.graph.node for name in node.output if name]
    have = {value.name for value in probe.graph.output}
    for name in shown:
        if name not in have:
            value = probe.graph.output.add()
            value.name = name
    try:
        trial = Trial(probe, plain=True)
    except Exception:
        return None
    alone = trial({name: take(array, 0, row) for name, array in feeds.items()})
    company = trial(feeds)
    rows = next(iter(feeds.values())).shape[0]
    for node in probe.graph.node:
        for name in node.output:
            if not name or company[name].shape == alone[name].shape:
                continue
            axis = next(
                (
                    a
                    for a, (x, y) in enumerate(zip(alone[name].shape, company[name].shape, strict=False))
                    if y == rows * x
                ),
                None,
            )
            if axis is None:
                continue
            size = alone[name].shape[axis]
            part = np.take(company[name], range(row * size, (row + 1) * size), axis=axis)
            if part.shape == alone[name].shape and part.tobytes() != alone[name].tobytes():
                return node
    return None


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that onnxruntime makes of it, and runs: a node may mix rows there that in the file does not."""
    with TemporaryDirectory() as directory:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(directory) / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)
