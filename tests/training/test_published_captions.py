"""Flickr8k, where it is at hand, is whole, and judged as the COCO evaluation's own code judges it."""

from __future__ import annotations

from pathlib import Path

import pytest

from carousel.models.codec.image import read_image
from carousel.training.corpus.caption_files import read_captions
from carousel.training.corpus.pictures import Pictures
from carousel.training.evaluate.metrics import judge

FLICKR8K = Path(__file__).parents[2].parent / "shared" / "data" / "flickr8k"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not FLICKR8K.is_dir(), reason="the published sets are not beside the repository"),
]


@pytest.mark.parametrize(("part", "pictures"), [("train", 6_000), ("dev", 1_000)])
def test_flickr8k_is_read_whole(part: str, pictures: int) -> None:
    listed_in = FLICKR8K / f"{part}Images.txt"
    images, _ = read_captions(FLICKR8K / f"captions_{part}.tsv.gz", "tsv", "corpus", listed_in=listed_in)
    assert [image.name for image in images] == listed_in.read_text().split()
    assert len(images) == pictures
    assert {len(image.captions) for image in images} == {5}
    archive = Pictures(FLICKR8K / f"images_{part}_128.zip", "pictures")
    assert {read_image(archive.read(image.name)).size for image in images[::97]} == {(128, 128)}


def test_flickr8k_people_are_judged_as_the_coco_evaluation_judges_them() -> None:
    """Each picture's first caption against the other four.

    What is expected came from pycocoevalcap 1.2 (Bleu, Rouge, Cider) on the same words.
    """
    images, _ = read_captions(FLICKR8K / "captions_dev.tsv.gz", "tsv", "corpus")
    score = judge([image.captions[0] for image in images], [image.captions[1:] for image in images])
    figures = [score.bleu_1, score.bleu_2, score.bleu_3, score.bleu_4, score.rouge_l, score.cider_d]
    assert [figure / 100 for figure in figures] == pytest.approx(
        [0.627512948819, 0.443429795762, 0.307081293277, 0.211600985014, 0.491719364079, 0.803658565353], abs=1e-11
    )
