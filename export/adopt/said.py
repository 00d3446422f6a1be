"""What the caller says of a stranger's file, held against the file."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.graphs import attribute, constant, copy_of, initializers
from carousel.export.adopt.lift import recurrent_nodes
from carousel.export.adopt.trial import Array, Port, Trial, ports_of, require_memory


@dataclass(frozen=True, slots=True)
class Said:
    """What the caller says of a file.

    Args:
        fixed: values of control inputs, by name.
        shapes: of a row at one step, without what is carried; by input.
        times: the time axis, by input.
        carries: how many of a step's last values go before the next step's; by input.
        states: the output that an input is after a step.
        dequantize: give dynamically quantised products float weights.
        products: write convolutions over a few frames as products.
    """

    fixed: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    times: Mapping[str, int] = field(default_factory=dict)
    carries: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    dequantize: bool = False
    products: bool = False


def public_name(name: str, taken: Container[str], kind: str = "") -> str:
    """A port's name after the file's: letters, digits, `_` and `-`, none twice."""
    plain = re.sub(r"[^A-Za-z0-9_\-]+", "_", name.partition(":")[0]).strip("_") or "port"
    public, number = kind + plain, 1
    while public in taken:
        number += 1
        public = f"{kind}{plain}_{number}"
    return public


def require_known(model: onnx.ModelProto, said: Said) -> None:
    """Hold that what is spoken of is there.

    Raises:
        AdoptionRefused: it is not.
    """
    names = [value.name for value in model.graph.input]
    flags = {"fix": said.fixed, "shape": said.shapes, "time": said.times, "carry": said.carries}
    for flag, given in flags.items():
        for name in given:
            if name not in names:
                raise AdoptionRefused(f"--{flag} {name}=...: there is no input {name!r}; inputs are {', '.join(names)}")


def require_runs(model: onnx.ModelProto) -> None:
    """Hold that onnxruntime has what the network is made of.

    Raises:
        AdoptionRefused: it has not.
    """
    held = initializers(model.graph)
    for node in recurrent_nodes(model.graph):
        weights, units = held.get(node.input[2]), attribute(node, "hidden_size")
        if node.op_type != "DynamicQuantizeLSTM" and weights is not None and units not in (None, weights.dims[-1]):
            raise AdoptionRefused(
                f"{node.op_type} {node.name!r} has {units} units and a state of {weights.dims[-1]}: a projection, "
                "which onnxruntime does not run; export the network without one (proj_size)"
            )
    try:
        Trial(model, plain=True)
    except Exception as error:
        require_memory(error)
        raise AdoptionRefused(f"onnxruntime does not open the file: {str(error).splitlines()[0][:300]}") from None


def with_controls(model: onnx.ModelProto, fixed: Mapping[str, float]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """With control inputs as constants; and their values."""
    model = copy_of(model)
    controls: dict[str, Array] = {}
    kept = []
    for port, value in zip(ports_of(model), list(model.graph.input), strict=True):
        if port.name in fixed:
            controls[port.name] = np.full(port.shape(1), fixed[port.name], port.dtype)
            constant(model.graph, port.name, controls[port.name])
        elif not port.sizes:
            raise AdoptionRefused(
                f"input {port.name!r} is one number for a whole call; say what it is (--fix {port.name}=VALUE)"
            )
        else:
            kept.append(value)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, controls


def sized(port: Port, said: Said) -> Port:
    """With the sizes and the time axis that were said."""
    time = said.times.get(port.name)
    if time is not None:
        if not 0 <= time < len(port.sizes):
            raise AdoptionRefused(f"--time {port.name}={time}: the input has axes 0 to {len(port.sizes) - 1}")
        port = replace(port, time=time)
    row = said.shapes.get(port.name)
    carry = said.carries.get(port.name, 0)
    if row is None:
        return port
    whole = [*row[:-1], row[-1] + carry] if row else []
    axes = [axis for axis in range(len(port.sizes)) if axis != port.time]
    if len(whole) != len(axes) - 1:
        raise AdoptionRefused(
            f"--shape {port.name}={','.join(map(str, row))}: a row has {len(axes) - 1} axes, without batch and time"
        )
    for batch in axes:  # the first axis that leaves the others as they were said
        rest = [axis for axis in axes if axis != batch]
        if port.sizes[batch] in (None, 1) and all(
            port.sizes[axis] in (None, size) for axis, size in zip(rest, whole, strict=True)
        ):
            sizes = list(port.sizes)
            for axis, size in zip(rest, whole, strict=True):
                sizes[axis] = size
            return replace(port, sizes=tuple(sizes), batch=batch)
    raise AdoptionRefused(f"--shape {port.name}={','.join(map(str, row))}: the file says {list(port.sizes)}")
