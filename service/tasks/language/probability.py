"""What the model believes: the next token's distribution, and the probability of a given text."""

from __future__ import annotations

import asyncio
import json
import math

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from carousel.models.codec.text import CONTEXT_TOKENS, TextCodec
from carousel.service.api.routes.context import context_of, find_model
from carousel.service.api.routes.disconnect import while_connected
from carousel.service.api.routes.json_route import JsonRoute
from carousel.service.api.wire.error_messages import ERRORS
from carousel.service.engine.parameters import SamplingParameters
from carousel.service.errors import RequestError
from carousel.service.served.repository import ServedModel
from carousel.service.sessions.memory import NO_IDS
from carousel.service.tasks.language.probability_messages import (
    Candidate,
    NextTokenRequest,
    NextTokenResponse,
    ScoreRequest,
    ScoreResponse,
)
from carousel.service.work.generation import Finished, Generation, Token, admit
from carousel.service.work.memories import Memories
from carousel.service.work.prompt import check_unconsumed, prompt_ids, unknown_tokens
from carousel.service.work.weighing import weigh

router = APIRouter(prefix="/v1/models/{model}", tags=["probabilities"], route_class=JsonRoute)


@router.post("/next-token", summary="The most probable next tokens", responses=ERRORS, response_model=NextTokenResponse)
async def next_token(request: Request, model: str, body: NextTokenRequest) -> Response:
    """The `top` most probable tokens after a text, after token ids or after what a memory holds, best first."""
    served = find_model(request, model, "language")
    answer = await while_connected(request, _next_token(served, context_of(request).memories, body))
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


@router.post("/score", summary="The probability of a text", responses=ERRORS, response_model=ScoreResponse)
async def score(request: Request, model: str, body: ScoreRequest) -> Response:
    """The log-probability of each token given all before it, in nats, with total, perplexity and bits per character."""
    served = find_model(request, model, "language")
    work = _score(served, context_of(request).memories, body)
    return Response(await while_connected(request, work), media_type="application/json")


async def _next_token(model: ServedModel, memories: Memories, body: NextTokenRequest) -> NextTokenResponse:
    codec = model.bundle.codec(TextCodec)
    with admit(model, urgency=body.urgency) as admission:
        prompt = NO_IDS if body.prompt is None else await prompt_ids(model, body.prompt)
        sampling = SamplingParameters(max_tokens=1, temperature=0.0, alternatives=min(body.top, codec.vocabulary_size))
        async with memories.recall(model.identity, body.memory) as recall:
            if body.prompt is None and recall.before is None:
                raise RequestError("empty_prompt", f"session {body.session!r} is new and there is no text; give one")
            check_unconsumed(model, recall.snapshot, len(prompt))
            generation = Generation(
                model,
                admission,
                prompt,
                sampling,
                [],
                snapshot=recall.snapshot,
                context=recall.context,
                keep_state=body.memory.keeps,
                keep_prompt=True,  # what was sampled here is a proposal
                cache_salt=body.cache_salt,
            )
            events = [event async for event in generation.events()]
            finished = events.pop()
            if body.memory.keeps:
                assert isinstance(finished, Finished)
                assert finished.snapshot is not None
                await recall.keep(finished.snapshot, consumed=len(prompt), context=generation.context)
        for event in events:
            if isinstance(event, Token):
                candidates = [
                    Candidate(
                        token=one.token,
                        text=codec.token_text(one.token),
                        probability=math.exp(one.logprob),
                        logprob=one.logprob,
                    )
                    for one in event.alternatives
                ]
        return NextTokenResponse(
            model=model.name,
            version=model.bundle.version,
            prompt_tokens=len(prompt),
            cached_tokens=generation.cached_tokens,
            unknown_tokens=unknown_tokens(model, prompt),
            candidates=candidates,
            **recall.told,
        )


async def _score(model: ServedModel, memories: Memories, body: ScoreRequest) -> str:
    with admit(model, urgency=body.urgency) as admission:
        prompt = await prompt_ids(model, body.prompt)
        async with memories.recall(model.identity, body.memory) as recall:
            if len(prompt) < 2 and recall.before is None:
                raise RequestError("invalid_request", "a text of 1 token has nothing to score; at least 2 are needed")
            check_unconsumed(model, recall.snapshot, len(prompt))
            weighed = await weigh(model, admission, prompt, recall.snapshot, keep_state=body.memory.keeps)
            assert weighed is not None  # nobody cancels it but the end of this request
            if weighed.snapshot is not None:
                context = np.concatenate([recall.context, prompt])[-CONTEXT_TOKENS:]
                await recall.keep(weighed.snapshot, consumed=len(prompt), context=context)
        # A long text's answer is megabytes of JSON: written on a thread, not to hold the event loop up.
        return await asyncio.to_thread(_score_json, model, body.text, prompt.tolist(), weighed.logprobs, recall.told)


def _score_json(
    model: ServedModel, text: str | None, tokens: list[int], logprobs: list[float | None], told: dict[str, str]
) -> str:
    """A ScoreResponse as JSON.

    The tokens are joined piece by piece rather than handed to a serialiser: that would hold the interpreter's lock,
    and with it every stream, for a tenth of a second per quarter of a million tokens.
    """
    codec = model.bundle.codec(TextCodec)
    texts = {token: json.dumps(codec.token_text(token)) for token in set(tokens)}
    rows = []
    for token, logprob in zip(tokens, logprobs, strict=True):
        rows.append(f'{{"token":{token},"text":{texts[token]},"logprob":{_number(logprob)}}}')
    known = [logprob for logprob in logprobs if logprob is not None]  # nothing comes before the first token of all
    total = math.fsum(known)
    nats = -total / len(known)
    characters = len(codec.decode(tokens) if text is None else text)  # all of them, as training counts
    bits = -total / math.log(2) / characters if characters else None
    unknown = tokens.count(-1 if codec.unknown_id is None else codec.unknown_id)
    memory = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in told.items())
    return (
        f'{{"model":{json.dumps(model.name)},"version":{model.bundle.version},"tokens":[{",".join(rows)}],'
        f'"unknown_tokens":{unknown},'
        f'"total_logprob":{_number(total)},"nats_per_token":{_number(nats)},'
        f'"perplexity":{_number(_exp(nats))},"bits_per_character":{_number(bits)}{memory}}}'
    )


def _exp(value: float) -> float:
    """e to the power of it; infinity where a double holds no more."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _number(value: float | None) -> str:
    """A JSON number; null for what is none, as the logarithm of a probability of zero."""
    return repr(value) if value is not None and math.isfinite(value) else "null"
