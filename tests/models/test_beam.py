"""Offline decoding against all sentences there are, and against its definition taken literally."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from carousel.models.nn.beam import Hypothesis, beam_search, greedy
from carousel.models.nn.captioning import CaptioningModel, CaptioningModelConfig

BEGIN, END = 1, 2


def model_of(vocabulary: int = 5, seed: int = 0, **changes: object) -> CaptioningModel:
    config = {"embedding_size": 5, "hidden_size": 7, "value_size": 6, "key_size": 8} | changes
    model = CaptioningModel(
        CaptioningModelConfig(vocabulary_size=vocabulary, rows=2, columns=3, feature_size=4, **config)
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, generator=generator)
    return model.eval()


def images_of(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 6, 4, generator=torch.Generator().manual_seed(seed))


def log_probabilities(model: CaptioningModel, image: torch.Tensor, ids: tuple[int, ...]) -> list[list[float]]:
    """Of the token after the begin token and each of `ids`, the whole sentence read anew: no state is carried."""
    fed = torch.tensor([[[BEGIN, *ids]]])
    with torch.inference_mode():
        logits, _ = model(image[None], fed, torch.ones_like(fed, dtype=torch.bool))
    return torch.log_softmax(logits.double(), 1).tolist()


def literal_search(model: CaptioningModel, image: torch.Tensor, k: int, most: int, penalty: float) -> list[Hypothesis]:
    """The definition word for word, every candidate in a list."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[Hypothesis] = []
    for length in range(1, most + 1):
        candidates = [
            (total + said, order, token, (*ids, token))
            for order, (total, ids) in enumerate(live)
            for token, said in enumerate(log_probabilities(model, image, ids)[-1])
        ]
        candidates.sort(key=lambda candidate: (-candidate[0], *candidate[1:3]))
        live = []
        for rank, (total, _, token, ids) in enumerate(candidates[: 2 * k]):
            if token == END and rank < k:
                finished.append(Hypothesis(ids, total, total / length**penalty, "stop"))
            elif token != END and len(live) < k:
                live.append((total, ids))
        if len(finished) >= k:
            break
    else:
        finished += [Hypothesis(ids, total, total / length**penalty, "length") for total, ids in live]
    return sorted(finished, key=lambda hypothesis: -hypothesis.score)[:k]


def assert_same(seen: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [(one.ids, one.finish_reason) for one in seen] == [(one.ids, one.finish_reason) for one in expected]
    for one, other in zip(seen, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
        assert one.score == pytest.approx(other.score, abs=1e-5)


@pytest.mark.parametrize("attention", ["none", "soft"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_as_wide_as_the_language_finds_the_best_of_all_sentences(attention: str, penalty: float) -> None:
    model, (image,) = model_of(attention=attention), images_of(1)
    sentences = [
        ids
        for length in (1, 2, 3)
        for ids in product(range(5), repeat=length)
        if END not in ids[:-1] and (ids[-1] == END or length == 3)
    ]
    ranked = []
    for ids in sentences:
        total = sum(said[token] for said, token in zip(log_probabilities(model, image, ids), ids, strict=False))
        ranked.append((total / len(ids) ** penalty, ids))
    assert sum(math.exp(score) for score, _ in ranked) == pytest.approx(1.0) or penalty  # there are no others
    ranked.sort(reverse=True)
    (seen,) = beam_search(model, image[None], BEGIN, END, 3, width=len(sentences) + 1, length_penalty=penalty)
    assert [one.ids for one in seen] == [ids for _, ids in ranked]
    assert [one.score for one in seen] == pytest.approx([score for score, _ in ranked], abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("width", "penalty"), [(1, 0.0), (2, 0.7), (3, 0.0), (4, 1.5)])
def test_beam_search_is_its_definition(seed: int, width: int, penalty: float) -> None:
    model, images = model_of(vocabulary=9, seed=seed), images_of(4, seed)
    seen = beam_search(model, images, BEGIN, END, 6, width=width, length_penalty=penalty)
    for image, of_image in zip(images, seen, strict=True):
        assert_same(of_image, literal_search(model, image, width, 6, penalty))


def test_beam_searches_end_both_ways() -> None:
    """The cases above are worth something only if sentences end and are cut among them."""
    reasons = {
        one.finish_reason
        for seed in range(4)
        for found in beam_search(model_of(9, seed), images_of(4, seed), BEGIN, END, 6, width=3)
        for one in found
    }
    assert reasons == {"stop", "length"}


def test_images_are_searched_together_as_alone() -> None:
    model, images = model_of(vocabulary=9), images_of(5)
    together = beam_search(model, images, BEGIN, END, 7, width=3, length_penalty=0.5)
    for image, found in zip(images, together, strict=True):
        (alone,) = beam_search(model, image[None], BEGIN, END, 7, width=3, length_penalty=0.5)
        assert_same(found, alone)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_greedy_is_a_beam_of_one(cell: str) -> None:
    model, images = model_of(vocabulary=9, seed=6, cell=cell, attention="none"), images_of(20, seed=6)
    seen = greedy(model, images, BEGIN, END, 7)
    assert {one.finish_reason for one in seen} == {"stop", "length"}
    assert_same(seen, [found[0] for found in beam_search(model, images, BEGIN, END, 7, width=1)])


def test_equals_are_taken_in_the_order_of_hypotheses_and_tokens() -> None:
    model = model_of(vocabulary=6)
    with torch.no_grad():
        model.projection.weight.zero_()
        model.projection.bias.zero_()  # every token is as probable as any other
    image = images_of(1)
    assert greedy(model, image, BEGIN, END, 3)[0].ids == (0, 0, 0)
    (found,) = beam_search(model, image, BEGIN, END, 2, width=3)
    # First step: 0 and 1 live, 2 is the end and of rank 2, 3 lives. Second: (0, 0), (0, 1), (0, end), (0, 3), ...
    nat = math.log(6)
    assert [one.ids for one in found] == [(2,), (0, 2), (0, 0)]
    assert [one.log_probability for one in found] == pytest.approx([-nat, -2 * nat, -2 * nat])
    assert [one.finish_reason for one in found] == ["stop", "stop", "length"]


def test_token_of_probability_zero_is_no_candidate() -> None:
    model = model_of(vocabulary=6)
    with torch.no_grad():
        model.projection.bias.fill_(-math.inf)
        model.projection.bias[[2, 4]] = 0.0
    (found,) = beam_search(model, images_of(1), BEGIN, END, 3, width=4)
    assert {one.ids for one in found} == {(2,), (4, 2), (4, 4, 2), (4, 4, 4)}
    assert np.isfinite([one.score for one in found]).all()
