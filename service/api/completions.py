"""OpenAI's completions: at once, or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.api import frames
from service.api.context import context_of, find_model
from service.api.direct_frames import TokenFrames, token_frames
from service.api.disconnect import all_or_none, while_connected
from service.api.error_bodies import openai_body
from service.api.event_stream import EventStream, LastEvents, note, sse
from service.api.json_route import JsonRoute
from service.api.messages import CompletionsRequest, NotAllowed, check_top_k
from service.api.probability import ERRORS
from service.engine.sequence import FinishReason, Ids
from service.errors import RequestError, ServiceError
from service.generation import Collector, Finished, Generation, Token, Usage, admit_many
from service.memories import Memories, Recall
from service.observability.requests import record_of
from service.prompt import check_uneaten, prompt_ids
from service.repository import ServedModel

TEXT = "\0the text\0"
"""Marks a place in JSON: no model's name holds it."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

router = APIRouter(tags=["completions"], route_class=JsonRoute)


@router.post(
    "/v1/completions",
    summary="Continue texts",
    responses={200: {"content": {"application/json": {}, "text/event-stream": {}}}, **ERRORS},
    response_model=None,
)
async def completions(request: Request, body: CompletionsRequest) -> Response:
    """OpenAI's completions; with `"stream": true` as server-sent events that end in `data: [DONE]`."""
    model = find_model(request, body.model, "language")
    async with AsyncExitStack() as places:
        work = Completion(model, context_of(request).memories, body, places)
        if not body.stream:
            return JSONResponse(await while_connected(request, work.whole(places)))
        held = places.pop_all()
        return EventStream(work.stream(request, held), held, work.overflow)


class Completion:
    """One request: a generation per prompt and per `n`."""

    def __init__(
        self, model: ServedModel, memories: Memories, body: CompletionsRequest, places: AsyncExitStack
    ) -> None:
        self._model = model
        self._memories = memories
        self._body = body
        self._recall: Recall | None = None
        self._head = {
            "id": f"cmpl-{random.getrandbits(128):032x}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }
        self._generations: list[Generation] = []
        self._echoes: list[str] = []
        self.overflow: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the client has read the events too slowly and the generation was ended."""
        urgency = body.urgency
        wanted, most = len(body.prompts) * (body.n or 1), model.engine.max_admitted(batch=urgency.batch)
        if wanted > most:
            raise RequestError(
                "invalid_request",
                f"prompts times n is {wanted:,}; {model.name} runs at most {most:,} at once",
                param="prompt" if len(body.prompts) > most else "n",
            )
        # Places are taken before any prompt is tokenised.
        self._admissions = admit_many(places, model, wanted, urgency)

    async def _prepare(self, places: AsyncExitStack) -> None:
        """Tokenise, and refuse what must be refused before a byte is answered."""
        body, codec = self._body, self._model.bundle.text_codec
        if body.echo and body.logprobs is not None:
            raise RequestError(
                "invalid_request", "echo with logprobs is not offered; /v1/models/{model}/score gives them"
            )
        try:
            sampling = body.parameters(
                self._model.bundle.manifest, default_max_tokens=DEFAULT_MAX_TOKENS, alternatives=body.logprobs or 0
            )
            check_top_k(sampling.top_k, codec.vocabulary_size)
        except NotAllowed as error:
            raise RequestError("invalid_request", str(error), param=error.field) from None
        admissions = iter(self._admissions)
        prompts = [await self._ids(place, prompt) for place, prompt in enumerate(body.prompts)]
        self._recall = recall = await places.enter_async_context(
            self._memories.recall(self._model.identity, body.memory)
        )
        for prompt, ids in zip(body.prompts, prompts, strict=True):
            check_uneaten(self._model, recall.snapshot, len(ids))
            for _ in range(body.n or 1):
                each = replace(sampling, seed=choice_seed(sampling.seed, len(self._generations)))
                self._generations.append(
                    Generation(
                        self._model,
                        next(admissions),
                        ids,
                        each,
                        list(body.stop or []),
                        snapshot=recall.snapshot,
                        context=recall.context,
                        keep_state=body.memory.keeps,
                        on_overflow=partial(note, self.overflow),
                        cache_salt=body.cache_salt,
                    )
                )
                text = prompt if isinstance(prompt, str) else codec.decode(prompt)
                self._echoes.append(text if body.echo else "")

    async def _ids(self, place: int, prompt: str | list[int]) -> Ids:
        try:
            return await prompt_ids(self._model, prompt)
        except RequestError as error:
            if len(self._body.prompts) == 1:
                raise
            where = f"prompt.{place}"
            raise RequestError(error.code, f"{where}: {error.message.removeprefix('prompt: ')}", param=where) from None

    def _start(self, request: Request) -> None:
        taker = self._taker(request) if len(self._generations) == 1 and self._body.logprobs is None else None
        for generation in self._generations:
            generation.start(taker)

    async def whole(self, places: AsyncExitStack) -> dict[str, Any]:
        """The answer at once."""
        await self._prepare(places)
        results = await all_or_none([self._collect(index) for index in range(len(self._generations))])
        return {
            **self._head,
            "choices": [choice for choice, _ in results],
            "usage": self._usage([usage for _, usage in results]),
            **self._told,
        }

    async def stream(self, request: Request, places: AsyncExitStack) -> AsyncIterator[bytes]:
        """The answer as events. An error after the first byte is the last event, without [DONE]."""
        await self._prepare(places)
        self._start(request)
        usages: list[Usage] = []
        end = b""
        shown = [len(echo) for echo in self._echoes]
        drain, cut_off = context_of(request).drain, False
        places.enter_context(drain.ending(self._cancel))
        try:
            async for index, event in _merge([generation.events() for generation in self._generations]):
                if self._echoes[index]:
                    echo, self._echoes[index] = self._echoes[index], ""
                    yield self._event([self._choice(index, echo, None, None)])
                if isinstance(event, Finished):
                    usages.append(event.usage)
                    cut_off |= event.reason is FinishReason.CANCELLED
                    await self._keep(index, event)
                    end = self._event([self._choice(index, "", None, event.reason)], **self._told)
                    if len(usages) < len(self._generations):
                        yield end
                elif event.text or self._body.logprobs is not None:
                    logprobs = self._logprobs([event], shown[index])
                    shown[index] += len(event.text)
                    yield self._event([self._choice(index, event.text, logprobs, None)])
            await places.aclose()  # whoever reads the end may ask again at once
            if cut_off:  # nobody else cancels it
                yield end
                raise drain.refusal()
            if (self._body.stream_options or {}).get("include_usage"):
                end += self._event([], usage=self._usage(usages))
            yield LastEvents(end + b"data: [DONE]\n\n")
        except ServiceError as error:
            record = record_of(request.scope)
            if record.status is None:  # what was sampled may all be held back: then there is an answer to come
                raise
            record.outcome = error.code
            yield LastEvents(sse(openai_body(error)))

    def _cancel(self) -> None:
        for generation in self._generations:
            generation.cancel()

    def _taker(self, request: Request) -> TokenFrames | None:
        """What sends the tokens of a single choice as they come: the event of a text, written around it."""
        event = self._event([self._choice(0, TEXT, None, None)]).decode()
        before, after = event.split(frames.quote(TEXT))

        def tell(token: Token) -> str:
            return f"{before}{frames.quote(token.text)}{after}" if token.text else ""

        return token_frames(request.scope, tell)

    async def _collect(self, index: int) -> tuple[dict[str, Any], Usage]:
        tokens: list[Token] = []
        async for event in self._generations[index].events(Collector(tokens)):
            if isinstance(event, Finished):
                await self._keep(index, event)
                text = self._echoes[index] + event.text
                return self._choice(index, text, self._logprobs(tokens), event.reason), event.usage
            tokens.append(event)
        raise AssertionError("a generation always ends with Finished")

    async def _keep(self, index: int, end: Finished) -> None:
        if end.snapshot is not None:
            assert self._recall is not None
            eaten = end.usage.prompt_tokens + end.usage.completion_tokens
            await self._recall.keep(end.snapshot, eaten=eaten, context=self._generations[index].context)

    @property
    def _told(self) -> dict[str, str]:
        return {} if self._recall is None else self._recall.told

    def _event(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        return sse({**self._head, "choices": choices, **fields})

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: FinishReason | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if reason is None else reason.value,
        }

    def _logprobs(self, tokens: list[Token], offset: int = 0) -> dict[str, Any] | None:
        """OpenAI's `logprobs`; `offset` is where in the text of the choice the first token begins."""
        if self._body.logprobs is None:
            return None
        name = self._model.bundle.text_codec.token_name
        return {
            "tokens": [name(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [top_logprobs(token, name) for token in tokens],
            "text_offset": list(itertools.accumulate((len(token.text) for token in tokens), initial=offset))[:-1],
        }

    def _usage(self, usages: list[Usage]) -> dict[str, Any]:
        copies = self._body.n or 1
        prompt = sum(usage.prompt_tokens for usage in usages) // copies
        completion = sum(usage.completion_tokens for usage in usages)
        cached = sum(usage.cached_tokens for usage in usages) // copies
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def top_logprobs(token: Token, name: Callable[[int], str]) -> dict[str, float]:
    """The most probable tokens at a place, best first, and the one that was sampled, by their names.

    Where two tokens have the same name, that of the larger log-probability counts.
    """
    logprobs = {one.token: one.logprob for one in token.alternatives}
    logprobs[token.token] = token.logprob  # the very number that `token_logprobs` has
    named: dict[str, float] = {}
    for other, logprob in logprobs.items():
        named[name(other)] = max(named.get(name(other), -math.inf), logprob)
    return named


def choice_seed(seed: int, index: int) -> int:
    """The seed of one of a request's choices: that of the request for the first, and of streams independent of it, and
    of those of other seeds, for the rest."""
    if index == 0:
        return seed
    (word,) = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return int(word) >> 1


async def _merge(sources: list[AsyncIterator[Token | Finished]]) -> AsyncIterator[tuple[int, Token | Finished]]:
    """The events of several generations as they come, each with its generation's index."""
    if len(sources) == 1:
        async for event in sources[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Token | Finished | Exception]] = asyncio.Queue(maxsize=2 * len(sources))

    async def pump(index: int, source: AsyncIterator[Token | Finished]) -> None:
        try:
            async for event in source:
                await queue.put((index, event))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.create_task(pump(index, source)) for index, source in enumerate(sources)]
    try:
        left = len(sources)
        while left:
            index, outcome = await queue.get()
            if isinstance(outcome, Exception):
                raise outcome
            left -= isinstance(outcome, Finished)
            yield index, outcome
    finally:
        for task in tasks:
            task.cancel()
