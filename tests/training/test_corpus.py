"""Texts that can be trained on, and those that cannot."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from carousel.training.corpus.text import read_corpus
from carousel.training.errors import CorpusError


def test_corpus_reads_plain_and_gzipped_texts_alike(tmp_path: Path) -> None:
    text = "to be, or not: é\n\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    corpus = read_corpus(str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz"), 0.1)
    assert corpus.train == corpus.validation == text
    assert corpus.sha256 == corpus.validation_sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "text", "ends"),
    [
        ("a\r\nb\r\n\r\nc", "a\nb\n\nc", "3 CR LF"),
        ("a\rb\r\rc", "a\nb\n\nc", "3 lone CR"),
        ("a\r\r\nb\nc\u2028", "a\n\nb\nc\u2028", "1 CR LF and 1 lone CR"),
    ],
)
def test_corpus_reads_line_ends_as_lf_unless_they_are_kept(tmp_path: Path, content: str, text: str, ends: str) -> None:
    (tmp_path / "a.txt").write_bytes(content.encode())
    (tmp_path / "b.txt").write_bytes(b"x\r\n")
    paths = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    corpus = read_corpus(*paths, 0.1)
    assert (corpus.train, corpus.validation) == (text, "x\n")
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()  # a run that learnt the others is not resumed
    assert corpus.remarks == (
        f'corpus.train: line ends, {ends}, are read as LF; corpus.line_ends = "keep" keeps them',
        'corpus.validation: line ends, 1 CR LF, are read as LF; corpus.line_ends = "keep" keeps them',
    )
    kept = read_corpus(*paths, 0.1, keep_line_ends=True)
    assert (kept.train, kept.validation) == (content, "x\r\n")
    assert kept.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert kept.remarks[0] == f"corpus.train: line ends are learnt as they stand, {ends}"


def test_corpus_that_is_measured_on_what_it_learns_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("or not to be")
    (tmp_path / "b.txt").write_text("to be\n")
    corpus = read_corpus(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), 0.1)
    assert corpus.remarks == (
        f"corpus.validation: {tmp_path}/b.txt is a part of the learnt text; its figures say nothing",
    )


def test_corpus_without_validation_file_holds_out_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 75 + "x" * 25)
    corpus = read_corpus(str(tmp_path / "a.txt"), "", 0.25)
    assert (corpus.train, corpus.validation) == ("é" * 75, "x" * 25)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.txt", None, "corpus.train: there is no file .*none.txt; paths are relative to the current directory"),
        ("empty.txt", b"", "corpus.train: .*empty.txt is empty"),
        ("empty.gz", gzip.compress(b"", mtime=0), "corpus.train: .*empty.gz is empty"),
        ("latin.txt", b"caf\xe9 noir", r"corpus.train: .*latin.txt is not UTF-8 at byte offset 3 \(0xe9\)"),
        ("cut.txt", "é".encode()[:1], r"is not UTF-8 at byte offset 0 \(0xc3\)"),
        ("wide.txt", "text".encode("utf-16"), r"corpus.train: .*wide.txt is UTF-16; save it as UTF-8$"),
        ("late.txt", b"x" * 1234 + b"\xff", r"is not UTF-8 at byte offset 1,234 \(0xff\)"),
        ("plain.gz", b"plain", "plain.gz is not a whole gzip file"),
        ("short.gz", gzip.compress(b"some text" * 50, mtime=0)[:-9], "short.gz is not a whole gzip file"),
    ],
)
def test_corpus_refuses_in_one_sentence(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=sentence) as caught:
        read_corpus(str(tmp_path / name), "", 0.1)
    assert "\n" not in str(caught.value)


def test_corpus_names_the_validation_file_where_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    with pytest.raises(CorpusError, match=r"^corpus\.validation: there is no file"):
        read_corpus(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), 0.1)


def test_corpus_refuses_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"cannot be read \(Is a directory\)"):
        read_corpus(str(tmp_path), "", 0.1)


def test_corpus_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfto be")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfor not", mtime=0))
    corpus = read_corpus(str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz"), 0.1)
    assert (corpus.train, corpus.validation, corpus.remarks) == ("to be", "or not", ())
