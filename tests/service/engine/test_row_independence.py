"""A row's bits do not depend on who is beside it: the shipped graphs in the service's own sessions, up to 128 rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from carousel.models.bundle import open_bundle
from carousel.models.listing import list_repository
from carousel.service.engine.runner import StepArrays
from carousel.service.served.opening import open_runner

BUNDLES = Path(__file__).parents[3] / "bundles"
ROWS = 128
PATHS = [
    pytest.param(BUNDLES / name / str(version), id=f"{name}-{version}")
    for name, versions in list_repository(BUNDLES).versions.items()
    for version in versions
]


def outputs_of(runner, ids, states, context, n):
    """What n rows of `states` become: outputs and states."""
    arrays = StepArrays.of(runner.ports, n)
    arrays.inputs[runner.ports.head.feeds][:] = ids[:n]
    for of, given in ((arrays.before, states), (arrays.context, context)):
        for name, array in of.items():
            array[:] = given[name][:n]
    runner.bind(arrays)()
    return {**arrays.outputs, **arrays.after}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("path", PATHS)
def test_a_row_has_the_same_bits_in_every_batch_beside_any_neighbour(path, threads):
    bundle = open_bundle(path)
    runner = open_runner(bundle, intra_op_threads=threads)
    random = np.random.default_rng(1)
    ids = random.integers(0, bundle.output_size, ROWS)
    states = {
        name: np.tanh(random.standard_normal((ROWS, *spec.shape))).astype(spec.dtype)
        for name, spec in runner.ports.states.items()
    }
    context = {
        name: random.standard_normal((ROWS, *spec.shape)).astype(spec.dtype)
        for name, spec in runner.ports.context.items()
    }
    watched = 5
    for n in (watched + 1, 7, 16, 33, 64, 127, 128):
        alone = outputs_of(
            runner,
            ids[watched:],
            {k: v[watched:] for k, v in states.items()},
            {k: v[watched:] for k, v in context.items()},
            1,
        )
        for poison in (None, np.nan, 3e38):
            troubled = {name: array.copy() for name, array in states.items()}
            if poison is not None:
                for array in troubled.values():
                    array[:watched] = poison
                    array[watched + 1 :] = poison
            together = outputs_of(runner, ids, troubled, context, n)
            for name, array in alone.items():
                assert together[name][watched].tobytes() == array[0].tobytes(), (n, poison, name)
