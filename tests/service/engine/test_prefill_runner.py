"""Prefill graphs that work on different parts of a prompt at once: the states of one after the other."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from carousel.service.engine.device import Device, DeviceArray
from carousel.service.engine.prefill import runner as prefill_runner
from carousel.service.engine.prefill.runner import MIN_PIECES, PIECE, OnnxPrefillRunner

ROWS = 3
LOOKED_UP = 40


def graph(place: int, *, last: bool) -> bytes:
    """state' = state / 2 + the sum of a piece's table[below]; above = table[below]: it depends on order and cuts."""
    name, size = f"a{place}", 2 + place
    eaten = "token" if place == 0 else "below"
    value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [value(eaten, TensorProto.INT64, ["batch", "steps"]), value(f"state.{name}", kind, ["batch", size])]
    outputs = [value(f"next_state.{name}", kind, ["batch", size])]
    weights = [
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        numpy_helper.from_array(np.arange(LOOKED_UP)[::-1].copy(), "table"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", eaten], ["found"]),
        helper.make_node("Cast", ["found"], ["number"], to=kind),
        helper.make_node("ReduceSum", ["number", "one"], ["sum"], keepdims=1),
        helper.make_node("Mul", [f"state.{name}", "half"], ["kept"]),
        helper.make_node("Add", ["kept", "sum"], [f"next_state.{name}"]),
    ]
    if not last:
        outputs.append(value("above", TensorProto.INT64, ["batch", "steps"]))
        nodes.append(helper.make_node("Identity", ["found"], ["above"]))
    made = helper.make_graph(nodes, f"prefill{place}", inputs, outputs, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


AFTER = {f"state.a{place}": f"next_state.a{place}" for place in range(3)}


def tokens(fed):
    return {name: np.ascontiguousarray(array) for name, array in fed.items()}


def chain(count):
    return [graph(place, last=place == count - 1) for place in range(count)]


def states(count):
    random = np.random.default_rng(2)
    return {f"state.a{place}": random.normal(size=(ROWS, 2 + place)).astype(np.float32) for place in range(count)}


def ids(length):
    return np.random.default_rng(length).integers(0, LOOKED_UP, (ROWS, length))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_graphs_at_once_leave_what_they_leave_one_after_the_other(monkeypatch, count):
    monkeypatch.setattr(prefill_runner, "usable_cores", lambda: 2)
    length = 2 * MIN_PIECES * PIECE + 7
    runner, fed = OnnxPrefillRunner(chain(count), tokens, AFTER), ids(length)
    seen = runner({"token": fed}, states(count))
    expected = states(count)
    cut = PIECE if count > 1 else length  # one graph alone has nobody to run ahead of
    for start in range(0, length, cut):  # each too short to be cut further
        expected = runner({"token": fed[:, start : start + cut]}, expected)
    assert seen.keys() == expected.keys()
    for name, rows in expected.items():
        assert seen[name].tobytes() == rows.tobytes()


@pytest.mark.parametrize(
    ("length", "cores", "threads"),
    [(MIN_PIECES * PIECE - 1, 2, 1), (MIN_PIECES * PIECE, 2, 3), (MIN_PIECES * PIECE, 1, 1)],
)
def test_long_calls_take_a_thread_for_each_graph(monkeypatch, length, cores, threads):
    monkeypatch.setattr(prefill_runner, "usable_cores", lambda: cores)
    runner, seen = OnnxPrefillRunner(chain(3), tokens, AFTER), set()
    original = prefill_runner._Graph._call

    def noting(self, asked, fed):
        seen.add(threading.get_ident())
        return original(self, asked, fed)

    monkeypatch.setattr(prefill_runner._Graph, "_call", noting)
    runner({"token": ids(length)}, states(3))
    assert len(seen) == threads


def test_call_leaves_the_states_that_it_went_on_from():
    runner, before = OnnxPrefillRunner(chain(2), tokens, AFTER), states(2)
    runner({"token": ids(100)}, before)
    for name, rows in states(2).items():
        assert before[name].tobytes() == rows.tobytes()


@pytest.mark.parametrize("place", [0, 60, 99])
def test_call_that_fails_raises_and_the_next_one_runs(monkeypatch, place):
    monkeypatch.setattr(prefill_runner, "usable_cores", lambda: 2)
    runner, fed = OnnxPrefillRunner(chain(3), tokens, AFTER), ids(100)
    bad = fed.copy()
    bad[1, place] = LOOKED_UP
    with pytest.raises(Exception, match="indices element out of data bounds"):
        runner({"token": bad}, states(3))
    fresh = OnnxPrefillRunner(chain(3), tokens, AFTER)({"token": fed}, states(3))
    for name, rows in runner({"token": fed}, states(3)).items():
        assert rows.tobytes() == fresh[name].tobytes()


def test_graphs_on_a_device_hand_up_in_its_memory(monkeypatch):
    device = Device("cpu", "CPUExecutionProvider")
    runner, fed = OnnxPrefillRunner(chain(2), tokens, AFTER, device), ids(100)
    seen, expected = runner({"token": fed}, states(2)), states(2)
    short = OnnxPrefillRunner(chain(2), tokens, AFTER)
    monkeypatch.setattr(prefill_runner, "MIN_PIECES", 100)  # in one piece, as on a device
    for name, rows in short({"token": fed}, expected).items():
        assert isinstance(seen[name], DeviceArray)
        assert np.asarray(seen[name]).tobytes() == rows.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="threads choose their cores on Linux alone")
@pytest.mark.parametrize("place", [None, 60])
def test_caller_may_use_all_its_cores_again_after_a_call(monkeypatch, place):
    monkeypatch.setattr(prefill_runner, "usable_cores", lambda: 2)
    runner, fed, allowed = OnnxPrefillRunner(chain(2), tokens, AFTER), ids(100), os.sched_getaffinity(0)
    if place is not None:
        fed[0, place] = LOOKED_UP
    with nullcontext() if place is None else pytest.raises(Exception, match="out of data bounds"):
        runner({"token": fed}, states(2))
    assert os.sched_getaffinity(0) == allowed
