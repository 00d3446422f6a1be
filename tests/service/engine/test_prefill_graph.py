"""The engine on shipped prefill graphs: whoever eats what beside whom, the bits are those of single steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carousel.models.bundle import open_bundle
from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import ReadParameters, SamplingParameters
from carousel.service.engine.port import Request
from carousel.service.served.opening import open_prefill, open_runner

BUNDLES = Path(__file__).parents[3] / "bundles"
LENGTHS = (300, 1, 140, 129, 9, 77)


def run(core, sequences):
    """The end of each, and what it sampled; one joins at every second step."""
    ends, tokens, waiting = {}, [[] for _ in sequences], list(enumerate(sequences))
    while waiting or not core.idle:
        if waiting:
            core.add(*waiting.pop(0))
        for _ in range(2):
            output = core.step()
            ends.update(output.finished)
            if output.batch:
                for id, token in zip(output.batch.ids, output.batch.tokens, strict=True):
                    tokens[id].append(token)
    return [(tokens[id], ends[id]) for id in range(len(sequences))]


@pytest.fixture(params=["shakespeare", "tutor"])
def bundle(request):
    return open_bundle(BUNDLES / request.param / "2")


def sequences_of(bundle):
    random = np.random.default_rng(5)
    for place, length in enumerate(LENGTHS):
        if bundle.manifest.task == "tracing":
            ids = random.integers(0, 2 * bundle.output_size, length)
            yield Request(ids, ReadParameters(last=1 + 20 * (place % 2)), keep_state=True)
        else:
            sampling = SamplingParameters(max_tokens=5, seed=place, repetition_penalty=1 + place % 2)
            ids = random.integers(0, bundle.output_size, length)
            yield Request(ids, sampling, keep_state=True, keep_prompt=place % 3 == 0)


def test_prefilled_sequences_end_with_the_bits_of_single_steps(bundle):
    runner, prefill = open_runner(bundle, 1), open_prefill(bundle)
    assert prefill is not None
    core = EngineCore(runner, 4, prefill=prefill)
    core.prefill.check(runner)
    assert core.prefill.refusal is None
    together = run(core, list(sequences_of(bundle)))
    for (tokens, end), sequence in zip(together, sequences_of(bundle), strict=True):
        ((expected, alone),) = run(EngineCore(runner, 1), [sequence])
        assert tokens == expected
        assert end.reason is alone.reason
        assert end.snapshot.pending.tolist() == alone.snapshot.pending.tolist()
        for name, row in alone.snapshot.state.items():
            assert end.snapshot.state[name].tobytes() == row.tobytes()
        if alone.result is not None:
            assert end.result.outputs.tobytes() == alone.result.outputs.tobytes()


def test_prefill_takes_most_of_a_history_in_few_calls(bundle):
    prefill, calls = open_prefill(bundle), []

    def counting(fed, states):
        calls.append(next(iter(fed.values())).size)
        return prefill(fed, states)

    core = EngineCore(open_runner(bundle, 1), 4, prefill=counting)
    ids = np.random.default_rng(1).integers(0, bundle.output_size, 1000)
    head = ReadParameters() if bundle.manifest.task == "tracing" else SamplingParameters(max_tokens=1)
    run(core, [Request(ids, head)])
    assert sum(calls) > 950
    assert len(calls) < 20
