"""The peer to beat: what a team writes when it puts a recurrent model behind FastAPI.

One WebSocket per client, the client's state in local variables, one onnxruntime call per token in the thread pool.
It opens the same bundle and speaks the same frames as the service. Nothing in it is slow on purpose: a step and its
sampling share one hop to the thread pool, the state arrays are handed from call to call without a copy, and the
server is uvicorn as installed.

    python -m benchmarks.naive --bundle bundles/shakespeare/2 --port 8001
"""

from __future__ import annotations

import argparse
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray

from carousel.benchmarks.step import Step, StepGraph
from carousel.models.bundle import Bundle, open_bundle
from carousel.models.codec.text import TextCodec
from carousel.models.manifest import DecodingDefaults

Logits = NDArray[np.float32]


class Writer:
    """One client's generation: its state and its way of sampling.

    Args:
        graph: what takes a step, shared by all clients.
        defaults: for what the client does not say.
        sampling: the start frame's `sampling`.
    """

    def __init__(self, graph: Step, defaults: DecodingDefaults, sampling: dict[str, Any]) -> None:
        self._graph = graph
        self._temperature = float(sampling.get("temperature", defaults.temperature))
        self._top_k = int(sampling.get("top_k", defaults.top_k))
        self._top_p = float(sampling.get("top_p", defaults.top_p))
        self._generator = np.random.default_rng(sampling.get("seed"))
        self._states = graph.initial_states(rows=1)

    def next_token(self, tokens: list[int]) -> tuple[int, float]:
        """Read `tokens`, one onnxruntime call each, and sample what follows: the token and its log-probability."""
        for token in tokens:
            logits, self._states = self._graph.run(np.array([token], np.int64), self._states)
        return sample(logits[0], self._temperature, self._top_k, self._top_p, self._generator)


def sample(
    logits: Logits, temperature: float, top_k: int, top_p: float, generator: np.random.Generator
) -> tuple[int, float]:
    """A token of softmax(logits / temperature) among the `top_k` best (0: all), then the nucleus of `top_p`.

    Temperature 0 takes the best token. The log-probability, which comes with it, is the model's own, that of
    softmax(logits).
    """
    best = int(logits.argmax())
    below = logits - logits[best]  # [V]
    weights = np.exp(below)
    total = weights.sum()
    token = best
    if temperature > 0.0:
        if temperature != 1.0:
            weights = np.exp(below / temperature)
        kept = np.argpartition(weights, -top_k)[-top_k:] if 0 < top_k < len(logits) else None
        if top_p < 1.0:
            kept = np.arange(len(weights)) if kept is None else kept
            kept = kept[np.argsort(-weights[kept])]
            mass = np.cumsum(weights[kept], dtype=np.float64)
            kept = kept[: int(mass.searchsorted(top_p * mass[-1])) + 1]
        cumulative = np.cumsum(weights if kept is None else weights[kept], dtype=np.float64)
        index = int(cumulative.searchsorted(generator.random() * cumulative[-1], side="right"))
        token = index if kept is None else int(kept[index])
    return token, float(below[token] - np.log(total))


def create_app(bundle: Bundle, graph: Step) -> FastAPI:
    """The app that serves `bundle`, whose steps `graph` takes."""
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.websocket("/v1/models/{model}/stream")
    async def stream(socket: WebSocket, model: str) -> None:
        await socket.accept()
        try:
            while True:
                start = json.loads(await socket.receive_text())
                await _generate(socket, graph, bundle, model, start)
        except WebSocketDisconnect:
            pass

    return app


async def _generate(socket: WebSocket, graph: Step, bundle: Bundle, model: str, start: dict[str, Any]) -> None:
    tokens: list[int] = start["tokens"] if "tokens" in start else bundle.codec(TextCodec).encode(start["prompt"])
    sampling = start.get("sampling", {})
    max_tokens = int(sampling.get("max_tokens", 16))
    writer = Writer(graph, bundle.manifest.decoding, sampling)
    detokenizer = bundle.codec(TextCodec).detokenizer(tokens)
    accepted = {"request_id": uuid.uuid4().hex, "model": model, "version": bundle.version}
    await socket.send_text(json.dumps({"type": "accepted", **accepted, "prompt_tokens": len(tokens)}))
    unread, texts = tokens, []
    for index in range(max_tokens):
        token, logprob = await run_in_threadpool(writer.next_token, unread)
        text = detokenizer.push(token)
        texts.append(text)
        event = {"type": "token", "index": index, "token": token, "text": text, "logprob": logprob}
        await socket.send_text(json.dumps(event))
        unread = [token]
    usage = {"prompt_tokens": len(tokens), "completion_tokens": max_tokens}
    finished = {"type": "finished", "reason": "length", "text": "".join(texts), "usage": usage}
    await socket.send_text(json.dumps(finished))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--bundle", type=Path, required=True, help="a bundle's directory, <repository>/<model>/<version>"
    )
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    app = create_app(bundle, StepGraph(bundle))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
