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

import onnx
import onnx.parser

SAMPLING = Path(__file__).resolve().parents[1] / "service" / "engine" / "sampling"
GRAPHS = {"sample.onnx": True, "draw.onnx": False}
"""By file, whether a softmax of logits comes first."""

_MODEL = """
<ir_version: 10, opset_import: ["": 20], producer_name: "carousel">
{name} (
    float[batch, V] {given}, double[batch, 1] uniforms, int64[3] grid, bool even, int64[4] pads, int64[1, B] places,
    int64 last
) => (int64[batch, 1] token, float[batch, 1] weight{more})
<
    int64 along = {{1}}, int64[1] axis = {{1}}, int64[1] bucket_axis = {{2}}, int64[1] end = {{-1}},
    int64[1] beyond = {{4611686018427387904}}, int64[1] third = {{2}}, double almost_one = {{{almost_one!r}}},
    double nothing = {{0.0}}, float zero = {{0.0}}
>
{{
    {softmax}
    sums = If (even) <
        then_branch = even_sums () => (float[batch, K] of_buckets) {{
            buckets = Reshape ({weights}, grid)
            of_buckets = ReduceSum <keepdims = 0> (buckets, bucket_axis)
        }},
        else_branch = padded () => (float[batch, K] of_padded) {{
            whole = Pad ({weights}, pads)
            padded_buckets = Reshape (whole, grid)
            of_padded = ReduceSum <keepdims = 0> (padded_buckets, bucket_axis)
        }}
    >
    wide_sums = Cast <to = 11> (sums)
    cumulative = CumSum (wide_sums, along)
    total = Slice (cumulative, end, beyond, axis)
    almost = Mul (total, almost_one)
    raw_goal = Mul (uniforms, total)
    goal = Min (raw_goal, almost)

    passed = LessOrEqual (cumulative, goal)
    passed_numbers = Cast <to = 7> (passed)
    bucket = ReduceSum <keepdims = 1> (passed_numbers, axis)
    passed_sums = Where (passed, cumulative, nothing)
    before = ReduceMax <keepdims = 1> (passed_sums, axis)

    width = Slice (grid, third, beyond)
    first = Mul (bucket, width)
    index = Add (first, places)
    there = LessOrEqual (index, last)
    safe_index = Min (index, last)
    taken = GatherElements <axis = 1> ({weights}, safe_index)
    inside = Where (there, taken, zero)
    wide_inside = Cast <to = 11> (inside)
    running = CumSum (wide_inside, along)
    reached = Add (running, before)
    passed_inside = LessOrEqual (reached, goal)
    passed_inside_numbers = Cast <to = 7> (passed_inside)
    place = ReduceSum <keepdims = 1> (passed_inside_numbers, axis)
    has_weight = Greater (inside, zero)
    weighty = Cast <to = 1> (has_weight)
    final = ArgMax <axis = 1, keepdims = 1, select_last_index = 1> (weighty)
    safe_place = Min (place, final)
    chosen = Add (first, safe_place)
    token = Min (chosen, last)
    weight = GatherElements <axis = 1> ({weights}, token)
}}
"""
"""In ONNX's textual syntax; Cast's numbers are 1 float32, 7 int64, 11 float64. Of the values

- goal: below the total, however u times it is rounded; else a place beyond the last weight could be meant;
- before: the running sum in front of the bucket, whose places are `index` <int64>[b, B];
- final: the last place with weight in the bucket, for rounding may leave the goal just out of reach;
- token: at most `last`, for rows of NaN may end anywhere.
"""


def build_draw(*, softmax: bool) -> bytes:
    """A model with these inputs and outputs.

    In: `logits` or, without `softmax`, `weights` <float32>[b, V], which are not negative; `uniforms` <float64>[b, 1],
    in [0, 1); and the layout: `grid` <int64>[3], which is (0, K, B); `even` <bool>[], whether K B = V; `pads`
    <int64>[4], which is (0, 0, 0, K B - V); `places` <int64>[1, B], from 0; `last` <int64>[], which is V - 1.

    Out: `token` <int64>[b, 1], with the probability of its weight's share in the row's sum, never one of weight zero;
    `weight` <float32>[b, 1], the token's; with `softmax` the `probabilities` <float32>[b, V], so that whoever calls can
    say where they go. A row of NaN gives some token, and a weight of NaN.
    """
    text = _MODEL.format(
        name="sample" if softmax else "draw",
        given="logits" if softmax else "weights",
        weights="probabilities" if softmax else "weights",
        softmax="probabilities = Softmax <axis = -1> (logits)" if softmax else "",
        more=", float[batch, V] probabilities" if softmax else "",
        almost_one=1 - 2.0**-52,
    )
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def main() -> None:
    """Write the files."""
    for name, softmax in GRAPHS.items():
        (SAMPLING / name).write_bytes(build_draw(softmax=softmax))


if __name__ == "__main__":
    main()
