"""The graphs that the engine draws tokens with: `python -m export.draw_graph` writes them where the service keeps them.

Inverse transform sampling in two levels: weights are summed up in buckets, the running sum over the buckets says which
of them holds the place that a random number stands for, and the running sum within says which weight it is. A running
sum is slow, a plain sum is not. Numbers of float32 are summed in float32 within a bucket and in float64 across.

As one graph, since whoever calls onnxruntime gives up the interpreter's lock, and may have to wait for it: once for all
of this rather than once for each array. Every operation works within a row.

Axes: b rows, V weights of each, K buckets of B weights; the last one is filled up with zeros where B does not divide V.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph_builder import IR_VERSION, OPSETS

ENGINE = Path(__file__).parents[1] / "service" / "engine"
GRAPHS = {"sample.onnx": True, "draw.onnx": False}
"""By file, whether a softmax of logits comes first."""


class _Graph:
    """Nodes and constants, named as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, operator: str, *inputs: str, result: str = "", **attributes: object) -> str:
        """A node; the name of its output."""
        name = result or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, name: str, value: object) -> str:
        """A constant; its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def count(self, mask: str) -> str:
        """How many are true in each row of `mask`. <int64>[b, 1]"""
        return self.node("ReduceSum", self.node("Cast", mask, to=TensorProto.INT64), "axis", keepdims=1)

    def running(self, weights: str) -> str:
        """The running sum along each row. <float64>[b, ...]"""
        return self.node("CumSum", self.node("Cast", weights, to=TensorProto.DOUBLE), "second")


def build_draw(*, softmax: bool) -> bytes:
    """A model with these inputs and outputs.

    In: `logits` or, without `softmax`, `weights` <float32>[b, V], which are not negative; `uniforms` <float64>[b, 1],
    in [0, 1); and the layout: `grid` <int64>[3], which is (0, K, B); `even` <bool>[], whether K B = V; `pads`
    <int64>[4], which is (0, 0, 0, K B - V); `places` <int64>[1, B], from 0; `last` <int64>[], which is V - 1.

    Out: `token` <int64>[b, 1], with the probability of its weight's share in the row's sum, never one of weight zero;
    `weight` <float32>[b, 1], the token's; with `softmax` the `probabilities` <float32>[b, V]. A row of NaN gives some
    token, and a weight of NaN.
    """
    graph = _Graph()
    graph.constant("axis", np.array([1], np.int64))
    graph.constant("second", np.int64(1))
    weights = graph.node("Softmax", "logits", result="probabilities", axis=-1) if softmax else "weights"

    sums = graph.node("If", "even", then_branch=_sums(weights, padded=False), else_branch=_sums(weights, padded=True))
    cumulative = graph.running(sums)  # [b, K]
    ends = [graph.constant(name, np.array([value], np.int64)) for name, value in (("end", -1), ("beyond", 1 << 62))]
    total = graph.node("Slice", cumulative, *ends, "axis")  # [b, 1]
    # Below the total, however u times it is rounded: else a place beyond the last weight could be meant.
    almost = graph.node("Mul", total, graph.constant("almost_one", np.float64(1 - 2.0**-52)))
    goal = graph.node("Min", graph.node("Mul", "uniforms", total), almost)

    passed = graph.node("LessOrEqual", cumulative, goal)
    bucket = graph.count(passed)
    before = graph.node("Where", passed, cumulative, graph.constant("nothing", np.float64(0)))
    before = graph.node("ReduceMax", before, "axis", keepdims=1)

    width = graph.node("Slice", "grid", graph.constant("third", np.array([2], np.int64)), "beyond_grid")
    graph.constant("beyond_grid", np.array([3], np.int64))
    index = graph.node("Add", graph.node("Mul", bucket, width), "places")  # [b, B]
    inside = graph.node("GatherElements", weights, graph.node("Min", index, "last"), axis=1)
    inside = graph.node(
        "Where", graph.node("LessOrEqual", index, "last"), inside, graph.constant("zero", np.float32(0))
    )
    reached = graph.node("Add", graph.running(inside), before)
    place = graph.count(graph.node("LessOrEqual", reached, goal))
    # Rounding may leave the goal just out of reach: then the last place with weight in the bucket is the one.
    weighty = graph.node("Cast", graph.node("Greater", inside, "zero"), to=TensorProto.FLOAT)
    final = graph.node("ArgMax", weighty, axis=1, keepdims=1, select_last_index=1)
    chosen = graph.node("Add", graph.node("Mul", bucket, width), graph.node("Min", place, final))
    token = graph.node("Min", chosen, "last", result="token")  # rows of NaN may end anywhere
    graph.node("GatherElements", weights, token, result="weight", axis=1)

    inputs: dict[str, tuple[type[np.generic], list[int | str]]] = {
        "logits" if softmax else "weights": (np.float32, ["b", "V"]),
        "uniforms": (np.float64, ["b", 1]),
        "grid": (np.int64, [3]),
        "even": (np.bool_, []),
        "pads": (np.int64, [4]),
        "places": (np.int64, [1, "B"]),
        "last": (np.int64, []),
    }
    outputs: dict[str, tuple[type[np.generic], list[int | str]]] = {
        "token": (np.int64, ["b", 1]),
        "weight": (np.float32, ["b", 1]),
    }
    if softmax:  # so that whoever calls can say where they go
        outputs["probabilities"] = (np.float32, ["b", "V"])
    made = helper.make_graph(
        graph.nodes,
        "sample" if softmax else "draw",
        [_value(name, *each) for name, each in inputs.items()],
        [_value(name, *each) for name, each in outputs.items()],
        graph.constants,
    )
    opsets = [helper.make_opsetid("", OPSETS[""])]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="carousel")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _sums(weights: str, *, padded: bool) -> onnx.GraphProto:
    """A branch: the sum of each bucket. <float32>[b, K]"""
    graph = _Graph()
    axis = graph.constant(f"bucket_axis_{padded}", np.array([2], np.int64))
    whole = graph.node("Pad", weights, "pads", result="filled") if padded else weights
    name = f"sums_{padded}"
    graph.node(
        "ReduceSum", graph.node("Reshape", whole, "grid", result=f"grid_{padded}"), axis, result=name, keepdims=0
    )
    return helper.make_graph(graph.nodes, name, [], [_value(name, np.float32, ["b", "K"])], graph.constants)


def _value(name: str, dtype: type[np.generic], shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def main() -> None:
    """Write the files."""
    for name, softmax in GRAPHS.items():
        (ENGINE / name).write_bytes(build_draw(softmax=softmax))


if __name__ == "__main__":
    main()
