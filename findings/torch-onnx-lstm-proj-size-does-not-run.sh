#!/bin/sh
# torch 2.13.0 with onnxscript 0.7.1 and onnxruntime 1.31.1: torch.onnx.export(dynamo=True) of an nn.LSTM with proj_size succeeds,
# and passes onnx's checker. The graph cannot run: ONNX's LSTM has no projection, and gets a cell state of the unprojected
# width where it wants that of the hidden state.
# Exits 0 while this is so, and 1 once it is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 onnx==1.23.0 onnxscript==0.7.1 onnxruntime==1.31.1
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import onnx
import onnxruntime
import torch

rnn = torch.nn.LSTM(8, 16, proj_size=4, batch_first=True).eval()
x = torch.randn(3, 5, 8)
model = torch.onnx.export(rnn, (x,), dynamo=True, verbose=False).model_proto
onnx.checker.check_model(model)
print("torch gives", tuple(rnn(x)[0].shape), "and the export succeeds")
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
try:
    session.run(None, {session.get_inputs()[0].name: x.numpy()})
except Exception as error:
    print("onnxruntime:", str(error).partition("Status Message: ")[2])
    assert "initial_c must have shape" in str(error)
else:
    raise SystemExit("it runs now")
PYTHON
