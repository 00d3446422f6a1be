"""Tracing models: what a learner knows after each answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carousel.models.codec.interaction import InteractionCodec
from carousel.service.api.catalogue import limits_of
from carousel.service.api.task import TASKS, ServedTask, no_body
from carousel.service.api.wire.examples import SESSION
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.tracing import routes
from carousel.service.tasks.tracing.command import TRACE


def _catalogue(model: ServedModel) -> Mapping[str, Any]:
    return {"skills": list(model.bundle.codec(InteractionCodec).skills), "limits": limits_of(model, beam=False)}


def _trace(model: ServedModel) -> Mapping[str, Any]:
    skill = model.bundle.codec(InteractionCodec).skills[0]
    attempts = [{"skill": skill, "correct": True}, {"skill": skill, "correct": False}]
    return {
        "One learner, in a session": {"session": SESSION, "attempts": attempts, "skills": [skill]},
        "Two learners": {"learners": [{"id": "grace", "attempts": attempts}, {"id": 7, "attempts": attempts[:1]}]},
    }


TASKS.register("tracing")(
    ServedTask(
        routers=(routes.router,),
        catalogue=_catalogue,
        examples={"trace": _trace, "mastery_picture": no_body, "get_session": no_body, "delete_session": no_body},
        commands={"trace": TRACE},
    )
)
