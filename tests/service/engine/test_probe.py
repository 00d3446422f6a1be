"""The probe against graphs that keep the promise of a free batch axis and graphs that break it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from carousel.models.bundle import open_bundle
from carousel.models.codec.image import ImageCodec
from carousel.models.cores import usable_cores
from carousel.models.listing import list_repository
from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import SamplingParameters
from carousel.service.engine.port import Request
from carousel.service.engine.probe import check_encoder, check_rows, require_company
from carousel.service.engine.runner import HeadPorts, OnnxEncoder, StepArrays, StepPorts
from carousel.service.engine.session import RunnerBroken
from carousel.service.engine.states.pool import StateSpec
from carousel.service.served.opening import open_runner, step_threads
from tests.service import step_graphs as graphs

BUNDLES = Path(__file__).parents[3] / "bundles"
SHIPPED = [BUNDLES / name / str(max(found)) for name, found in list_repository(BUNDLES).versions.items()]
MAX_ROWS = 64

TOGETHER = {"tanh": (graphs.TANH, 33), "softplus of whole vectors": (graphs.SOFTPLUS, 64)}
PADDED = {"one row fails": (graphs.SECOND_ROW, 33), "one row has a kernel of its own": (graphs.ELMAN, 33)}
ALONE = {
    "rounding goes by the place": (graphs.SOFTPLUS, 33),
    "a scale over the batch": (graphs.MAXIMUM, 33),
    "dynamic quantization": (graphs.DYNAMIC, 33),
    "two rows fail": (graphs.ONE_ROW, 33),
    "seven rows fail": (graphs.SIX_ROWS, 33),
    "one place differs": (graphs.SIXTH_ROW, 33),
    "one row fails, more differ": (graphs.SECOND_ROW_AND_MAXIMUM, 33),
}


def parameters(cases):
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("nodes", "width"), parameters(TOGETHER))
def test_rows_that_bear_company_run_together(nodes, width, threads):
    runner = graphs.runner_of(nodes, width, threads)
    found = check_rows(runner, MAX_ROWS)
    assert (found.company, found.reason) == ("together", None)
    assert found.runner is runner


@pytest.mark.parametrize(("nodes", "width"), parameters(PADDED))
def test_row_that_must_not_be_alone_is_run_twice(nodes, width):
    found = check_rows(graphs.runner_of(nodes, width), MAX_ROWS)
    assert found.company == "padded"


@pytest.mark.parametrize(("nodes", "width"), parameters(ALONE))
def test_rows_that_bear_no_company_run_alone(nodes, width):
    found = check_rows(graphs.runner_of(nodes, width), MAX_ROWS)
    assert found.company == "alone"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (graphs.SOFTPLUS, "a row differs from the same row alone ("),
        (graphs.SIXTH_ROW, "a row differs from the same row alone (logits, row 6 of 64)"),
        (graphs.ONE_ROW, "2 rows in a call fail (RuntimeError: Error in execution: "),
        (graphs.SIX_ROWS, "64 rows in a call fail (RuntimeError: Error in execution: "),
        (graphs.SECOND_ROW, "one row alone fails (RuntimeError: Error in execution: "),
        (graphs.ELMAN, "a row differs from the same row alone ("),
    ],
)
def test_reason_is_one_sentence_that_says_what_was_seen(nodes, reason):
    found = check_rows(graphs.runner_of(nodes), MAX_ROWS).reason
    assert found.startswith(reason), found
    assert "\n" not in found
    assert len(found) < 700


def test_both_faults_are_told_where_one_row_fails_and_more_differ():
    reason = check_rows(graphs.runner_of(graphs.SECOND_ROW_AND_MAXIMUM), MAX_ROWS).reason
    assert reason.startswith("one row alone fails (")
    assert "; a row differs from the same row alone (" in reason


def test_graph_that_runs_neither_one_row_nor_two_is_refused():
    with pytest.raises(RunnerBroken, match=r"^a row of zeros fails, alone \(.*\) and twice in a call \(.*\)$"):
        check_rows(graphs.runner_of(graphs.THREE_ROWS), MAX_ROWS)


def test_runner_that_cannot_run_is_refused(runner):
    runner.fault = lambda state, token: ValueError("no such kernel")
    with pytest.raises(RunnerBroken, match="no such kernel"):
        check_rows(runner, MAX_ROWS)


@pytest.mark.parametrize(("nodes", "company"), [(graphs.ONE_ROW, "together"), (graphs.SECOND_ROW, "padded")])
def test_one_row_is_tried_alone_where_there_is_never_another(nodes, company):
    assert check_rows(graphs.runner_of(nodes), 1).company == company


class Spoilt:
    """A runner that fails on some ids, which says nothing about company."""

    def __init__(self, runner, condition):
        self.ports, self._runner, self._condition = runner.ports, runner, condition

    def bind(self, arrays):
        step = self._runner.bind(arrays)

        def run():
            if self._condition(arrays.inputs["token"]):
                raise ValueError("spoilt")
            step()

        return run


def test_rows_that_fail_whoever_is_beside_them_say_nothing_about_company():
    tanh = graphs.runner_of(graphs.TANH)
    assert check_rows(Spoilt(tanh, lambda ids: (ids > 3).any()), MAX_ROWS).company == "together"


def test_numbers_that_are_none_are_equal():
    logarithm = [graphs.node("Log", ["x"], ["y"])]  # of negative numbers there is none; and of width 64 bits are safe
    assert check_rows(graphs.runner_of(logarithm, 64), MAX_ROWS).company == "together"
    assert check_rows(graphs.runner_of(logarithm, 33), MAX_ROWS).company == "alone"


DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool")


class Folding:
    """Inputs, states and a context of any type: `mixes` names what takes something from another row."""

    def __init__(self, mixes=""):
        self.ports = StepPorts(
            inputs={"token": StateSpec((), "int64"), "value": StateSpec((3,), "float32")},
            outputs={"logits": StateSpec((5,), "float32"), "map": StateSpec((2, 2), "float32")},
            states={f"state.{dtype}": StateSpec((2, 3), dtype) for dtype in DTYPES},
            after={f"state.{dtype}": f"next_state.{dtype}" for dtype in DTYPES},
            context={"values": StateSpec((4,), "float32"), "mask": StateSpec((4,), "bool")},
            head=HeadPorts("token", "logits", "map"),
        )
        self._mixes = mixes

    def bind(self, arrays):
        def run():
            for name, array in arrays.before.items():
                arrays.after[name][:] = array
                if name == self._mixes:
                    arrays.after[name][:-1, 0, 0] = array[1:, 0, 0]
            looked = arrays.context["values"].reshape(-1, 2, 2)
            arrays.outputs["map"][:] = np.roll(looked, 1, axis=0) if self._mixes == "map" else looked
            arrays.outputs["logits"][:] = arrays.inputs["token"][:, None]
            if self._mixes == "logits":
                arrays.outputs["logits"][0] += arrays.context["mask"].sum() + np.abs(arrays.inputs["value"]).sum()

        return run


@pytest.mark.parametrize("mixes", ["", *(f"state.{dtype}" for dtype in DTYPES), "map", "logits"])
def test_every_state_of_every_type_and_every_output_is_looked_at(mixes):
    found = check_rows(Folding(mixes), 8)
    assert found.company == ("alone" if mixes else "together")
    if mixes:
        assert f"({mixes}, " in found.reason


def run(core, *sequences):
    ends, tokens = {}, [[] for _ in sequences]
    for id, sequence in enumerate(sequences):
        core.add(id, sequence)
    while not core.idle:
        output = core.step()
        if output.batch is not None:
            for id, *token in zip(output.batch.ids, output.batch.tokens, output.batch.logprobs, strict=True):
                tokens[id].append(token)
        ends.update(output.finished)
    return [(tokens[id], ends[id].snapshot.state["state.h"].tobytes()) for id in range(len(sequences))]


def sequences():
    return [
        Request(np.arange(1, 3 + place % 7), SamplingParameters(max_tokens=9 + place % 4, seed=place), keep_state=True)
        for place in range(20)
    ]


@pytest.mark.parametrize(("nodes", "width"), parameters({**TOGETHER, **PADDED, **ALONE}))
def test_engine_gives_each_sequence_what_it_gives_it_alone(nodes, width):
    together = run(EngineCore(check_rows(graphs.runner_of(nodes, width), 12).runner, 12), *sequences())
    alone = EngineCore(check_rows(graphs.runner_of(nodes, width), 12).runner, 12)
    assert together == [run(alone, sequence)[0] for sequence in sequences()]
    assert len({state for _, state in together}) == len(together)


@pytest.mark.parametrize(("nodes", "rows"), [(graphs.MAXIMUM, 5), (graphs.SECOND_ROW, 1)])
def test_rows_apart_leave_what_they_read_and_write_where_they_are_told(nodes, rows):
    runner = check_rows(graphs.runner_of(nodes), MAX_ROWS).runner
    given = StepArrays.of(runner.ports, rows + 2)
    random = np.random.default_rng(1)
    given.before["state.h"][:] = random.standard_normal((rows + 2, 33))
    kept = given.before["state.h"].copy()
    inner = replace(
        given,
        inputs={"token": given.inputs["token"][1:-1]},
        before={"state.h": given.before["state.h"][1:-1]},
        after={"state.h": given.after["state.h"][1:-1]},
        outputs={"logits": given.outputs["logits"][1:-1]},
    )
    runner.bind(inner)()
    assert given.before["state.h"].tobytes() == kept.tobytes()
    assert not given.after["state.h"][[0, -1]].any()
    assert not given.outputs["logits"][[0, -1]].any()
    assert given.after["state.h"][1:-1].any(axis=1).all()
    assert given.outputs["logits"][1:-1].any(axis=1).all()


def test_device_may_differ_in_the_last_bits_alone():
    assert require_company(graphs.runner_of(graphs.SOFTPLUS), MAX_ROWS).company == "together"
    for nodes in (graphs.MAXIMUM, graphs.DYNAMIC, graphs.ONE_ROW):
        with pytest.raises(RunnerBroken, match=r"^(a row differs|2 rows in a call fail)"):
            require_company(graphs.runner_of(nodes), MAX_ROWS)


def images(mix):
    def encode(batch):
        return {"state.h": batch.reshape(len(batch), -1)[:, :3] + 1e-5 * mix(batch)}

    return encode


def fail_at_two(batch):
    if len(batch) > 1:
        raise ValueError("one image")
    return 0


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (images(lambda batch: 0), None),
        (images(lambda batch: np.abs(batch).max()), "a row differs from the same row alone (state.h, row 1 of 2)"),
        (images(fail_at_two), "2 rows in a call fail (ValueError: one image)"),
    ],
)
def test_encoder_is_tried_with_one_input_and_with_two(graph, reason):
    assert check_encoder(graph, (3, 4, 5)) == reason


def test_encoder_that_runs_on_nothing_is_refused():
    def fail(batch):
        raise ValueError("no such kernel")

    with pytest.raises(RunnerBroken, match="no such kernel"):
        check_encoder(fail, (3, 4, 5))


def test_shipped_bundles_bear_company_and_are_probed_in_little_time():
    seconds = {}
    for path in SHIPPED:
        bundle = open_bundle(path)
        runner = open_runner(bundle, step_threads(bundle, usable_cores()))
        encoder = None
        if bundle.encoder is not None:
            outputs = [*runner.ports.states, *runner.ports.context]
            encoder = OnnxEncoder(bundle.files["encoder.onnx"], outputs, 1, weights=bundle.weights(bundle.encoder))
        started = time.perf_counter()
        found = check_rows(runner, 128)
        assert (found.company, found.reason) == ("together", None)
        if encoder is not None:
            assert check_encoder(encoder, bundle.codec(ImageCodec).preprocessing.shape) is None
        seconds[bundle.model] = time.perf_counter() - started
    assert sum(seconds.values()) < 1, f"ten times what it takes on two cores that are left alone: {seconds}"
