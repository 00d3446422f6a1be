import hashlib
from pathlib import Path

import pytest

from carousel.service.keys.key_file import Key, KeyFileError, Limits, digest_of, key_line, new_key, read_keys

PATH = Path("keys")
ONE, TWO = ("ab" * 32, "cd" * 32)


def test_key_is_fresh_and_nothing_that_a_header_or_a_subprotocol_cannot_hold():
    keys = {new_key() for _ in range(1_000)}
    assert len(keys) == 1_000
    assert all(key.startswith("carousel_") and len(key) == 52 for key in keys)
    assert all(char.isascii() and (char.isalnum() or char in "_-") for key in keys for char in key)


def test_line_of_a_key_is_read_as_that_key_and_does_not_hold_it():
    key = new_key()
    line = key_line("ada", "school", key)
    assert key not in line
    assert read_keys(PATH, line.encode()) == [Key("ada", "school", hashlib.sha256(key.encode()).digest())]
    assert digest_of(key.encode()) == hashlib.sha256(key.encode()).digest()


def test_file_is_read_with_comments_blanks_and_limits():
    content = (
        f"# who\n\n  ada school {ONE}\r\n"
        f"bob\tschool  {TWO}  burst=40 requests_per_second=0.5 tokens_per_day=2e6 tokens_per_minute=60_000\n"
    )
    assert read_keys(PATH, content.encode()) == [
        Key("ada", "school", bytes.fromhex(ONE)),
        Key("bob", "school", bytes.fromhex(TWO), Limits(0.5, 40, 60_000, 2_000_000)),
    ]
    assert read_keys(PATH, b"") == []


@pytest.mark.parametrize(
    "content",
    [
        f"\ufeffada school {ONE}\n",
        f"\ufeff# who\r\n\r\nada school {ONE}\r\n",
        f"# who\n\ufeffada school {ONE}",  # two files, one behind the other
        f"ada school {ONE} # since May",
        f"ada school {ONE}\t#since May requests_per_second=0",
        f"\ufeff   # nothing else\nada school {ONE} #",
    ],
)
def test_byte_order_mark_and_comments_behind_a_key_mean_nothing(content):
    assert read_keys(PATH, content.encode()) == [Key("ada", "school", bytes.fromhex(ONE))]


def test_comment_follows_limits():
    content = f"ada school {ONE} requests_per_second=2 burst=4 # burst=9 \xff caf\u00e9"
    assert read_keys(PATH, content.encode())[0].limits == Limits(2, 4)
    assert read_keys(PATH, content.encode("latin-1"))[0].limits == Limits(2, 4)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_file_in_utf_16_is_refused_by_that_name(encoding):
    with pytest.raises(KeyFileError, match=r"^keys is in UTF-16; allowed is UTF-8"):
        read_keys(PATH, f"\ufeffada school {ONE}".encode(encoding))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ada", "has 1 of the words NAME TENANT SHA256"),
        (f"ada {ONE}", "has 2 of the words"),
        (f"a/b school {ONE}", "name 'a/b' is not 1 to 64"),
        (f"{'x' * 65} school {ONE}", "name 'xxx"),
        (f"ada sch\u00fcle {ONE}", "tenant 'sch\\xfcle' is not"),
        (f"ada school {ONE[1:]}", "the third word has 63 characters"),
        (f"ada school {ONE.upper()}", "no SHA-256"),
        (f"ada school {ONE} burst=4", "burst is given without requests_per_second"),
        (f"ada school {ONE} speed=4", "limit 'speed' is unknown or repeated"),
        (f"ada school {ONE} tokens_per_day=1 tokens_per_day=2", "limit 'tokens_per_day' is unknown or repeated"),
        (f"ada school {ONE} tokens_per_day=0", "tokens_per_day is '0'; allowed are numbers above 0"),
        (f"ada school {ONE} tokens_per_day=nan", "tokens_per_day is 'nan'"),
        (f"ada school {ONE} tokens_per_day=inf", "tokens_per_day is 'inf'"),
        (f"ada school {ONE} tokens_per_day", "tokens_per_day is ''"),
        (f"ada school {ONE} requests_per_second=9 burst=0.5", "burst is '0.5'"),
        (f"ada school {ONE} tokens_per_day=1#9", "tokens_per_day is '1#9'"),
        (f"ada school #{ONE}", "has 2 of the words"),
        (f"ada sch\ufeffool {ONE}", "tenant"),
        (f"first school {ONE}", "the name is that of line 1"),
        (f"ada school {TWO}", "the key is that of line 1"),
        ("\ufffd\0 school x", "is not 1 to 64"),
    ],
)
def test_bad_line_is_refused_in_one_sentence_that_names_it(line, told):
    with pytest.raises(KeyFileError) as error:
        read_keys(PATH, f"first school {TWO}\n# two\n{line}\n".encode())
    message = str(error.value)
    assert message.startswith("keys, line 3: ")
    assert told in message
    assert message.isprintable()
    assert len(message) < 300


def test_key_that_stands_where_its_hash_belongs_is_not_repeated():
    key = new_key()
    with pytest.raises(KeyFileError) as error:
        read_keys(PATH, f"ada school {key}".encode())
    assert key not in str(error.value)
