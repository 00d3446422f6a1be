"""What the model believes: the next token's distribution, and the probability of a given text."""

from __future__ import annotations

import asyncio
import math

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.context import find_model
from service.api.disconnect import while_connected
from service.api.messages import (
    Candidate,
    ErrorBody,
    NextTokenRequest,
    NextTokenResponse,
    ScoredToken,
    ScoreRequest,
    ScoreResponse,
)
from service.engine.async_engine import EngineStopped
from service.engine.sequence import FinishEvent, SamplingParameters, Sequence
from service.errors import RequestError, Unavailable
from service.generation import Generation, Token, admit, raise_for
from service.prompt import prompt_ids
from service.repository import ServedModel

ERRORS: dict[int | str, dict[str, type[ErrorBody]]] = {
    status: {"model": ErrorBody} for status in (400, 404, 413, 422, 500, 503)
}
router = APIRouter(prefix="/v1/models/{model}", tags=["probabilities"])


@router.post("/next-token", summary="The most probable next tokens", responses=ERRORS)
async def next_token(request: Request, model: str, body: NextTokenRequest) -> NextTokenResponse:
    """The `top` most probable tokens after a text or after token ids, best first."""
    served = find_model(request, model)
    return await while_connected(request, _next_token(served, body))


@router.post("/score", summary="The probability of a text", responses=ERRORS, response_model=ScoreResponse)
async def score(request: Request, model: str, body: ScoreRequest) -> Response:
    """The log-probability of each token given all before it, in nats, with total, perplexity and bits per character."""
    served = find_model(request, model)
    return Response(await while_connected(request, _score(served, body)), media_type="application/json")


async def _next_token(model: ServedModel, body: NextTokenRequest) -> NextTokenResponse:
    codec = model.bundle.codec
    with admit(model) as admission:
        prompt = await prompt_ids(model, body.prompt)
        sampling = SamplingParameters(max_tokens=1, temperature=0.0, alternatives=min(body.top, codec.vocabulary_size))
        generation = Generation(model, admission, prompt, sampling, [])
        async for event in generation.events():
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
            model=model.name, version=model.bundle.version, prompt_tokens=len(prompt), candidates=candidates
        )


async def _score(model: ServedModel, body: ScoreRequest) -> str:
    with admit(model) as admission:
        prompt = await prompt_ids(model, body.prompt)
        if len(prompt) < 2:
            raise RequestError("invalid_request", "a text of 1 token has nothing to score; at least 2 are needed")
        sequence = Sequence(prompt, sampling=None)
        try:
            event = await admission.start(sequence).get()
        except EngineStopped as error:
            raise Unavailable("model_unavailable", f"{model.name}: {error}", 1) from None
        assert isinstance(event, FinishEvent)
        raise_for(model, event)
        assert event.logprobs is not None
        model.metrics.queued(admission, sequence)
        # A long text's answer is megabytes of JSON: written on a thread, not to hold the event loop up.
        return await asyncio.to_thread(_score_json, model, body.text, prompt.tolist(), event.logprobs.tolist())


def _score_json(model: ServedModel, text: str | None, tokens: list[int], logprobs: list[float]) -> str:
    codec = model.bundle.codec
    texts = {token: codec.token_text(token) for token in set(tokens)}
    total = math.fsum(logprobs)
    nats = -total / len(logprobs)
    characters = len(codec.decode(tokens) if text is None else text)  # all of them, as training counts
    return ScoreResponse(
        model=model.name,
        version=model.bundle.version,
        tokens=[
            ScoredToken(token=token, text=texts[token], logprob=logprob)
            for token, logprob in zip(tokens, [None, *logprobs], strict=True)
        ],
        total_logprob=total,
        nats_per_token=nats,
        perplexity=math.exp(min(nats, 700.0)),
        bits_per_character=-total / math.log(2) / characters if characters > 0 else None,
    ).model_dump_json()
