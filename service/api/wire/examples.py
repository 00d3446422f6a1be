"""The examples of the API's description: /docs fills them in, and each works on the models that are served.

A model's name and what it knows are put in when the description is asked for, by its task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from carousel.models.step import ATTENTION
from carousel.service.served.repository import ServedModel

SESSION = "ada"


def add_examples(
    paths: dict[str, dict[str, Any]],
    models: Iterable[ServedModel],
    examples: Mapping[str, Mapping[str, Any]],
    common: Mapping[str, Callable[[ServedModel], Mapping[str, Any] | None]],
) -> None:
    """Put examples into the operations of a description.

    Args:
        paths: of the description.
        models: that are served.
        examples: of each task, by operation; an operation that no task has any for is shown for any model.
        common: of operations of any model; None of one that cannot do it.
    """
    by_task: dict[str, ServedModel] = {}
    for model in sorted(models, key=_suitability):
        by_task.setdefault(model.bundle.manifest.task, model)
    task_of = {operation: task for task, operations in examples.items() for operation in operations}
    for operations in paths.values():
        for operation in operations.values():
            name = operation["operationId"]
            task = task_of.get(name)
            served = next(iter(by_task.values()), None) if task is None else by_task.get(task)
            bodies: Mapping[str, Any] | None = {"The newest version": {}}
            if name in common:
                able = ((model, common[name](model)) for model in by_task.values())
                served, bodies = next((found for found in able if found[1] is not None), (None, None))
            elif task is not None and served is not None:
                bodies = examples[task][name](served)
            if served is None or bodies is None:
                continue
            values = {"model": served.name, "session": SESSION}
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in values:
                    parameter["example"] = values[parameter["name"]]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                body["examples"] = {summary: {"summary": summary, "value": value} for summary, value in bodies.items()}


def _suitability(model: ServedModel) -> tuple[bool, int]:
    """First who says where it looks, and answers soon."""
    return model.bundle.step.output(ATTENTION) is None, model.bundle.manifest.limits.max_new_tokens
