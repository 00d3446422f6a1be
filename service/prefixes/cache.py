"""States by the prompt that led to them: which beginning of this prompt has been consumed before?

A prompt is an array of ids, or, of a model that is fed none, of what each step is fed, as bytes of one width.
A radix tree per scope. An edge holds the ids between two nodes, a node the state after all ids on the way to it, or
none where two prompts part. So a beginning is found to the token, in time proportional to the prompt whatever is kept;
it is found by the ids themselves, not by a hash of them; and ids that prompts share are kept once.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from carousel.service.engine.parameters import Array

Prompt = npt.NDArray[np.int64] | npt.NDArray[np.void]
"""Ids, or what each step is fed."""

STRIDE = 128
"""Ids between states where not all are kept."""

MAX_DENSE = 256
"""States in a row that are all kept. A text that is sent again after each id leaves one state an id; each would be
passed by all that come later, and hardly any but the last is asked for again."""

NODE_BYTES = 400
"""What Python takes for a node beside its ids: itself, its dictionary, its place in another. A test measures these."""

STATE_BYTES = 400
"""What Python takes for a state beside its numbers: its dictionary and its place among the recent."""

ARRAY_BYTES = 120
"""What Python takes for each array of a state."""


class Scope(NamedTuple):
    """Whose prompts may meet: those of one model, one tenant and one salt."""

    model: str
    """The bundle's digest: equal names do not make equal networks."""
    tenant: str
    salt: str | None


@dataclass(frozen=True, slots=True)
class Match:
    """What is known of a prompt.

    Args:
        length: ids that `state` has consumed; 0 for none. The last id of the prompt is never one of them: it must
            be consumed to have outputs.
        state: one row of each, not to be written to; None where length is 0.
        known: ids that some entry begins with, too. Where it is more than `length`, here two prompts part.
    """

    length: int
    state: Mapping[str, Array] | None
    known: int


@dataclass(eq=False, slots=True)
class _Node:
    parent: _Node | None
    """None for a root."""
    edge: bytes
    """Ids between the parent and this node."""
    width: int
    """Bytes of an id."""
    scope: Scope | None = None
    """Of a root."""
    children: dict[bytes, _Node] = field(default_factory=dict)
    """By the first id of their edges."""
    length: int = 0
    """Ids on the way here."""
    state: Mapping[str, Array] | None = None


class PrefixCache:
    """The states of many prompts, bounded in bytes; the least recently used go. Belongs to one thread.

    Args:
        max_bytes: ids, states and what it takes to find them.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        """What is in use, never more than max_bytes."""
        self._roots: dict[Scope, _Node] = {}
        self._recent: OrderedDict[_Node, None] = OrderedDict()
        """Nodes that hold a state, the least recently used first."""

    def __len__(self) -> int:
        return len(self._recent)

    def find(self, scope: Scope, ids: Prompt) -> Match:
        """The longest beginning of a prompt whose state is held; its use is noted. [N]"""
        data, width = ids.tobytes(), ids.itemsize
        last = len(data) - width
        found, node, at, known = None, self._roots.get(scope), 0, 0
        while node is not None:
            found = node if node.state is not None else found
            known = at
            child = node.children.get(data[at : at + width]) if at < last else None
            if child is not None and not (at + len(child.edge) <= last and data.startswith(child.edge, at)):
                known += _shared(child.edge, data[at:last], width)
                child = None
            if child is not None:
                at += len(child.edge)
            node = child
        if found is None:
            return Match(0, None, known // width)
        self._recent.move_to_end(found)
        return Match(found.length, found.state, known // width)

    def put(self, scope: Scope, ids: Prompt, state: Mapping[str, Array]) -> None:
        """Keep the state after these ids; one that is held already counts as used.

        What alone would not fit is not kept.

        Args:
            scope: whose it is.
            ids: as wide as all of the scope. [N], N at least 1
            state: one row of each, which nobody writes to any more.
        """
        data, width = ids.tobytes(), ids.itemsize
        # At worst it needs a root, a node where it parts from others and a node of its own.
        if _scope_bytes(scope) + 2 * NODE_BYTES + len(data) + _state_bytes(state) > self.max_bytes:
            return
        node, at = self._root(scope, width), 0
        way = []
        while at < len(data):
            child = node.children.get(data[at : at + width])
            if child is None:
                child = self._attach(node, data[at:])
            elif not data.startswith(child.edge, at):
                child = self._split(child, _shared(child.edge, data[at:], width))
            node = child
            way.append(node)
            at += len(node.edge)
        if node.state is None:
            node.state = state
            self.bytes += _state_bytes(state)
        self._recent[node] = None
        self._recent.move_to_end(node)
        while self.bytes > self.max_bytes:
            self._forget(next(iter(self._recent)))
        if len(way) > MAX_DENSE:
            self._thin(way[-MAX_DENSE - 1])

    def drop(self, model: str) -> None:
        """Forget every state of a model, by its digest."""
        for root in [root for scope, root in self._roots.items() if scope.model == model]:
            for node in list(_below(root)):
                if node.state is not None:
                    self._forget(node)

    def _root(self, scope: Scope, width: int) -> _Node:
        root = self._roots.get(scope)
        if root is None:
            root = self._roots[scope] = _Node(None, b"", width, scope)
            self.bytes += _scope_bytes(scope)
        return root

    def _attach(self, parent: _Node, edge: bytes) -> _Node:
        width = parent.width
        node = _Node(parent, edge, width, length=parent.length + len(edge) // width)
        parent.children[edge[:width]] = node
        self.bytes += NODE_BYTES + len(edge)
        return node

    def _split(self, node: _Node, at: int) -> _Node:
        """Put a node of its own after the first `at` bytes of a node's edge; that one."""
        assert node.parent is not None
        upper = self._attach(node.parent, node.edge[:at])
        node.parent, node.edge = upper, node.edge[at:]
        upper.children[node.edge[: node.width]] = node
        self.bytes -= at  # those of `upper` now
        return upper

    def _forget(self, node: _Node) -> None:
        """Let a state go, and the nodes that led nowhere else."""
        assert node.state is not None
        self.bytes -= _state_bytes(node.state)
        node.state = None
        del self._recent[node]
        while node.parent is not None and node.state is None and not node.children:
            del node.parent.children[node.edge[: node.width]]
            self.bytes -= NODE_BYTES + len(node.edge)
            node = node.parent
        if node.scope is not None:
            if not node.children:
                del self._roots[node.scope]
                self.bytes -= _scope_bytes(node.scope)
        elif node.state is None and len(node.children) == 1:
            self._merge(node)

    def _thin(self, node: _Node) -> None:
        """Let a state go that has others near it on both sides, where no prompts part."""
        parent, children = node.parent, list(node.children.values())
        if node.state is None or parent is None or parent.state is None or len(children) != 1:
            return
        if children[0].state is not None and children[0].length - parent.length <= STRIDE:
            self._forget(node)

    def _merge(self, node: _Node) -> None:
        """Take out a node at which nobody parts any more."""
        assert node.parent is not None
        (child,) = node.children.values()
        child.parent, child.edge = node.parent, node.edge + child.edge
        node.parent.children[child.edge[: node.width]] = child
        self.bytes -= NODE_BYTES


def _shared(edge: bytes, data: bytes, width: int) -> int:
    """How many bytes of whole ids both begin with."""
    count = min(len(edge), len(data)) // width * width
    differs = np.frombuffer(edge, np.uint8, count) != np.frombuffer(data, np.uint8, count)
    return int(differs.argmax()) // width * width if differs.any() else count


def _below(node: _Node) -> Iterator[_Node]:
    nodes = [node]
    while nodes:
        node = nodes.pop()
        nodes += node.children.values()
        yield node


def _state_bytes(state: Mapping[str, Array]) -> int:
    return STATE_BYTES + sum(row.nbytes + ARRAY_BYTES for row in state.values())


def _scope_bytes(scope: Scope) -> int:
    return NODE_BYTES + sum(sys.getsizeof(part) for part in scope)
