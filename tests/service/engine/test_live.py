"""Live sequences: parked between steps, taking turns in rows behind those of requests, against the slow oracle."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.fed import Fed
from carousel.service.engine.live import AT_ONCE, FEW, step_rows
from carousel.service.engine.parameters import FinishReason, LiveParameters, SamplingParameters
from carousel.service.engine.port import Request, Snapshot
from carousel.service.engine.rows.table import NOT_FINITE
from carousel.service.engine.states.device_pool import DevicePool

NO_IDS = np.zeros(0, np.int64)


def live(each=True, *, keep_state=True, snapshot=None, outputs=("logits",)):
    return Request(NO_IDS, LiveParameters(outputs, each), keep_state=keep_state, snapshot=snapshot)


def feed(core, id, ids):
    core.feed(id, Fed(len(ids), {"token": np.array(ids, np.int64)}))


def run(core, answers, ends):
    """Until there is nothing to do; returns the rows of each step."""
    rows = []
    while not core.idle:
        output = core.step()
        for id, answer in output.answers:
            answers.setdefault(id, []).append(answer)
        ends.update(output.finished)
        if output.report is not None:
            rows.append(output.report.rows)
    return rows


@pytest.fixture(params=["host", "device"])
def make_core(request, cpu_device):
    def make(runner, max_rows):
        ports = runner.ports
        on_device = request.param == "device"
        pool = DevicePool(cpu_device, ports.states, ports.context, step_rows(max_rows)) if on_device else None
        return EngineCore(runner, max_rows, pool=pool)

    return make


def test_more_sequences_than_rows_take_turns_and_are_each_what_they_are_alone(make_core, runner, states_after):
    """Frames of all lengths, beside requests that come and go; sequences that come later find grown arrays."""
    random = np.random.default_rng(3)
    core, answers, ends, fed = make_core(runner, 4), {}, {}, {}
    count = 3 * FEW
    for id in range(count):
        core.add(id, live())
        fed[id] = []
        if id % 5 == 0:
            core.add(1000 + id, Request(random.integers(0, 23, 3), SamplingParameters(max_tokens=9, seed=id)))
        for other in range(id + 1):
            if random.random() < 0.1:
                ids = random.integers(0, 23, random.choice([1, 2, 5, 2 * AT_ONCE + 3])).tolist()
                feed(core, other, ids)
                fed[other].append(ids)
        output = core.step()
        for place, answer in output.answers:
            answers.setdefault(place, []).append(answer)
        ends.update(output.finished)
    rows = run(core, answers, ends)
    assert max(rows) > 4
    for id in range(count):
        core.feed(id, None)
    run(core, answers, ends)
    for id in range(count):
        states = states_after([token for ids in fed[id] for token in ids])
        told = [row for answer in answers.get(id, []) for row in answer.outputs[0]]
        for row, state in zip(told, states, strict=True):
            np.testing.assert_array_equal(row, runner.logits_of(state))
        assert [len(answer.outputs[0]) for answer in answers.get(id, [])] == [len(ids) for ids in fed[id]]
        assert ends[id].reason is FinishReason.STOP
        assert ends[id].snapshot.state["state.a"][0] == (states[-1] if states else 0)
    assert {ends[1000 + id].reason for id in range(0, count, 5)} == {FinishReason.LENGTH}


def test_steps_that_all_have_been_fed_are_taken_without_a_pause(make_core, runner, states_after):
    core = make_core(runner, 4)
    for id, count in enumerate((AT_ONCE + 2, AT_ONCE + 5)):
        core.add(id, live())
        feed(core, id, range(count))
    first, second, third = core.step(), core.step(), core.step()
    assert [output.report.steps for output in (first, second, third)] == [AT_ONCE, 2, 3]
    assert [[id for id, _ in output.answers] for output in (first, second, third)] == [[], [0], [1]]
    ((_, answer),) = third.answers
    expected = [runner.logits_of(state) for state in states_after(range(AT_ONCE + 5))]
    np.testing.assert_array_equal(answer.outputs[0], expected)
    feed(core, 0, [1, 2])
    core.add(9, Request(np.array([1]), SamplingParameters(max_tokens=1)))
    assert core.step().report.steps == 1  # a request has a row


def test_idle_sequences_have_no_row(make_core, runner):
    core, ends = make_core(runner, 2), {}
    for id in range(50):
        core.add(id, live())
    core.add(99, Request(np.array([1]), SamplingParameters(max_tokens=6)))
    assert set(run(core, {}, ends)) == {1}
    assert core.idle
    assert ends[99].counts.new == 6


def test_frames_that_came_together_share_a_step(make_core, runner):
    core = make_core(runner, 8)
    for id in range(5):
        core.add(id, live())
        feed(core, id, [id])
    core.add(9, Request(np.array([1]), SamplingParameters(max_tokens=1)))
    assert run(core, {}, {}) == [6]
    assert runner.steps == 1


@pytest.mark.parametrize("fault", [np.nan, ValueError("bad row")])
def test_frame_that_fails_is_undone_and_the_sequence_goes_on(make_core, runner, states_after, fault):
    """In its first step, in a later one, and in one of one step; others do not notice."""
    runner.fault = lambda state, token: fault if token == 11 else None
    core, answers, ends = make_core(runner, 4), {}, {}
    for id in range(3):
        core.add(id, live())
    with np.errstate(all="ignore"):
        for ids in ([1, 2], [11], [3, 11, 4], [11, 5], [6]):
            feed(core, 0, ids)
            feed(core, 1, [7, 8])
        core.feed(0, None)
        run(core, answers, ends)
    said = NOT_FINITE if fault is np.nan else "ValueError: bad row"
    assert [answer.error for answer in answers[0]] == [None, said, said, said, None]
    states = states_after([1, 2, 6])
    np.testing.assert_array_equal(answers[0][-1].outputs[0], [runner.logits_of(states[-1])])
    assert ends[0].snapshot.state["state.a"][0] == states[-1]
    told = np.concatenate([answer.outputs[0] for answer in answers[1]])
    np.testing.assert_array_equal(told, [runner.logits_of(state) for state in states_after([7, 8] * 5)])


def test_sequence_that_is_cancelled_is_as_after_its_last_answer(make_core, runner, states_after):
    core, answers, ends = make_core(runner, 4), {}, {}
    core.add(0, live())
    feed(core, 0, [1, 2])
    run(core, answers, ends)
    feed(core, 0, [3, 4, 5] * AT_ONCE)
    feed(core, 0, [6])
    core.step()
    core.cancel(0)
    run(core, answers, ends)
    assert (ends[0].reason, len(answers[0])) == (FinishReason.CANCELLED, 1)
    assert ends[0].snapshot.state["state.a"][0] == states_after([1, 2])[-1]
    feed(core, 0, [7])
    core.cancel(0)
    assert core.idle


def test_last_of_a_frame_and_a_snapshot_to_go_on_from(make_core, runner, states_after):
    core, answers, ends = make_core(runner, 4), {}, {}
    core.add(0, live(each=False))
    feed(core, 0, [1, 2, 3])
    core.feed(0, None)
    run(core, answers, ends)
    snapshot = ends[0].snapshot
    assert len(snapshot.pending) == 0
    core.add(1, live(each=False, snapshot=Snapshot(snapshot.state, NO_IDS), keep_state=False))
    feed(core, 1, [4])
    core.feed(1, None)
    run(core, answers, ends)
    states = states_after([1, 2, 3, 4])
    for id, state in ((0, states[2]), (1, states[3])):
        np.testing.assert_array_equal(answers[id][0].outputs[0], [runner.logits_of(state)])
    assert ends[1].snapshot is None


def test_places_of_those_who_ended_are_taken_again(make_core, runner, states_after):
    core, ends = make_core(runner, 4), {}
    for id in range(10 * FEW):
        core.add(id, live())
        answers = {}
        feed(core, id, [5])
        core.feed(id, None)
        run(core, answers, ends)
        np.testing.assert_array_equal(answers[id][0].outputs[0], [runner.logits_of(states_after([5])[0])])
    assert len(core._live._parked[0].arrays["state.a"]) == FEW


def test_all_end_when_the_engine_fails(runner):
    core = EngineCore(runner, 2)
    core.add(0, live())
    core.add(1, live())
    feed(core, 1, [1])
    output = core.fail_all("broken")
    told = [(id, end.reason, end.detail, end.snapshot) for id, end in output.finished]
    assert told == [(id, FinishReason.FAILED, "broken", None) for id in (0, 1)]
    assert core.idle
