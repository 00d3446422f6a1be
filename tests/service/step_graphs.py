"""Step graphs whose batch axis is free by declaration: some keep that, some break it, each in a way of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from carousel.models.bundle import Bundle, open_bundle, publish
from carousel.service.engine.runner import HeadPorts, OnnxRunner, StepPorts
from carousel.service.engine.states.pool import StateSpec
from tests.manifests import manifest_of

VOCABULARY = 13
"""That of the tests' tiny bundle, whose codec these can be published with."""

node = helper.make_node

TANH = [node("Tanh", ["x"], ["y"])]
SOFTPLUS = [node("Softplus", ["x"], ["wide"]), node("Sub", ["wide", "one"], ["y"])]
"""Rounds a value otherwise in the last few of a tensor, which are another row's in another company."""
MAXIMUM = [
    node("Abs", ["x"], ["size"]),
    node("ReduceMax", ["size"], ["largest"], keepdims=1),
    node("Add", ["largest", "one"], ["scale"]),
    node("Div", ["x", "scale"], ["y"]),
]
"""A scale over all rows."""
DYNAMIC = [
    node("DynamicQuantizeLinear", ["x"], ["x8", "scale", "zero"]),
    node("DequantizeLinear", ["x8", "scale", "zero"], ["near"]),
    node("Tanh", ["near"], ["y"]),
]
"""Likewise: what DynamicQuantizeLSTM does to its input."""
ONE_ROW = [node("Reshape", ["x", "one_row"], ["row"]), node("Tanh", ["row"], ["y"])]
"""Fails unless there is one row."""
THREE_ROWS = [node("Reshape", ["x", "three_rows"], ["rows"]), node("Tanh", ["rows"], ["y"])]
"""Fails unless there are three."""
SECOND_ROW = [
    node("Gather", ["x", "first"], ["second"], axis=0),
    node("Sub", ["second", "second"], ["nothing"]),
    node("Tanh", ["x"], ["bounded"]),
    node("Add", ["bounded", "nothing"], ["y"]),
]
"""Reads the second row, for nothing: fails where there is none."""
SECOND_ROW_AND_MAXIMUM = [*SECOND_ROW[:2], node("Add", ["x", "nothing"], ["x2"]), *(
    node(each.op_type, ["x2" if name == "x" else name for name in each.input], list(each.output), **(
        {"keepdims": 1} if each.op_type == "ReduceMax" else {}
    )) for each in MAXIMUM
)]  # fmt: skip
ELMAN = [
    node("Unsqueeze", ["x", "zero_axis"], ["time"]),
    node("RNN", ["time", "W", "R"], ["", "last"], hidden_size=48),
    node("Squeeze", ["last", "zero_axis"], ["rnn"]),
    node("Slice", ["rnn", "zero_axis", "width", "one_axis"], ["y"]),
]
"""The RNN operator has another kernel for one row than for more."""
_PLACE = [
    node("ReduceSum", ["x", "one_axis"], ["sums"], keepdims=1),
    node("Mul", ["sums", "zeros"], ["nothing"]),
    node("Add", ["nothing", "one"], ["ones"]),
    node("CumSum", ["ones", "axis"], ["places"]),
]
SIXTH_ROW = [
    *_PLACE,
    node("Equal", ["places", "six"], ["is_sixth"]),
    node("Cast", ["is_sixth"], ["sixth"], to=TensorProto.FLOAT),
    node("Mul", ["sixth", "small"], ["more"]),
    node("Tanh", ["x"], ["bounded"]),
    node("Add", ["bounded", "more"], ["y"]),
]
"""Gives the sixth row of a call a little more than others."""
SIX_ROWS = [
    *_PLACE,
    node("Cast", ["places"], ["indices"], to=TensorProto.INT64),
    node("Gather", ["six_ones", "indices"], ["factors"], axis=0),
    node("Squeeze", ["factors", "one_axis"], ["factor"]),
    node("Tanh", ["x"], ["bounded"]),
    node("Mul", ["bounded", "factor"], ["y"]),
]
"""Fails from seven rows on."""


TYPED = {
    "float16": (3,),
    "float32": (2, 3),
    "float64": (1,),
    "int8": (4,),
    "int16": (2, 1, 2),
    "int32": (5,),
    "int64": (1, 1),
    "uint8": (3,),
    "uint16": (2,),
    "uint32": (2, 2),
    "uint64": (1,),
    "bool": (3, 2),
}
"""States of every type that a graph may have, and their shapes."""


def typed_graph() -> bytes:
    """A state of every type: each becomes `(3 state + token + 1) mod 7` (of truth values, whether that is odd), and the
    logits a row of the token and all that is in the states."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32), "embedding")
    ]
    for name, value in {"three": 3, "seven": 7, "two": 2, "one": 1, "tenth": 0.1}.items():
        weights.append(numpy_helper.from_array(np.array(value, np.float32), name))
    nodes = [
        node("Gather", ["embedding", "token"], ["sum_"]),
        node("Cast", ["token"], ["number"], to=TensorProto.FLOAT),
        node("Add", ["number", "one"], ["more"]),
    ]
    values = [helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"])]
    given = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", VOCABULARY])]
    total = "sum_"
    for dtype, shape in TYPED.items():
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        axes, flat = np.array([-1, *[1] * len(shape)]), np.array([0, -1])
        weights += [numpy_helper.from_array(axes, f"axes_{dtype}"), numpy_helper.from_array(flat, f"flat_{dtype}")]
        modulus = "two" if dtype == "bool" else "seven"
        nodes += [
            node("Cast", [f"state.{dtype}"], [f"s_{dtype}"], to=TensorProto.FLOAT),
            node("Mul", [f"s_{dtype}", "three"], [f"m_{dtype}"]),
            node("Reshape", ["more", f"axes_{dtype}"], [f"t_{dtype}"]),
            node("Add", [f"m_{dtype}", f"t_{dtype}"], [f"a_{dtype}"]),
            node("Mod", [f"a_{dtype}", modulus], [f"v_{dtype}"], fmod=1),
            node("Cast", [f"v_{dtype}"], [f"next_state.{dtype}"], to=kind),
            node("Reshape", [f"v_{dtype}", f"flat_{dtype}"], [f"f_{dtype}"]),
            node("ReduceMax", [f"f_{dtype}"], [f"r_{dtype}"], axes=[1], keepdims=1),
            node("Mul", [f"r_{dtype}", "tenth"], [f"w_{dtype}"]),
            node("Mul", [f"w_{dtype}", total], [f"p_{dtype}"]),
            node("Add", [f"p_{dtype}", total], [f"sum_{dtype}"]),
        ]
        total = f"sum_{dtype}"
        values.append(helper.make_tensor_value_info(f"state.{dtype}", kind, ["batch", *shape]))
        given.append(helper.make_tensor_value_info(f"next_state.{dtype}", kind, ["batch", *shape]))
    nodes.append(node("Identity", [total], ["logits"]))
    graph = helper.make_graph(nodes, "step", values, given, weights)
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def step_graph(nodes: Sequence[NodeProto], width: int = 33) -> bytes:
    """`next_state.h`[b, width] is `y` of `x`, which is `state.h` and a row of the token; `logits` are its product."""
    random = np.random.default_rng(0)

    def tensor(name: str, value: object, dtype: type) -> TensorProto:
        return numpy_helper.from_array(np.array(value, dtype), name)

    weights = [
        tensor("embedding", random.standard_normal((VOCABULARY, width)), np.float32),
        tensor("readout", random.standard_normal((width, VOCABULARY)), np.float32),
        tensor("W", 0.2 * random.standard_normal((1, 48, width)), np.float32),
        tensor("R", 0.2 * random.standard_normal((1, 48, 48)), np.float32),
        tensor("one", 1, np.float32),
        tensor("zeros", 0, np.float32),
        tensor("six", 6, np.float32),
        tensor("small", 1e-6, np.float32),
        tensor("six_ones", np.ones((7, 1)), np.float32),
        tensor("one_row", [1, width], np.int64),
        tensor("three_rows", [3, width], np.int64),
        tensor("first", [1], np.int64),
        tensor("zero_axis", [0], np.int64),
        tensor("one_axis", [1], np.int64),
        tensor("width", [width], np.int64),
        tensor("axis", 0, np.int64),
    ]
    used = {name for each in nodes for name in each.input} | {"embedding", "readout"}
    graph = helper.make_graph(
        [
            node("Gather", ["embedding", "token"], ["embedded"]),
            node("Add", ["embedded", "state.h"], ["x"]),
            *nodes,
            node("Identity", ["y"], ["next_state.h"]),
            node("MatMul", ["y", "readout"], ["logits"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("state.h", TensorProto.FLOAT, ["batch", width]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", VOCABULARY]),
            helper.make_tensor_value_info("next_state.h", TensorProto.FLOAT, ["batch", width]),
        ],
        [each for each in weights if each.name in used],
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def runner_of(nodes: Sequence[NodeProto], width: int = 33, threads: int = 1) -> OnnxRunner:
    """Runs such a graph."""
    ports = StepPorts(
        inputs={"token": StateSpec((), "int64")},
        outputs={"logits": StateSpec((VOCABULARY,), "float32")},
        states={"state.h": StateSpec((width,), "float32")},
        after={"state.h": "next_state.h"},
        context={},
        head=HeadPorts("token", "logits"),
    )
    return OnnxRunner(step_graph(nodes, width), ports, threads)


def publish_graph(graph: bytes, repository: Path, name: str, like: Path) -> Path:
    """Publishes such a graph under the manifest and with the codec of another bundle."""
    bundle: Bundle = open_bundle(like)
    files = {file: content for file, content in bundle.files.items() if file not in bundle.manifest.prefill}
    return publish(
        repository, name, manifest_of("language", {**files, "step.onnx": graph}), {**files, "step.onnx": graph}
    )
