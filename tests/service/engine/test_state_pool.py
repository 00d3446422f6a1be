from __future__ import annotations

import numpy as np

from service.engine.state_pool import StatePool, StateSpec


def make_pool(rows=4):
    return StatePool({"state.h": StateSpec((3,), "float32"), "state.c": StateSpec((2, 5), "float32")}, rows)


def write(pool, n, value):
    for array in pool.before(slice(n)).values():
        array[:] = value
    for array in pool.after(slice(n)).values():
        array[:] = value


def test_swap_makes_a_steps_outputs_the_next_steps_inputs_without_copying():
    pool = make_pool()
    written = pool.after(slice(2))["state.h"]
    written[:] = 7
    pool.swap()
    assert np.shares_memory(pool.before(slice(4))["state.h"], written)
    assert (pool.before(slice(2))["state.h"] == 7).all()


def test_acquire_zeroes_a_row_or_restores_a_snapshot():
    pool = make_pool()
    write(pool, 4, np.nan)
    pool.acquire(1, None)
    assert all((array[1] == 0).all() for array in pool.before(slice(4)).values())
    memory = {"state.h": np.arange(3.0), "state.c": np.ones((2, 5))}
    pool.acquire(2, memory)
    assert pool.snapshot(2)["state.h"].tolist() == [0, 1, 2]


def test_release_moves_the_last_row_and_leaves_nothing_behind():
    pool = make_pool()
    for row in range(3):
        pool.before(slice(4))["state.h"][row] = row + 1
    write_after = pool.after(slice(4))["state.h"]
    write_after[2] = 99
    pool.release(0, last=2)
    assert pool.before(slice(4))["state.h"][:, 0].tolist() == [3, 2, 0, 0]
    assert not write_after[2].any()


def test_snapshot_is_a_copy():
    pool = make_pool()
    copy = pool.snapshot(0)
    pool.before(slice(1))["state.h"][:] = 5
    assert not copy["state.h"].any()
