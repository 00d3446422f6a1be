from pathlib import Path

import pytest

from carousel.service.__main__ import main
from carousel.service.keys.key_file import digest_of, read_keys
from carousel.service.keys.keyring import Keyring


def test_key_command_prints_a_key_once_and_the_line_that_knows_it(tmp_path, capsys):
    assert main(["key", "ada", "--tenant", "school"]) == 0
    told = capsys.readouterr()
    key = told.err.split()[-1]
    assert key not in told.out
    (read,) = read_keys(Path("keys"), told.out.encode())
    assert (read.name, read.tenant, read.digest) == ("ada", "school", digest_of(key.encode()))
    path = tmp_path / "keys"
    path.write_text(told.out)
    assert Keyring(path).find(key.encode()).tenant == "school"


@pytest.mark.parametrize(("name", "tenant"), [("a b", "school"), ("ada", ""), ("#ada", "school")])
def test_key_command_refuses_what_a_line_cannot_hold(capsys, name, tenant):
    assert main(["key", name, "--tenant", tenant]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "is not 1 to 64 of the characters" in told.err


def test_service_with_a_bad_file_of_keys_does_not_start_and_says_the_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "keys"
    path.write_text("# keys\nada school\n")
    monkeypatch.setenv("CAROUSEL_API_KEYS_FILE", str(path))
    assert main([]) == 1
    assert capsys.readouterr().err.startswith(f"{path}, line 2: has 2 of the words NAME TENANT SHA256")
