"""Small surgery on ONNX graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from carousel.export.adopt.read import walk


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy, to be changed."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def constant(graph: onnx.GraphProto, name: str, value: Any) -> str:
    """Add an initializer."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """By name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each tensor of the outer graph."""
    return {name: node for node in graph.node for name in node.output if name}


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own."""
    seen: set[str] = set()
    for number, node in enumerate(walk(graph)):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)


def reads(node: onnx.NodeProto) -> Iterable[str]:
    """What a node reads, its inner graphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            made = {name for each in inner.node for name in each.output} | {each.name for each in inner.input}
            made |= {each.name for each in inner.initializer}
            for each in inner.node:
                yield from (name for name in reads(each) if name not in made)
            yield from (value.name for value in inner.output if value.name not in made)


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers that no output needs, and inputs that nothing reads stay."""
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(sort_nodes(graph)):
        if any(name in needed for name in node.output if name):
            kept.append(node)
            needed.update(reads(node))
    kept.reverse()
    _replace(graph.node, kept)
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])


def sort_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Each node after those whose outputs it reads."""
    made = producers(graph)
    done: set[int] = set()
    order: list[onnx.NodeProto] = []
    for first in graph.node:
        stack = [(first, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                order.append(node)
                continue
            if id(node) in done:
                continue
            done.add(id(node))
            stack.append((node, True))
            for name in reads(node):
                before = made.get(name)
                if before is not None and id(before) not in done:
                    stack.append((before, False))
    return order


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Call tensors otherwise, wherever they are read or made."""

    def named(name: str) -> str:
        return names.get(name, name)

    for node in walk(graph):
        _replace(node.input, [named(name) for name in node.input])
        _replace(node.output, [named(name) for name in node.output])
    for inner in _graphs(graph):
        for value in (*inner.input, *inner.output, *inner.initializer):
            value.name = named(value.name)


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Of every tensor, inner graphs' too."""
    names = {name for node in walk(graph) for name in (*node.input, *node.output) if name}
    for inner in _graphs(graph):
        names |= {value.name for value in (*inner.input, *inner.output, *inner.initializer)}
    return names


def _graphs(graph: onnx.GraphProto) -> Iterable[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def value_info(name: str, dtype: Any, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    """An input or an output."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """These and no others."""
    _replace(graph.node, list(nodes))


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Of a node."""
    for each in node.attribute:
        if each.name == name:
            return helper.get_attribute_value(each)
    return default


def _replace(field: Any, values: list[Any]) -> None:
    copies = [value if isinstance(value, str) else _copied(value) for value in values]
    del field[:]
    field.extend(copies)


def _copied(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied
