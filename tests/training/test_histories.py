"""Histories as windows: every attempt but the first is a target once an epoch, and nothing is cut off."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from carousel.training.errors import CorpusError
from carousel.training.tasks.tracing.histories import Histories, HistoryWindow

LENGTHS = (1, 2, 5, 31, 3, 9, 17, 2, 8, 1, 12, 30, 7)


def made() -> list[np.ndarray]:
    """Learner l's attempts are 100 l, 100 l + 1, ..."""
    return [100 * index + np.arange(length) for index, length in enumerate(LENGTHS)]


def batches(learners: int = 3, window: int = 8, seed: int = 0) -> Histories:
    return Histories(made(), learners, window, seed, torch.device("cpu"))


@pytest.mark.parametrize(("learners", "window"), [(3, 8), (1, 5), (4, 7), (50, 100), (2, 1)])
def test_every_attempt_but_the_first_is_a_target_once_an_epoch(learners: int, window: int) -> None:
    histories = batches(learners, window)
    expected = Counter(int(id_) for history in made() for id_ in history[1:])
    for epoch in range(4):
        seen: Counter[int] = Counter()
        windows = list(histories.windows(epoch))
        assert len(windows) == histories.windows_per_epoch
        for cut in windows:
            assert cut.ids.shape[0] == learners
            assert cut.ids.shape[1] <= window
            seen.update(cut.targets[cut.present].tolist())
            assert torch.equal(cut.targets[cut.present], cut.ids[cut.present] + 1)
        assert seen == expected
    assert histories.targets == sum(expected.values())


def test_window_goes_on_where_the_last_one_of_its_batch_ended() -> None:
    before: HistoryWindow | None = None
    for cut in batches().windows(1):
        if before is None or cut.first:
            assert cut.first
            assert set((cut.ids[cut.present[:, 0], 0] % 100).tolist()) == {0}
        else:
            going = cut.present[:, 0]
            assert torch.equal(cut.ids[going, 0], before.targets[going, -1])
            assert not (going & ~before.present[:, -1]).any()  # nobody comes back
        before = cut


def test_epoch_can_be_entered_anywhere_and_differs_from_the_next() -> None:
    histories = batches()
    whole = list(histories.windows(2))
    for start in (1, 4, len(whole)):
        part = list(histories.windows(2, start))
        assert len(part) == len(whole) - start
        for seen, expected in zip(part, whole[start:], strict=True):
            assert torch.equal(seen.ids, expected.ids)
            assert torch.equal(seen.present, expected.present)
            assert seen.first == expected.first
    assert any(
        a.ids.shape != b.ids.shape or not torch.equal(a.ids, b.ids)
        for a, b in zip(whole, histories.windows(3), strict=True)
    )


def test_learners_of_a_batch_are_of_about_the_same_length() -> None:
    histories = Histories([np.arange(n) for n in range(2, 202)], 10, 200, 0, torch.device("cpu"))
    for cut in histories.windows(0):
        assert cut.present.float().mean() > 0.5
        assert int(cut.present.sum(1).max() - cut.present.sum(1).min()) <= 2 * 200 // 8


def test_histories_without_a_target_are_refused() -> None:
    with pytest.raises(CorpusError, match="no training learner has two attempts"):
        Histories([np.array([3])], 2, 5, 0, torch.device("cpu"))
