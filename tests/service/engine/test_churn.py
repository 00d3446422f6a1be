"""Many operations in any order: no row ever meets another's numbers, and all rows are free at the end.

The fake runner's rows are stamped: a row's state is its whole history folded into one number, and it is checked at each
step that all parts of a row's state, and its context, carry the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import (
    BeamParameters,
    FinishReason,
    Found,
    ReadParameters,
    SamplingParameters,
    ScoreParameters,
    Scores,
    TensorParameters,
)
from carousel.service.engine.port import Ended, Request, Snapshot
from carousel.service.engine.session import RunnerBroken

VOCABULARY = 23
MAX_ROWS = 13
LONG = 90  # tokens of a prompt that the prefill graph takes


@dataclass(eq=False)
class Asked:
    """One sequence, what it should be told, and what it was told."""

    request: Request
    history: list[int]  # everything that its memory has consumed, pending ids and prompt included
    context: int | None
    tokens: list[int] = field(default_factory=list)
    checkpoints: dict[int, Any] = field(default_factory=dict)
    end: Ended | None = None


class Churn:
    """Sequences of every kind, joined, left, cancelled and failed at random."""

    def __init__(self, runner, prefill, states_of, beam_oracle, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.runner = runner
        self.core = EngineCore(runner, MAX_ROWS, prefill=prefill)
        self._states_of = states_of
        self._beam_oracle = beam_oracle
        self.open: dict[int, Asked] = {}
        self.joined = 0
        self.snapshots: list[tuple[Snapshot, list[int], int | None]] = []
        """To go on from: a memory, what it has seen, and the context that it was made in."""
        self.reasons: dict[str, int] = {}
        self.resumed = 0

    def join(self) -> None:
        """A new sequence of any kind, from the beginning or from a memory."""
        random = self.random
        length = int(random.integers(20, LONG)) if random.random() < 0.1 else int(random.integers(2, 9))
        prompt = random.integers(0, VOCABULARY, length)
        context = int(random.integers(0, 50)) if self.runner.ports.context else None
        kind = random.choice(["sample", "score", "read", "tensors", "beam"], p=[0.6, 0.15, 0.1, 0.05, 0.1])
        options, history = {}, prompt.tolist()
        if self.snapshots and random.random() < 0.3:
            snapshot, before, context = self.snapshots[random.integers(len(self.snapshots))]
            options["snapshot"] = snapshot
            history = before + history
            prompt = np.concatenate([snapshot.pending, prompt])
            self.resumed += 1
        if context is not None:
            options["context"] = {
                "memory.a": np.full(7, context, np.float32),
                "memory.b": np.full((1, 2), context, np.int64),
            }
        if kind == "beam":
            head = BeamParameters(int(random.integers(1, 5)), int(random.integers(1, 6)), end=0)
        elif kind == "sample":
            head = SamplingParameters(max_tokens=int(random.integers(1, 12)), temperature=0.0)
            options["keep_state"] = bool(random.random() < 0.4)
            options["keep_prompt"] = options["keep_state"] and bool(random.random() < 0.5)
            options["checkpoints"] = tuple(sorted({int(place) for place in random.integers(1, len(prompt), 2)}))
        elif kind == "read":
            head = ReadParameters(prompt, last=int(random.integers(1, 5)))
        elif kind == "tensors":
            head = TensorParameters(("logits",), each=bool(random.random() < 0.5))
        else:
            head = ScoreParameters()
        request = Request(prompt, head, **options)
        self.joined += 1
        self.open[self.joined] = Asked(request, history, context)
        self.core.add(self.joined, request, batch=bool(random.random() < 0.3))

    def cancel(self) -> None:
        """End somebody who runs or waits, or has been told nothing yet."""
        everybody = list(self.open)
        if everybody:
            self.core.cancel(everybody[self.random.integers(len(everybody))])

    def step(self) -> None:
        """One step of everybody; a runner that is broken fails all, and is mended."""
        try:
            output = self.core.step()
        except RunnerBroken as error:
            self.runner.fault = lambda state, token: None
            output = self.core.fail_all(str(error))
        if output.batch is not None:
            for place, (id, token) in enumerate(zip(output.batch.ids, output.batch.tokens, strict=True)):
                self.open[id].tokens.append(token)
                self.open[id].checkpoints |= output.batch.checkpoints.get(place, {})
        for id, end in output.finished:
            asked = self.open.pop(id)
            asked.end = end
            self.check(asked)

    def check(self, asked: Asked) -> None:
        """Everything that it was told follows from its own history."""
        request, end = asked.request, asked.end
        head = request.head
        assert end is not None
        self.reasons[end.reason.value] = self.reasons.get(end.reason.value, 0) + 1
        states = self._states_of(asked.history, asked.context)
        if isinstance(head, SamplingParameters):
            assert end.counts.new == len(asked.tokens)
            assert not asked.tokens or asked.checkpoints.keys() == request.wanted == end.checkpoints.keys()
            state, expected = states[-1], []
            for _ in asked.tokens:
                expected.append(int(self.runner.logits_of(state).argmax()))
                state = self._states_of([expected[-1]], asked.context, state)[0]
            assert asked.tokens == expected
            if end.reason is FinishReason.LENGTH:
                assert len(expected) == head.max_tokens
        first = len(asked.history) - len(request.prompt)
        for consumed, state in end.checkpoints.items():
            assert state["state.a"][0] == states[first + consumed - 1], "the state of another row"
        if end.snapshot is not None and end.reason is not FinishReason.FAILED:
            self.keep(asked, end.snapshot)
        if end.reason is FinishReason.STOP and not head.new_ids:
            assert end.counts == (len(request.prompt), 0)
            outputs = [self.runner.logits_of(state) for state in states[first:]]
            if isinstance(end.result, Scores):
                assert len(end.result.logprobs) == len(request.prompt) - 1
                for place, logprob in enumerate(end.result.logprobs):
                    logits = outputs[place].astype(np.float64)
                    target = request.prompt[place + 1]
                    assert abs(logprob - (logits[target] - np.log(np.exp(logits).sum()))) < 1e-4
            elif isinstance(head, ReadParameters):
                wanted = [row[target] for row, target in zip(outputs, request.prompt, strict=True)]
                np.testing.assert_array_equal(end.result.values, wanted)
                np.testing.assert_array_equal(end.result.outputs, outputs[-head.last :])
            else:
                np.testing.assert_array_equal(end.result.outputs["logits"], outputs if head.each else outputs[-1:])
        if isinstance(end.result, Found):
            best = self._beam_oracle(asked.history, head, context=asked.context)[0]
            assert end.result.hypotheses[0].tokens == best[0]
            assert end.result.hypotheses[0].logprob == pytest.approx(best[1], abs=1e-4)

    def keep(self, asked: Asked, snapshot: Snapshot) -> None:
        """A memory holds what its sequence has seen, and nobody else's; it may be gone on from."""
        seen = asked.history + ([] if asked.request.keep_prompt else asked.tokens)
        if asked.request.keep_prompt and len(asked.request.prompt) - 1 not in asked.end.checkpoints:
            return  # it ended within its prompt: what it holds then is what it had consumed
        pending = snapshot.pending.tolist()
        assert seen[len(seen) - len(pending) :] == pending
        consumed = seen[: len(seen) - len(pending)]
        state = self._states_of(consumed, asked.context)[-1] if consumed else 0
        assert snapshot.state["state.a"][0] == state
        assert (snapshot.state["state.b"] == state).all(), "a memory of two rows"
        if pending and len(seen) < 300:
            self.snapshots = [*self.snapshots[-20:], (snapshot, seen, asked.context)]

    @property
    def clean(self) -> bool:
        """No row is taken, and none holds what somebody left."""
        scheduler, pool = self.core.scheduler, self.core._pool
        everything = slice(MAX_ROWS)
        arrays = [*pool.before(everything).values(), *pool.context(everything).values()]
        return not (scheduler.running or scheduler.waiting or scheduler.waiting_batch) and not any(
            array.any() for array in arrays
        )


class FoldingPrefill:
    """A prefill graph that does to a row's state what steps do."""

    says = False

    def __init__(self, states_of, random):
        self._states_of = states_of
        self._random = random
        self.calls = 0

    def __call__(self, fed, states):
        (ids,) = fed.values()
        self.calls += 1
        if self._random.random() < 0.05:
            raise ValueError("the prefill graph failed")
        folded = np.array(
            [
                self._states_of(row, None, int(state))[-1]
                for row, state in zip(ids.tolist(), states["state.a"][:, 0], strict=True)
            ],
            np.float32,
        )
        return {"state.a": folded[:, None], "state.b": np.broadcast_to(folded[:, None, None], (len(ids), 2, 3))}


@pytest.mark.parametrize("prefilled", [False, True], ids=["context", "prefill"])
@pytest.mark.slow
def test_random_joins_leaves_cancels_and_faults_never_mix_rows(make_runner, states_after, beam_oracle, prefilled):
    operations = 50_000
    random = np.random.default_rng(operations)
    runner = make_runner(looks=not prefilled)
    prefill = FoldingPrefill(states_after, random) if prefilled else None
    churn = Churn(runner, prefill, states_after, beam_oracle, seed=operations + prefilled)

    def fault(state, token):
        """One state in some hundreds makes a step raise, another spoils what it says."""
        if state % 499 == 3:
            return ValueError("fault")
        return np.nan if state % 503 == 5 else None

    def broken(state, token):
        return ValueError("the device is gone")

    done = {"join": 0, "cancel": 0, "step": 0, "break": 0}
    with np.errstate(all="ignore"):
        while sum(done.values()) < operations:
            many = len(churn.open) > 2 * MAX_ROWS
            verb = random.choice(list(done), p=[0.02, 0.1, 0.8795, 0.0005] if many else [0.4, 0.08, 0.5195, 0.0005])
            done[verb] += 1
            runner.fault = broken if verb == "break" else fault
            getattr(churn, "step" if verb == "break" else verb)()
        runner.fault = fault
        while not churn.core.idle:
            churn.step()
    assert not churn.open, "somebody was never told the end"
    assert churn.clean
    assert set(churn.reasons) == {"stop", "length", "cancelled", "failed"}
    assert min(churn.reasons.values()) > operations / 1_000
    assert churn.resumed > operations / 100
    if prefill is not None:
        assert prefill.calls > operations / 1_000
