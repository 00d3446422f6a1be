"""An ONNX graph written node by node, where there is no torch module to export."""

from __future__ import annotations

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
        """A builder of a graph within this one, whose constants are this one's; hand it to `branch`."""
        inner = GraphBuilder()
        inner._constants = self._constants
        inner._prefix = f"{name}."
        return inner

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
