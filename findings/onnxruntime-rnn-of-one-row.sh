#!/bin/sh
# onnxruntime 1.31.1, CPU, one thread: the RNN operator gives a row other bits in a batch of one than in a batch of two, three or
# sixty-four. GRU and LSTM, with the same inputs, do not. Given twice in a batch of two, the row has the bits of the larger ones.
# Exits 0 while this is so, and 1 once it is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

FEATURES, UNITS, ROWS = 32, 48, 64
random = np.random.default_rng(0)
value = helper.make_tensor_value_info


def weights(name, *shape):
    return numpy_helper.from_array((0.2 * random.standard_normal(shape)).astype(np.float32), name)


def session(operator, gates):
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "W", "R"], ["", "h"], hidden_size=UNITS)],
        "cell",
        [value("x", TensorProto.FLOAT, [1, "batch", FEATURES])],
        [value("h", TensorProto.FLOAT, [1, "batch", UNITS])],
        [weights("W", 1, gates * UNITS, FEATURES), weights("R", 1, gates * UNITS, UNITS)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


x = random.standard_normal((1, ROWS, FEATURES)).astype(np.float32)
for operator, gates in {"RNN": 1, "GRU": 3, "LSTM": 4}.items():
    run = session(operator, gates)

    def h(batch):
        return run.run(None, {"x": batch})[0][0]

    together = h(x)
    alone = np.concatenate([h(x[:, row : row + 1]) for row in range(ROWS)])
    twice = np.concatenate([h(x[:, [row, row]])[:1] for row in range(ROWS)])
    same_alone, same_twice = np.array_equal(together, alone), np.array_equal(together, twice)
    print(f"{operator:5} alone: {'same bits' if same_alone else 'other bits'}; twice: {'same' if same_twice else 'other'} bits")
    assert same_twice, f"{operator}: pairs differ, too"
    assert same_alone == (operator != "RNN"), f"{operator}: it is otherwise now"
PYTHON
