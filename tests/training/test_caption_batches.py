"""Captions as rectangles, and epochs of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from carousel.training.tasks.captioning.batches import IGNORED, CaptionBatches, CaptionWindow, Marks, rectangle

MARKS = Marks(begin=1, end=2, unknown=0, max_tokens=5)


class Numbered:
    """Pictures whose features say which they are, and in which version."""

    versions = 3

    def read(self, places: Sequence[int], versions: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[place, version] for place, version in zip(places, versions, strict=True)])


def batches_of(captions: list[list[list[int]]], size: int = 4, each: int = 2, seed: int = 0) -> CaptionBatches:
    return CaptionBatches(Numbered(), captions, MARKS, size=size, captions_each=each, seed=seed)


def some_captions(count: int = 23) -> list[list[list[int]]]:
    """Of picture i 1 to 5 captions of 1 to 9 words, each word but the last saying i."""
    return [
        [[3 + picture] * ((picture + caption) % 9) + [100 + caption] for caption in range(1 + picture % 5)]
        for picture in range(count)
    ]


def test_rectangle_frames_cuts_and_fills_up() -> None:
    seen = rectangle([[[7, 0, 9], [8]], [[3, 4, 5, 6, 7]]], MARKS)
    assert seen.ids.tolist() == [[[1, 7, 0, 9, 1], [1, 8, 1, 1, 1]], [[1, 3, 4, 5, 6], [1, 1, 1, 1, 1]]]
    ignored = IGNORED
    assert seen.targets.tolist() == [
        [[7, ignored, 9, 2, ignored], [8, 2, ignored, ignored, ignored]],
        [[3, 4, 5, 6, 2], [ignored] * 5],  # cut, but for its end
    ]
    assert seen.present.tolist() == [
        [[True, True, True, True, False], [True, True, False, False, False]],
        [[True] * 5, [False] * 5],
    ]


def said(window: CaptionWindow) -> list[tuple[int, tuple[int, ...]]]:
    """Each caption of a window, with the picture that it stands beside."""
    captions = window.captions
    return [
        (int(window.images[row, 0]), tuple(captions.targets[row, column][captions.present[row, column]].tolist()))
        for row in range(len(captions.ids))
        for column in range(captions.ids.shape[1])
        if captions.present[row, column].any()
    ]


def test_epoch_reads_every_caption_once_beside_its_picture() -> None:
    captions = some_captions()
    batches = batches_of(captions)
    expected = Counter((picture, (*ids[:4], 2)) for picture, of_picture in enumerate(captions) for ids in of_picture)
    for epoch in (0, 1):
        windows = list(batches.windows(epoch))
        assert len(windows) == batches.windows_per_epoch
        assert Counter(caption for window in windows for caption in said(window)) == expected
        assert {window.epoch for window in windows} == {epoch}
        assert sum(int((window.captions.targets != IGNORED).sum()) for window in windows) == batches.targets
    assert batches.targets == sum(len(ids) for _, ids in expected.elements())


def test_epoch_can_be_entered_anywhere() -> None:
    batches = batches_of(some_captions())
    whole, entered = list(batches.windows(3)), list(batches.windows(3, start=4))
    assert len(entered) == len(whole) - 4
    for one, other in zip(whole[4:], entered, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.captions.ids, other.captions.ids)


def test_epochs_differ_in_order_and_in_the_versions_of_pictures() -> None:
    batches = batches_of(some_captions())
    first, second = ([window.images for window in batches.windows(epoch)] for epoch in (0, 1))
    assert [images.tolist() for images in first] != [images.tolist() for images in second]
    assert {version for images in first for version in images[:, 1].tolist()} == {0, 1, 2}
    other = batches_of(some_captions(), seed=1)
    assert [window.images.tolist() for window in other.windows(0)] != [images.tolist() for images in first]


def test_captions_of_a_batch_are_of_about_the_same_length() -> None:
    captions = [[[5] * (1 + picture % 16)] for picture in range(160)]
    batches = CaptionBatches(Numbered(), captions, Marks(1, 2, 0, 99), size=5, captions_each=1, seed=0)
    for window in batches.windows(0):
        lengths = window.captions.present.sum(2)
        assert int(lengths.max() - lengths.min()) < 4
