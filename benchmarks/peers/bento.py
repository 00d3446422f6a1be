"""The peer on BentoML: an endpoint that is an asynchronous generator, as its documentation streams tokens.

BentoML's own batching does not stream, so a request steps alone, off the event loop.

    BENCHMARKS_BUNDLE=bundles/shakespeare/2 python -m bentoml serve carousel.benchmarks.peers.bento:Words --port 8001
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import bentoml

from carousel.benchmarks.naive import Writer
from carousel.benchmarks.server import BUNDLE_VARIABLE
from carousel.benchmarks.step import StepGraph
from carousel.models.bundle import open_bundle
from carousel.models.codec.text import TextCodec


@bentoml.service(traffic={"timeout": 600})
class Words:
    """One bundle's generations."""

    def __init__(self) -> None:
        self._bundle = open_bundle(Path(os.environ[BUNDLE_VARIABLE]))
        self._graph = StepGraph(self._bundle)

    @bentoml.api(route="/generate")
    async def generate(self, tokens: list[int], sampling: dict[str, Any]) -> AsyncGenerator[str, None]:
        """A line of JSON a token."""
        writer = Writer(self._graph, self._bundle.manifest.decoding, sampling)
        detokenizer = self._bundle.codec(TextCodec).detokenizer(tokens)
        unread = tokens
        for index in range(sampling["max_tokens"]):
            token, logprob = await asyncio.to_thread(writer.next_token, unread)
            said = {"index": index, "token": token, "text": detokenizer.push(token), "logprob": logprob}
            yield json.dumps(said) + "\n"
            unread = [token]
