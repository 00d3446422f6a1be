"""From an adopted graph to a published bundle."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from carousel.export.adopt.child import Result
from carousel.export.adopt.trial import Array
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH, publish
from carousel.models.head import TensorsHead
from carousel.models.manifest import EncoderSpec, Manifest, Parity, StateSpec, StepSpec, StoredRow

TASK = "prediction"
"""Of a network of which nothing is known but its ports."""


def publish_adopted(repository: Path, name: str, step: Result, encoder: Result | None = None) -> Path:
    """Publish a step as the next version of a model; its head gives all outputs as they are.

    Args:
        repository: the model repository, made where there is none.
        name: of the model.
        step: what was adopted.
        encoder: what gives a sequence its context and first states, under the step's names; None where nothing does.

    Returns:
        The bundle's directory.

    Raises:
        BundleError: the name is not allowed, or the graphs do not go together.
    """
    given = {} if encoder is None else encoder.outputs
    files = {STEP_GRAPH: step.graph}
    states = []
    for before, after in step.states:
        if before in given:
            states.append(StateSpec(before=before, after=after, initial="encoder"))
        elif before in step.initial:
            file = f"{before}.npy"
            files[file] = _npy(step.initial[before])
            states.append(StateSpec(before=before, after=after, initial=StoredRow(file=file)))
        else:
            states.append(StateSpec(before=before, after=after))
    told = None
    if encoder is not None:
        files[ENCODER_GRAPH] = encoder.graph
        told = EncoderSpec(inputs=tuple(encoder.inputs), lengths=encoder.lengths, gives=tuple(given))
    manifest = Manifest(
        task=TASK,
        encoder=told,
        step=StepSpec(
            inputs=tuple(name for name in step.inputs if name not in step.context),
            outputs=tuple(step.outputs),
            states=tuple(states),
            context=tuple(step.context),
        ),
        head=TensorsHead(from_=tuple(step.outputs)),
        parity=Parity(steps=step.steps, rows=step.rows, max_abs_error=step.largest, row_independent=True),
        files={},
    )
    return publish(repository, name, manifest, files)


def _npy(row: Array) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.ascontiguousarray(row), allow_pickle=False)
    return content.getvalue()
