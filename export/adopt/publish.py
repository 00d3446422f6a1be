"""From an adopted graph to a published bundle."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from carousel.export.adopt.adopted import Graph, Result
from carousel.export.adopt.head import Generates
from carousel.export.adopt.trial import Array
from carousel.export.shared_weights import share_weights
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH, publish
from carousel.models.codec.text import TextCodecSpec
from carousel.models.head import GenerateHead, TensorsHead
from carousel.models.manifest import EncoderSpec, Manifest, Parity, StateSpec, StepSpec, StoredRow
from carousel.models.step import PREFILL_GRAPH
from carousel.models.weights import WEIGHTS

TASK, TEXT_TASK = "prediction", "language"
"""Of a network of which nothing is known but its ports; and of one that goes on from a text."""


def publish_adopted(repository: Path, name: str, found: Result, generates: Generates | None = None) -> Path:
    """Publish a step, an encoder or both as the next version of a model.

    Args:
        repository: the model repository, made where there is none.
        name: of the model.
        found: what was adopted. Beside a step an encoder gives a sequence its context and first states.
        generates: what is sampled, if anything is; else the head gives all outputs as they are.

    Returns:
        The bundle's directory.

    Raises:
        BundleError: the name is not allowed, or the graphs do not go together.
    """
    files: dict[str, bytes] = {}
    parts: dict[str, Any] = {}
    given: Sequence[str] = ()
    if found.encoder is not None:
        encoder, given = found.encoder, found.encoder.outputs
        files[ENCODER_GRAPH] = encoder.content
        parts["encoder"] = EncoderSpec(
            inputs=tuple(encoder.inputs), lengths=encoder.lengths, max_length=encoder.max_length, gives=tuple(given)
        )
    if found.step is not None:
        files[STEP_GRAPH] = found.step.content
        parts["step"] = _step(found.step, given, files)
    if found.many is not None:
        files[PREFILL_GRAPH] = found.many.content
        parts["prefill"] = (PREFILL_GRAPH,)
        files |= share_weights({name: files[name] for name in (STEP_GRAPH, PREFILL_GRAPH)})
        parts["weights"] = WEIGHTS if WEIGHTS in files else None
    outputs = given if found.step is None else found.step.outputs
    parts["head"] = TensorsHead(from_=tuple(outputs))
    if generates is not None:
        read, written = generates.tokens
        codecs = {"tokens": read} if read == written else {"tokens": read, "written": written}
        parts["head"] = GenerateHead(feeds=generates.feeds, from_=generates.reads)
        parts["ports"] = {generates.feeds: "tokens", generates.reads: [*codecs][-1]}
        parts["codecs"] = {name: TextCodecSpec(file=f"{name}.json") for name in codecs}
        files |= {f"{name}.json": content for name, content in codecs.items()}
    manifest = Manifest(
        task=TASK if generates is None or found.encoder is not None else TEXT_TASK,
        **parts,
        parity=Parity(
            steps=found.steps,
            rows=found.rows,
            max_abs_error=found.largest,
            row_independent=found.row_independent,
        ),
        files={},
    )
    return publish(repository, name, manifest, files)


def _step(step: Graph, given: Sequence[str], files: dict[str, bytes]) -> StepSpec:
    """What the manifest says of a step; the rows that its states begin with are put with the files."""
    states = []
    for before, after in step.states:
        initial: Literal["zeros", "encoder"] | StoredRow = "encoder" if before in given else "zeros"
        if before in step.initial:
            initial = StoredRow(file=f"{before}.npy")
            files[initial.file] = _npy(step.initial[before])
        states.append(StateSpec(before=before, after=after, initial=initial))
    return StepSpec(
        inputs=tuple(step.inputs), outputs=tuple(step.outputs), states=tuple(states), context=tuple(step.context)
    )


def _npy(row: Array) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.ascontiguousarray(row), allow_pickle=False)
    return content.getvalue()
