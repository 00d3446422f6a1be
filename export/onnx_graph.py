"""The step module as ONNX bytes that keep the bundle contract (models/README.md)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch

from export.step_module import StepModule
from models.graph import NEXT_STATE_PREFIX, STATE_PREFIX
from models.step import STEP_OUTPUT


def export_step(module: StepModule) -> bytes:
    """The ONNX model of one step: the task's inputs and `state.<name>`, the task's output and `next_state.<name>`.

    The batch is free on axis 0 of everything; all weights lie in the one file. What the exporter notes down for its
    own debugging (stack traces with the paths of the machine that exported) is removed.
    """
    names = list(module.state_sizes)
    # Two rows, since an example of one would fix the axis.
    inputs = {name: torch.zeros(2, dtype=torch.int64) for name in module.input_bounds}  # [B] each
    state = {name: torch.zeros(2, size) for name, size in module.state_sizes.items()}
    batch = {0: torch.export.Dim("batch", min=1)}
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            kwargs={"state": state},
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=[*inputs, *(STATE_PREFIX + name for name in names)],
            output_names=[STEP_OUTPUT[module.task], *(NEXT_STATE_PREFIX + name for name in names)],
            dynamic_shapes=dict.fromkeys(inputs, batch) | {"state": dict.fromkeys(names, batch)},
        )
    assert program is not None  # only the TorchScript exporter writes a file and returns nothing
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


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
