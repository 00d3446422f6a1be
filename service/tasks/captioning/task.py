"""Captioning models: sentences about images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carousel.models.bundle import Bundle
from carousel.models.codec.image import ImageCodec
from carousel.models.codec.text import TextCodec
from carousel.models.errors import BundleError
from carousel.models.manifest import MANIFEST
from carousel.service.api.catalogue import sampling_defaults
from carousel.service.api.task import TASKS, ServedTask, Stream, require_codec, require_head
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


def _require(bundle: Bundle) -> None:
    """An image begins a text, whose first and last token the head names."""
    require_head(bundle, "feeds", "begin", "end")
    if bundle.manifest.encoder is None:
        raise BundleError(f"{MANIFEST}: has no encoder; a captioning model begins with an image")
    require_codec(bundle, bundle.manifest.encoder.inputs[0], ImageCodec)
    for port in (bundle.manifest.head.fed_port or "", *bundle.manifest.head.outputs[:1]):
        require_codec(bundle, port, TextCodec)


TASKS.register("captioning")(
    ServedTask(
        routers=(routes.router,),
        catalogue=_catalogue,
        require=_require,
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
