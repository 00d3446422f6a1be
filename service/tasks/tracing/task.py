"""Tracing models: what a learner knows after each answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carousel.models.bundle import Bundle
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.errors import BundleError
from carousel.models.manifest import MANIFEST
from carousel.service.api.catalogue import limits_of
from carousel.service.api.task import TASKS, ServedTask, no_body, require_codec
from carousel.service.api.wire.examples import SESSION
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.tracing import routes
from carousel.service.tasks.tracing.command import TRACE


def _catalogue(model: ServedModel) -> Mapping[str, Any]:
    return {"skills": list(model.bundle.codec(InteractionCodec).skills), "limits": limits_of(model, beam=False)}


def _require(bundle: Bundle) -> None:
    """Answers are fed, and a probability is read for each skill."""
    if bundle.manifest.head.fed_port is not None or bundle.encoder is not None:
        raise BundleError(f"{MANIFEST}: feeds something back, or has an encoder; a tracing model is fed answers alone")
    for port in (*bundle.manifest.step.inputs, bundle.manifest.head.read_port or ""):
        require_codec(bundle, port, InteractionCodec)


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
        require=_require,
        examples={"trace": _trace, "mastery_picture": no_body, "get_session": no_body, "delete_session": no_body},
        commands={"trace": TRACE},
    )
)
