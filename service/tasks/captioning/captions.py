"""Captions: a preprocessed image and parameters in, sentences out. What every endpoint that captions is made of."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np

from carousel.models.codec.caption import caption_codec
from carousel.models.step import ATTENTION
from carousel.service.engine.encoder.encoding import Encoding
from carousel.service.engine.parameters import (
    BeamParameters,
    FinishReason,
    Floats,
    Found,
    Sampled,
    SamplingParameters,
)
from carousel.service.engine.port import Ended, Events, Place, Request, Told
from carousel.service.errors import RequestError
from carousel.service.served.repository import ServedModel
from carousel.service.work.generation import Finished, Usage, measure_token, raise_for, run_to_end


@dataclass(frozen=True, slots=True)
class CaptionParameters:
    """How captions are found: one sampled (or greedy, at temperature 0) token by token, or the best that a beam finds.

    `length_penalty` divides by the length to its power: a caption's score is its log-probability after that.
    """

    search: SamplingParameters | BeamParameters
    length_penalty: float = 0.0
    attention: bool = False

    @property
    def rows(self) -> int:
        """That one image takes of the engine."""
        return self.search.rows


@dataclass(frozen=True, slots=True)
class CaptionToken:
    """One token as it comes; the texts, joined, are the caption. The end token is none."""

    index: int
    token: int
    text: str
    logprob: float
    attention: Floats | None
    """Where the model looked, if that was asked for <float32>[rows, columns]."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption, whole. `tokens` and `attention` are without the end token, which `logprob` and `score` count."""

    text: str
    tokens: tuple[int, ...]
    logprob: float
    score: float
    reason: FinishReason
    attention: Floats | None
    """<float32>[len(tokens), rows, columns]"""


def check_attention(model: ServedModel) -> None:
    """Hold that the model says where it looks.

    Raises:
        RequestError: no_attention.
    """
    if model.bundle.step.output(ATTENTION) is None:
        raise RequestError(
            "no_attention",
            f"{model.name} does not say where it looks: its step graph has no output called {ATTENTION}; "
            "ask for captions without attention",
        )


class CaptionStream:
    """Finds one caption token by token: greedy or sampled.

    Args:
        model: the model, of task captioning.
        admission: the place taken for it.
        encoding: of the image.
        parameters: whose search is sampling.
        on_overflow: called when the events are read too slowly and the caption was ended.
    """

    def __init__(
        self,
        model: ServedModel,
        admission: Place,
        encoding: Encoding,
        parameters: CaptionParameters,
        on_overflow: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._admission = admission
        self._on_overflow = on_overflow
        self._end_id = caption_codec(model.bundle).end_id
        self._request = _request(model, encoding, parameters)
        self._cancelled = False
        self._stream: Events | None = None
        self.logprob = 0.0
        """Of all tokens so far, the end token among them."""
        self.length = 0
        """The end token counted."""

    def cancel(self) -> None:
        """End early, whether the events are read already or not: the last one is Finished."""
        self._cancelled = True
        self._admission.cancel()

    def start(self) -> None:
        """Let the engine begin, before anybody reads the events; reading them does it, too.

        Raises:
            EngineStopped: `admit` turns it into model_unavailable.
        """
        self._stream = self._admission.start(self._request, self._overflowed)
        if self._cancelled:
            self._admission.cancel()

    async def events(self) -> AsyncIterator[CaptionToken | Finished]:
        """The tokens, then Finished.

        Raises:
            ServiceError: slow_reader, step_failed or model_unavailable.
        """
        if self._stream is None:
            self.start()
        # The stream knows this caption: a circle would keep both, and the model, until the garbage is collected.
        stream, self._stream = self._stream, None
        assert stream is not None
        detokenizer = caption_codec(self._model.bundle).detokenizer()
        text, last_at, shown = "", 0.0, 0
        logprobs: list[float] = []
        while isinstance(event := await stream.get(), Told):
            last_at = measure_token(self._model, self._admission, self.length, last_at)
            logprobs.append(event.logprob)
            self.logprob, self.length = math.fsum(logprobs), len(logprobs)
            if event.token == self._end_id:
                continue
            piece = detokenizer.push(event.token)
            if not text:
                piece = piece.lstrip(" ")  # some tokenizers write a blank before every word
            text += piece
            yield CaptionToken(shown, event.token, piece, event.logprob, event.attention)
            shown += 1
        assert isinstance(event, Ended)
        raise_for(self._model, event)
        yield Finished(event.reason, text, Usage(0, shown), None)

    def _overflowed(self) -> None:
        self._model.metrics.shed["slow_reader"].inc()
        self._on_overflow()


async def find_captions(
    model: ServedModel, admission: Place, encoding: Encoding, parameters: CaptionParameters
) -> list[Caption]:
    """The captions of one image, the best first.

    Args:
        model: the model, of task captioning.
        admission: a place of `parameters.rows` rows; it may be used again afterwards.
        encoding: of the image.
        parameters: how.

    Raises:
        ServiceError: step_failed or model_unavailable.
    """
    end = await run_to_end(model, admission, _request(model, encoding, parameters, buffered=True))
    model.metrics.queued(admission)
    codec, result = caption_codec(model.bundle), end.result
    if isinstance(result, Found):
        return [
            Caption(codec.caption(one.tokens), one.tokens, one.logprob, one.score, one.reason, one.attention)
            for one in result.hypotheses
        ]
    assert isinstance(result, Sampled)
    tokens, logprob = result.tokens, math.fsum(result.logprobs)
    words = tokens[:-1] if tokens[-1] == codec.end_id else tokens
    maps = result.attention[: len(words)]
    score = logprob / len(tokens) ** parameters.length_penalty
    return [Caption(codec.caption(words), words, logprob, score, end.reason, np.stack(maps) if maps else None)]


def _request(
    model: ServedModel, encoding: Encoding, parameters: CaptionParameters, *, buffered: bool = False
) -> Request:
    codec = caption_codec(model.bundle)
    return Request(
        np.array([codec.begin_id], np.int64),
        parameters.search,
        end=codec.end_id,
        snapshot=encoding.snapshot,
        context=encoding.context,
        attention=parameters.attention,
        buffered=buffered,
    )
