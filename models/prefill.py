"""What a prefill graph must look like: many ids of each row in, the states after the last of them out."""

from __future__ import annotations

from models.errors import GraphRejected
from models.graph import GraphSpec, TensorSpec, next_name
from models.step import STEP_INPUTS, Task

PREFILL_GRAPH = "prefill.onnx"

PREFILL_TASKS: tuple[Task, ...] = ("language", "tracing")
"""Whose sequences have long prompts or histories. A caption's first step eats one token."""


def check_prefill(graph: GraphSpec, step: GraphSpec, task: Task) -> None:
    """Hold a bundle's prefill graph against its step graph.

    In: what a step eats, with an axis of steps, int64[batch, steps], both free; and every `state.<name>` of the step
    graph. Out: `next_state.<name>` for each, of its type and shape. Nothing else is in or out: what the model says is
    the step graph's to say. That both leave the same bits cannot be seen here.

    Args:
        graph: the prefill graph.
        step: the step graph, which check_step has passed.
        task: of the bundle.

    Raises:
        GraphRejected: with the first thing that is wrong.
    """
    if task not in PREFILL_TASKS:
        raise GraphRejected(
            f"{PREFILL_GRAPH}: is in a bundle of task {task!r}; allowed is one for {' and '.join(PREFILL_TASKS)}"
        )
    ids = STEP_INPUTS[task]
    for name in ids:
        seen = graph.input(name)
        if seen is None or (seen.dtype, seen.shape) != ("int64", (None, None)):
            raise GraphRejected(
                f"{PREFILL_GRAPH}: input {name} is {seen or 'missing'}; "
                f"allowed is {name} int64[batch, steps], both free"
            )
    for state in step.states:
        name = next_name(state.name)
        _require(graph.input(state.name), "input", state)
        _require(graph.output(name), "output", TensorSpec(name, state.dtype, state.shape))
    states = [state.name for state in step.states]
    for side, specs, allowed in (
        ("input", graph.inputs, [*ids, *states]),
        ("output", graph.outputs, list(map(next_name, states))),
    ):
        for spec in specs:
            if spec.name not in allowed:
                raise GraphRejected(f"{PREFILL_GRAPH}: {side} {spec}; allowed are {', '.join(allowed)} alone")


def _require(seen: TensorSpec | None, side: str, allowed: TensorSpec) -> None:
    if seen is None or (seen.dtype, seen.shape) != (allowed.dtype, allowed.shape):
        raise GraphRejected(f"{PREFILL_GRAPH}: {side} {allowed.name} is {seen or 'missing'}; allowed is {allowed}")
