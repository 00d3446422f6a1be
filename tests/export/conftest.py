"""Tiny frozen extractors, as somebody else's exporter might have written them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.quick_exports import quick_exports

quick_exports()

FEATURE_SIZE = 5
"""D. A tiny extractor's kernel is 4 x 4 at a stride of 4: an image of 12 x 8 pixels has a map of 2 rows, 3 columns."""


def tiny_extractor(
    *,
    layout: str = "chw",
    pool: bool = False,
    compact: bool = False,
    batch: int | str = "N",
    size: tuple[int | str, int | str] = ("H", "W"),
    legacy: bool = False,
    seed: int = 0,
) -> bytes:
    """image -> convolution -> ReLU -> `features`, and a head that nobody needs -> `logits`.

    Args:
        layout: of the image and of the map.
        pool: `features` is the mean over the map, [N, D, 1, 1].
        compact: the convolution's weights are uint8 and dequantised in the graph.
        batch: of the input.
        size: H and W of the input.
        legacy: opset 9 of IR version 3, where weights are inputs too.
        seed: of the weights.
    """
    random = np.random.default_rng(seed)
    tensors = {
        "bias": random.normal(0, 0.3, FEATURE_SIZE).astype(np.float32),
        "head": random.normal(0, 1, (FEATURE_SIZE, 700)).astype(np.float32),
    }
    nodes = []
    if compact:
        tensors |= {
            "kernel_q": random.integers(0, 256, (FEATURE_SIZE, 3, 4, 4)).astype(np.uint8),
            "kernel_s": np.float32(0.0003),
            "kernel_z": np.uint8(128),
        }
        nodes.append(helper.make_node("DequantizeLinear", ["kernel_q", "kernel_s", "kernel_z"], ["kernel"]))
    else:
        tensors["kernel"] = random.normal(0, 0.2, (FEATURE_SIZE, 3, 4, 4)).astype(np.float32)
    nodes += [
        *([helper.make_node("Transpose", ["data"], ["chw"], perm=[0, 3, 1, 2])] if layout == "hwc" else []),
        helper.make_node(
            "Conv", ["chw" if layout == "hwc" else "data", "kernel", "bias"], ["convolved"], strides=[4, 4]
        ),
        helper.make_node("Relu", ["convolved"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["vector"]),
        helper.make_node("MatMul", ["vector", "head"], ["logits"]),
    ]
    if layout == "hwc":
        nodes.append(helper.make_node("Transpose", ["map"], ["features"], perm=[0, 2, 3, 1]))
    else:
        nodes.append(helper.make_node("Identity", ["mean" if pool else "map"], ["features"]))
    shape = [batch, 3, *size] if layout == "chw" else [batch, *size, 3]
    weights = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    inputs = [helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, shape)]
    if legacy:
        inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in weights]
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [
            helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", "a", "b", "c"]),
            helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 700]),
        ],
        weights,
    )
    opset = helper.make_opsetid("", 9 if legacy else 13)
    return helper.make_model(graph, opset_imports=[opset], ir_version=3 if legacy else 8).SerializeToString()


@pytest.fixture(scope="session")
def make_extractor(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a tiny_extractor; returns its path."""

    def make(**choices) -> Path:
        path = tmp_path_factory.mktemp("extractor") / "tiny.onnx"
        path.write_bytes(tiny_extractor(**choices))
        return path

    return make
