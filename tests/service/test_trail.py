import numpy as np

from carousel.service.tasks.tracing.trail import LEVELS, marks_of, read_marks


def test_marks_come_back_as_they_were_but_for_rounding():
    random = np.random.default_rng(0)
    ids, outputs = random.integers(0, 2_000, 9), random.random((4, 1000)).astype(np.float32)
    marks = marks_of(ids, outputs)
    seen_ids, seen = read_marks(marks)
    np.testing.assert_array_equal(seen_ids, ids[-4:])
    np.testing.assert_allclose(seen, outputs, atol=0.5 / LEVELS + 1e-6)
    assert {len(mark) for mark in marks} == {1004}
