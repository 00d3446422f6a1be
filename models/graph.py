"""What an ONNX file says about itself: the names, types and shapes of its inputs and outputs.

The serving side must judge a graph *before* onnxruntime opens it (external data would make the runtime read
other files), and it does not carry the `onnx` package. So the handful of fields of onnx.proto that the contract
depends on are declared here to the protobuf runtime, which skips everything else: field numbers are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, which never change once assigned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from carousel.models.errors import GraphRejected
from carousel.models.weights import WeightsFile, WeightSpec, read_weight

ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""TensorProto.DataType -> numpy name, for the types that a graph's input, output or shared weight may have: all numbers
that numpy has."""

STATE_PREFIX = "state."
"""What the step graph's inputs that are recurrent states begin with."""

NEXT_STATE_PREFIX = "next_state."
"""What its outputs that are states begin with. ONNX is in single static assignment form: one name cannot be both a
graph's input and a node's output, so the two sides cannot be called alike."""

ABOVE, BELOW = "above", "below"
"""What a prefill graph hands up to the next, and what the next calls it. [batch, steps, ...] each"""

CONTEXT_PREFIX = "context."
"""What export calls a step graph's inputs that are read and never rewritten."""

EXTERNAL = 1
"""TensorProto.DataLocation of a tensor that lies in another file."""

_Field = descriptor_pb2.FieldDescriptorProto
_ONNX_SUBSET: dict[str, dict[str, tuple[int, str, bool]]] = {
    # message -> field -> (number, type, repeated)
    "ModelProto": {"graph": (7, "GraphProto", False), "functions": (25, "FunctionProto", True)},
    "GraphProto": {
        "node": (1, "NodeProto", True),
        "initializer": (5, "TensorProto", True),
        "sparse_initializer": (15, "SparseTensorProto", True),
        "input": (11, "ValueInfoProto", True),
        "output": (12, "ValueInfoProto", True),
    },
    "FunctionProto": {"node": (7, "NodeProto", True), "attribute_proto": (11, "AttributeProto", True)},
    "NodeProto": {"attribute": (5, "AttributeProto", True)},
    "AttributeProto": {
        "t": (5, "TensorProto", False),
        "g": (6, "GraphProto", False),
        "sparse_tensor": (22, "SparseTensorProto", False),
        "tensors": (10, "TensorProto", True),
        "graphs": (11, "GraphProto", True),
        "sparse_tensors": (23, "SparseTensorProto", True),
    },
    "SparseTensorProto": {"values": (1, "TensorProto", False), "indices": (2, "TensorProto", False)},
    "TensorProto": {
        "dims": (1, "int64", True),
        "data_type": (2, "int32", False),
        "name": (8, "string", False),
        "external_data": (13, "StringStringEntryProto", True),
        "data_location": (14, "int32", False),
    },
    "StringStringEntryProto": {"key": (1, "string", False), "value": (2, "string", False)},
    "ValueInfoProto": {"name": (1, "string", False), "type": (2, "TypeProto", False)},
    "TypeProto": {"tensor_type": (1, "TypeProtoTensor", False)},
    "TypeProtoTensor": {"elem_type": (1, "int32", False), "shape": (2, "TensorShapeProto", False)},
    "TensorShapeProto": {"dim": (1, "Dimension", True)},
    "Dimension": {"dim_value": (1, "int64", False), "dim_param": (2, "string", False)},
}
_SCALARS = {"int32": _Field.TYPE_INT32, "int64": _Field.TYPE_INT64, "string": _Field.TYPE_STRING}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name, numpy element type, and shape (None where the size is free)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        free = ("batch" if axis == 0 else "?" for axis in range(len(self.shape)))
        sizes = (name if size is None else str(size) for name, size in zip(free, self.shape, strict=True))
        return f"{self.name} {self.dtype}[{', '.join(sizes)}]"


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """The inputs and outputs of one ONNX graph, in the graph's order, and those of its weights that it shares."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: tuple[WeightSpec, ...] = ()
    """Initializers that lie in the bundle's weights file."""

    def input(self, name: str) -> TensorSpec | None:
        """The input called `name`, or None."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output(self, name: str) -> TensorSpec | None:
        """The output called `name`, or None."""
        return next((spec for spec in self.outputs if spec.name == name), None)


def next_name(state: str) -> str:
    """The output that holds the next value of the input `state.<name>`: `next_state.<name>`."""
    return NEXT_STATE_PREFIX + state.removeprefix(STATE_PREFIX)


@cache
def _model_proto() -> Any:
    """The ModelProto message class, made from the subset above."""
    file = descriptor_pb2.FileDescriptorProto(
        name="carousel/onnx_subset.proto", package="carousel.onnx", syntax="proto2"
    )
    for message_name, fields in _ONNX_SUBSET.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, kind, repeated) in fields.items():
            field = message.field.add(name=field_name, number=number)
            field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".carousel.onnx.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("carousel.onnx.ModelProto"))


def read_graph(content: bytes, file: str, weights: WeightsFile | None = None) -> GraphSpec:
    """The inputs and outputs of the ONNX model `content`.

    Args:
        content: the bytes of an ONNX file.
        file: its name, for the error's sentence.
        weights: the one other file that may hold initializers of it (external data); None where there is none.

    Raises:
        GraphRejected: not an ONNX model, or a tensor of it lies in another file.
    """
    if content[4:8] == b"ORTM":  # onnxruntime would take the bytes for its own format, which is not looked into here
        raise GraphRejected(f"{file}: the content is an onnxruntime model; allowed is ONNX")
    model = _model_proto()()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise GraphRejected(f"{file}: the content is not an ONNX model") from None
    if not model.HasField("graph") or not model.graph.output:
        raise GraphRejected(f"{file}: the content holds no ONNX graph with outputs")
    shared = []
    for tensor in model.graph.initializer:
        if weights is not None and tensor.data_location == EXTERNAL:
            shared.append(read_weight(tensor, _element_type(tensor.name, tensor.data_type, file), file, weights))
        else:
            _require_inside(tensor, file)
    for tensor in _other_tensors(model):
        _require_inside(tensor, file)
    initialized = {tensor.name for tensor in model.graph.initializer}
    return GraphSpec(
        inputs=tuple(_spec(value, file) for value in model.graph.input if value.name not in initialized),
        outputs=tuple(_spec(value, file) for value in model.graph.output),
        weights=tuple(shared),
    )


def _require_inside(tensor: Any, file: str) -> None:
    if tensor.data_location == EXTERNAL or tensor.external_data:
        raise GraphRejected(
            f"{file}: tensor {tensor.name!r} keeps its data in another file; a bundle's graph must hold all its weights"
        )


def _other_tensors(model: Any) -> Iterator[Any]:
    """Every tensor of the model but its graph's initializers: of attributes, nested graphs and functions."""
    yield from _dense(model.graph.sparse_initializer)
    graphs: list[Any] = []
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    attributes += [attribute for function in model.functions for attribute in function.attribute_proto]
    attributes += [attribute for function in model.functions for node in function.node for attribute in node.attribute]
    while graphs or attributes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from _dense(graph.sparse_initializer)
            attributes += [attribute for node in graph.node for attribute in node.attribute]
        else:
            attribute = attributes.pop()
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield from _dense([attribute.sparse_tensor])
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            yield from attribute.tensors
            yield from _dense(attribute.sparse_tensors)
            graphs.extend(attribute.graphs)


def _dense(sparse: Any) -> Iterator[Any]:
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def _spec(value: Any, file: str) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, _element_type(value.name, tensor.elem_type, file), shape)


def _element_type(name: str, number: int, file: str) -> str:
    dtype = ELEMENT_TYPES.get(number)
    if dtype is None:
        raise GraphRejected(
            f"{file}: {name!r} has ONNX element type {number}; allowed are {', '.join(ELEMENT_TYPES.values())}"
        )
    return dtype
