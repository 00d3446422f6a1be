import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from carousel.export.stored_weights import spell_out_weights


def dequantised(
    q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, *more: onnx.NodeProto, **attributes
) -> onnx.ModelProto:
    """y [4, 3], which is what DequantizeLinear makes of q. (A MatMul would be fused with it, by other sums.)"""
    tensors = {"q": q, "s": scale} | ({} if zero is None else {"z": zero})
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", [*tensors], ["w"], **attributes),
            helper.make_node("Identity", ["w"], ["y"]),
            *more,
        ],
        "tiny",
        [],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 3])],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def weight_of(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


Q = np.random.default_rng(0).integers(-128, 128, (4, 3)).astype(np.int8)
S = np.float32(0.013)


@pytest.mark.parametrize(
    ("q", "scale", "zero", "attributes"),
    [
        (Q, S, None, {}),
        (Q, S, np.int8(-7), {}),
        ((Q.astype(np.int16) + 128).astype(np.uint8), S, np.uint8(131), {}),
        (Q, np.array([0.01, 0.2, 3], np.float32), np.array([1, -2, 3], np.int8), {}),
        (Q, np.array([0.01, 0.2, 3, 40], np.float32), np.array([1, -2, 3, 4], np.int8), {"axis": 0}),
        (Q, np.array([0.01, 0.2, 3, 40], np.float32), None, {"axis": -2}),
        (Q.astype(np.int32) * 1000, S, None, {}),
    ],
)
def test_weights_spelled_out_are_the_same_bits(q, scale, zero, attributes) -> None:
    model = dequantised(q, scale, zero, **attributes)
    expected = weight_of(model)
    spell_out_weights(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert "DequantizeLinear" not in kinds(model)
    assert weight_of(model).tobytes() == expected.tobytes()
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "q")
    assert np.array_equal(numpy_helper.to_array(stored), q)
    assert numpy_helper.to_array(stored).dtype == q.dtype


def test_weights_stay_where_spelling_out_would_not_do() -> None:
    by_blocks = dequantised(Q, np.full((2, 3), S), None, axis=0, block_size=2)
    quantised = dequantised(Q, S, None, helper.make_node("QuantizeLinear", ["y", "s"], ["y_q"]))
    for model in (by_blocks, quantised):
        before = kinds(model)
        spell_out_weights(model.graph)
        assert kinds(model) == before


def test_what_is_computed_is_not_taken_for_a_weight() -> None:
    model = dequantised(Q, S, None)
    model.graph.initializer.pop(0)
    model.graph.input.append(helper.make_tensor_value_info("q", onnx.TensorProto.INT8, [4, 3]))
    spell_out_weights(model.graph)
    assert kinds(model) == ["DequantizeLinear", "Identity"]
