"""The peer of tracing: what is written today. Every answer brings the whole history, and it is run again.

It takes the service's own request and answers alike. Two ways to run the history, both in the thread pool:

- `steps`: the bundle's step graph, one onnxruntime call per attempt;
- `torch`: the same network in PyTorch, one call over the whole history, on one thread per request.

    python -m benchmarks.naive_tracing --way torch --port 8001
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from carousel.benchmarks.step import default_options
from carousel.benchmarks.tutor import tutor_bundle, tutor_model
from carousel.models.bundle import STEP_GRAPH, Bundle, open_bundle
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.graph import next_name

Predict = Callable[[list[int]], NDArray[np.float32]]
"""A history's ids to P(correct) of the next attempt at every skill."""


class Attempt(TypedDict):
    """One answer."""

    skill: int
    correct: bool


class History(TypedDict):
    """The request's body."""

    attempts: list[Attempt]


def by_steps(bundle: Bundle) -> Predict:
    """One call per attempt."""
    session = onnxruntime.InferenceSession(bundle.path / STEP_GRAPH, default_options())
    shapes = {spec.name: [1, *(size or 0 for size in spec.shape[1:])] for spec in bundle.states}
    outputs = ["probability", *map(next_name, shapes)]

    def predict(ids: list[int]) -> NDArray[np.float32]:
        states: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        probability: Any = None
        for one in ids:
            skill, correct = np.array([one >> 1]), np.array([one & 1])
            probability, *after = session.run(outputs, {"skill": skill, "correct": correct, **states})
            states = dict(zip(shapes, after, strict=True))
        result: NDArray[np.float32] = probability[0]
        return result

    return predict


def by_torch() -> Predict:
    """One call per history."""
    torch.set_num_threads(1)  # requests run side by side: more threads each would only be in one another's way
    model = tutor_model()

    def predict(ids: list[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits, _ = model(torch.tensor([ids]), model.initial_state(1))
            result: NDArray[np.float32] = logits[0, -1].sigmoid().numpy()
            return result

    return predict


def create_app(way: Literal["steps", "torch"]) -> FastAPI:
    """The app."""
    bundle = open_bundle(tutor_bundle())
    names = bundle.codec(InteractionCodec).skills
    predict = by_steps(bundle) if way == "steps" else by_torch()
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/models/{model}/trace")
    def trace(model: str, body: History) -> dict[str, Any]:  # `def`: the framework runs it in the thread pool
        after = predict([2 * one["skill"] + one["correct"] for one in body["attempts"]]).tolist()
        predictions = [{"skill": name, "probability": value} for name, value in zip(names, after, strict=True)]
        return {"model": model, "predictions": predictions}

    return app


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive_tracing", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--way", choices=("steps", "torch"), required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(create_app(arguments.way), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
