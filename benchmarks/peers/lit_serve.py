"""The peer on LitServe: its batched streaming, written as its documentation does.

Requests that come within the batch's timeout run in step, a batch at a time, and each gets a chunk of JSON a token.

    python -m benchmarks.peers.lit_serve --bundle bundles/shakespeare/2 --port 8001
"""

# No annotations from __future__: LitServe reads those of decode_request and encode_response as they stand.

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litserve
import numpy as np

from carousel.benchmarks.naive import sample
from carousel.benchmarks.step import StepGraph
from carousel.models.bundle import open_bundle
from carousel.models.codec.text import TextCodec

MAX_BATCH = 64
BATCH_SECONDS = 0.01

Json = dict[str, Any]


class Words(litserve.LitAPI):
    """One bundle's generations.

    Args:
        bundle: `<repository>/<model>/<version>`.
        options: LitServe's own.
    """

    def __init__(self, bundle: Path, **options: Any) -> None:
        super().__init__(**options)
        self._bundle = bundle

    def setup(self, _device: str) -> None:
        """Open the bundle, in the worker's process."""
        self._codec = open_bundle(self._bundle).codec(TextCodec)
        self._graph = StepGraph(open_bundle(self._bundle))

    def decode_request(self, request: Json) -> Json:
        """The fields are what is needed."""
        return request

    def predict(self, batch: list[Json]) -> Iterator[list[Json | None]]:
        """One step of all rows after another: each row's token, None where it has read its prompt or ended."""
        prompts = [request["tokens"] for request in batch]
        wanted = [request["sampling"]["max_tokens"] for request in batch]
        ways = [
            (
                request["sampling"]["temperature"],
                request["sampling"].get("top_k", 0),
                request["sampling"].get("top_p", 1.0),
            )
            for request in batch
        ]
        generators = [np.random.default_rng(request["sampling"]["seed"]) for request in batch]
        detokenizers = [self._codec.detokenizer(prompt) for prompt in prompts]
        last, made = [0] * len(batch), [0] * len(batch)
        states = self._graph.initial_states(len(batch))
        step = 0
        while any(count < most for count, most in zip(made, wanted, strict=True)):
            read = [prompt[step] if step < len(prompt) else last[row] for row, prompt in enumerate(prompts)]
            logits, states = self._graph.run(np.array(read, np.int64), states)
            said: list[Json | None] = [None] * len(batch)
            for row, prompt in enumerate(prompts):
                if step >= len(prompt) - 1 and made[row] < wanted[row]:
                    last[row], logprob = sample(logits[row], *ways[row], generators[row])
                    text = detokenizers[row].push(last[row])
                    said[row] = {"index": made[row], "token": last[row], "text": text, "logprob": logprob}
                    made[row] += 1
            step += 1
            yield said

    def unbatch(self, output: Iterator[list[Json | None]]) -> Iterator[list[Json | None]]:
        """As it is: a step's list has one entry a request already."""
        yield from output

    def encode_response(self, output: Iterator[list[Json | None]]) -> Any:
        """A line of JSON a token."""
        for step in output:
            yield ["" if said is None else json.dumps(said) + "\n" for said in step]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.lit_serve")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    words = Words(
        arguments.bundle, api_path="/generate", stream=True, max_batch_size=MAX_BATCH, batch_timeout=BATCH_SECONDS
    )
    server = litserve.LitServer(words, accelerator="cpu", healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
