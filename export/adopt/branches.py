"""Branches that are always the same one are written out: an If on a fixed sample rate, on a rank, on a shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.graphs import all_names, attribute, copy_of, prune, reads, rename, set_nodes
from carousel.export.adopt.read import constants_to_initializers
from carousel.export.adopt.trial import Arrays, Trial

MAX_ROUNDS = 40
"""Of branches within branches."""


def inline_branches(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> tuple[onnx.ModelProto, int]:
    """The network without its Ifs, and how many there were.

    Args:
        model: the network.
        feeds: inputs to look at its conditions with; those that the network refuses are passed over.

    Raises:
        AdoptionRefused: a condition changes from one to another, or cannot be looked at.
    """
    inlined = 0
    for _ in range(MAX_ROUNDS):
        ifs = [node for node in model.graph.node if node.op_type == "If"]
        if not ifs:
            return model, inlined
        conditions = _conditions(model, [node.input[0] for node in ifs], feeds)
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if node.op_type != "If":
                nodes.append(node)
                continue
            seen = conditions[node.input[0]]
            if len(seen) != 1:
                raise AdoptionRefused(
                    f"{node.name!r} goes either way, by its condition {node.input[0]!r}: a step must do the same for "
                    "all rows; fix what it depends on (--fix), or export the network without it"
                )
            inlined += 1
            branch = attribute(node, "then_branch" if seen == {True} else "else_branch")
            nodes += _written_out(model.graph, node, branch, f"if{inlined}.")
        set_nodes(model.graph, nodes)
        constants_to_initializers(model.graph)
        prune(model.graph)
    raise AdoptionRefused(f"there are branches within branches, more than {MAX_ROUNDS} deep")


def _conditions(model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Arrays]) -> dict[str, set[bool]]:
    probe = copy_of(model)
    del probe.graph.output[:]
    for name in dict.fromkeys(names):
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None))
    prune(probe.graph)
    seen: dict[str, set[bool]] = {name: set() for name in names}
    try:
        trial = Trial(probe)
    except Exception as error:
        raise AdoptionRefused(f"onnxruntime does not run the conditions of its Ifs ({_line(error)})") from None
    last = "no input fits"
    for feed in feeds:
        try:
            found = trial(feed)
        except Exception as error:
            last = _line(error)
            continue
        for name, value in found.items():
            seen[name].add(bool(np.asarray(value).reshape(-1)[0]))
    for name, values in seen.items():
        if not values:
            raise AdoptionRefused(f"the condition {name!r} of an If cannot be computed ({last})")
    return seen


def _written_out(
    graph: onnx.GraphProto, node: onnx.NodeProto, branch: onnx.GraphProto, prefix: str
) -> list[onnx.NodeProto]:
    """The nodes of a branch, with names of their own; what it gives is what the If gave."""
    body = onnx.GraphProto()
    body.CopyFrom(branch)
    outside = {name for each in body.node for name in reads(each)}
    made = {name for each in body.node for name in each.output if name} | {each.name for each in body.initializer}
    given = {value.name: out for value, out in zip(body.output, node.output, strict=True)}
    names = {name: prefix + name for name in all_names(body) if name in made or name not in outside}
    names |= {
        name: out for name, out in given.items() if name in made and name not in {t.name for t in body.initializer}
    }
    passed = [(names.get(name, name), out) for name, out in given.items() if names.get(name, name) != out]
    twice = len(given) < len(body.output)
    if twice:
        passed += [
            (names[value.name], out)
            for value, out in zip(body.output, node.output, strict=True)
            if names.get(value.name) != out
        ]
    rename(body, names)
    graph.initializer.extend(body.initializer)
    copies = [onnx.helper.make_node("Identity", [name], [out]) for name, out in passed if out]
    for each in body.node:
        each.name = prefix + each.name if each.name else ""
    return [*body.node, *copies]


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
