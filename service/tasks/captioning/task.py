"""Captioning models: sentences about images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carousel.models.codec.image import ImageCodec
from carousel.service.api.catalogue import sampling_defaults
from carousel.service.api.task import TASKS, ServedTask, Stream
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.captioning import routes
from carousel.service.tasks.captioning.messages import CaptionsRequest, CaptionStart
from carousel.service.tasks.captioning.stream import CaptionConnection

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
"""An image of one pixel, in base64."""


def _catalogue(model: ServedModel) -> Mapping[str, Any]:
    return {
        "vocabulary_size": model.bundle.output_size,
        "preprocessing": model.bundle.codec(ImageCodec).preprocessing.model_dump(),
        **sampling_defaults(model, beam=True),
    }


TASKS.register("captioning")(
    ServedTask(
        routers=(routes.router,),
        catalogue=_catalogue,
        stream=Stream(CaptionConnection, (CaptionStart,), images=True),
        bodies=(CaptionsRequest,),
        examples={
            "captions": lambda _: {
                "One image": {"image": PIXEL},
                "Two images": {"images": [PIXEL, PIXEL]},
                "Sampled and streamed": {"image": PIXEL, "temperature": 0.7, "stream": True},
            },
            "attention_picture": lambda _: {"One image": {"image": PIXEL}},
        },
    )
)
