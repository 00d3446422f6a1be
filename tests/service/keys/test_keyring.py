import logging
import os

import pytest

from carousel.service.errors import RequestError
from carousel.service.keys.key_file import KeyFileError, key_line, new_key
from carousel.service.keys.keyring import LOOK_SECONDS, Keyring

ADA, BOB = new_key(), new_key()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


def line(key, name="ada", tenant="school", limits=""):
    return f"{key_line(name, tenant, key)} {limits}\n"


def write(path, content):
    """As an editor does: another file takes the place of this one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    fresh.rename(path)


@pytest.fixture
def keyring(path, clock):
    write(path, line(ADA) + line(BOB, "bob", "library"))
    return Keyring(path, clock)


def test_keyring_finds_whose_a_key_is(keyring):
    assert len(keyring) == 2
    for key, name, tenant in [(ADA, "ada", "school"), (BOB, "bob", "library")]:
        caller = keyring.find(key.encode())
        assert (caller.name, caller.tenant) == (name, tenant)
        assert keyring.find(key.encode()) is caller


def test_keyring_knows_nothing_but_the_whole_key(keyring):
    for wrong in (b"", ADA[:-1], ADA + "A", ADA.upper(), ADA.removeprefix("carousel_"), new_key(), "\xff" * 60_000):
        assert keyring.find(wrong if isinstance(wrong, bytes) else wrong.encode()) is None


def test_digest_that_is_right_only_where_it_is_looked_up_is_refused(keyring, monkeypatch):
    genuine = bytes(next(iter(keyring._entries.values()))[0].digest)
    for forged in (genuine[:-1] + bytes([genuine[-1] ^ 1]), genuine[:8] + bytes(24)):
        monkeypatch.setattr("carousel.service.keys.keyring.digest_of", lambda _, forged=forged: forged)
        assert keyring.find(b"x") is None
    monkeypatch.setattr("carousel.service.keys.keyring.digest_of", lambda _: genuine)
    assert keyring.find(b"x") is not None


def test_key_that_leaves_the_file_is_revoked_and_one_that_comes_is_known(keyring, path, clock):
    ada, bob, fresh = keyring.find(ADA.encode()), keyring.find(BOB.encode()), new_key()
    write(path, line(BOB, "bob", "library") + line(fresh, "eve"))
    assert keyring.find(ADA.encode()) is ada  # not looked at again so soon
    clock.now += LOOK_SECONDS
    assert keyring.find(ADA.encode()) is None
    assert keyring.find(BOB.encode()) is bob
    assert keyring.find(fresh.encode()).name == "eve"
    with pytest.raises(RequestError, match="revoked") as error:
        ada.admit()
    assert error.value.code == "unknown_key"
    bob.admit()


def test_caller_that_holds_a_socket_open_learns_by_itself_that_its_key_was_revoked(keyring, path, clock):
    ada = keyring.find(ADA.encode())
    write(path, "")
    ada.admit()
    clock.now += LOOK_SECONDS
    with pytest.raises(RequestError, match="revoked"):
        ada.admit()


def test_key_that_changes_hands_is_another_caller(keyring, path, clock):
    ada = keyring.find(ADA.encode())
    write(path, line(ADA, tenant="library"))
    clock.now += LOOK_SECONDS
    assert keyring.find(ADA.encode()).tenant == "library"
    assert ada.revoked
    assert ada.tenant == "school"


def test_limits_change_without_forgetting_what_was_used(path, clock):
    write(path, line(ADA, limits="tokens_per_minute=60"))
    keyring = Keyring(path, clock)
    ada = keyring.find(ADA.encode())
    ada.spend(70)
    write(path, line(ADA, limits="tokens_per_minute=120 requests_per_second=1"))
    clock.now += LOOK_SECONDS
    assert keyring.find(ADA.encode()) is ada
    ada.spend(52)  # 50 - 52, and what the second that went by gives back
    with pytest.raises(RequestError) as error:
        ada.admit()
    assert (error.value.code, error.value.retry_after_seconds) == ("quota_exceeded", 1)
    write(path, line(ADA))
    clock.now += LOOK_SECONDS
    ada.admit()


@pytest.mark.parametrize("content", [None, "nonsense\n"])
def test_file_that_turns_bad_changes_nothing_and_is_logged_once(keyring, path, clock, caplog, content):
    if content is None:
        path.unlink()
    else:
        write(path, content)
    with caplog.at_level(logging.INFO, "carousel.keys"):
        for _ in range(3):
            clock.now += LOOK_SECONDS
            assert keyring.find(ADA.encode()) is not None
        write(path, line(BOB))
        clock.now += LOOK_SECONDS
        assert keyring.find(ADA.encode()) is None
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_file_that_is_written_in_place_is_read_again(keyring, path, clock):
    status = os.stat(path)
    path.write_text(line(BOB) + "#" * 20)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    clock.now += LOOK_SECONDS
    assert keyring.find(ADA.encode()) is None


@pytest.mark.parametrize(("content", "error"), [(None, OSError), ("ada\n", KeyFileError)])
def test_file_that_is_bad_at_the_start_is_refused(path, content, error):
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match="keys"):
        Keyring(path)
