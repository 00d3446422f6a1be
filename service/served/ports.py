"""From a bundle's step graph to what the engine is told of it."""

from __future__ import annotations

from carousel.models.graph import GraphSpec, TensorSpec
from carousel.models.step import ATTENTION, STEP_INPUTS, STEP_OUTPUT, Task
from carousel.service.engine.runner import HeadPorts, StepPorts
from carousel.service.engine.states.pool import StateSpec


def step_ports(step: GraphSpec, task: Task) -> StepPorts:
    """What a step graph that keeps the bundle contract takes and gives."""
    fed, reads = STEP_INPUTS[task], STEP_OUTPUT[task]
    attends = None if step.output(ATTENTION) is None else ATTENTION
    return StepPorts(
        inputs={name: row_spec(spec) for name in fed if (spec := step.input(name)) is not None},
        outputs={spec.name: row_spec(spec) for spec in step.outputs if spec.name in (reads, attends)},
        states={spec.name: row_spec(spec) for spec in step.states},
        context={spec.name: row_spec(spec) for spec in step.memories},
        head=HeadPorts(fed[0], reads, attends),
    )


def row_spec(tensor: TensorSpec) -> StateSpec:
    """One row of a tensor whose sizes are fixed but for the batch's."""
    return StateSpec(tuple(size or 0 for size in tensor.shape[1:]), tensor.dtype)
