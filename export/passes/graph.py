"""An ONNX graph as passes read and rewrite it: nodes in any order, weights as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from carousel.export.runtime import open_session
from carousel.models.graph import STATE_PREFIX, next_name

Array = npt.NDArray[Any]

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""

EXAMPLE_ROWS = 3


class Graph:
    """A model that is taken apart; `model` puts together what is left of it.

    A node that is replaced leaves its result's name to what stands in its place, so nobody else has to be told.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._source = model
        self.constants: dict[str, Array] = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self.inputs = {value.name: value for value in graph.input if value.name not in self.constants}
        self.outputs = {value.name: value for value in graph.output}
        self.nodes = list(graph.node)

    @property
    def states(self) -> dict[str, str]:
        """Each state's input, and the output that holds its next value."""
        return {name: next_name(name) for name in self.inputs if name.startswith(STATE_PREFIX)}

    @property
    def makers(self) -> dict[str, onnx.NodeProto]:
        """By value, the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    @property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """By value, the nodes that read it."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(reads(node)):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def example(self) -> Mapping[str, Array]:
        """Every value of the graph as it was taken apart, of a call with EXAMPLE_ROWS rows of zeros: what an exporter
        declares of shapes is often incomplete, and sometimes wrong."""
        model = onnx.ModelProto()
        model.CopyFrom(self._source)
        names = [name for node in model.graph.node for name in node.output if name]
        model.graph.ClearField("output")
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        fed = {name: _zeros(value) for name, value in self.inputs.items()}
        session = open_session(model.SerializeToString(), threads=1)
        return fed | dict(zip(names, session.run(names, fed), strict=True))

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """A weight; its name. Asked for again by the same name, it is the first one."""
        self.constants.setdefault(name, np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value)))
        return name

    def node(self, operator: str, *inputs: str, result: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node of one result, called `result` or by a name of its own; that name."""
        name = result or f"{operator.lower()}_{len(self.nodes)}"
        while not result and name in self.makers:
            name += "_"
        self.nodes.append(helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def split(self, value: str, results: list[str], sizes: list[int]) -> None:
        """Add a node that cuts `value` [batch, sum(sizes)] into `results`."""
        widths = self.constant(f"{value}.sizes", sizes, np.int64)
        self.nodes.append(helper.make_node("Split", [value, widths], results, axis=1))

    def model(self) -> onnx.ModelProto:
        """The checked model of what leads to the outputs, in the order in which it runs."""
        ordered = list(self.ordered(self.outputs))
        used = {name for node in ordered for name in reads(node)}
        graph = helper.make_graph(
            ordered,
            self._source.graph.name,
            list(self.inputs.values()),
            list(self.outputs.values()),
            [numpy_helper.from_array(value, name) for name, value in self.constants.items() if name in used],
        )
        model = self.wrapped(graph)
        onnx.checker.check_model(model)
        return model

    def wrapped(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        """A graph of such nodes as a model of its own."""
        opsets = {each.domain: each.version for each in self._source.opset_import} | {MICROSOFT: 1}
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        ir = self._source.ir_version
        return helper.make_model(graph, opset_imports=imports, ir_version=ir, producer_name="carousel")

    def ordered(self, wanted: Mapping[str, object] | list[str]) -> Iterator[onnx.NodeProto]:
        """The nodes that lead to the values `wanted`, in an order in which they can run."""
        makers, places = self.makers, {id(node): place for place, node in enumerate(self.nodes)}
        before: dict[int, list[int]] = {}
        waiting = [makers[name] for name in wanted if name in makers]
        while waiting:
            node = waiting.pop()
            if places[id(node)] not in before:
                needed = [makers[name] for name in reads(node) if name in makers]
                before[places[id(node)]] = [places[id(each)] for each in needed]
                waiting += needed
        for place in TopologicalSorter(dict(sorted(before.items()))).static_order():
            yield self.nodes[place]


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its subgraphs too (with the names they make themselves, which do no harm)."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from reads(inner)
            yield from (value.name for value in graph.output)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """A node's attribute, or what the operator takes where there is none."""
    found = (each for each in node.attribute if each.name == name)
    return next(map(helper.get_attribute_value, found), default)


def named(node: onnx.NodeProto) -> str:
    """A node, for a sentence."""
    return f"{node.op_type} of {node.output[0]!r}"


def _zeros(value: onnx.ValueInfoProto) -> Array:
    tensor = value.type.tensor_type
    sizes = [axis.dim_value or EXAMPLE_ROWS for axis in tensor.shape.dim]
    return np.zeros(sizes, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
