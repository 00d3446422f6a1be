"""The step module as ONNX bytes that keep the bundle contract (models/README.md)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from carousel.models.graph import CONTEXT_PREFIX, NEXT_STATE_PREFIX, STATE_PREFIX
from carousel.models.nn.network import StepModule
from carousel.models.step import ATTENTION


def export_step(module: StepModule) -> bytes:
    """The ONNX model of one step: its inputs, `state.<name>` and `context.<name>` in; its output, `next_state.<name>`
    and perhaps `attention` out.

    The batch is free on axis 0 of everything; all weights lie in the one file.
    """
    names = list(module.state_shapes)
    # Two rows, since an example of one would fix the axis.
    inputs = {
        name: torch.zeros(2, *(size or 1 for size in spec.shape[1:]), dtype=getattr(torch, spec.dtype))
        for name, spec in module.inputs.items()
    }  # [B, ...] each
    carried = {"state": {name: torch.zeros(2, *shape) for name, shape in module.state_shapes.items()}}
    if module.context_shapes:
        carried["context"] = {name: torch.zeros(2, *shape) for name, shape in module.context_shapes.items()}
    model = export_module(
        module,
        tuple(inputs.values()),
        carried,
        [*inputs, *(STATE_PREFIX + name for name in names), *(CONTEXT_PREFIX + name for name in module.context_shapes)],
        [
            module.output,
            *(NEXT_STATE_PREFIX + name for name in names),
            *([ATTENTION] if module.grid else []),
        ],
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def export_module(
    module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, dict[str, Tensor]], into: list[str], out: list[str]
) -> onnx.ModelProto:
    """A module as ONNX, axis 0 of everything free. What the exporter notes down for its own debugging (stack traces
    with the paths of the machine that exported) is removed.

    Args:
        module: in evaluation mode.
        inputs: examples of its positional inputs, of two rows.
        named: and of its keyword ones, each a dict of tensors.
        into: what the inputs are called in the graph, in order.
        out: and the outputs.
    """
    batch = {0: torch.export.Dim("batch", min=1)}
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            inputs,
            kwargs=named,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=into,
            output_names=out,
            dynamic_shapes=(*(batch for _ in inputs), *(dict.fromkeys(part, batch) for part in named.values())),
        )
    assert program is not None  # only the TorchScript exporter writes a file and returns nothing
    model = program.model_proto
    _strip(model)
    return model


def _strip(model: onnx.ModelProto) -> None:
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back what the exporter says about its own insides: absent torchvision, renamed axes, pytree's plans."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*The axis name.*", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
