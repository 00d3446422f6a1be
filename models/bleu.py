"""BLEU of a corpus of captions, by sacrebleu: the figure that training and export both give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics.bleu import BLEU

ORDERS = 4
"""Runs of one to so many words are looked at."""


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002), in [0, 100]; of words with single blanks between.

    Args:
        captions: one for each image; may be empty texts.
        references: of the same images, in the same order, one or more each.
    """
    most = max(map(len, references))
    # Any: None stands for no reference, which sacrebleu takes and does not say in its types.
    streams: list[list[Any]] = [[(own[n] if n < len(own) else None) for own in references] for n in range(most)]
    scorer = BLEU(tokenize="none", smooth_method="none", max_ngram_order=ORDERS)
    counted = scorer.corpus_score(captions, streams)
    precisions = [right / all_ if all_ else 0.0 for right, all_ in zip(counted.counts, counted.totals, strict=True)]
    one, two, three, four = (
        100.0 * counted.bp * math.prod(precisions[:order]) ** (1.0 / order) for order in range(1, ORDERS + 1)
    )
    return one, two, three, four
