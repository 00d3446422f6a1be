"""Where states live: the same tests for arrays on the host and for a device's, whose memory here is the host's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from carousel.service.engine.states.device_pool import DevicePool
from carousel.service.engine.states.pool import HostPool, StateSpec

STATES = {"state.h": StateSpec((3,), "float32"), "state.c": StateSpec((2, 5), "float32")}
CONTEXT = {"memory.features": StateSpec((4, 6), "float32"), "memory.count": StateSpec((1,), "int64")}


@pytest.fixture(params=["host", "device"])
def make_pool(request, cpu_device):
    kind = HostPool if request.param == "host" else partial(DevicePool, cpu_device)
    return lambda rows=4: kind(STATES, CONTEXT, rows)


@pytest.fixture
def write(view):
    def write(pool, n, value):
        for array in (*pool.before(slice(n)).values(), *pool.after(slice(n)).values()):
            view(array)[:] = value

    return write


def test_swap_makes_a_steps_outputs_the_next_steps_inputs_without_copying(make_pool, view):
    pool = make_pool()
    written = view(pool.after(slice(2))["state.h"])
    written[:] = 7
    pool.swap()
    assert np.shares_memory(view(pool.before(slice(4))["state.h"]), written)
    assert (view(pool.before(slice(2))["state.h"]) == 7).all()


def test_acquire_zeroes_a_row_or_restores_a_snapshot(make_pool, view, write):
    pool = make_pool()
    write(pool, 4, np.nan)
    pool.acquire(1, None)
    for array in pool.before(slice(4)).values():
        assert not view(array)[1].any()
        assert np.isnan(view(array)[[0, 2, 3]]).all()
    memory = {"state.h": np.arange(3.0), "state.c": np.ones((2, 5))}
    pool.acquire(2, memory)
    assert pool.snapshot(2)["state.h"].tolist() == [0, 1, 2]


def test_release_moves_the_last_row_and_leaves_nothing_behind(make_pool, view):
    pool = make_pool()
    for row in range(3):
        view(pool.before(slice(4))["state.h"])[row] = row + 1
    write_after = view(pool.after(slice(4))["state.h"])
    write_after[2] = 99
    pool.release(0, last=2)
    assert view(pool.before(slice(4))["state.h"])[:, 0].tolist() == [3, 2, 0, 0]
    assert not write_after[2].any()


def test_snapshot_is_a_copy(make_pool, view):
    pool = make_pool()
    copy = pool.snapshot(0)
    view(pool.before(slice(1))["state.h"])[:] = 5
    other = pool.snapshot(0)
    assert not copy["state.h"].any()
    pool.snapshot(1)
    assert other["state.h"].tolist() == [5, 5, 5]


def test_context_is_set_once_moved_with_their_row_and_zeroed(make_pool, view):
    pool = make_pool()
    everything = slice(4)
    memory = {"memory.features": np.arange(24.0).reshape(4, 6), "memory.count": np.array([5])}
    pool.acquire(0, None)
    pool.acquire(2, None, memory)
    pool.swap()
    pool.release(0, last=2)
    seen = {name: view(array) for name, array in pool.context(everything).items()}
    np.testing.assert_array_equal(seen["memory.features"][0], memory["memory.features"])
    assert seen["memory.count"].tolist() == [[5], [0], [0], [0]]
    pool.release(0, last=0)
    pool.acquire(0, None)
    assert not any(array.any() for array in seen.values())
    assert np.shares_memory(seen["memory.features"], view(pool.context(slice(1))["memory.features"]))


def test_fork_lets_rows_trade_places(make_pool, view):
    pool = make_pool(5)
    for array in pool.before(slice(5)).values():
        for row in range(5):
            view(array)[row] = row
    pool.fork(np.array([0, 2, 3]), np.array([3, 0, 3]))
    for array in pool.before(slice(5)).values():
        rows = view(array).reshape(5, -1)
        assert rows.min(axis=1).tolist() == rows.max(axis=1).tolist() == [3, 1, 0, 3, 4]
