"""Language models: texts continued, the next token told, a text's probability weighed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carousel.models.bundle import Bundle
from carousel.models.codec.text import TextCodec
from carousel.models.errors import BundleError
from carousel.models.manifest import MANIFEST
from carousel.service.api.catalogue import sampling_defaults
from carousel.service.api.task import TASKS, ServedTask, Stream, require_codec, require_head
from carousel.service.api.wire.messages import Cancel
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.language import completions, probability
from carousel.service.tasks.language.stream import TextConnection
from carousel.service.tasks.language.stream_messages import Feed, Start

TEXT = "To be, or not to b"


def _catalogue(model: ServedModel) -> Mapping[str, Any]:
    return {"vocabulary_size": model.bundle.output_size, **sampling_defaults(model, beam=False)}


def _require(bundle: Bundle) -> None:
    """A text is continued from itself, and sampled."""
    require_head(bundle, "feeds")
    if bundle.encoder is not None:
        raise BundleError(f"{MANIFEST}: has an encoder; a language model begins with a text alone")
    for port in (bundle.manifest.head.fed_port or "", *bundle.manifest.head.outputs[:1]):
        require_codec(bundle, port, TextCodec)


def _known_text(model: ServedModel) -> dict[str, Any]:
    """A text, where the model knows all of it, else tokens."""
    codec = model.bundle.codec(TextCodec)
    return {"tokens": [0, 1]} if codec.unknown_id in codec.encode(TEXT) else {"text": TEXT}


def _completions(model: ServedModel) -> Mapping[str, Any]:
    prompt = {"model": model.name, "prompt": next(iter(_known_text(model).values())), "max_tokens": 16}
    return {
        "One text": {**prompt, "temperature": 0.8, "seed": 7},
        "Two, streamed": {**prompt, "n": 2, "stream": True},
    }


TASKS.register("language")(
    ServedTask(
        routers=(probability.router, completions.router),
        catalogue=_catalogue,
        require=_require,
        stream=Stream(TextConnection, (Start, Feed, Cancel)),
        examples={
            "next_token": lambda model: {"The three most probable": {**_known_text(model), "top": 3}},
            "score": lambda model: {"A text": _known_text(model)},
            "completions": _completions,
        },
    )
)
