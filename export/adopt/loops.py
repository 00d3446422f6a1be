"""Loops over the steps of a call, written out for the one step that there is.

Keras on tensorflow exports a GRU and a plain recurrent layer as a Loop whose body is a step. Of one step its body runs
once; that it does is not read from the graph but seen in the end, when the step graph is compared with the file.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from carousel.export.adopt.graphs import all_names, attribute, constant, copy_of, prune, rename, set_nodes, sort_nodes


def written_out_loops(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """With the body of each Loop once in its place; and how many there were."""
    model = copy_of(model)
    graph = model.graph
    count = 0
    while loop := next((node for node in graph.node if node.op_type == "Loop"), None):
        count += 1
        body = onnx.GraphProto()
        body.CopyFrom(attribute(loop, "body"))
        prefix = f"loop{count}."
        given = [
            constant(graph, f"{prefix}first", np.int64(0)),
            loop.input[1] or constant(graph, f"{prefix}goes_on", np.bool_(True)),
        ]
        given += loop.input[2:]
        nodes = _once(graph, loop, body, prefix, given)
        set_nodes(graph, [*(node for node in graph.node if node.name != loop.name), *nodes])
        set_nodes(graph, sort_nodes(graph))
    if count:
        prune(graph)
    return model, count


def _once(
    graph: onnx.GraphProto, loop: onnx.NodeProto, body: onnx.GraphProto, prefix: str, given: list[str]
) -> list[onnx.NodeProto]:
    own = {name for node in body.node for name in node.output if name} | {each.name for each in body.initializer}
    names: dict[str, str] = {name: prefix + name for name in all_names(body) if name in own}
    names |= {value.name: name for value, name in zip(body.input, given, strict=True)}
    results = [value.name for value in body.output]
    rename(body, names)
    graph.initializer.extend(body.initializer)
    for node in body.node:
        node.name = prefix + node.name if node.name else ""
    carried = len(loop.input) - 2
    made: list[onnx.NodeProto] = list(body.node)
    zero = constant(graph, f"{prefix}axis", np.array([0], np.int64))
    for place, result in enumerate(results[1:]):
        if place >= len(loop.output) or not loop.output[place]:
            continue
        name = names.get(result, result)
        if place < carried:
            made.append(helper.make_node("Identity", [name], [loop.output[place]], name=f"{prefix}out{place}"))
        else:
            made.append(helper.make_node("Unsqueeze", [name, zero], [loop.output[place]], name=f"{prefix}out{place}"))
    return made
