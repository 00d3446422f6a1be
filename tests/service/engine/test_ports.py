"""Models of several inputs and outputs, or none, of any type, against loops that run their graphs by hand."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from carousel.service.engine.core import EngineCore
from carousel.service.engine.feed import fed_steps
from carousel.service.engine.parameters import FinishReason, ReadParameters, TensorParameters
from carousel.service.engine.port import Request
from carousel.service.engine.prefill.runner import OnnxPrefillRunner
from carousel.service.engine.probe import check_rows
from carousel.service.engine.runner import HeadPorts, OnnxRunner, StepPorts
from carousel.service.engine.states.device_pool import DevicePool
from carousel.service.engine.states.pool import StateSpec

BATCH = "batch"
AFTER = {f"state.{name}": f"next_state.{name}" for name in "hns"}


def model(nodes, inputs, outputs, weights=()):
    """An ONNX file; ports by name, each a type and the shape of a row."""
    told = [
        [helper.make_tensor_value_info(name, kind, [BATCH, *shape]) for name, (kind, shape) in ports.items()]
        for ports in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights]
    graph = helper.make_graph(nodes, "step", *told, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def many_ports():
    """x [3] float32, gate bool, scale int32 in; y [2] float32, total [2, 2] float64 out; states of both types.

    h' = tanh(x A + h B) where the gate is open, else h;  n' = n + scale;  y = h' C;  total = n' as it is.
    """
    random = np.random.default_rng(0)
    weights = [
        ("A", random.standard_normal((3, 5)).astype(np.float32)),
        ("B", random.standard_normal((5, 5)).astype(np.float32)),
        ("C", random.standard_normal((5, 2)).astype(np.float32)),
        ("axis", np.array([1, 2])),
        ("one", np.array([1])),
    ]
    nodes = [
        node("MatMul", "x A", "xa"),
        node("MatMul", "state.h B", "hb"),
        node("Add", "xa hb", "sum"),
        node("Tanh", "sum", "new"),
        node("Unsqueeze", "gate one", "open"),
        node("Where", "open new state.h", "next_state.h"),
        node("MatMul", "next_state.h C", "y"),
        node("Cast", "scale", "wide", to=TensorProto.DOUBLE),
        node("Unsqueeze", "wide axis", "block"),
        node("Add", "state.n block", "next_state.n"),
        node("Identity", "next_state.n", "total"),
    ]
    inputs = {
        "x": (TensorProto.FLOAT, [3]),
        "gate": (TensorProto.BOOL, []),
        "scale": (TensorProto.INT32, []),
        "state.h": (TensorProto.FLOAT, [5]),
        "state.n": (TensorProto.DOUBLE, [2, 2]),
    }
    outputs = {
        "y": (TensorProto.FLOAT, [2]),
        "total": (TensorProto.DOUBLE, [2, 2]),
        "next_state.h": (TensorProto.FLOAT, [5]),
        "next_state.n": (TensorProto.DOUBLE, [2, 2]),
    }
    ports = StepPorts(
        inputs={"x": StateSpec((3,), "float32"), "gate": StateSpec((), "bool"), "scale": StateSpec((), "int32")},
        outputs={"y": StateSpec((2,), "float32"), "total": StateSpec((2, 2), "float64")},
        states={"state.h": StateSpec((5,), "float32"), "state.n": StateSpec((2, 2), "float64")},
        after=AFTER,
        context={},
        head=HeadPorts(None, None),
        initial={"state.n": np.array([[1.0, 2.0], [3.0, 4.0]])},
    )
    return model(nodes, inputs, outputs, weights), ports


def autonomous():
    """No input: s' = 3.7 s (1 - s), the logistic map, in float64 from a stored row; y = s'."""
    nodes = [
        node("Sub", "one state.s", "rest"),
        node("Mul", "state.s rest", "product"),
        node("Mul", "product rate", "next_state.s"),
        node("Identity", "next_state.s", "y"),
    ]
    state = {"state.s": (TensorProto.DOUBLE, [1])}
    outputs = {"y": (TensorProto.DOUBLE, [1]), "next_state.s": (TensorProto.DOUBLE, [1])}
    ports = StepPorts(
        inputs={},
        outputs={"y": StateSpec((1,), "float64")},
        states={"state.s": StateSpec((1,), "float64")},
        after=AFTER,
        context={},
        head=HeadPorts(None, None),
        initial={"state.s": np.array([0.3])},
    )
    return model(nodes, state, outputs, [("one", np.array([1.0])), ("rate", np.array([3.7]))]), ports


def sums():
    """n' = n + x, of int32 and of int64, and y = n' squared: a step graph, and a prefill graph that needs no loop."""
    weights = [("axis", np.array([1]))]
    step = [
        node("Cast", "x", "wide", to=TensorProto.INT64),
        node("Add", "state.n wide", "next_state.n"),
        node("Mul", "next_state.n next_state.n", "y"),
    ]
    prefill = [
        node("Cast", "x", "wide", to=TensorProto.INT64),
        node("ReduceSum", "wide axis", "sum", keepdims=0),
        node("Add", "state.n sum", "next_state.n"),
    ]
    after, said = {"next_state.n": (TensorProto.INT64, [2])}, {"y": (TensorProto.INT64, [2])}
    state, fed = {"state.n": (TensorProto.INT64, [2])}, {"x": (TensorProto.INT32, [2])}
    many = {"x": (TensorProto.INT32, ["steps", 2])}
    ports = StepPorts(
        inputs={"x": StateSpec((2,), "int32")},
        outputs={"y": StateSpec((2,), "int64")},
        states={"state.n": StateSpec((2,), "int64")},
        after=AFTER,
        context={},
        head=HeadPorts(None, None),
        initial={"state.n": np.array([5, -7])},
    )
    return model(step, fed | state, said | after), model(prefill, many | state, after, weights), ports


def inputs_of(seed, steps):
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((steps, 3)).astype(np.float32),
        "gate": random.random(steps) < 0.7,
        "scale": random.integers(-9, 9, steps).astype(np.int32),
    }


def by_hand(graph, ports, inputs, steps, states=None):
    """Outputs of each step, and the states after the last, from a loop over the graph with the state carried."""
    session = onnxruntime.InferenceSession(graph)
    states = states or ports.blank
    states = {name: np.asarray(row)[None] for name, row in states.items()}
    seen = {name: [] for name in ports.outputs}
    for step in range(steps):
        fed = {name: array[step : step + 1] for name, array in inputs.items()}
        names = [*ports.outputs, *(AFTER[name] for name in ports.states)]
        said = dict(zip(names, session.run(names, {**fed, **states}), strict=True))
        for name, parts in seen.items():
            parts.append(said[name][0])
        states = {name: said[AFTER[name]] for name in ports.states}
    return {name: np.array(parts) for name, parts in seen.items()}, {name: rows[0] for name, rows in states.items()}


def run(core, requests):
    """The ends of these requests, in their order; they join at different steps."""
    ends, waiting = {}, list(enumerate(requests))
    while waiting or not core.idle:
        if waiting:
            core.add(*waiting.pop(0))
        ends.update(core.step().finished)
    return [ends[place] for place in range(len(requests))]


def request_of(ports, inputs, steps, **fields):
    prompt, fed = fed_steps(ports.inputs, inputs, steps)
    return Request(prompt, inputs=fed, **fields)


def same(seen, expected):
    assert seen.keys() == expected.keys()
    for name, array in expected.items():
        assert (seen[name].dtype, seen[name].shape) == (array.dtype, array.shape), name
        assert seen[name].tobytes() == array.tobytes(), name


@pytest.fixture(params=["host", "device"])
def core_of(request, cpu_device):
    def make(graph, ports, max_rows):
        if request.param == "host":
            return EngineCore(check_rows(OnnxRunner(graph, ports, 1), max_rows).runner, max_rows)
        runner = OnnxRunner(graph, ports, 1, device=cpu_device)
        return EngineCore(runner, max_rows, pool=DevicePool(cpu_device, ports.states, ports.context, max_rows))

    return make


def test_three_inputs_and_two_outputs_give_what_a_loop_gives(core_of):
    graph, ports = many_ports()
    lengths = [1, 2, 7, 128, 129, 300, 5, 40]
    requests = [
        request_of(
            ports,
            inputs_of(seed, steps),
            steps,
            head=TensorParameters(("y", "total"), each=seed % 2 == 0),
            keep_state=True,
        )
        for seed, steps in enumerate(lengths)
    ]
    for seed, (steps, end) in enumerate(zip(lengths, run(core_of(graph, ports, 3), requests), strict=True)):
        expected, states = by_hand(graph, ports, inputs_of(seed, steps), steps)
        assert end.reason is FinishReason.STOP
        assert end.counts.prompt == steps
        same(end.result.outputs, expected if seed % 2 == 0 else {name: part[-1:] for name, part in expected.items()})
        same(end.snapshot.state, states)
        assert end.snapshot.pending.tolist() == []


def test_rows_longer_than_a_piece_are_fed_piece_by_piece(core_of, monkeypatch):
    monkeypatch.setattr("carousel.service.engine.feed.PIECE_BYTES", 17 * 4)  # of 17 bytes a step
    graph, ports = many_ports()
    requests = [
        request_of(ports, inputs_of(seed, 11 + seed), 11 + seed, head=TensorParameters(("y",), each=True))
        for seed in range(6)
    ]
    for seed, end in enumerate(run(core_of(graph, ports, 4), requests)):
        same(end.result.outputs, {"y": by_hand(graph, ports, inputs_of(seed, 11 + seed), 11 + seed)[0]["y"]})


def test_states_of_any_type_go_on_where_they_ended(core_of):
    graph, ports = many_ports()
    inputs = inputs_of(0, 50)
    core = core_of(graph, ports, 2)
    first = {name: array[:30] for name, array in inputs.items()}
    rest = {name: array[30:] for name, array in inputs.items()}
    head = TensorParameters(("total", "y"))
    (end,) = run(core, [request_of(ports, first, 30, head=head, keep_state=True)])
    (end,) = run(core, [request_of(ports, rest, 20, head=head, keep_state=True, snapshot=end.snapshot)])
    expected, states = by_hand(graph, ports, inputs, 50)
    same(end.result.outputs, {name: expected[name][-1:] for name in ("total", "y")})
    same(end.snapshot.state, states)


def test_checkpoints_are_taken_between_steps(core_of):
    graph, ports = many_ports()
    head = TensorParameters(("y",))
    (end,) = run(core_of(graph, ports, 1), [request_of(ports, inputs_of(1, 40), 40, head=head, checkpoints=(9, 30))])
    for at in (9, 30):
        same(end.checkpoints[at], by_hand(graph, ports, inputs_of(1, 40), at)[1])


def test_autonomous_model_goes_on_for_as_many_steps_as_it_is_told(core_of):
    graph, ports = autonomous()
    core = core_of(graph, ports, 2)
    requests = [request_of(ports, {}, steps, head=TensorParameters(("y",), each=True)) for steps in (1, 500, 3)]
    for steps, end in zip((1, 500, 3), run(core, requests), strict=True):
        same(end.result.outputs, by_hand(graph, ports, {}, steps)[0])
        assert end.counts.prompt == steps


def test_stored_row_begins_every_sequence_and_no_other(core_of):
    graph, ports = autonomous()
    core = core_of(graph, ports, 1)  # one row: who comes next has it after another
    head = TensorParameters(("y",))
    ends = run(core, [request_of(ports, {}, 4, head=head, keep_state=True) for _ in range(3)])
    (value,) = {end.result.outputs["y"].tobytes() for end in ends}
    assert value == by_hand(graph, ports, {}, 4)[0]["y"][-1:].tobytes()
    core.add(9, request_of(ports, {}, 4, head=head, keep_state=True))
    core.cancel(9)  # before it has a row: what it would have begun with
    ((_, end),) = core.step().finished
    same(end.snapshot.state, {"state.s": np.array([0.3])})


def test_row_of_numbers_is_read_without_ids(core_of):
    graph, ports = many_ports()
    ports = replace(ports, head=HeadPorts(None, "y"))
    head = ReadParameters(columns=np.array([1]), last=2)
    (end,) = run(core_of(graph, ports, 1), [request_of(ports, inputs_of(2, 9), 9, head=head)])
    expected = by_hand(graph, ports, inputs_of(2, 9), 9)[0]["y"]
    assert end.result.outputs.tobytes() == expected[-2:].tobytes()
    assert end.result.curve.tobytes() == expected[:, 1:].tobytes()


def test_long_inputs_are_taken_ahead_in_few_calls():
    graph, prefill, ports = sums()
    runner, calls = OnnxRunner(graph, ports, 1), []
    many = OnnxPrefillRunner([prefill], dict, AFTER)

    class Counting:
        says = False

        def __call__(self, fed, states):
            calls.append(fed["x"].shape)
            return many(fed, states)

    core = EngineCore(runner, 4, prefill=Counting())
    core.prefill.check(runner)
    assert core.prefill.refusal is None
    calls.clear()
    random = np.random.default_rng(0)
    series = [random.integers(-99, 99, (steps, 2)).astype(np.int32) for steps in (1, 700, 3, 60)]
    head = TensorParameters(("y",))
    requests = [request_of(ports, {"x": x}, None, head=head, keep_state=True, checkpoints=(0,)) for x in series]
    for x, end in zip(series, run(core, requests), strict=True):
        expected, states = by_hand(graph, ports, {"x": x}, len(x))
        same(end.result.outputs, {"y": expected["y"][-1:]})
        same(end.snapshot.state, states)
        same(end.checkpoints[0], {"state.n": np.array([5, -7])})
    assert 0 < len(calls) < 100
    assert max(steps for _, steps, _ in calls) > 50


def test_rows_are_fed_their_own_as_others_leave():
    graph, ports = many_ports()
    core = EngineCore(OnnxRunner(graph, ports, 1), 5)
    random = np.random.default_rng(3)
    lengths = random.integers(1, 30, 40).tolist()
    head = TensorParameters(("y",), each=True)
    for seed, steps in enumerate(lengths):
        core.add(seed, request_of(ports, inputs_of(seed, steps), steps, head=head, keep_state=True))
    ends, cancelled = {}, set()
    while not core.idle:
        ends.update(core.step().finished)
        if random.random() < 0.2 and (running := core.scheduler.running):
            cancelled.add(running[0].id)
            core.cancel(running[0].id)
    for seed, steps in enumerate(lengths):
        done = ends[seed].counts.prompt
        assert done == steps or seed in cancelled
        expected, states = by_hand(graph, ports, inputs_of(seed, steps), done)
        same(ends[seed].snapshot.state, states)
        if done == steps and ends[seed].reason is FinishReason.STOP:
            same(ends[seed].result.outputs, {"y": expected["y"]})


@pytest.mark.parametrize(
    ("change", "steps", "sentence"),
    [
        ({"x": None}, None, "input 'x' is missing; inputs are x, gate, scale"),
        ({"z": np.zeros(4)}, None, "there is no input 'z'; inputs are x, gate, scale"),
        ({"x": np.zeros((4, 2), np.float32)}, None, r"input 'x' is \[4, 2\]; allowed is \[steps, 3\]"),
        ({"x": np.float32(1)}, None, r"input 'x' is \[\]"),
        ({"gate": np.zeros(3, np.bool_)}, None, "input 'gate' has 3 steps; the others have 4"),
        ({"gate": np.zeros(4)}, None, "input 'gate' is float64; allowed is bool"),
        ({"scale": np.zeros(4)}, None, "input 'scale' is float64; allowed is int32"),
        ({"scale": np.full(4, 1 << 40)}, None, "input 'scale' holds a number that int32 has not"),
        ({"x": np.full((4, 3), 1e300)}, None, "input 'x' holds a number that is not finite in float32"),
        ({"x": np.full((4, 3), np.nan)}, None, "not finite"),
        ({"x": np.array([["a"] * 3] * 4)}, None, "allowed is float32"),
        ({}, 5, "input 'x' has 4 steps; the others have 5"),
    ],
)
def test_what_a_model_cannot_be_fed_is_refused(change, steps, sentence):
    _, ports = many_ports()
    inputs = {name: array for name, array in {**inputs_of(0, 4), **change}.items() if array is not None}
    with pytest.raises(ValueError, match=sentence):
        fed_steps(ports.inputs, inputs, steps)


@pytest.mark.parametrize("steps", [None, 0, -1])
def test_no_step_is_refused(steps):
    with pytest.raises(ValueError, match="allowed is 1 or more"):
        fed_steps({}, {}, steps)
