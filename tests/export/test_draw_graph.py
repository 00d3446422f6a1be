"""The graphs that tokens are drawn with: what lies in the service is what is built here, and does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carousel.export.draw_graph import GRAPHS, SAMPLING, build_draw
from carousel.export.draw_graph import main as write_graphs
from carousel.export.runtime import open_session


def layout(size: int, width: int) -> dict[str, np.ndarray]:
    buckets = -(-size // width)
    return {
        "grid": np.array([0, buckets, width]),
        "even": np.array(buckets * width == size),
        "pads": np.array([0, 0, 0, buckets * width - size]),
        "places": np.arange(width)[None],
        "last": np.array(size - 1),
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_of_the_service_is_the_one_that_is_built(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("carousel.export.draw_graph.SAMPLING", tmp_path)
    write_graphs()
    assert (tmp_path / name).read_bytes() == (SAMPLING / name).read_bytes() == build_draw(softmax=GRAPHS[name])


@pytest.mark.parametrize(("size", "width"), [(5, 8), (12, 4), (12, 3), (13, 4), (400, 100), (401, 128)])
def test_draw_is_the_inverse_of_the_cumulative_distribution(size: int, width: int) -> None:
    random = np.random.default_rng(size)
    weights = random.integers(0, 4, (40, size)).astype(np.float32)  # their sums are exact, and many are zero
    weights[:, 0] += 1
    cumulative = weights.astype(np.float64).cumsum(axis=1)
    uniforms = random.random((40, 1))
    uniforms[::3] = (cumulative / cumulative[:, -1:])[::3, [size // 2]]  # just where the next one begins
    uniforms[:2] = [[0.0], [1 - 2.0**-53]]
    np.minimum(uniforms, 1 - 2.0**-53, out=uniforms)
    session = open_session(build_draw(softmax=False))
    token, weight = session.run(None, {"weights": weights, "uniforms": uniforms, **layout(size, width)})
    goal = np.minimum(uniforms * cumulative[:, -1:], np.nextafter(cumulative[:, -1:], 0))
    expected = (cumulative <= goal).sum(axis=1)
    np.testing.assert_array_equal(token[:, 0], expected)
    np.testing.assert_array_equal(weight[:, 0], weights[np.arange(40), expected])
    assert (weight > 0).all()
