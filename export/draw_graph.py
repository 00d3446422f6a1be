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
from onnx import TensorProto

from carousel.export.graph_builder import GraphBuilder

SAMPLING = Path(__file__).resolve().parents[1] / "service" / "engine" / "sampling"
GRAPHS = {"sample.onnx": True, "draw.onnx": False}
"""By file, whether a softmax of logits comes first."""


def build_draw(*, softmax: bool) -> bytes:
    """A model with these inputs and outputs.

    In: `logits` or, without `softmax`, `weights` <float32>[b, V], which are not negative; `uniforms` <float64>[b, 1],
    in [0, 1); and the layout: `grid` <int64>[3], which is (0, K, B); `even` <bool>[], whether K B = V; `pads`
    <int64>[4], which is (0, 0, 0, K B - V); `places` <int64>[1, B], from 0; `last` <int64>[], which is V - 1.

    Out: `token` <int64>[b, 1], with the probability of its weight's share in the row's sum, never one of weight zero;
    `weight` <float32>[b, 1], the token's; with `softmax` the `probabilities` <float32>[b, V]. A row of NaN gives some
    token, and a weight of NaN.
    """
    graph = GraphBuilder()
    weights = graph.input("logits" if softmax else "weights", np.float32, "V")
    uniforms = graph.input("uniforms", np.float64, 1)
    grid = graph.input("grid", np.int64, 3, batched=False)
    even = graph.input("even", np.bool_, batched=False)
    graph.input("pads", np.int64, 4, batched=False)
    places = graph.input("places", np.int64, 1, "B", batched=False)
    last = graph.input("last", np.int64, batched=False)
    if softmax:
        weights = graph.node("Softmax", weights, result="probabilities", axis=-1)

    sums = graph.branch(even, _sums(graph, weights, padded=False), _sums(graph, weights, padded=True))
    cumulative = _running(graph, sums)  # [b, K]
    ends = graph.constant("end", [-1], np.int64), graph.constant("beyond", [1 << 62], np.int64)
    total = graph.node("Slice", cumulative, *ends, _axis(graph))  # [b, 1]
    # Below the total, however u times it is rounded: else a place beyond the last weight could be meant.
    almost = graph.node("Mul", total, graph.constant("almost_one", 1 - 2.0**-52, np.float64))
    goal = graph.node("Min", graph.node("Mul", uniforms, total), almost)

    passed = graph.node("LessOrEqual", cumulative, goal)
    bucket = _count(graph, passed)
    before = graph.node("Where", passed, cumulative, graph.constant("nothing", 0, np.float64))
    before = graph.node("ReduceMax", before, _axis(graph), keepdims=1)

    width = graph.node("Slice", grid, graph.constant("third", [2], np.int64), ends[1])
    first = graph.node("Mul", bucket, width)
    index = graph.node("Add", first, places)  # [b, B]
    inside = graph.node("GatherElements", weights, graph.node("Min", index, last), axis=1)
    zero = graph.constant("zero", 0, np.float32)
    inside = graph.node("Where", graph.node("LessOrEqual", index, last), inside, zero)
    reached = graph.node("Add", _running(graph, inside), before)
    place = _count(graph, graph.node("LessOrEqual", reached, goal))
    # Rounding may leave the goal just out of reach: then the last place with weight in the bucket is the one.
    weighty = graph.node("Cast", graph.node("Greater", inside, zero), to=TensorProto.FLOAT)
    final = graph.node("ArgMax", weighty, axis=1, keepdims=1, select_last_index=1)
    chosen = graph.node("Add", first, graph.node("Min", place, final))
    token = graph.node("Min", chosen, last, result="token")  # rows of NaN may end anywhere
    graph.node("GatherElements", weights, token, result="weight", axis=1)

    graph.output("token", np.int64, 1)
    graph.output("weight", np.float32, 1)
    if softmax:  # so that whoever calls can say where they go
        graph.output("probabilities", np.float32, "V")
    return graph.model("sample" if softmax else "draw")


def _sums(graph: GraphBuilder, weights: str, *, padded: bool) -> GraphBuilder:
    """A branch: the sum of each bucket. <float32>[b, K]"""
    body = graph.body("padded" if padded else "even_sums")
    whole = body.node("Pad", weights, "pads") if padded else weights
    axis = body.constant("bucket_axis", [2], np.int64)
    body.output(body.node("ReduceSum", body.node("Reshape", whole, "grid"), axis, keepdims=0), np.float32, "K")
    return body


def _axis(graph: GraphBuilder) -> str:
    return graph.constant("axis", [1], np.int64)


def _count(graph: GraphBuilder, mask: str) -> str:
    """How many are true in each row of `mask`. <int64>[b, 1]"""
    return graph.node("ReduceSum", graph.node("Cast", mask, to=TensorProto.INT64), _axis(graph), keepdims=1)


def _running(graph: GraphBuilder, weights: str) -> str:
    """The running sum along each row. <float64>[b, ...]"""
    along = graph.constant("along", 1, np.int64)
    return graph.node("CumSum", graph.node("Cast", weights, to=TensorProto.DOUBLE), along)


def main() -> None:
    """Write the files."""
    for name, softmax in GRAPHS.items():
        (SAMPLING / name).write_bytes(build_draw(softmax=softmax))


if __name__ == "__main__":
    main()
