"""How well generated captions agree with what people said of the same pictures.

BLEU is sacrebleu's (models/bleu.py) and METEOR nltk's. For CIDEr-D and for COCO's form of ROUGE-L there is no library
that is kept up and does without a JVM or a second deep-learning stack, so they are here, each from its definition;
figures are those of the COCO caption evaluation (Chen et al. 2015, arXiv:1504.00325) on the same words.

All captions are words with single blanks between, as training/corpus/captions.normalise_caption leaves them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import meteor_score

from carousel.models.bleu import ORDERS, bleu

ROUGE_BETA = 1.2
"""How much more recall weighs than precision in ROUGE-L (COCO's choice)."""
CIDER_SIGMA = 6.0
"""Of the Gaussian over the difference in length, in words (Vedantam et al. 2015)."""

Words = Sequence[str]


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """Figures as papers print them: hundredths, which for CIDEr-D can pass 100."""

    images: int
    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    """Of the whole corpus: clipped n-gram precision of several references, closest reference length, no smoothing."""
    rouge_l: float
    """Mean over the images."""
    meteor_exact_stem: float
    """Mean over the images of METEOR (Banerjee & Lavie 2005) with its exact and stem matches only: without WordNet's
    synonyms and the paraphrases of version 1.5, so not to be compared with figures that have them."""
    cider_d: float
    """Mean over the images. Words count by their rarity among the references given here, so it is of one corpus."""


def judge(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScore:
    """All figures of a corpus.

    Args:
        captions: one for each image; may be empty texts.
        references: of the same images, in the same order, one or more each.

    Raises:
        ValueError: no image, an image without a reference, or lists of different lengths.
    """
    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError(
            f"captions: {len(captions)}, images with references: {sum(map(bool, references))} of {len(references)}; "
            "allowed is one caption for each image, and at least one reference"
        )
    said = [caption.split() for caption in captions]
    known = [[reference.split() for reference in of_image] for of_image in references]
    pairs = list(zip(said, known, strict=True))
    return CaptionScore(
        len(captions),
        *bleu(captions, references),
        rouge_l=_mean(rouge_l(*pair) for pair in pairs),
        meteor_exact_stem=_mean(meteor_exact_stem(*pair) for pair in pairs),
        cider_d=_mean(cider_d(said, known)),
    )


def rouge_l(caption: Words, references: Sequence[Words]) -> float:
    """ROUGE-L (Lin 2004) as COCO has it: F of the longest common subsequence, in [0, 1].

    Precision and recall are each the best over the references.
    """
    if not caption:
        return 0.0
    common = [(_common_subsequence(caption, reference), len(reference)) for reference in references]
    precision = max(length / len(caption) for length, _ in common)
    recall = max(length / size for length, size in common)
    if precision == 0.0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_subsequence(one: Words, other: Words) -> int:
    """The length of the longest common subsequence, by rows of its table."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for index, opposite in enumerate(other, start=1):
            above = row[index]
            row[index] = diagonal + 1 if word == opposite else max(above, row[index - 1])
            diagonal = above
    return row[-1]


class _NoSynonyms:
    """In WordNet's place, whose files nobody has to fetch."""

    def synsets(self, _word: str) -> list[object]:
        return []


class _Stems:
    """Porter's, remembered: a corpus has some thousand words, each many times."""

    @staticmethod
    @cache
    def stem(word: str) -> str:
        """The word's stem."""
        return str(PorterStemmer().stem(word))


def meteor_exact_stem(caption: Words, references: Sequence[Words]) -> float:
    """METEOR by exact and stem matches, the best over the references, in [0, 1]."""
    return float(meteor_score(references, caption, stemmer=_Stems(), wordnet=_NoSynonyms()))


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) of each caption; 1 is rather like a person's, 10 the most.

    For n of 1 to 4, a caption is a vector over n-grams: how often each is in it, times log(images / images whose
    references hold it). Similarity to a reference is the cosine, the caption's entries cut to the reference's, times
    exp(-(difference in length)^2 / (2 sigma^2)); averaged over n and references, times 10.
    """
    grams = [[_grams(reference) for reference in of_image] for of_image in references]
    holding = Counter(gram for of_image in grams for gram in set().union(*of_image))  # images, by n-gram
    everywhere = math.log(len(references))

    def weigh(counts: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (everywhere - math.log(max(1, holding[gram])))
        return vectors

    scores = []
    for caption, of_image, words in zip(captions, grams, references, strict=True):
        seen = weigh(_grams(caption))
        total = 0.0
        for counts, reference in zip(of_image, words, strict=True):
            alike = sum(map(_clipped_cosine, seen, weigh(counts))) / ORDERS
            total += alike * math.exp(-((len(caption) - len(reference)) ** 2) / (2 * CIDER_SIGMA**2))
        scores.append(10.0 * total / len(words))
    return scores


def _grams(words: Words) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for n in range(1, ORDERS + 1) for at in range(len(words) - n + 1))


def _clipped_cosine(caption: Mapping[tuple[str, ...], float], reference: Mapping[tuple[str, ...], float]) -> float:
    product = sum(min(value, reference[gram]) * reference[gram] for gram, value in caption.items() if gram in reference)
    norms = math.hypot(*caption.values()) * math.hypot(*reference.values())
    return product / norms if norms else 0.0


def _mean(values: Iterable[float]) -> float:
    """In hundredths."""
    listed = list(values)
    return 100.0 * sum(listed) / len(listed)
