"""The engine with its states on a device against the engine with numpy arrays: the same sequences, the same bits.

The device's memory here is the host's, so that no GPU is needed; test_cuda.py has what differs with one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from carousel.models.bundle import open_bundle
from carousel.service.engine.core import EngineCore
from carousel.service.engine.device import Device, DeviceArray
from carousel.service.engine.parameters import BeamParameters, Reading, ReadParameters, SamplingParameters
from carousel.service.engine.port import Request
from carousel.service.engine.runner import StepArrays
from carousel.service.engine.session import RunnerBroken
from carousel.service.engine.states.device_pool import MOVE_GRAPH, DevicePool, RowMover
from carousel.service.engine.states.pool import HostPool, StateSpec
from carousel.service.served.opening import open_core, open_runner

BUNDLES = Path(__file__).parents[3] / "bundles"
STATES = {"state.h": StateSpec((3,), "float32"), "state.c": StateSpec((2, 5), "int64")}
MEMORIES = {"memory.a": StateSpec((7,), "float16"), "memory.b": StateSpec((4, 6), "float32")}
MODULUS = 9973


@pytest.fixture
def make_array(device):
    def make(rows):
        array = DeviceArray.empty(device, rows.shape, rows.dtype)
        array.fill(rows)
        return array

    return make


def test_move_graph_has_two_nodes_and_no_weights():
    model = onnx.load(MOVE_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Gather", "ScatterND"]
    assert not model.graph.initializer
    assert [entry.name for entry in model.graph.input] == ["rows", "source", "from", "to"]


@pytest.mark.parametrize("dtype", ["float32", "int64", "float64", "int32"])
def test_mover_does_what_indexing_does(device, make_array, dtype):
    random, move = np.random.default_rng(0), RowMover(device)
    rows = (random.standard_normal((7, 2, 3)) * 1e6).astype(dtype)
    other = (random.standard_normal((5, 2, 3)) * 1e6).astype(dtype)
    array, source = make_array(rows), make_array(other)
    for to, taken in ([4], [0]), ([0, 6, 3], [2, 2, 4]), (list(range(5)), [4, 3, 2, 1, 0]):
        for given, same in ((source, other), (other, other), (source[1:], other[1:])):
            chosen = [row % len(same) for row in taken]
            move(array, np.array(to), given, np.array(chosen))
            rows[to] = same[chosen]
            np.testing.assert_array_equal(np.asarray(array), rows)
    move(array, np.array([0, 2, 5]), array, np.array([5, 0, 2]))  # rows that trade places
    rows[[0, 2, 5]] = rows[[5, 0, 2]]
    np.testing.assert_array_equal(np.asarray(array), rows)


def test_mover_keeps_the_bits_of_what_is_no_number(device, make_array):
    words = np.array([[0x7FC00001, 0xFFFFFFFF], [0x7F800001, 0x80000000]], np.uint32)  # NaNs with payloads, -0
    array = make_array(np.zeros((3, 2), np.float32))
    RowMover(device)(array, np.array([2, 0]), words.view(np.float32), np.array([0, 1]))
    np.testing.assert_array_equal(np.asarray(array).view(np.uint32), [words[1], [0, 0], words[0]])


def test_array_of_some_rows_is_those_rows(make_array):
    rows = np.random.default_rng(1).standard_normal((6, 2, 5))
    array = make_array(rows)
    np.testing.assert_array_equal(np.asarray(array), rows)
    np.testing.assert_array_equal(np.asarray(array[2:5]), rows[2:5])
    np.testing.assert_array_equal(np.asarray(array[2:5][1:2]), rows[3:4])
    assert np.asarray(array, np.float32).dtype == np.float32


def test_pool_refuses_rows_that_are_no_words(cpu_device):
    with pytest.raises(RunnerBroken, match=r"a row of state\.flags has 3 bytes; .* a multiple of 4"):
        DevicePool(cpu_device, {"state.flags": StateSpec((3,), "int8")}, {}, 2)


@pytest.mark.parametrize("seed", range(6))
def test_pools_agree_after_any_moves(cpu_device, view, seed):
    random, max_rows = np.random.default_rng(seed), 6
    specs = {name: spec for name, spec in MEMORIES.items() if name != "memory.a"}
    pools = (HostPool(STATES, specs, max_rows), DevicePool(cpu_device, STATES, specs, max_rows))

    def values(rows, which):
        return {name: random.integers(-9, 9, (*rows, *spec.shape)).astype(spec.dtype) for name, spec in which.items()}

    n = 0
    for _ in range(300):
        moves = ["join"] * (n < max_rows) + (["leave", "fork", "step", "look"] if n else [])
        move = random.choice(moves)
        some = random.permutation(max(n, 1))[: random.integers(1, max(n, 1) + 1)]
        if move == "join":
            initial = values((), STATES) if random.random() < 0.5 else None
            memory = values((), specs) if random.random() < 0.5 else None
            for pool in pools:
                pool.acquire(n, initial, memory)
            n += 1
        elif move == "leave":
            row = int(random.integers(n))
            for pool in pools:
                pool.release(row, n - 1)
            n -= 1
        elif move == "fork":
            parents = random.integers(0, n, len(some))
            for pool in pools:
                pool.fork(some, parents)
        elif move == "step":
            after = values((n,), STATES)
            for pool in pools:
                for name, array in pool.after(slice(n)).items():
                    view(array)[:] = after[name]
                pool.swap()
        else:
            looks = [pool.snapshot(int(some[0])) for pool in pools]
            for name in STATES:
                assert looks[0][name].tobytes() == looks[1][name].tobytes()
        for part in ("before", "after", "context"):
            host, device = (getattr(pool, part)(slice(max_rows)) for pool in pools)
            assert all(view(device[name]).tobytes() == array.tobytes() for name, array in host.items()), move
        assert pools[0].swapped == pools[1].swapped
    blanks = [pool.blank() for pool in pools]
    assert all(blanks[0][name].tobytes() == blanks[1][name].tobytes() for name in STATES)


@dataclass
class Told:
    """All that a core told, in an order of its own."""

    tokens: dict[int, list] = field(default_factory=dict)
    ends: dict[int, tuple] = field(default_factory=dict)


def bits(state: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.items()}


def run(core, sequences, cancelled=()):
    """All sequences, one more at every second step, some of which are cancelled at their sixth."""
    told, waiting = Told(), list(enumerate(sequences))
    while waiting or not core.idle:
        if waiting:
            core.add(*waiting.pop(0))
        for _ in range(2):
            with np.errstate(all="ignore"):
                output = core.step()
            batch = output.batch
            for id, token, logprob in zip(batch.ids, batch.tokens, batch.logprobs, strict=True) if batch else ():
                told.tokens.setdefault(id, []).append((token, logprob))
                if id in cancelled and len(told.tokens[id]) == 6:
                    core.cancel(id)
            for id, end in output.finished:
                state = end.snapshot and (bits(end.snapshot.state), end.snapshot.pending.tolist())
                result = end.result.outputs.tobytes() if isinstance(end.result, Reading) else end.result
                checkpoints = {at: bits(state) for at, state in end.checkpoints.items()}
                told.ends[id] = (end.reason, end.detail, result, end.counts, state, checkpoints)
    assert len(told.ends) == len(sequences)
    return told


def traffic(vocabulary, states=None, context=None):
    """Sequences of every kind that a language or captioning model knows."""
    random = np.random.default_rng(11)

    def rows(specs):
        return {name: np.full(spec.shape, random.integers(1, 99), spec.dtype) for name, spec in specs.items()}

    for place in range(24):
        prompt = random.integers(0, vocabulary, int(random.choice([1, 3, 40, 150])))
        fields = {}
        if context:
            value = int(random.integers(1, 99))
            fields["context"] = {name: np.full(spec.shape, value, spec.dtype) for name, spec in context.items()}
        if place % 4 == 3:
            beam = BeamParameters(2 + place % 2, 7, 0, 0.7, 2)
            yield Request(prompt[:3], beam, **fields)
        else:
            sampling = SamplingParameters(max_tokens=3 + place, seed=place, temperature=0.5 + place % 3)
            looks = (len(prompt) // 2,) if place % 4 == 1 else ()
            yield Request(prompt, sampling, keep_state=place % 2 == 0, checkpoints=looks, **fields)


class FakePrefill:
    """Folds ids into the states as the fake runner does; fails on ids that some row has."""

    says = False

    calls = 0

    def __call__(self, fed, states):
        (ids,) = fed.values()
        self.calls += 1
        folded = np.asarray(states["state.a"])[:, 0].astype(np.int64)
        for column in ids.T:
            folded = (folded * 31 + column + 1) % MODULUS
        if (ids == 7).sum() > 5:
            raise RuntimeError("some row")
        wide = np.broadcast_to(folded[:, None, None], (len(ids), 2, 3)).astype(np.float32)
        return {"state.a": folded[:, None].astype(np.float32), "state.b": wide}


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("fault", [None, "some rows"])
def test_engine_on_a_device_tells_what_it_tells_on_the_host(make_runner, cpu_device, looks, fault):
    told, calls = [], []
    for on_device in (False, True):
        runner = make_runner(looks=looks)
        if fault:
            runner.fault = lambda state, token: (
                ValueError("fault") if state % 97 == 3 else np.nan if state % 91 == 5 else None
            )
        pool = DevicePool(cpu_device, runner.ports.states, runner.ports.context, 5) if on_device else None
        prefill = None if looks else FakePrefill()
        core = EngineCore(runner, 5, prefill=prefill, pool=pool)
        told.append(run(core, list(traffic(23, context=runner.ports.context)), cancelled={0, 5, 13}))
        calls.append((runner.steps, prefill and prefill.calls))
    assert told[0] == told[1]
    assert calls[0] == calls[1]
    assert {end[0].value for end in told[0].ends.values()} >= {"length", "cancelled"} | ({"failed"} if fault else set())


def histories(skills):
    random = np.random.default_rng(12)
    for place in range(12):
        ids = random.integers(0, 2 * skills, int(random.choice([1, 5, 130, 300])))
        yield Request(ids, ReadParameters(last=1 + 20 * (place % 2)), keep_state=True)


@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_tracing_bundle", "shakespeare/2", "tutor/2"])
def test_graphs_on_a_device_leave_the_bits_they_leave_on_the_host(request, cpu_device, name):
    bundle = open_bundle(BUNDLES / name if "/" in name else request.getfixturevalue(name))
    told = []
    for device in (None, cpu_device):
        core = open_core(bundle, 1, 6, device)
        tracing = bundle.manifest.task == "tracing"
        told.append(run(core, list((histories if tracing else traffic)(bundle.output_size)), cancelled={0, 2}))
    assert told[0] == told[1]


def test_captions_on_a_device_are_those_of_the_host(captioner, tmp_path, cpu_device):
    bundle = open_bundle(captioner.publish(tmp_path, "scenes", beam_width=3, length_penalty=0.7))
    told = []
    for device in (None, cpu_device):
        core = open_core(bundle, 1, 6, device)
        random = np.random.default_rng(13)
        context = {spec.name: StateSpec(tuple(spec.shape[1:]), spec.dtype) for spec in bundle.context}
        assert context
        sequences = list(traffic(bundle.output_size, context=context))
        for sequence in sequences:
            for part in sequence.context.values():
                part[:] = random.standard_normal(part.shape)
        told.append(run(core, sequences))
    assert told[0] == told[1]


def test_states_never_leave_the_device_in_a_step(tiny_bundle, device, monkeypatch):
    core = open_core(open_bundle(tiny_bundle), 1, 4, device)
    for seed in range(3):
        core.add(seed, Request(np.array([1 + seed]), SamplingParameters(max_tokens=40, seed=seed)))
    core.step()
    copies, moves, fills = [], [], []
    read, move, fill = DeviceArray.__array__, RowMover.__call__, DeviceArray.fill
    monkeypatch.setattr(DeviceArray, "__array__", lambda *a, **k: copies.append(1) or read(*a, **k))
    monkeypatch.setattr(RowMover, "__call__", lambda *a: moves.append(1) or move(*a))
    monkeypatch.setattr(DeviceArray, "fill", lambda self, ids: fills.append(ids.nbytes) or fill(self, ids))
    for _ in range(30):
        assert core.step().report.rows == 3
    assert not copies
    assert not moves
    assert fills == [3 * 8] * 30  # the ids, and nothing else


def test_graph_that_a_provider_has_no_kernels_for_is_refused(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    idle = Device("cpu", "AzureExecutionProvider")  # in every build of onnxruntime, with kernels for next to nothing
    if idle.missing:
        pytest.skip(idle.missing)
    with pytest.raises(RunnerBroken, match=r"cannot load the step graph .* assigned to the default CPU EP"):
        open_core(bundle, 1, 2, idle)


def test_provider_that_is_not_installed_is_told_with_those_that_are():
    assert Device("cpu", "CPUExecutionProvider").missing is None
    nowhere = Device("cpu", "NoExecutionProvider").missing
    assert nowhere == (
        "the installed onnxruntime has no NoExecutionProvider; it has "
        + ", ".join(onnxruntime.get_available_providers())
    )


def test_states_of_the_host_are_good_for_one_run_on_a_device(tiny_bundle, cpu_device):
    bundle, random = open_bundle(tiny_bundle), np.random.default_rng(3)
    runners = [open_runner(bundle, 1, device) for device in (None, cpu_device)]
    before = {
        name: random.standard_normal((3, *spec.shape)).astype(spec.dtype)
        for name, spec in runners[0].ports.states.items()
    }
    found = []
    for runner in runners:
        arrays = replace(StepArrays.of(runner.ports, 3), inputs={"token": np.array([4, 1, 2])}, before=before)
        runner.bind(arrays)()
        found.append((bits(arrays.outputs), bits(arrays.after)))
    assert found[0] == found[1]
