"""A stranger's ONNX file, brought into the one shape that the rest of adoption works on.

Functions are written out, constants are initializers, initializers are no inputs. What the file says of shapes inside,
and of its outputs', is dropped: exporters get them wrong, and what matters is measured.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import inliner, numpy_helper

from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.trial import require_memory

DOMAINS = {"", "ai.onnx", "com.microsoft"}
MAX_OPSET = 26
"""onnxruntime 1.31 refuses later ones."""


def read_model(content: bytes) -> onnx.ModelProto:
    """The network of an ONNX file.

    Raises:
        AdoptionRefused: it is none, keeps data elsewhere, or needs operators that are not known.
    """
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model, full_check=False)
    except Exception as error:  # protobuf's and onnx' errors have no common root
        require_memory(error)
        if _external(content):
            raise AdoptionRefused(
                "the file keeps weights in another file; save it as one file (onnx.save without save_as_external_data)"
            ) from None
        raise AdoptionRefused(
            f"the content is not an ONNX model that can be read ({str(error).splitlines()[0]})"
        ) from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise AdoptionRefused(
            "the file keeps weights in another file; save it as one file (onnx.save without save_as_external_data)"
        )
    if model.functions:
        model = inliner.inline_local_functions(model)
    used = {node.domain for node in walk(model.graph)}
    if unknown := sorted(used - DOMAINS):
        raise AdoptionRefused(
            f"operators of domain {unknown[0]!r} are not known; allowed are ONNX's and com.microsoft's"
        )
    opset = opset_of(model)
    if opset > MAX_OPSET:
        raise AdoptionRefused(
            f"the file is of opset {opset}; onnxruntime here runs up to {MAX_OPSET}: export it for that one"
        )
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)])
    constants_to_initializers(model.graph)
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in inputs:
        if not value.type.HasField("tensor_type"):
            raise AdoptionRefused(f"input {value.name!r} is no tensor")
    return model


def _external(content: bytes) -> bool:
    try:
        model = onnx.load_model_from_string(content)
    except Exception:
        return False
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)


def opset_of(model: onnx.ModelProto) -> int:
    """Of ONNX's own operators."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=1)


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of those inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                yield from walk(inner)


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Constant nodes of the outer graph become initializers."""
    kept = []
    for node in graph.node:
        value = next(
            (each for each in node.attribute if node.op_type == "Constant" and each.name.startswith("value")), None
        )
        if value is None:
            kept.append(node)
            continue
        if value.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value.t)
        else:
            raw = onnx.helper.get_attribute_value(value)
            dtype = {
                "value_float": "float32",
                "value_floats": "float32",
                "value_int": "int64",
                "value_ints": "int64",
            }.get(value.name)
            if dtype is None:
                kept.append(node)
                continue
            tensor = numpy_helper.from_array(np.asarray(raw, dtype))
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)
