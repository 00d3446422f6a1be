from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def make_step_graph() -> Callable[[], onnx.ModelProto]:
    """A step graph made by hand, as somebody with a framework of their own would: 5 tokens, states of 3 and 4 units.

    h0' = tanh(embedding[token] + h0),  c0' = 0.5 c0,  logits = h0' W
    """

    def make() -> onnx.ModelProto:
        random = np.random.default_rng(0)
        initializers = [
            numpy_helper.from_array(random.standard_normal((5, 3)).astype(np.float32), "embedding"),
            numpy_helper.from_array(random.standard_normal((3, 5)).astype(np.float32), "projection"),
            numpy_helper.from_array(np.float32(0.5), "half"),
        ]
        nodes = [
            helper.make_node("Gather", ["embedding", "token"], ["x"]),
            helper.make_node("Add", ["x", "state.h0"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["next_state.h0"]),
            helper.make_node("Mul", ["state.c0", "half"], ["next_state.c0"]),
            helper.make_node("MatMul", ["next_state.h0", "projection"], ["logits"]),
        ]
        inputs = [
            helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("state.h0", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("state.c0", TensorProto.FLOAT, ["batch", 4]),
        ]
        outputs = [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]),
            helper.make_tensor_value_info("next_state.h0", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("next_state.c0", TensorProto.FLOAT, ["batch", 4]),
        ]
        graph = helper.make_graph(nodes, "step", inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    return make
