"""Exports of tiny models, in less time."""

from __future__ import annotations

from copy import copy
from functools import cache


@cache
def quick_exports() -> None:
    """Let torch's exporter read its library of operators once in this process, and not at each of some hundred exports:
    that is a quarter of what an export of a tiny model takes. Each is given a copy, which it may add to."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = cache(ONNXRegistry.from_torchlib)

    def from_torchlib(cls: type[ONNXRegistry], **options: int) -> ONNXRegistry:
        registry = copy(read(**options))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)  # type: ignore[method-assign, assignment]
