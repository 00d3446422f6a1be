"""What may name a session."""

import pytest

from carousel.service.sessions.errors import InvalidSessionId
from carousel.service.sessions.key import SessionKey


@pytest.mark.parametrize("session", ["a", "0", "_", "-", "A.b_c-9", "...", "x" * 128])
def test_session_id_of_allowed_characters_is_taken(session):
    assert SessionKey("school", "tutor", session).session == session


@pytest.mark.parametrize(
    "session", ["", ".", "..", "x" * 129, "x" * 10_240, "../etc", "a/b", "a\\b", "a b", "a\n", "a\0", "é", "a%2f"]
)
def test_session_id_of_other_characters_is_refused_in_one_short_sentence(session):
    with pytest.raises(InvalidSessionId) as error:
        SessionKey("school", "tutor", session)
    message = str(error.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 300
    assert "1 to 128" in message
    assert error.value.status == 422


def test_session_id_that_is_too_long_is_told_its_length():
    with pytest.raises(InvalidSessionId, match="10,240 characters"):
        SessionKey("school", "tutor", "x" * 10_240)


def test_key_digest_tells_tenant_model_and_id_apart():
    keys = [("a", "m", "s"), ("b", "m", "s"), ("a", "n", "s"), ("a", "m", "t"), ("a\0m", "s", "t"), ("", "am", "s")]
    assert len({SessionKey(*key).digest for key in keys}) == len(keys)


def test_key_digest_does_not_show_the_id():
    assert "learner" not in SessionKey("school", "tutor", "learner").digest
