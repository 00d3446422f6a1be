"""One beam search: from the logits of the live hypotheses to the next ones, and at last to sentences.

A search of width k and length penalty a begins with one live hypothesis of log-probability 0. At each step:

    every live hypothesis consumes its last token; its candidates are all tokens, and a candidate's log-probability is
    the hypothesis' plus log softmax(logits), in float64; the 2k best candidates of all live hypotheses (of equals,
    those of the earlier hypothesis, then those of the lower token) are walked, the best first:
        `end` among the first k finishes its hypothesis, later it is dropped;
        any other token makes the next live hypothesis, until there are k.

It ends when k or more hypotheses have finished after a step; or, failing that, when the hypotheses are max_tokens long
(or no token is possible): then the live ones finish as they are. What is found is ordered by log-probability over
length^a, of equals the earlier finished first. A token of probability zero is no candidate.

2k candidates always hold k that are not `end` where the vocabulary has them, so a finished hypothesis never narrows the
search (Wu et al. 2016, arXiv:1609.08144, section 7, has the idea of a score normalised by length).

Axes: L live hypotheses (1 to k), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carousel.service.engine.parameters import BeamParameters, FinishReason, Floats, Hypothesis
from carousel.service.engine.rows.plan import Doubles, Rows


@dataclass(frozen=True, slots=True)
class _Word:
    """The last token of a hypothesis, linked to those before it: hypotheses share what they have in common."""

    before: _Word | None
    token: int
    attention: Floats | None


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A finished hypothesis."""

    last: _Word | None
    logprob: float
    score: float
    reason: FinishReason


class Beam:
    """The hypotheses of one search."""

    def __init__(self, parameters: BeamParameters) -> None:
        self._parameters = parameters
        self._live: list[_Word | None] = [None]
        self._logprobs: Doubles = np.zeros(1)  # [L]
        self._finished: list[_Sentence] = []
        self._length = 0
        self._map_shape: tuple[int, ...] | None = None
        self.ended: FinishReason | None = None
        """Why the search is over; None while it is not."""

    @property
    def length(self) -> int:
        """How many tokens its live hypotheses have."""
        return self._length

    @property
    def live(self) -> int:
        """L."""
        return len(self._live)

    def extend(self, logits: Floats, attention: Floats | None) -> tuple[list[int], list[int]] | None:
        """One step of the search.

        Its cost is that of the float64 softmax, O(kV), and of a selection in O(kV) that walks 2k candidates.

        Args:
            logits: of the live hypotheses, in their order. <float32>[L, V]
            attention: where they looked, if that is to be told. <float32>[L, rows, columns]

        Returns:
            Of each next live hypothesis, the best first: which hypothesis it goes on from, and its token. None where
            the logits are not finite.
        """
        width, end = self._parameters.width, self._parameters.end
        logprobs = log_softmax(logits)
        if logprobs is None:
            return None
        logprobs += self._logprobs[:, None]
        vocabulary_size = logits.shape[1]
        flat = logprobs.ravel()  # [L * V], in the order of precedence among equals
        self._length += 1
        self._map_shape = None if attention is None else attention.shape[1:]
        parents: list[int] = []
        tokens: list[int] = []
        words: list[_Word | None] = []
        places = _best(flat, 2 * width)
        for rank, place in enumerate(places.tolist()):
            parent, token = divmod(place, vocabulary_size)
            if token == end:
                if rank < width:
                    self._finish(self._live[parent], float(flat[place]), FinishReason.STOP)
            elif len(parents) < width:
                parents.append(parent)
                tokens.append(token)
                words.append(_Word(self._live[parent], token, None if attention is None else attention[parent]))
        self._live = words
        self._logprobs = logprobs[parents, tokens]
        if len(self._finished) >= width:
            self.ended = FinishReason.STOP
        elif self._length >= self._parameters.max_tokens or not words:
            self.ended = FinishReason.LENGTH
            for word, logprob in zip(words, self._logprobs.tolist(), strict=True):
                self._finish(word, logprob, FinishReason.LENGTH)
        return parents, tokens

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """What was found, the best first, as many as were asked for."""
        ordered = sorted(self._finished, key=lambda sentence: -sentence.score)  # stable: the earlier finished first
        return tuple(_told(sentence, self._map_shape) for sentence in ordered[: self._parameters.best])

    def _finish(self, last: _Word | None, logprob: float, reason: FinishReason) -> None:
        score = logprob / self._length**self._parameters.length_penalty
        self._finished.append(_Sentence(last, logprob, score, reason))


def log_softmax(logits: Floats) -> Doubles | None:
    """The log-probability of every token, in nats; None where a row is not finite. [L, V] <float32> -> <float64>"""
    values: Doubles = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(values).sum(axis=1, keepdims=True))
    if not np.isfinite(log_total).all():
        return None
    values -= log_total
    return values


def _best(values: Doubles, count: int) -> Rows:
    """The places of the `count` largest values, minus infinity left out, falling; of equals, the first. [<= count]"""
    if count < len(values):
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        places = np.flatnonzero(values >= threshold)
    else:
        places = np.arange(len(values))
    places = places[np.argsort(-values[places], kind="stable")[:count]]
    return places[values[places] > -np.inf]


def _told(sentence: _Sentence, map_shape: tuple[int, ...] | None) -> Hypothesis:
    words: list[_Word] = []
    word = sentence.last
    while word is not None:
        words.append(word)
        word = word.before
    words.reverse()
    return Hypothesis(
        tokens=tuple(word.token for word in words),
        logprob=sentence.logprob,
        score=sentence.score,
        reason=sentence.reason,
        attention=(
            None
            if map_shape is None
            else np.array([word.attention for word in words], np.float32).reshape(len(words), *map_shape)
        ),
    )
