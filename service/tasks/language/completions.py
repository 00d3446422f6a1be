"""OpenAI's completions: at once, or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.models.codec.text import TextCodec
from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.direct_frames import token_frames
from carousel.service.api.routes.disconnect import while_connected
from carousel.service.api.routes.event_stream import EventStream, LastEvents, note, sse
from carousel.service.api.routes.json_route import JsonRoute
from carousel.service.api.routes.responses import EVENTS
from carousel.service.api.wire import frames, slices
from carousel.service.api.wire.error_bodies import openai_body
from carousel.service.api.wire.error_messages import OpenAIErrorBody
from carousel.service.api.wire.messages import NotAllowed
from carousel.service.api.wire.sampling import check_top_k
from carousel.service.api.wire.slices import LARGE_ANSWER
from carousel.service.engine.parameters import FinishReason, Ids
from carousel.service.errors import RequestError, ServiceError
from carousel.service.observability.requests import record_of
from carousel.service.served.repository import ServedModel
from carousel.service.tasks.language.completion_answers import CompletionResponse
from carousel.service.tasks.language.completion_logprobs import Logprobs, logprobs_json, logprobs_of, sampled_logprobs
from carousel.service.tasks.language.completion_messages import CompletionsRequest
from carousel.service.tasks.language.echo import Echo, echo_of
from carousel.service.work.choices import ChoiceParameters, Choices, Event, choice_seed, merged
from carousel.service.work.generation import Collector, Finished, Token, TokenTaker, Usage, admit_many
from carousel.service.work.memories import Memories, Recall
from carousel.service.work.prompt import check_unconsumed, prompt_ids, unknown_tokens
from carousel.service.work.turns import all_or_none
from carousel.service.work.weighing import Weighed

TEXT, LOGPROBS = "\0the text\0", "\0the logprobs\0"
"""Mark places in JSON: no model's name holds them."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

NO_ECHO = Echo("", [])

OPENAI_ERRORS: dict[int | str, dict[str, type[OpenAIErrorBody]]] = {
    status: {"model": OpenAIErrorBody} for status in (400, 401, 404, 408, 409, 410, 413, 429, 500, 503, 504)
}
router = APIRouter(tags=["completions"], route_class=JsonRoute)


@router.post(
    "/v1/completions",
    summary="Continue texts",
    responses={200: {"content": EVENTS}, **OPENAI_ERRORS},
    response_model=CompletionResponse,
)
async def completions(request: Request, body: CompletionsRequest) -> Response:
    """OpenAI's completions; with `"stream": true` as server-sent events that end in `data: [DONE]`."""
    model = find_model(request, body.model, "language")
    async with AsyncExitStack() as places:
        work = Completion(model, context_of(request).memories, body, places)
        if not body.stream:
            content = await while_connected(request, work.whole(places))
            return Response(content, media_type="application/json")
        held = places.pop_all()
        return EventStream(work.stream(request, held), held, work.overflow, batch=body.urgency.batch)


@dataclass(frozen=True, slots=True)
class _Text:
    """One choice, whole."""

    tokens: list[Token]
    weighed: Weighed | None
    end: Finished

    @property
    def mean_logprob(self) -> float:
        """Of a token, in nats."""
        return math.fsum(token.logprob for token in self.tokens) / max(1, len(self.tokens))


class Completion:
    """One request: `copies` choices for each prompt."""

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
        self._prompts: list[Ids] = []
        self._echoes: list[Echo] = []
        self._unknown_tokens = 0
        self._choices: list[Choices] = []
        """Of each prompt."""
        self.overflow: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the client has read the events too slowly and the generation was ended."""
        urgency, self._count = body.urgency, len(body.prompts) * body.copies
        described = model.engine.describe()
        most = described.max_admitted_batch if urgency.batch else described.max_admitted
        if self._count > most:
            raise RequestError(
                "invalid_request",
                f"prompts times n (or best_of) is {self._count:,}; {model.name} runs at most {most:,} at once",
                param="prompt" if len(body.prompts) > most else "best_of" if body.copies > (body.n or 1) else "n",
            )
        # Places are taken before any prompt is tokenised.
        self._admissions = admit_many(places, model, self._count, urgency)

    async def _prepare(self, places: AsyncExitStack) -> None:
        """Tokenise, and refuse what must be refused before a byte is answered."""
        body, codec = self._body, self._model.bundle.codec(TextCodec)
        try:
            sampling = body.parameters(
                self._model.bundle.manifest, default_max_tokens=DEFAULT_MAX_TOKENS, alternatives=body.logprobs or 0
            )
            check_top_k(sampling.top_k, codec.vocabulary_size)
        except NotAllowed as error:
            raise RequestError("invalid_request", str(error), param=error.field) from None
        for place, prompt in enumerate(body.prompts):
            self._prompts.append(await self._ids(place, prompt))
            await asyncio.sleep(0)  # of a hundred prompts each takes its time: others have their turn in between
        self._unknown_tokens = sum(unknown_tokens(self._model, ids) for ids in self._prompts)
        self._recall = recall = await places.enter_async_context(
            self._memories.recall(self._model.identity, body.memory)
        )
        weighs = bool(body.echo) and body.logprobs is not None
        if body.echo:
            self._echoes = [await echo_of(codec, each, recall.context, offsets=weighs) for each in body.prompts]
        samplings = [replace(sampling, seed=choice_seed(sampling.seed, index)) for index in range(self._count)]
        parameters = ChoiceParameters(
            stops=list(body.stop or []),
            weigh=body.logprobs if weighs else None,
            cache_salt=body.cache_salt,
            on_overflow=partial(note, self.overflow),
        )
        for place, ids in enumerate(self._prompts):
            check_unconsumed(self._model, recall.snapshot, len(ids))
            own = slice(place * body.copies, (place + 1) * body.copies)
            self._choices.append(Choices(self._model, self._admissions[own], ids, samplings[own], parameters, recall))
            await asyncio.sleep(0)

    async def _ids(self, place: int, prompt: str | list[int]) -> Ids:
        try:
            return await prompt_ids(self._model, prompt)
        except RequestError as error:
            if len(self._body.prompts) == 1:
                raise
            where = f"prompt.{place}"
            raise RequestError(error.code, f"{where}: {error.message.removeprefix('prompt: ')}", param=where) from None

    def _events(self, index: int, taker: TokenTaker | None = None) -> AsyncIterator[Event]:
        """What comes of one choice."""
        place, copy = divmod(index, self._body.copies)
        return self._choices[place].events(copy, taker)

    async def whole(self, places: AsyncExitStack) -> bytes:
        """The answer at once."""
        await self._prepare(places)
        texts = await all_or_none([self._collect(index) for index in range(self._count)])
        told = sum(len(text.tokens) for text in texts) + (sum(map(len, self._prompts)) if self._echoes else 0)
        if told * (1 if self._body.logprobs is None else 3 + self._body.logprobs) < LARGE_ANSWER:
            return self._answer(texts, frames.dumps)
        return await asyncio.to_thread(self._answer, texts, slices.dumps)

    def _answer(self, texts: list[_Text], dumps: Callable[[Any], str]) -> bytes:
        """The answer. Each choice is written before the next is made: to let a hundred go at once takes its time."""
        copies, n = self._body.copies, self._body.n or 1
        choices: list[str] = []
        for place, echo in enumerate(self._echoes or [NO_ECHO] * len(self._prompts)):
            own = texts[place * copies : (place + 1) * copies]
            for text in own if copies == n else sorted(own, key=lambda one: -one.mean_logprob)[:n]:
                told = self._logprobs(text.tokens, len(echo.text))
                if told is not None and text.weighed is not None:
                    before = self._weighed(place, text.weighed)
                    told = {name: before[name] + told[name] for name in told}
                choices.append(dumps(self._choice(len(choices), echo.text + text.end.text, told, text.end.reason)))
        usage = self._usage({index: text.end.usage for index, text in enumerate(texts)})
        head, end = frames.dumps(self._head), frames.dumps({"usage": usage, **self._told})
        return f'{head[:-1]},"choices":[{",".join(choices)}],{end[1:]}'.encode()

    async def stream(self, request: Request, places: AsyncExitStack) -> AsyncIterator[bytes]:
        """The answer as events. An error after the first byte is the last event, without [DONE]."""
        await self._prepare(places)
        usages: dict[int, Usage] = {}
        end = b""
        echoes = {index: echo for index in range(self._count) if (echo := self._echo(index)) is not None}
        tellers = [self._teller(index) for index in range(self._count)]
        drain, cut_off = context_of(request).drain, False
        places.enter_context(drain.ending(self._cancel))
        taker = token_frames(request.scope, tellers[0]) if self._count == 1 else None
        try:
            async for index, event in merged([self._events(index, taker) for index in range(self._count)]):
                if (echo := echoes.pop(index, None)) is not None:
                    weighed = event if isinstance(event, Weighed) else None
                    if len(echo.offsets) < LARGE_ANSWER:
                        yield self._echo_event(index, echo, weighed, frames.dumps)
                    else:
                        yield await asyncio.to_thread(self._echo_event, index, echo, weighed, slices.dumps)
                if isinstance(event, Finished):
                    usages[index] = event.usage
                    cut_off |= event.reason is FinishReason.CANCELLED
                    await self._keep(index, event)
                    end = self._event([self._choice(index, "", None, event.reason)], **self._told)
                    if len(usages) < self._count:
                        yield end
                elif isinstance(event, Token) and (told := tellers[index](event)):
                    yield told.encode()
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
        for choices in self._choices:
            choices.cancel()

    def _teller(self, index: int) -> Callable[[Token], str]:
        """Makes the event of each token of a choice, in their order; nothing of a token that says nothing.

        Put together around what differs, as `_event` would: it is done once per token.
        """
        event = self._event([self._choice(index, TEXT, LOGPROBS, None)]).decode()
        before, rest = event.split(frames.quote(TEXT))
        between, after = rest.split(frames.quote(LOGPROBS))
        if self._body.logprobs is None:
            after = f"{between}null{after}"
            return lambda token: f"{before}{frames.quote(token.text)}{after}" if token.text else ""
        echo, codec = self._echo(index), self._codec
        shown = 0 if echo is None else len(echo.text)

        def tell(token: Token) -> str:
            nonlocal shown
            logprobs = logprobs_json(codec, token, shown)
            shown += len(token.text)
            return f"{before}{frames.quote(token.text)}{between}{logprobs}{after}"

        return tell

    async def _collect(self, index: int) -> _Text:
        tokens: list[Token] = []
        weighed = None
        async for event in self._events(index, Collector(tokens)):
            if isinstance(event, Finished):
                await self._keep(index, event)
                return _Text(tokens, weighed, event)
            if isinstance(event, Weighed):
                weighed = event
            else:
                tokens.append(event)
        raise AssertionError("a generation always ends with Finished")

    async def _keep(self, index: int, end: Finished) -> None:
        place, copy = divmod(index, self._body.copies)
        await self._choices[place].keep(copy, end)

    @property
    def _told(self) -> dict[str, str | int]:
        """Of the prompts, and of the memory that is kept."""
        return {"unknown_tokens": self._unknown_tokens, **({} if self._recall is None else self._recall.told)}

    def _event(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        return sse({**self._head, "choices": choices, **fields})

    def _echo_event(self, index: int, echo: Echo, weighed: Weighed | None, dumps: Callable[[Any], str]) -> bytes:
        logprobs = None if weighed is None else self._weighed(index // self._body.copies, weighed)
        event = {**self._head, "choices": [self._choice(index, echo.text, logprobs, None)]}
        return f"data: {dumps(event)}\n\n".encode()

    def _choice(
        self, index: int, text: str, logprobs: Logprobs | str | None, reason: FinishReason | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if reason is None else reason.value,
        }

    def _logprobs(self, tokens: list[Token], offset: int) -> Logprobs | None:
        """OpenAI's `logprobs`; `offset` is where in the text of the choice the first token begins."""
        return sampled_logprobs(self._codec, tokens, offset) if self._body.logprobs is not None else None

    def _weighed(self, place: int, weighed: Weighed) -> Logprobs:
        """The same of a prompt."""
        tokens, offsets = self._prompts[place].tolist(), self._echoes[place].offsets
        return logprobs_of(self._codec, tokens, weighed.logprobs, weighed.beside, offsets)

    def _echo(self, index: int) -> Echo | None:
        """What is told of a choice's prompt."""
        return self._echoes[index // self._body.copies] if self._echoes else None

    @property
    def _codec(self) -> TextCodec:
        return self._model.bundle.codec(TextCodec)

    def _usage(self, usages: Mapping[int, Usage]) -> dict[str, Any]:
        """Of all choices, by index: the first of a prompt's has consumed it for the others."""
        prompt = sum(map(len, self._prompts))
        completion = sum(usage.completion_tokens for usage in usages.values())
        cached = sum(usages[index].cached_tokens for index in range(0, self._count, self._body.copies))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
