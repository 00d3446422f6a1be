#!/bin/sh
# torch 2.13.0 with onnxscript 0.7.1: torch.onnx.export(dynamo=True) of an nn.LSTM whose batch and time axes are asked for as
# dynamic gives a graph of free axes the first time. The very same call a second time in the process, with nothing changed, gives a
# graph whose time axis is fixed at the example's length, without an error. (And the output of the first declares that length.)
# Exits 0 while this is so, and 1 once it is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 onnx==1.23.0 onnxscript==0.7.1
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(8, 16, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def time_axes():
    axes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}}
    example = (torch.randn(3, 5, 8),)
    graph = torch.onnx.export(Network().eval(), example, dynamo=True, dynamic_shapes=axes, verbose=False).model_proto.graph
    return [(tensor.type.tensor_type.shape.dim[1].dim_param or tensor.type.tensor_type.shape.dim[1].dim_value)
            for tensor in (graph.input[0], graph.output[0])]


first, second = time_axes(), time_axes()
print(f"time axis of input and output: first export {first}, second export {second}")
assert first == ["time", 5], "the first export is otherwise now"
assert second == [5, 5], "the second export is otherwise now"
PYTHON
