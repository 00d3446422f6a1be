"""An ONNX graph written node by node, where the dynamo exporter cannot say what is wanted (int8 kernels)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = {"": 20, "com.microsoft": 1}
IR_VERSION = 10


class GraphBuilder:
    """Collects inputs, constants, nodes and outputs; the same calls give the same bytes.

    Axis 0 of every output, and of an input unless it is said otherwise, is the batch, free; of all others the size is
    given, or a name where it is free.
    """

    def __init__(self) -> None:
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._prefix = ""

    def body(self, name: str) -> GraphBuilder:
        """A builder of a graph within this one, whose constants are this one's; hand it to `scan`."""
        inner = GraphBuilder()
        inner._constants = self._constants
        inner._prefix = f"{name}."
        return inner

    def scan(self, body: GraphBuilder, states: list[str], sequences: list[str], results: list[str]) -> list[str]:
        """A Scan over axis 0 of `sequences`; its results: the last states, then what each step says, stacked.

        The inputs of `body` are the states before a step and the step's part of each sequence, in this order; its
        outputs are the states after it and what it says.
        """
        graph = helper.make_graph(body._nodes, body._prefix.rstrip("."), body._inputs, body._outputs)
        return self.node_of_several(
            "Scan", *states, *sequences, results=results, body=graph, num_scan_inputs=len(sequences)
        )

    def branch(self, condition: str, then: GraphBuilder, otherwise: GraphBuilder) -> str:
        """What the first body says where `condition` <bool>[] is true, else what the other does. One output each."""
        graphs = [
            helper.make_graph(body._nodes, body._prefix.rstrip("."), [], body._outputs) for body in (then, otherwise)
        ]
        return self.node("If", condition, then_branch=graphs[0], else_branch=graphs[1])

    def input(self, name: str, dtype: type[np.generic], *sizes: int | str, batched: bool = True) -> str:
        """An input of shape [batch, *sizes], or [*sizes]; its name, to hand to `node`."""
        self._inputs.append(_value(name, dtype, ("batch", *sizes) if batched else sizes))
        return name

    def output(self, name: str, dtype: type[np.generic], *sizes: int | str) -> None:
        """Say that the value `name`, [batch, *sizes], is an output."""
        self._outputs.append(_value(name, dtype, ("batch", *sizes)))

    def constant(self, name: str, value: npt.ArrayLike, dtype: type[np.generic]) -> str:
        """A weight; its name. Asked for again by the same name, it is the first one."""
        if name not in self._constants:
            array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def node(self, operator: str, *inputs: str, result: str | None = None, domain: str = "", **attributes: Any) -> str:
        """A node of one output, called `result` or by a name of its own; that name."""
        name = result or f"{self._prefix}{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def node_of_several(self, operator: str, *inputs: str, results: list[str], **attributes: Any) -> list[str]:
        """A node of several outputs, called `results`."""
        self._nodes.append(helper.make_node(operator, inputs, results, **attributes))
        return results

    def split(self, value: str, parts: int) -> list[str]:
        """`value` <...>[batch, N] in equal parts along its last axis."""
        names = [f"{value}.{part}" for part in range(parts)]
        return self.node_of_several("Split", value, results=names, axis=1, num_outputs=parts)

    def split_into(self, value: str, sizes: Sequence[int]) -> list[str]:
        """`value` <...>[batch, sum(sizes)] in parts of these sizes along its last axis."""
        names = [f"{value}.{part}" for part in range(len(sizes))]
        widths = self.constant(f"{value}.sizes", sizes, np.int64)
        return self.node_of_several("Split", value, widths, results=names, axis=1)

    def model(self, name: str) -> bytes:
        """The checked ONNX model."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="carousel")
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString(deterministic=True))


def _value(name: str, dtype: type[np.generic], sizes: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    element: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, sizes)
