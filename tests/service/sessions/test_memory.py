"""Which model may go on from which memory."""

import dataclasses

import numpy as np
import pytest

from carousel.models.graph import ELEMENT_TYPES
from carousel.service.engine.port import Snapshot
from carousel.service.engine.states.pool import StateSpec
from carousel.service.sessions.errors import ModelMismatch
from carousel.service.sessions.memory import OUTPUT, ModelIdentity, check_fit, remember


def test_memory_fits_the_model_that_made_it(make_memory, model):
    check_fit(make_memory(), model)


def test_memory_fits_the_same_bundle_under_another_name_and_version(make_memory, model):
    check_fit(make_memory(), dataclasses.replace(model, name="tutor2", version=9))


def test_memory_of_another_digest_does_not_fit_though_the_states_are_alike(make_memory, model):
    with pytest.raises(ModelMismatch, match=r"tutor version 4 .*abababababab.* served is tutor version 5") as error:
        check_fit(make_memory(), dataclasses.replace(model, version=5, digest="cd" * 32))
    assert error.value.status == 409


@pytest.mark.parametrize(
    "states",
    [
        {"state.h": StateSpec((2, 3), "float32")},
        {"state.h": StateSpec((2, 3), "float32"), "state.c": StateSpec((3, 2), "float32")},
        {"state.h": StateSpec((2, 3), "float32"), "state.c": StateSpec((2, 3), "float16")},
        {"state.h": StateSpec((2, 3), "float32"), "state.d": StateSpec((2, 3), "float32")},
    ],
)
def test_memory_of_other_states_does_not_fit(make_memory, model, states):
    with pytest.raises(ModelMismatch, match="states"):
        check_fit(make_memory(), dataclasses.replace(model, states=states))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["state.h", "state.c", OUTPUT])
def test_memory_of_numbers_that_are_not_finite_does_not_fit(make_memory, model, name, poison):
    memory = make_memory()
    memory.snapshot.state[OUTPUT] = np.zeros(4, np.float32)
    check_fit(memory, model)
    memory.snapshot.state[name].flat[-1] = poison
    with pytest.raises(ModelMismatch, match=rf"{name} holds numbers that are not finite") as error:
        check_fit(memory, model)
    assert error.value.code == "model_mismatch"


@pytest.mark.parametrize("dtype", sorted(ELEMENT_TYPES.values()))
def test_memory_fits_whatever_type_its_states_have(make_memory, model, dtype):
    memory, row = make_memory(), np.ones((2, 3), dtype)
    states = {name: StateSpec(row.shape, dtype) for name in model.states}
    memory = dataclasses.replace(memory, snapshot=Snapshot(dict.fromkeys(states, row), memory.snapshot.pending))
    check_fit(memory, dataclasses.replace(model, states=states))


def test_remember_goes_on_from_the_memory_before(make_memory, model):
    before = make_memory(steps=5)
    snapshot = Snapshot(before.snapshot.state, np.zeros(0, np.int64))
    after = remember(dataclasses.replace(model, version=9), snapshot, consumed=2, now=2e9, before=before)
    assert (after.steps, after.created_at, after.updated_at) == (7, before.created_at, 2e9)
    assert after.version == 9


def test_model_identity_is_that_of_the_bundle(tiny_bundle):
    from carousel.models.bundle import open_bundle

    bundle = open_bundle(tiny_bundle)
    identity = ModelIdentity.of(bundle)
    assert (identity.name, identity.version, identity.digest) == (bundle.model, bundle.version, bundle.digest)
    assert identity.states
    for spec in bundle.states:
        assert identity.states[spec.name] == StateSpec(spec.shape[1:], spec.dtype)
