"""The examples of the API's description: /docs fills them in, and each works on the models that are served.

A model's name and what it knows are put in when the description is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from carousel.models.codec.interaction import InteractionCodec
from carousel.models.codec.text import TextCodec
from carousel.models.step import ATTENTION
from carousel.service.served.repository import ServedModel

TEXT = "To be, or not to b"
SESSION = "ada"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
"""An image of one pixel, in base64."""

TASKS: dict[str, str] = {
    "next_token": "language",
    "score": "language",
    "completions": "language",
    "trace": "tracing",
    "mastery_picture": "tracing",
    "get_session": "tracing",
    "delete_session": "tracing",
    "captions": "captioning",
    "attention_picture": "captioning",
}
"""Of the models that an operation is for; any will do for the others."""


def add_examples(paths: dict[str, dict[str, Any]], models: Iterable[ServedModel]) -> None:
    """Put examples into the operations of a description.

    Args:
        paths: of the description.
        models: that are served.
    """
    by_task: dict[str, ServedModel] = {}
    for model in sorted(models, key=_suitability):
        by_task.setdefault(model.bundle.manifest.task, model)
    for operations in paths.values():
        for operation in operations.values():
            name = operation["operationId"]
            served = by_task.get(TASKS[name]) if name in TASKS else next(iter(by_task.values()), None)
            if served is None:
                continue
            values = {"model": served.name, "session": SESSION}
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in values:
                    parameter["example"] = values[parameter["name"]]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                body["examples"] = {
                    summary: {"summary": summary, "value": value} for summary, value in _bodies(name, served).items()
                }


def _suitability(model: ServedModel) -> tuple[bool, int]:
    """First who says where it looks, and answers soon."""
    return model.bundle.step.output(ATTENTION) is None, model.bundle.manifest.limits.max_new_tokens


def _bodies(operation: str, model: ServedModel) -> dict[str, dict[str, Any]]:
    """Bodies by what they are for."""
    if operation in ("next_token", "score", "completions"):
        text = _known_text(model)
        if operation == "next_token":
            return {"The three most probable": {**text, "top": 3}}
        if operation == "score":
            return {"A text": text}
        prompt = {"model": model.name, "prompt": next(iter(text.values()))}
        return {
            "One text": {**prompt, "max_tokens": 16, "temperature": 0.8, "seed": 7},
            "Two, streamed": {**prompt, "max_tokens": 16, "n": 2, "stream": True},
        }
    if operation == "trace":
        skill = model.bundle.codec(InteractionCodec).skills[0]
        attempts = [{"skill": skill, "correct": True}, {"skill": skill, "correct": False}]
        return {
            "One learner, in a session": {"session": SESSION, "attempts": attempts, "skills": [skill]},
            "Two learners": {"learners": [{"id": "grace", "attempts": attempts}, {"id": 7, "attempts": attempts[:1]}]},
        }
    if operation == "captions":
        return {
            "One image": {"image": PIXEL},
            "Two images": {"images": [PIXEL, PIXEL]},
            "Sampled and streamed": {"image": PIXEL, "temperature": 0.7, "stream": True},
        }
    if operation == "attention_picture":
        return {"One image": {"image": PIXEL}}
    return {"The newest version": {}}


def _known_text(model: ServedModel) -> dict[str, Any]:
    """A text, where the model knows all of it, else tokens."""
    codec = model.bundle.codec(TextCodec)
    if codec.unknown_id in codec.encode(TEXT):
        return {"tokens": [0, 1]}
    return {"text": TEXT}
