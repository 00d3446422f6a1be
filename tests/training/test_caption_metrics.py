"""Captioning's metrics against examples that were worked by hand."""

from __future__ import annotations

import math

import pytest

from carousel.training.evaluate.metrics import bleu, cider_d, judge, meteor_exact_stem, rouge_l


def _words(text: str) -> list[str]:
    return text.split()


def test_bleu_clips_what_is_said_too_often() -> None:
    figures = bleu(["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]])
    assert figures == pytest.approx((100 * 2 / 7, 0, 0, 0))  # the example of Papineni et al. 2002


def test_bleu_is_of_the_corpus() -> None:
    captions = ["a dog runs", "a cat sits on a mat"]
    references = [["a dog runs fast", "the dog runs"], ["a cat sat on a mat"]]
    one, two, three = (3 + 5) / (3 + 6), (2 + 3) / (2 + 5), (1 + 1) / (1 + 4)  # four: 0 of 0 + 3
    expected = (one, math.sqrt(one * two), (one * two * three) ** (1 / 3), 0)
    assert bleu(captions, references) == pytest.approx([100 * figure for figure in expected])


@pytest.mark.parametrize(
    ("references", "reference_length"),
    [
        (["a dog runs on the grass"], 6),
        (["a dog runs on the grass", "she sat on a mat"], 5),  # the closest
        (["a dog runs", "he runs on a mat"], 3),  # of two equally close, the shorter
    ],
)
def test_bleu_takes_the_closest_reference_length(references: list[str], reference_length: int) -> None:
    brevity = min(1.0, math.exp(1 - reference_length / 4))
    assert bleu(["a dog runs on"], [references])[0] == pytest.approx(100 * brevity)


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    caption = _words("a dog on grass")
    precision, recall = 3 / 4, 3 / 6
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(caption, [_words("the dog on the green grass")]) == pytest.approx(expected)
    # A second reference has the best recall, the first keeps the best precision.
    both = [_words("the dog on the green grass"), ["grass"]]
    assert rouge_l(caption, both) == pytest.approx((1 + 1.44) * precision / (1 + 1.44 * precision))
    assert rouge_l(["grass", "on"], [_words("on the grass")]) == pytest.approx(2.44 * (1 / 2) / (1 + 1.44 * 3 / 2))
    assert rouge_l(["cat"], [_words("a dog")]) == rouge_l([], [_words("a dog")]) == 0


def test_meteor_matches_words_then_stems_and_no_synonyms() -> None:
    one_chunk = 1 - 0.5 * (1 / 3) ** 3
    assert meteor_exact_stem(_words("a dog runs"), [_words("a dog running")]) == pytest.approx(one_chunk)
    assert meteor_exact_stem(["hound"], [["dog"]]) == 0
    two_chunks = 1 - 0.5 * (2 / 3) ** 3
    assert meteor_exact_stem(_words("runs a dog"), [_words("a dog runs")]) == pytest.approx(two_chunks)
    precision, recall = 1, 2 / 4
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    others = [_words("a dog on grass"), ["cat"]]
    assert meteor_exact_stem(_words("a dog"), others) == pytest.approx(mean * (1 - 0.5 * (1 / 2) ** 3))
    assert meteor_exact_stem([], others) == 0


def test_cider_d_counts_words_by_their_rarity() -> None:
    """With two images a word of both weighs nothing, any other log 2, which falls out of the cosines."""
    references = [[["a", "b"]], [["a", "c"], ["a", "d", "e"]]]
    assert cider_d([["a", "b"], ["a", "b"]], references) == pytest.approx([10 * 2 / 4, 0])
    # "b x": half of its unigrams and of its squared length; "a b x": likewise, and one word too long.
    longer = 10 * (1 / math.sqrt(2) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert cider_d([["a", "b", "x"], ["y"]], references) == pytest.approx([longer, 0])
    # "b" twice counts as often as the reference has it, over a vector that is twice as long; "b b" is no bigram there.
    assert cider_d([["b", "b"], ["y"]], references)[0] == pytest.approx(10 * (1 / 2) / 4)
    # Averaged over two references, of which the second is one word longer and shares "d" of "d", "e".
    assert cider_d([["y"], ["a", "d"]], references)[1] == pytest.approx(
        10 * (0 + (1 / math.sqrt(2) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)) / 2
    )


def test_judge_gives_hundredths_of_all_figures() -> None:
    captions = ["a dog runs on the grass", "two men ride brown horses"]
    score = judge(captions, [[captions[0], "a dog"], [captions[1]]])
    assert score.images == 2
    assert [score.bleu_1, score.bleu_4, score.rouge_l] == pytest.approx([100, 100, 100])
    assert score.cider_d > 500
    swapped = judge(captions[::-1], [[captions[0]], [captions[1]]])
    assert max(swapped.bleu_1, swapped.rouge_l, swapped.meteor_exact_stem, swapped.cider_d) == 0
    assert judge(["", captions[1]], [["a dog"], [captions[1]]]).rouge_l == pytest.approx(50)


@pytest.mark.parametrize(
    ("captions", "references"), [([], []), (["a"], [[]]), (["a", "b"], [["a"]]), (["a"], [["a"], ["b"]])]
)
def test_judge_refuses_what_does_not_fit(captions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="allowed is one caption for each image, and at least one reference"):
        judge(captions, references)
