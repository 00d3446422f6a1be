#!/bin/sh
# onnxruntime 1.31.1: an InferenceSession made from bytes holds them as long as it lives, beside the weights that it has made
# of them: a model of 100 MB takes 200. One made from a path holds nothing. What is held (`_model_bytes`) is only for another
# go with other providers; a session that has let go of it runs.
# Exits 0 while this is so, and 1 once it is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import gc

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

value = helper.make_tensor_value_info
table = numpy_helper.from_array(np.ones((1_000, 1_000), np.float32), "table")
graph = helper.make_graph(
    [helper.make_node("Gather", ["table", "ids"], ["rows"])],
    "lookup",
    [value("ids", TensorProto.INT64, ["n"])],
    [value("rows", TensorProto.FLOAT, ["n", 1_000])],
    [table],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class Content(bytes):
    freed = False

    def __del__(self):
        Content.freed = True


content = Content(model.SerializeToString())
session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"], enable_fallback=0)
del content
gc.collect()
print(f"after the session was made: {'freed' if Content.freed else 'held'}")
assert not Content.freed, "the bytes are freed now"
session._model_bytes = None
gc.collect()
print(f"after _model_bytes = None:  {'freed' if Content.freed else 'held'}")
assert Content.freed, "something else holds the bytes, too"
assert session.run(None, {"ids": np.array([3])})[0].sum() == 1_000
PYTHON
