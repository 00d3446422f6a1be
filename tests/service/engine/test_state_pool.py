from __future__ import annotations

import numpy as np

from service.engine.state_pool import StatePool, StateSpec

STATES = {"state.h": StateSpec((3,), "float32"), "state.c": StateSpec((2, 5), "float32")}
MEMORIES = {"memory.features": StateSpec((4, 6), "float32"), "memory.count": StateSpec((1,), "int64")}


def make_pool(rows=4):
    return StatePool(STATES, MEMORIES, rows)


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


def test_memories_are_set_once_moved_with_their_row_and_zeroed():
    pool = make_pool()
    everything = slice(4)
    memory = {"memory.features": np.arange(24.0).reshape(4, 6), "memory.count": np.array([5])}
    pool.acquire(0, None)
    pool.acquire(2, None, memory)
    pool.swap()
    pool.release(0, last=2)
    seen = pool.memories(everything)
    np.testing.assert_array_equal(seen["memory.features"][0], memory["memory.features"])
    assert seen["memory.count"].tolist() == [[5], [0], [0], [0]]
    pool.release(0, last=0)
    pool.acquire(0, None)
    assert not any(array.any() for array in seen.values())
    assert np.shares_memory(seen["memory.features"], pool.memories(slice(1))["memory.features"])


def test_fork_lets_rows_trade_places():
    pool = make_pool(5)
    for row in range(5):
        pool.before(slice(5))["state.h"][row] = pool.before(slice(5))["state.c"][row] = row
    pool.fork(np.array([0, 2, 3]), np.array([3, 0, 3]))
    for array in pool.before(slice(5)).values():
        assert array.reshape(5, -1).min(axis=1).tolist() == array.reshape(5, -1).max(axis=1).tolist() == [3, 1, 0, 3, 4]
