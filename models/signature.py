"""A model's signature held against its graphs: the half of the contract that the graphs themselves can say.

The manifest declares ports, states and what a head reads; the graphs say types and shapes. Axis 0 of everything is the
batch, free; all other axes are fixed, but for the steps of a prefill graph and the time axis of an encoder.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from carousel.models.codec.spec import Codec
from carousel.models.errors import BundleError, GraphRejected
from carousel.models.graph import ABOVE, BELOW, GraphSpec, TensorSpec
from carousel.models.manifest import MANIFEST, EncoderSpec, Manifest, StepSpec, StoredRow


def check_step(graph: GraphSpec, step: StepSpec) -> None:
    """Hold a step graph against what the manifest declares.

    Raises:
        GraphRejected: with the first thing that is wrong.
    """
    declared = [*step.inputs, *(state.before for state in step.states), *step.context]
    _require_once(declared, "inputs")
    given = [*step.outputs, *(state.after for state in step.states)]
    _require_once(given, "outputs")
    for name in step.non_finite:
        if name not in step.inputs:
            raise GraphRejected(f"{MANIFEST}: step.non_finite names {name!r}; inputs are {', '.join(step.inputs)}")
    for name in declared:
        _require_row(step.graph, "input", name, graph.input(name))
    for spec in graph.inputs:
        if spec.name not in declared:
            raise GraphRejected(f"{step.graph}: input {spec} is not declared; declared are {', '.join(declared)}")
    for name in given:
        _require_row(step.graph, "output", name, graph.output(name))
    for state in step.states:
        before, after = _there(graph.input(state.before)), _there(graph.output(state.after))
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            raise GraphRejected(f"{step.graph}: state {before} is {after} after a step; its sides must be alike")
        if len(before.shape) < 2:
            raise GraphRejected(f"{step.graph}: state {before} has one number a row; a state has an axis of its own")


def check_ports(graph: GraphSpec, encoder: GraphSpec | None, manifest: Manifest, codecs: Mapping[str, Codec]) -> None:
    """Hold ports against their codecs, and the head against both.

    Raises:
        BundleError: with the first thing that is wrong.
    """
    inputs = {name: _there(graph.input(name)) for name in manifest.step.inputs}
    outputs = {name: _there(graph.output(name)) for name in manifest.step.outputs}
    fed = dict(inputs)
    if manifest.encoder is not None and encoder is not None:
        fed |= {name: _there(encoder.input(name)) for name in manifest.encoder.inputs}
        if not manifest.step.graph:
            outputs = {name: _there(encoder.output(name)) for name in manifest.encoder.gives}
    for name, codec in manifest.ports.items():
        if codec not in codecs:
            raise BundleError(f"{MANIFEST}: port {name} has codec {codec!r}; codecs are {', '.join(codecs) or 'none'}")
        port = fed.get(name) or outputs.get(name)
        if port is None:
            known = ", ".join([*fed, *outputs])
            raise BundleError(f"{MANIFEST}: ports names {name!r}, which is no port; ports are {known}")
        try:
            codecs[codec].require(port, fed=name in fed)
        except ValueError as error:
            files = manifest.codecs[codec].files
            raise BundleError(f"{files[0] if files else codec}: {error}") from None
    try:
        manifest.head.require(inputs, outputs, {name: codecs[codec] for name, codec in manifest.ports.items()})
    except ValueError as error:
        raise BundleError(f"{MANIFEST}: the head does not fit: {error}") from None


def check_encoder(graph: GraphSpec, encoder: EncoderSpec, manifest: Manifest, step: GraphSpec) -> None:
    """Hold an encoder graph against what is declared, and against the step that goes on from it.

    Raises:
        GraphRejected: with the first thing that is wrong.
    """
    lengths = [] if encoder.lengths is None else [encoder.lengths]
    declared = [*encoder.inputs, *lengths]
    _require_once(declared, "inputs")
    for name in declared:
        spec = graph.input(name)
        if spec is None or not spec.shape or spec.shape[0] is not None:
            raise GraphRejected(
                f"{encoder.graph}: input {name} is {spec or 'missing'}; its axis 0, the batch, must be free"
            )
        if name == encoder.lengths:
            if spec.dtype not in ("int32", "int64") or spec.shape != (None,):
                raise GraphRejected(f"{encoder.graph}: input {spec} is lengths; allowed are int32[batch] or int64")
        elif not all(spec.shape[2:]):
            raise GraphRejected(f"{encoder.graph}: input {spec} has a free axis behind that of time, which is axis 1")
    for spec in graph.inputs:
        if spec.name not in declared:
            raise GraphRejected(f"{encoder.graph}: input {spec} is not declared; declared are {', '.join(declared)}")
    if not manifest.step.graph:
        for name in encoder.gives:
            seen = graph.output(name)
            if seen is None or not seen.shape or seen.shape[0] is not None or not all(seen.shape[2:]):
                raise GraphRejected(
                    f"{encoder.graph}: output {name} is {seen or 'missing'}; "
                    "its axis 0, the batch, must be free, and axis 1, time, may be"
                )
        return
    taken = {state.before for state in manifest.step.states if state.initial == "encoder"} | set(manifest.step.context)
    for name in encoder.gives:
        if name not in taken:
            raise GraphRejected(
                f"{encoder.graph}: gives {name}, which no step takes; taken are {', '.join(sorted(taken)) or 'none'}"
            )
        needed, seen = _there(step.input(name)), graph.output(name)
        if seen is None or (seen.dtype, seen.shape) != (needed.dtype, needed.shape):
            raise GraphRejected(f"{encoder.graph}: output {name} is {seen or 'missing'}; allowed is {needed}")
    if left := sorted(taken - set(encoder.gives)):
        raise GraphRejected(f"{encoder.graph}: does not give {left[0]}, which a step begins with")


def check_prefill(graphs: Sequence[GraphSpec], manifest: Manifest, step: GraphSpec) -> None:
    """Hold prefill graphs against the step graph.

    The first is fed what a step is, with an axis of steps behind the batch; each other one `below`, which the one
    before puts out as `above`. Each state is in and out of one of them, under the step's names. One that is alone may
    also put out what each step says. Nothing else is in or out. That both leave the same bits cannot be seen here.

    Raises:
        GraphRejected: with the first thing that is wrong.
    """
    declared = manifest.step
    first = manifest.prefill[0]
    if declared.context or any(state.initial == "encoder" for state in declared.states):
        raise GraphRejected(f"{first}: is for sequences that begin by themselves, and these begin with an encoder")
    pairs = {state.before: state.after for state in declared.states}
    left = {name: _there(step.input(name)) for name in pairs}
    handed: TensorSpec | None = None
    for place, (file, graph) in enumerate(zip(manifest.prefill, graphs, strict=True)):
        last = place + 1 == len(graphs)
        if handed is None:
            eaten = list(declared.inputs)
            for name in eaten:
                row = _there(step.input(name))
                _require(file, "input", graph.input(name), TensorSpec(name, row.dtype, (None, None, *row.shape[1:])))
        else:
            eaten = [BELOW]
            _require(file, "input", graph.input(BELOW), TensorSpec(BELOW, handed.dtype, handed.shape))
        states = [name for name in left if last or graph.input(name) is not None]
        for name in states:
            state = left.pop(name)
            _require(file, "input", graph.input(name), state)
            _require(file, "output", graph.output(pairs[name]), TensorSpec(pairs[name], state.dtype, state.shape))
        if not last:
            handed = graph.output(ABOVE)
            if handed is None or handed.shape[:2] != (None, None):
                raise GraphRejected(
                    f"{file}: output {ABOVE} is {handed or 'missing'}; "
                    f"allowed is {ABOVE}[batch, steps, ...], both free, for {manifest.prefill[place + 1]} to go on from"
                )
        given = [*(pairs[name] for name in states), *([] if last else [ABOVE])]
        if len(graphs) == 1 and any(graph.output(name) is not None for name in declared.outputs):
            for name in declared.outputs:
                row = _there(step.output(name))
                _require(file, "output", graph.output(name), TensorSpec(name, row.dtype, (None, None, *row.shape[1:])))
            given += declared.outputs
        for side, specs, allowed in (("input", graph.inputs, [*eaten, *states]), ("output", graph.outputs, given)):
            for spec in specs:
                if spec.name not in allowed:
                    raise GraphRejected(f"{file}: {side} {spec}; allowed are {', '.join(allowed)} alone")


def stored_rows(step: StepSpec, graph: GraphSpec, files: Mapping[str, bytes]) -> dict[str, npt.NDArray[np.generic]]:
    """The rows that states begin with where the bundle has them, by state.

    Raises:
        BundleError: a file holds no such row.
    """
    rows = {}
    for state in step.states:
        if isinstance(state.initial, StoredRow):
            spec = _there(graph.input(state.before))
            rows[state.before] = _row(files[state.initial.file], state.initial.file, spec)
    return rows


def _row(content: bytes, file: str, spec: TensorSpec) -> npt.NDArray[np.generic]:
    try:
        row = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BundleError(f"{file}: is no array in numpy's .npy format ({error})") from None
    if (str(row.dtype), row.shape) != (spec.dtype, spec.shape[1:]):
        raise BundleError(f"{file}: holds {row.dtype}{list(row.shape)}; allowed is a row of {spec}")
    return np.ascontiguousarray(row)


def _require_once(names: Sequence[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise GraphRejected(f"{MANIFEST}: step: {name!r} is declared twice among its {what}")


def _require_row(file: str, side: str, name: str, spec: TensorSpec | None) -> None:
    if spec is None:
        raise GraphRejected(f"{file}: {side} {name} is missing, which {MANIFEST} declares")
    if not spec.shape or spec.shape[0] is not None:
        raise GraphRejected(f"{file}: {spec} has a fixed batch; axis 0 must be free")
    if not all(size and size > 0 for size in spec.shape[1:]):
        raise GraphRejected(f"{file}: {spec} must have a fixed size on every axis but the batch")


def _require(file: str, side: str, seen: TensorSpec | None, allowed: TensorSpec) -> None:
    if seen is None or (seen.dtype, seen.shape) != (allowed.dtype, allowed.shape):
        raise GraphRejected(f"{file}: {side} {allowed.name} is {seen or 'missing'}; allowed is {allowed}")


def _there(spec: TensorSpec | None) -> TensorSpec:
    assert spec is not None  # checked before
    return spec
