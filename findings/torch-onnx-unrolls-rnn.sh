#!/bin/sh
# torch 2.13.0 with onnxscript 0.7.1: torch.onnx.export(dynamo=True) of an nn.RNN, with a dynamic time axis asked for, gives no RNN node
# but five steps one after another, for an example of five, and an input of that length alone: no error, no warning. nn.LSTM and
# nn.GRU become one node each.
# Exits 0 while this is so, and 1 once it is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 onnx==1.23.0 onnxscript==0.7.1
for cell in GRU RNN; do "$folder/venv/bin/python" - "$cell" 2>/dev/null <<'PYTHON'
import collections
import sys

import torch

cell = sys.argv[1]


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = getattr(torch.nn, cell)(8, 16, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


axes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}}
graph = torch.onnx.export(
    Network().eval(), (torch.randn(3, 5, 8),), dynamo=True, dynamic_shapes=axes, verbose=False
).model_proto.graph
nodes = collections.Counter(node.op_type for node in graph.node)
time = graph.input[0].type.tensor_type.shape.dim[1]
print(f"nn.{cell}: {nodes[cell]} {cell} nodes, {nodes['MatMul']} MatMul; time axis {time.dim_param or time.dim_value}")
expected = (1, 0, "time") if cell == "GRU" else (0, 6, 5)
assert (nodes[cell], nodes["MatMul"], time.dim_param or time.dim_value) == expected, "it is otherwise now"
PYTHON
done
