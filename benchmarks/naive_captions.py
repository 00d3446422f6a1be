"""The peer of captioning: what a team writes first. The encoder, then one step per word, for each request by itself.

It takes the service's own form, one image at a time. Nothing in it is slow on purpose: a request is one hop to the
framework's thread pool, images are decoded by the service's own code, the arrays of a step go into the next without a
copy.

    python -m benchmarks.naive_captions --bundle bundles/scenes/2 --port 8001
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, UploadFile
from numpy.typing import NDArray

from carousel.benchmarks.step import default_options
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH, Bundle, open_bundle
from carousel.models.codec.caption import caption_codec
from carousel.models.graph import next_name


class Captioner:
    """Greedy captions, in sessions with onnxruntime's own defaults."""

    def __init__(self, bundle: Bundle) -> None:
        self._codec = caption_codec(bundle)
        self._longest = bundle.manifest.limits.max_new_tokens
        self._encoder = onnxruntime.InferenceSession(bundle.path / ENCODER_GRAPH, default_options())
        self._step = onnxruntime.InferenceSession(bundle.path / STEP_GRAPH, default_options())
        self._states = [spec.name for spec in bundle.states]
        self._begins_with = [*self._states, *(spec.name for spec in bundle.context)]
        self._outputs = ["logits", *map(next_name, self._states)]

    def caption(self, content: bytes) -> str:
        """Of an image file."""
        image = self._codec.preprocess(content)[None]
        feeds: dict[str, NDArray[Any]] = dict(
            zip(self._begins_with, self._encoder.run(self._begins_with, {"image": image}), strict=True)
        )
        token, tokens = self._codec.begin_id, list[int]()
        for _ in range(self._longest):
            feeds["token"] = np.array([token])
            logits, *after = self._step.run(self._outputs, feeds)
            feeds.update(zip(self._states, after, strict=True))
            token = int(logits[0].argmax())
            if token == self._codec.end_id:
                break
            tokens.append(token)
        return self._codec.caption(tokens)


def create_app(bundle: Bundle) -> FastAPI:
    """The app that serves `bundle`."""
    captioner = Captioner(bundle)
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/models/{model}/captions")
    def captions(model: str, image: UploadFile) -> dict[str, Any]:  # `def`: the framework runs it in the thread pool
        return {"model": model, "images": [{"captions": [{"text": captioner.caption(image.file.read())}]}]}

    return app


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive_captions", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bundle", type=Path, required=True, help="<repository>/<model>/<version>")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(create_app(open_bundle(arguments.bundle)), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
