#!/bin/sh
# onnxruntime 1.31.1, CPU, one thread: Softplus, Sin, Log and Elu round some values otherwise by where the output lies that is bound
# with io_binding: one row of 64 values, a whole number of the processor's vectors, has other bits at an address that is no multiple
# of 16. A step that writes each row where it stands in a larger array so gives a row other bits by its place, even one row a call.
# Exits 0 while this is so, and 1 once it is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

WIDTH, ROWS = 64, 64
BY_ADDRESS = ("Softplus", "Sin", "Log", "Elu")
random = np.random.default_rng(0)


def differ(operator):
    """Of so many rows, how many have other bits at an odd address than at an aligned one."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "pointwise", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    memory = np.zeros(WIDTH + 32, np.float32)
    aligned = -(memory.ctypes.data // 4) % 16
    x = random.standard_normal((ROWS, 1, WIDTH)).astype(np.float32)
    x = 0.1 + np.abs(x) if operator == "Log" else x

    def run(row, offset):
        y = memory[aligned + offset : aligned + offset + WIDTH].reshape(1, WIDTH)
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, np.float32, row.shape, row.ctypes.data)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        session.run_with_iobinding(binding)
        return y.tobytes()

    assert all(run(row, 0) == run(row, 4) for row in x), f"{operator}: sixteen bytes further bits differ, too"
    return sum(run(row, 0) != run(row, 1) for row in x)


for operator in (*BY_ADDRESS, "Sigmoid", "Tanh", "Exp"):
    count = differ(operator)
    print(f"{operator:9} {count} of {ROWS} rows have other bits four bytes further")
    assert bool(count) == (operator in BY_ADDRESS), f"{operator}: it is otherwise now"
PYTHON
