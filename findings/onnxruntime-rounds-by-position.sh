#!/bin/sh
# onnxruntime 1.31.1, CPU, one thread: Softplus, Log, Sin, Cos and Atan round a value otherwise when it stands in the last few of a
# tensor, which are no whole vector of the processor's. So a row's bits depend on where in the batch it stands, unless its width
# is a multiple of the vector's: of 50 values they do, of 64 they do not. Sigmoid, Tanh, Exp, Erf and Sqrt round alike anywhere.
# Exits 0 while this is so, and 1 once it is not. (Seen with AVX2 and AVX-512.)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

ROWS = 512
BY_POSITION = ("Softplus", "Log", "Sin", "Cos", "Atan")
random = np.random.default_rng(0)


def same(operator, width):
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "pointwise", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = (0.1 + np.abs(random.standard_normal((ROWS, width)))).astype(np.float32)
    together = session.run(None, {"x": x})[0]
    alone = np.concatenate([session.run(None, {"x": x[row : row + 1]})[0] for row in range(ROWS)])
    return np.array_equal(together, alone)


for operator in (*BY_POSITION, "Sigmoid", "Tanh", "Exp", "Erf", "Sqrt"):
    odd, even = same(operator, 50), same(operator, 64)
    print(f"{operator:9} width 50: {'same' if odd else 'other'} bits; width 64: {'same' if even else 'other'} bits")
    assert even, f"{operator}: other bits at width 64, too"
    assert odd == (operator not in BY_POSITION), f"{operator}: it is otherwise now"
PYTHON
