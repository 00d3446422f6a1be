"""Captions decoded offline, many images at once: greedy, and beam search. The service's decoder must say the same.

Axes: N images, k hypotheses of each, V vocabulary.

The definition that both keep:
- Greedy takes the most probable token, the lowest id of equals, until the end token or `max_tokens` tokens.
- Beam search begins with one live hypothesis of log-probability 0. At each step every live hypothesis consumes its last
  token, and a candidate is a live hypothesis with one more token; its log-probability is the sum, in float64, of the
  log-softmax, computed in float64, of float32 logits. The 2k most probable candidates, equals in the order of (live
  hypothesis, token id), are walked from the most probable on: one that ends is finished if it is among the first k and
  dropped otherwise; any other becomes the next live hypothesis, until there are k.
  A candidate of probability zero is none.
- The search ends after the step at which k or more have finished, or at `max_tokens` tokens (or where no hypothesis is
  left to live): then the live hypotheses are finished as they are.
- A finished hypothesis' score is log-probability / length ** length_penalty, its end token counted (Wu et al. 2016,
  arXiv:1609.08144, in its simplest form). The k best are the result, the earlier finished first of equals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from carousel.models.nn.captioning import Context
from carousel.models.nn.recurrent import RecurrentState

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A caption as ids."""

    ids: tuple[int, ...]
    """The end token is the last, where it was said."""
    log_probability: float
    """Of all ids together, in nats."""
    score: float
    """What hypotheses are ordered by."""
    finish_reason: Literal["stop", "length"]


class Captioner(Protocol):
    """A CaptioningModel, or whatever else makes its steps (a graph)."""

    def encode(self, images: Tensor) -> tuple[RecurrentState, Context]:
        """See CaptioningModel.encode."""
        ...

    def step(
        self, token: Tensor, state: RecurrentState, context: Context
    ) -> tuple[Tensor, RecurrentState, Tensor | None]:
        """See CaptioningModel.step."""
        ...


def best_captions(
    model: Captioner, images: Tensor, begin: int, end: int, max_tokens: int, *, width: int, length_penalty: float
) -> list[Hypothesis]:
    """The best caption of each image: greedy where `width` is 1, as a service does; arguments as of beam_search."""
    if width == 1:
        return greedy(model, images, begin, end, max_tokens)
    found = beam_search(model, images, begin, end, max_tokens, width=width, length_penalty=length_penalty)
    return [of_image[0] for of_image in found]


def greedy(model: Captioner, images: Tensor, begin: int, end: int, max_tokens: int) -> list[Hypothesis]:
    """The most probable token at every step; arguments as of beam_search.

    Returns:
        One caption for each image; its score is its log-probability.
    """
    with torch.inference_mode():
        state, context = model.encode(images)
        token = torch.full((len(images),), begin, device=images.device)
        said: list[Tensor] = []
        log_probabilities: list[Tensor] = []
        over = torch.zeros_like(token, dtype=torch.bool)
        while len(said) < max_tokens and not bool(over.all()):
            logits, state, _ = model.step(token, state, context)
            token = logits.argmax(1)  # [N]
            chosen = torch.log_softmax(logits.double(), 1).gather(1, token[:, None])[:, 0]
            said.append(token)
            log_probabilities.append(chosen)
            over = over | (token == end)
        ids, steps = torch.stack(said, 1).tolist(), torch.stack(log_probabilities, 1).tolist()
    captions = []
    for row, logs in zip(ids, steps, strict=True):
        stopped = end in row
        length = row.index(end) + 1 if stopped else max_tokens
        total = sum(logs[:length])
        captions.append(Hypothesis(tuple(row[:length]), total, total, "stop" if stopped else "length"))
    return captions


def beam_search(
    model: Captioner,
    images: Tensor,
    begin: int,
    end: int,
    max_tokens: int,
    *,
    width: int,
    length_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    """The best captions of each image that a beam of `width` finds, best first.

    Args:
        model: in evaluation mode.
        images: as `encode` takes them, N of them.
        begin: the token that the first step consumes.
        end: the token that ends a caption.
        max_tokens: longest caption, its end token counted.
        width: k.
        length_penalty: the power of the length that a log-probability is divided by.

    Returns:
        For each image up to k captions.
    """
    beams = [_Beam(width, end, max_tokens, length_penalty) for _ in range(len(images))]
    searching = list(range(len(images)))
    with torch.inference_mode():
        state, context = model.encode(images)
        state = {name: part.repeat_interleave(width, 0) for name, part in state.items()}  # [N * k, H]
        token = torch.full((len(images) * width,), begin, device=images.device)
        while searching:
            logits, state, _ = model.step(token, state, context)
            # On rows that hold no live hypothesis the step is wasted: the price of a rectangle.
            said = torch.log_softmax(logits.double(), 1).cpu().numpy().reshape(len(searching), width, -1)
            parents = [beams[image].advance(said[place]) for place, image in enumerate(searching)]
            stay = [place for place, image in enumerate(searching) if not beams[image].over]
            searching = [searching[place] for place in stay]
            if not searching:
                break
            rows = torch.tensor([place * width + parent for place in stay for parent in parents[place]])
            token = torch.tensor([last for image in searching for last in beams[image].last_tokens])
            rows, token = rows.to(images.device), token.to(images.device)
            state = {name: part[rows] for name, part in state.items()}
            context = {name: part[stay] for name, part in context.items()}
    return [beam.best for beam in beams]


class _Beam:
    """One image's search: its live hypotheses, and those that have finished."""

    def __init__(self, width: int, end: int, max_tokens: int, length_penalty: float) -> None:
        self._width, self._end, self._max_tokens, self._penalty = width, end, max_tokens, length_penalty
        self._live: list[tuple[int, ...]] = [()]
        self._scores: Floats = np.zeros(1)
        self._finished: list[Hypothesis] = []
        self.over = False

    def advance(self, said: Floats) -> list[int]:
        """Walk the candidates of one step.

        Args:
            said: log-probabilities of each row's next token; row i is live hypothesis i. <float64>[k, V]

        Returns:
            For each of k rows, the row whose state it goes on with; rows without a live hypothesis repeat the first.
        """
        vocabulary = said.shape[1]
        candidates = (self._scores[:, None] + said[: len(self._live)]).ravel()  # [live * V]
        wanted = min(2 * self._width, len(candidates))
        threshold = np.partition(candidates, -wanted)[-wanted]
        places = np.flatnonzero(candidates >= threshold)  # rising: equals stay in their order
        places = places[np.argsort(-candidates[places], kind="stable")][:wanted]
        places = places[candidates[places] > -np.inf]
        live: list[tuple[int, ...]] = []
        scores, parents = [], []
        for rank, place in enumerate(places.tolist()):
            parent, token = divmod(place, vocabulary)
            ids = (*self._live[parent], token)
            if token == self._end:
                if rank < self._width:
                    self._finish(ids, float(candidates[place]), "stop")
            elif len(live) < self._width:
                live.append(ids)
                scores.append(float(candidates[place]))
                parents.append(parent)
        self._live, self._scores = live, np.array(scores)
        if len(self._finished) >= self._width:
            self.over = True
        elif not live or len(live[0]) >= self._max_tokens:
            for ids, score in zip(live, scores, strict=True):
                self._finish(ids, score, "length")
            self.over = True
        return parents + [0] * (self._width - len(parents))

    def _finish(self, ids: tuple[int, ...], total: float, reason: Literal["stop", "length"]) -> None:
        self._finished.append(Hypothesis(ids, total, total / len(ids) ** self._penalty, reason))

    @property
    def last_tokens(self) -> list[int]:
        """What each of k rows consumes next; rows without a live hypothesis consume what the first does."""
        tokens = [ids[-1] for ids in self._live]
        return tokens + [tokens[0]] * (self._width - len(tokens))

    @property
    def best(self) -> list[Hypothesis]:
        """The k best of those that have finished, best first."""
        return sorted(self._finished, key=lambda hypothesis: -hypothesis.score)[: self._width]
