"""Tokens that only this service can make, for one tenant and one model."""

import base64
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carousel.service.engine.port import Snapshot
from carousel.service.engine.states.pool import StateSpec
from carousel.service.sessions.codec import encode
from carousel.service.sessions.errors import InvalidToken, MemoryTooLarge, ModelMismatch
from carousel.service.sessions.memory import ModelIdentity, remember
from carousel.service.sessions.tokens import SIGNATURE_BYTES, TokenSigner

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
UNITS = 200
LSTM = ModelIdentity(
    "tutor", 1, "12" * 32, {name: StateSpec((UNITS,), "float32") for name in ("state.hidden_0", "state.cell_0")}
)


def lstm_memory():
    state = {
        name: np.random.default_rng(place).uniform(-1, 1, UNITS).astype(np.float32)
        for place, name in enumerate(LSTM.states)
    }
    ids = np.full(8, 2**40, np.int64)
    return remember(LSTM, Snapshot(state, ids[:1]), consumed=10**6, now=1.7e9, context=ids)


SIGNER = TokenSigner([NEW, OLD])
TOKEN = SIGNER.sign(lstm_memory(), "school")


def test_token_of_200_units_is_url_safe_and_under_4_kb():
    assert len(TOKEN) < 4096
    assert set(TOKEN) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_token_comes_back_bit_for_bit():
    assert encode(SIGNER.open(TOKEN, "school", LSTM)) == encode(lstm_memory())


def test_token_of_another_tenant_is_invalid():
    for tenant in ("", "schoo", "school2", "School"):
        with pytest.raises(InvalidToken):
            SIGNER.open(TOKEN, tenant, LSTM)


def test_token_signed_with_another_key_is_invalid():
    with pytest.raises(InvalidToken) as error:
        TokenSigner([OTHER]).open(TOKEN, "school", LSTM)
    assert error.value.status == 400


def test_token_signed_with_a_former_key_is_believed_while_that_is_listed():
    former = TokenSigner([OLD]).sign(lstm_memory(), "school")
    assert SIGNER.open(former, "school", LSTM).steps == 10**6
    with pytest.raises(InvalidToken):
        TokenSigner([NEW]).open(former, "school", LSTM)


def test_token_is_signed_with_the_first_key():
    assert TokenSigner([NEW]).open(TOKEN, "school", LSTM).steps == 10**6


def test_genuine_token_of_another_model_is_a_mismatch():
    with pytest.raises(ModelMismatch):
        SIGNER.open(TOKEN, "school", dataclasses.replace(LSTM, version=2, digest="34" * 32))


def test_genuine_token_of_numbers_that_are_not_finite_is_refused():
    memory = lstm_memory()
    memory.snapshot.state["state.cell_0"][7] = np.nan
    with pytest.raises(ModelMismatch, match=r"state\.cell_0 holds numbers that are not finite"):
        SIGNER.open(SIGNER.sign(memory, "school"), "school", LSTM)


def test_token_of_a_renumbered_copy_of_the_bundle_is_kept():
    assert SIGNER.open(TOKEN, "school", dataclasses.replace(LSTM, version=2)).version == 1


def test_token_cut_short_anywhere_is_invalid():
    for size in range(len(TOKEN)):
        with pytest.raises(InvalidToken):
            SIGNER.open(TOKEN[:size], "school", LSTM)


@given(st.integers(0, len(TOKEN) - 1), st.characters())
@settings(max_examples=300)
def test_token_with_any_character_changed_is_invalid(place, character):
    if TOKEN[place] == character:
        return
    with pytest.raises(InvalidToken):
        SIGNER.open(TOKEN[:place] + character + TOKEN[place + 1 :], "school", LSTM)


@given(st.integers(0, len(TOKEN) * 6 // 8 * 8 - 1))
@settings(max_examples=300)
def test_token_with_any_bit_flipped_is_invalid(bit):
    raw = bytearray(base64.urlsafe_b64decode(TOKEN + "=" * (-len(TOKEN) % 4)))
    raw[bit // 8 % len(raw)] ^= 1 << bit % 8
    with pytest.raises(InvalidToken):
        SIGNER.open(base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), "school", LSTM)


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_token_of_noise_is_invalid(text):
    with pytest.raises(InvalidToken):
        SIGNER.open(text, "school", LSTM)


def test_token_in_another_spelling_is_invalid():
    for text in (TOKEN + "=", TOKEN + "\n", " " + TOKEN, TOKEN.replace("-", "+").replace("_", "/"), TOKEN + "A"):
        with pytest.raises(InvalidToken):
            SIGNER.open(text, "school", LSTM)


def test_token_longer_than_any_is_refused_by_its_length():
    with pytest.raises(InvalidToken, match=r"has 1,398,145 characters, and at most 1,398,144 are read .*start anew"):
        SIGNER.open("A" * (SIGNER.max_characters + 1), "school", LSTM)


def test_memory_is_signed_up_to_the_limit_and_not_beyond():
    size = len(encode(lstm_memory()))
    exact, short = TokenSigner([NEW], size), TokenSigner([NEW], size - 1)
    token = exact.sign(lstm_memory(), "school")
    assert exact.open(token, "school", LSTM).steps == 10**6
    assert len(token) in (exact.max_characters, exact.max_characters - 1)
    assert len(base64.urlsafe_b64decode(token + "==")) == size + SIGNATURE_BYTES
    with pytest.raises(
        MemoryTooLarge, match=rf"would hold {size:,} bytes, and at most {size - 1:,} are signed .*session"
    ):
        short.sign(lstm_memory(), "school")
    with pytest.raises(MemoryTooLarge, match="would hold"):
        short.check_size(size)
    exact.check_size(size)


def test_token_of_megabytes_comes_back_where_it_may_be_signed():
    large = ModelIdentity("voice", 1, "34" * 32, {"state.carry": StateSpec((512, 1024), "float32")})
    row = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)
    memory = remember(large, Snapshot({"state.carry": row}, np.zeros(0, np.int64)), consumed=1, now=1.7e9)
    assert large.state_bytes == row.nbytes == 2 * 1024 * 1024
    with pytest.raises(MemoryTooLarge, match="2,097,"):
        SIGNER.sign(memory, "school")
    signer = TokenSigner([NEW], 4 * 1024 * 1024)
    back = signer.open(signer.sign(memory, "school"), "school", large)
    assert back.snapshot.state["state.carry"].tobytes() == row.tobytes()


def test_signer_refuses_no_keys_and_short_keys():
    with pytest.raises(ValueError, match="at least one"):
        TokenSigner([])
    with pytest.raises(ValueError, match="31 bytes"):
        TokenSigner([NEW, b"k" * 31])
