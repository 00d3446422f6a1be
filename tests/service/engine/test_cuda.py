"""The engine on a GPU against the engine on the CPU. Kernels differ, so results agree closely and not bit for bit."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from carousel.models.bundle import open_bundle
from carousel.service.engine.parameters import BeamParameters, ReadParameters, SamplingParameters
from carousel.service.engine.port import Request, Snapshot
from carousel.service.observability.metrics import Metrics
from carousel.service.served.opening import open_core
from carousel.service.served.repository import Repository
from carousel.service.settings import Settings

pytestmark = pytest.mark.cuda

BUNDLES = Path(__file__).parents[3] / "bundles"
TOLERANCE = 1e-4
"""Of probabilities and of states: of order 1, through at most 300 steps of networks that forget."""


def ends_of(core, sequences):
    """The end of each; one more joins at every step, so that rows move."""
    ends, waiting = {}, list(enumerate(sequences))
    while waiting or not core.idle:
        if waiting:
            core.add(*waiting.pop(0))
        ends.update(core.step().finished)
    return [ends[id] for id in range(len(sequences))]


def assert_close(found, expected):
    assert found.reason is expected.reason
    assert found.snapshot.pending.tolist() == expected.snapshot.pending.tolist()
    for name, row in expected.snapshot.state.items():
        np.testing.assert_allclose(found.snapshot.state[name], row, atol=TOLERANCE)
    if expected.result is not None:
        np.testing.assert_allclose(found.result.outputs, expected.result.outputs, atol=TOLERANCE)
        np.testing.assert_allclose(found.result.values, expected.result.values, atol=TOLERANCE)


def histories(bundle):
    """Sequences whose ids are all given, so that no rounding can lead two runs apart."""
    random = np.random.default_rng(21)
    for place, length in enumerate((1, 300, 7, 129, 128, 40, 2, 77)):
        if bundle.manifest.task == "tracing":
            ids, targets = (
                random.integers(0, 2 * bundle.output_size, length),
                random.integers(0, bundle.output_size, length),
            )
            yield Request(ids, ReadParameters(targets, last=1 + 20 * (place % 2)), keep_state=True)
        else:
            ids = random.integers(0, bundle.output_size, length)
            yield Request(ids, SamplingParameters(max_tokens=1, temperature=0.0), keep_state=True)


@pytest.fixture(params=["tiny_bundle", "tiny_tracing_bundle"])
def bundle(request):
    return open_bundle(request.getfixturevalue(request.param))


def test_histories_lead_where_they_lead_on_the_cpu(bundle, cuda):
    found, expected = (ends_of(open_core(bundle, 1, 3, device), list(histories(bundle))) for device in (cuda, None))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_history_in_company_leads_where_it_leads_alone(bundle, cuda):
    together = ends_of(open_core(bundle, 1, 5, cuda), list(histories(bundle)))
    alone = open_core(bundle, 1, 1, cuda)
    for one, sequence in zip(together, histories(bundle), strict=True):
        assert_close(one, ends_of(alone, [sequence])[0])


def test_row_of_nan_reaches_no_other(tiny_bundle, cuda):
    bundle = open_bundle(tiny_bundle)
    core, expected = open_core(bundle, 1, 4, cuda), ends_of(open_core(bundle, 1, 4), list(histories(bundle)))
    sequences = list(histories(bundle))
    poisoned = {name: np.full_like(row, np.nan) for name, row in expected[0].snapshot.state.items()}
    bad = Request(
        np.array([1, 2]), SamplingParameters(max_tokens=99), snapshot=Snapshot(poisoned, np.zeros(0, np.int64))
    )
    found = ends_of(core, [bad, *sequences])
    assert found[0].reason.value == "failed"
    for one, other in zip(found[1:], expected, strict=True):
        assert_close(one, other)


def test_captions_score_what_they_score_on_the_cpu(captioner, tmp_path, cuda):
    bundle = open_bundle(captioner.publish(tmp_path, "scenes", beam_width=3, length_penalty=0.7))
    found = []
    for device in (cuda, None):
        random = np.random.default_rng(22)
        sequences = [
            Request(
                np.array([1]),
                BeamParameters(3, 8, 0, 0.7, 3),
                context={
                    spec.name: random.standard_normal(spec.shape[1:]).astype(spec.dtype) for spec in bundle.context
                },
            )
            for _ in range(6)
        ]
        found.append(ends_of(open_core(bundle, 1, 6, device), sequences))
    for one, other in zip(*found, strict=True):
        scores = [[hypothesis.score for hypothesis in end.result.hypotheses] for end in (one, other)]
        np.testing.assert_allclose(*scores, atol=TOLERANCE)


def test_int8_bundles_run_on_the_cpu_and_say_why(cuda, caplog):
    with caplog.at_level(logging.WARNING, "carousel.repository"):
        repository = Repository(Settings(repository=BUNDLES, max_rows=2, providers="cuda"), Metrics())
    told = "\n".join(record.getMessage() for record in caplog.records)
    int8 = {name for name, model in repository.models.items() if model.bundle.manifest.precision == "int8"}
    assert int8
    for name in int8:
        assert f"{name} version" in told
