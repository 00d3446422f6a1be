"""Between what a graph's values lie, whatever it reads: interval analysis, and a fixed point over the states.

tanh and sigmoid bound what they say; a sum with weights that add up to one (`(1 - z) n + z h`) lies between its terms,
so a GRU's state stays in [-1, 1] where interval arithmetic alone would let it double at every step. A state begins
where it is known to begin, at zero unless told otherwise, and grows by what a step may make of it until it grows no
more; one that goes on growing has no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from carousel.export.passes.graph import Array, Graph, named
from carousel.export.passes.rounding import ACTIVATION_LEVELS

PATIENCE = 4
"""Steps that a state may grow for before it is taken to grow for ever."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a value's entries lie."""

    low: float
    high: float
    loose: bool = False
    """A sum's bound: true, and seldom come near, since all of its terms would have to be at their ends at once."""
    unknown: str = ""
    """The node on the way of which nothing is known."""

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    @property
    def bounded(self) -> bool:
        """Whether there is one."""
        return math.isfinite(self.largest)


ZERO = Interval(0.0, 0.0)
UNBOUNDED = Interval(-math.inf, math.inf)

SQUASHED = {
    **dict.fromkeys(("Tanh", "Softsign", "Sin", "Cos", "Erf"), Interval(-1.0, 1.0)),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), Interval(0.0, 1.0)),
}
# fmt: off
PASSED_ON = frozenset((
    "Cast", "Dropout", "Expand", "Flatten", "Gather", "Identity", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
))
# fmt: on
"""Whose entries are some of the first input's, or their mean."""
AMONG = {"Concat": 0, "Max": 0, "Min": 0, "Where": 1}
"""Whose entries are some of their inputs', from which one on."""
KNOWN = frozenset(("Conv", "Gemm", "Pow", "ReduceSum"))
"""Whose bound is not looked for."""
RISING: Mapping[str, Callable[[float], float]] = {
    "Relu": lambda x: max(x, 0.0),
    "LeakyRelu": lambda x: x,  # it shrinks the negative
    "Elu": lambda x: max(x, -1.0),
    "Softplus": lambda x: max(x, 0.0) + math.log(2),
    "Exp": lambda x: math.exp(min(x, 700.0)) if math.isfinite(x) else math.inf if x > 0 else 0.0,
    "Sqrt": lambda x: math.sqrt(max(x, 0.0)),
}


def bounds(graph: Graph, known: Mapping[str, Interval] | None = None) -> dict[str, Interval]:
    """Every value's interval.

    Args:
        graph: of one step.
        known: of inputs: where states begin, and what else is fed. A state begins at zero where it is not named; of
            another input of floats nothing is known.
    """
    known = known or {}
    begin = {name: known.get(name, ZERO if name in graph.states else UNBOUNDED) for name in graph.inputs}
    for turn in range(PATIENCE + 2 * len(graph.states) + 1):
        found = _through(graph, begin)
        grown = {state: _hull([begin[state], found[after]]) for state, after in graph.states.items() if after in found}
        if all(begin[state] == interval for state, interval in grown.items()):
            break
        begin |= grown if turn < PATIENCE else {name: _for_ever(begin[name], each) for name, each in grown.items()}
    return found


def _for_ever(before: Interval, after: Interval) -> Interval:
    return replace(
        after,
        low=before.low if after.low >= before.low else -math.inf,
        high=before.high if after.high <= before.high else math.inf,
    )


def _through(graph: Graph, begin: Mapping[str, Interval]) -> dict[str, Interval]:
    """One step."""
    found = dict(begin)
    for name, constant in graph.constants.items():
        if constant.size and constant.dtype.kind in "fiu":
            found[name] = Interval(float(constant.min()), float(constant.max()))
    mixes = _Mixes(graph)
    for node in graph.ordered(graph.outputs):
        mixed = mixes.terms(node, found)
        interval = _hull([found[name] for name in mixed]) if mixed else _of(graph, node, found)
        found |= dict.fromkeys(node.output, interval)
    return found


def _of(graph: Graph, node: onnx.NodeProto, found: Mapping[str, Interval]) -> Interval:
    operator, inputs = node.op_type, [found.get(name, UNBOUNDED) for name in node.input]
    if node.op_type == "GatherBlockQuantized":  # a table of ours (passes/tables.py), or made alike: scales times levels
        end = ACTIVATION_LEVELS * found[node.input[2]].largest
        return Interval(-end, end)
    if node.domain or not inputs:
        return replace(UNBOUNDED, unknown=named(node))
    first, *others = inputs
    loose, unknown = any(each.loose for each in inputs), next((each.unknown for each in inputs if each.unknown), "")
    if operator in SQUASHED:
        return SQUASHED[operator]
    if operator in PASSED_ON:
        return first
    if operator in AMONG:
        return _hull(inputs[AMONG[operator] :])
    if operator in RISING:
        low, high = RISING[operator](first.low), RISING[operator](first.high)
    elif operator == "MatMul":
        loose, (low, high) = True, _product(first, graph.constants.get(node.input[1]))
    elif operator in ARITHMETIC:
        low, high = ARITHMETIC[operator](first, others[0])
    elif operator == "Neg":
        low, high = -first.high, -first.low
    elif operator == "Abs":
        low, high = 0.0, first.largest
    elif operator == "Clip":
        lowest, highest = [*others, UNBOUNDED, UNBOUNDED][:2]
        low, high = max(first.low, lowest.low), min(first.high, highest.high)
    else:
        low, high = -math.inf, math.inf
        unknown = unknown if operator in KNOWN else named(node)
    return Interval(low, high, loose, "" if math.isfinite(low) and math.isfinite(high) else unknown)


def _product(x: Interval, weight: Array | None) -> tuple[float, float]:
    """Of x and a constant matrix: each column's terms all at their ends, the furthest column."""
    if weight is None or weight.ndim != 2 or not x.bounded:
        return -math.inf, math.inf
    positive, negative = np.maximum(weight, 0).sum(axis=0), np.minimum(weight, 0).sum(axis=0)
    lows, highs = x.low * positive + x.high * negative, x.high * positive + x.low * negative
    return float(lows.min()), float(highs.max())


def _corners(x: Interval, y: Interval) -> tuple[float, float]:
    """Of a product."""
    ends = [a * b if a and b else 0.0 for a in (x.low, x.high) for b in (y.low, y.high)]  # 0 times infinity is 0 here
    return min(ends), max(ends)


def _quotient(x: Interval, y: Interval) -> tuple[float, float]:
    return _corners(x, Interval(1 / y.high, 1 / y.low)) if y.low > 0 or y.high < 0 else (-math.inf, math.inf)


ARITHMETIC: Mapping[str, Callable[[Interval, Interval], tuple[float, float]]] = {
    "Add": lambda x, y: (x.low + y.low, x.high + y.high),
    "Sub": lambda x, y: (x.low - y.high, x.high - y.low),
    "Mul": _corners,
    "Div": _quotient,
}


def _hull(intervals: list[Interval]) -> Interval:
    return Interval(
        min(each.low for each in intervals),
        max(each.high for each in intervals),
        any(each.loose for each in intervals),
        next((each.unknown for each in intervals if each.unknown), ""),
    )


class _Mixes:
    """Finds sums whose weights add up to one: (1 - z) n + z h, n + z (h - n), n - z (n - h), softmax(...) V."""

    def __init__(self, graph: Graph) -> None:
        self._constants, self._makers = graph.constants, graph.makers

    def terms(self, node: onnx.NodeProto, found: Mapping[str, Interval]) -> list[str]:
        """Between which values a node's lies; none where it is no such sum."""
        if node.op_type == "MatMul" and self._adds_up(node.input[0]):
            return [node.input[1]]
        if node.op_type == "Add":
            a, b = node.input
            return self._of_two(a, b, found) or self._moved(a, b, found) or self._moved(b, a, found)
        if node.op_type == "Sub":
            return self._moved(node.input[0], node.input[1], found, back=True)
        return []

    def _of_two(self, a: str, b: str, found: Mapping[str, Interval]) -> list[str]:
        for share, one in self._factors(a):
            for rest, other in self._factors(b):
                if (self._is_rest(rest, share) and _is_share(found[share])) or (
                    self._is_rest(share, rest) and _is_share(found[rest])
                ):
                    return [one, other]
        return []

    def _moved(self, start: str, step: str, found: Mapping[str, Interval], *, back: bool = False) -> list[str]:
        for share, way in self._factors(step):
            ends = self._inputs(way, "Sub")
            if ends and ends[0 if back else 1] == start and _is_share(found[share]):
                return ends
        return []

    def _factors(self, value: str) -> list[tuple[str, str]]:
        factors = self._inputs(value, "Mul")
        return [(factors[0], factors[1]), (factors[1], factors[0])] if factors else []

    def _is_rest(self, rest: str, share: str) -> bool:
        """Whether rest = 1 - share."""
        ends = self._inputs(rest, "Sub")
        one = self._constants.get(ends[0]) if ends and ends[1] == share else None
        return one is not None and bool((one == 1).all())

    def _adds_up(self, value: str) -> bool:
        """A softmax along its last axis, which has got other axes before that at the most."""
        node = self._makers.get(value)
        while node is not None and node.op_type in ("Unsqueeze", "Identity"):
            node = self._makers.get(node.input[0])
        return node is not None and node.op_type == "Softmax"

    def _inputs(self, value: str, operator: str) -> list[str]:
        node = self._makers.get(value)
        return list(node.input) if node is not None and node.op_type == operator else []


def _is_share(interval: Interval) -> bool:
    return interval.low >= 0 and interval.high <= 1
