"""What a step graph must look like, task by task: the half of the contract that the graph itself can say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from carousel.models.errors import GraphRejected
from carousel.models.graph import MEMORY_PREFIX, NEXT_STATE_PREFIX, STATE_PREFIX, GraphSpec, TensorSpec, next_name

STEP_GRAPH = "step.onnx"

ATTENTION = "attention"
"""The output that says where a step looked: a captioning graph may have it."""

Task = Literal["language", "tracing", "captioning"]

STEP_INPUTS: Mapping[Task, tuple[str, ...]] = {
    "language": ("token",),
    "tracing": ("skill", "correct"),
    "captioning": ("token",),
}
"""What one step eats beside states and memories, each int64[batch]."""

STEP_OUTPUT: Mapping[Task, str] = {"language": "logits", "tracing": "probability", "captioning": "logits"}
"""What one step says beside the next states, float32[batch, size]."""


def check_step(graph: GraphSpec, task: Task) -> int:
    """Hold a step graph against the contract of its task.

    language: `token` int64[batch] in, `logits` float32[batch, V] out.
    tracing: `skill` and `correct` int64[batch] in, `probability` float32[batch, S] out.
    captioning: as language, and perhaps every `memory.<name>` in that is read and not rewritten, and
    `attention` float32[batch, rows, columns] out.
    All: every `state.<name>` in and, for each, a `next_state.<name>` of its type and shape out.

    Returns:
        V or S: how many tokens or skills the graph speaks of.

    Raises:
        GraphRejected: with the first thing that is wrong.
    """
    inputs = STEP_INPUTS[task]
    for name in inputs:
        _require(graph.input(name), "input", TensorSpec(name, "int64", (None,)))
    size = _output_size(graph, task)
    for spec in graph.inputs:
        if spec.name in inputs or spec.name.startswith(STATE_PREFIX):
            continue
        if task != "captioning":
            raise GraphRejected(f"{STEP_GRAPH}: input {spec} is neither {', '.join(inputs)} nor state.<name>")
        if not spec.name.startswith(MEMORY_PREFIX):
            raise GraphRejected(f"{STEP_GRAPH}: input {spec} is neither token, state.<name> nor memory.<name>")
    if not graph.states:
        raise GraphRejected(f"{STEP_GRAPH}: no input is called state.<name>; a recurrent model has at least one state")
    for row in (*graph.states, *graph.memories):
        _require_row(row)
    for state in graph.states:
        name = next_name(state.name)
        _require(graph.output(name), "output", TensorSpec(name, state.dtype, state.shape))
    names = {next_name(state.name) for state in graph.states}
    for spec in graph.outputs:
        if spec.name.startswith(NEXT_STATE_PREFIX) and spec.name not in names:
            raise GraphRejected(f"{STEP_GRAPH}: output {spec} has no input state.<name> of the same name")
    seen = graph.output(ATTENTION)
    if task == "captioning" and seen is not None:
        _require_row(seen)
        if seen.dtype != "float32" or len(seen.shape) != 3:
            raise GraphRejected(f"{STEP_GRAPH}: output {seen}; allowed is {ATTENTION} float32[batch, rows, columns]")
    return size


def _require_row(spec: TensorSpec) -> None:
    if len(spec.shape) < 2 or not all(size and size > 0 for size in spec.shape[1:]):
        raise GraphRejected(f"{STEP_GRAPH}: {spec} must have a fixed size on every axis but the batch")
    if spec.shape[0] is not None:
        raise GraphRejected(f"{STEP_GRAPH}: {spec} has a fixed batch; axis 0 must be free")


def _output_size(graph: GraphSpec, task: Task) -> int:
    name, letter = STEP_OUTPUT[task], "S" if task == "tracing" else "V"
    seen = graph.output(name)
    size = seen.shape[1] if seen and len(seen.shape) == 2 else None
    if seen is None or seen.dtype != "float32" or seen.shape[0] is not None or not size:
        raise GraphRejected(
            f"{STEP_GRAPH}: output {name} is {seen or 'missing'}; "
            f"allowed is {name} float32[batch, {letter}], {letter} fixed"
        )
    return size


def _require(seen: TensorSpec | None, side: str, allowed: TensorSpec) -> None:
    if seen is None or (seen.dtype, seen.shape) != (allowed.dtype, allowed.shape):
        raise GraphRejected(f"{STEP_GRAPH}: {side} {allowed.name} is {seen or 'missing'}; allowed is {allowed}")
