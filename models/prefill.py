"""What prefill graphs must look like: many ids of each row in, the states after the last of them out."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import count, takewhile

from carousel.models.errors import GraphRejected
from carousel.models.graph import GraphSpec, TensorSpec, next_name
from carousel.models.step import STEP_INPUTS, Task

PREFILL_GRAPH = "prefill.onnx"
"""The one graph, or the first of several: prefill2.onnx goes on from what it hands up, and so forth."""

ABOVE, BELOW = "above", "below"
"""What a graph hands up to the next, and what the next calls it. [batch, steps, ...] each"""

PREFILL_TASKS: tuple[Task, ...] = ("language", "tracing")
"""Whose sequences have long prompts or histories. A caption's first step eats one token."""


def prefill_name(place: int) -> str:
    """The file of the graph that is so many places above the lowest."""
    return PREFILL_GRAPH if place == 0 else f"prefill{place + 1}.onnx"


def prefill_names(files: Container[str]) -> list[str]:
    """Those of a bundle's files that are its prefill graphs, from the lowest up; none where there is no first."""
    return list(takewhile(lambda name: name in files, map(prefill_name, count())))


def check_prefill(graphs: Sequence[GraphSpec], step: GraphSpec, task: Task) -> None:
    """Hold a bundle's prefill graphs against its step graph.

    The first eats what a step eats, with an axis of steps, int64[batch, steps], both free; each other one eats `below`,
    which the one before puts out as `above`. Each `state.<name>` of the step graph is an input of one of them, whose
    output `next_state.<name>` has its type and shape. Nothing else is in or out: what the model says is the step
    graph's to say. That both leave the same bits cannot be seen here.

    Args:
        graphs: the prefill graphs, from the lowest up; one at least.
        step: the step graph, which check_step has passed.
        task: of the bundle.

    Raises:
        GraphRejected: with the first thing that is wrong.
    """
    if task not in PREFILL_TASKS:
        raise GraphRejected(
            f"{PREFILL_GRAPH}: is in a bundle of task {task!r}; allowed is one for {' and '.join(PREFILL_TASKS)}"
        )
    left = {state.name: state for state in step.states}
    handed: TensorSpec | None = None
    for place, graph in enumerate(graphs):
        file, last = prefill_name(place), place + 1 == len(graphs)
        eaten = STEP_INPUTS[task] if handed is None else (BELOW,)
        for name in eaten:
            seen = graph.input(name)
            if handed is not None:
                _require(file, "input", seen, TensorSpec(BELOW, handed.dtype, handed.shape))
            elif seen is None or (seen.dtype, seen.shape) != ("int64", (None, None)):
                raise GraphRejected(
                    f"{file}: input {name} is {seen or 'missing'}; allowed is {name} int64[batch, steps], both free"
                )
        states = [name for name in left if last or graph.input(name) is not None]
        for name in states:
            state = left.pop(name)
            _require(file, "input", graph.input(name), state)
            after = next_name(name)
            _require(file, "output", graph.output(after), TensorSpec(after, state.dtype, state.shape))
        if not last:
            handed = graph.output(ABOVE)
            if handed is None or handed.shape[:2] != (None, None):
                raise GraphRejected(
                    f"{file}: output {ABOVE} is {handed or 'missing'}; "
                    f"allowed is {ABOVE}[batch, steps, ...], both free, which {prefill_name(place + 1)} goes on from"
                )
        given = [*map(next_name, states), *([] if last else [ABOVE])]
        for side, specs, allowed in (("input", graph.inputs, [*eaten, *states]), ("output", graph.outputs, given)):
            for spec in specs:
                if spec.name not in allowed:
                    raise GraphRejected(f"{file}: {side} {spec}; allowed are {', '.join(allowed)} alone")


def _require(file: str, side: str, seen: TensorSpec | None, allowed: TensorSpec) -> None:
    if seen is None or (seen.dtype, seen.shape) != (allowed.dtype, allowed.shape):
        raise GraphRejected(f"{file}: {side} {allowed.name} is {seen or 'missing'}; allowed is {allowed}")
