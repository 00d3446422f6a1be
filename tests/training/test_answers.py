"""The corpus of answers: skills as ids, and a split that keeps every learner whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from training.corpus.answers import AnswerCorpus, read_answers, skill_names
from training.errors import CorpusError
from training.sections import AnswerFiles


def three_lines(learners: int) -> str:
    """Learner l answers 3 + l attempts at skill l + 1: a history tells whose it is."""
    return "".join(f"{3 + i}\n{','.join([str(i + 1)] * (3 + i))}\n{','.join('1' * (3 + i))}\n" for i in range(learners))


def corpus(path: Path, text: str, seed: int = 0, **settings: object) -> AnswerCorpus:
    path.write_text(text)
    return read_answers(AnswerFiles(train=str(path), **settings), seed)


def skills_of(histories) -> list[int]:
    return [int(history[0]) >> 1 for history in histories]


def test_answers_are_split_by_learner(tmp_path: Path) -> None:
    seen = corpus(tmp_path / "a.csv", three_lines(20), validation_fraction=0.3)
    assert (len(seen.train), len(seen.validation)) == (14, 6)
    assert sorted(skills_of(seen.train) + skills_of(seen.validation)) == list(range(1, 21))
    for history in [*seen.train, *seen.validation]:
        skill = int(history[0]) >> 1
        assert history.tolist() == [2 * skill + 1] * (2 + skill)  # whole


def test_split_is_the_seeds(tmp_path: Path) -> None:
    def held_out(seed: int) -> list[int]:
        return skills_of(corpus(tmp_path / "a.csv", three_lines(20), seed).validation)

    assert held_out(1) == held_out(1)
    assert len({tuple(held_out(seed)) for seed in range(5)}) > 1


def test_answers_of_a_validation_file_are_all_held_out(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("2\n1,9\n1,0\n")
    seen = corpus(tmp_path / "a.csv", three_lines(4), validation=str(tmp_path / "b.csv"))
    assert len(seen.train) == 4
    assert [history.tolist() for history in seen.validation] == [[3, 18]]
    assert seen.codec.skill_count == 10
    assert seen.sha256 != seen.validation_sha256


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    parts = three_lines(6).splitlines(keepends=True)
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("".join(parts[:9]))
    (tmp_path / "b.csv").write_text("".join(parts[9:]))
    whole = corpus(tmp_path / "whole.csv", three_lines(6))
    paths = [str(tmp_path / "a.csv.gz"), str(tmp_path / "b.csv")]
    seen = read_answers(AnswerFiles(train=paths), 0)
    assert [history.tolist() for history in seen.train] == [history.tolist() for history in whole.train]
    assert seen.sha256 != whole.sha256
    assert seen.sha256 == read_answers(AnswerFiles(train=paths), 1).sha256


def test_skills_that_are_numbers_keep_them_as_ids() -> None:
    assert skill_names(["3", "0", "3"]) == ["0", "1", "2", "3"]
    assert skill_names(["12", "2"])[12] == "12"


@pytest.mark.parametrize("names", [["2", "area"], ["02", "3"], ["-1", "3"], ["2 & 3", "2"], ["10000", "2"]])
def test_skills_that_are_names_are_sorted(names: list[str]) -> None:
    assert skill_names([*names, *names]) == sorted(names)


def test_rows_name_their_skills_and_say_what_was_left_out(tmp_path: Path) -> None:
    text = "user_id,order_id,skill_name,correct\n" + "".join(
        f"{user},{order},{skill},1\n" for user in "abcd" for order, skill in enumerate(["Area", "", "Mean"])
    )
    seen = corpus(tmp_path / "a.csv", text, kind="rows")
    assert seen.codec.skills == ("Area", "Mean")
    assert seen.remarks == ("corpus.train: 4 rows without a skill were left out",)
    assert all(history.tolist() == [1, 3] for history in [*seen.train, *seen.validation])


def test_generated_learners_are_split_too() -> None:
    seen = read_answers(AnswerFiles(kind="generated", learners=30, validation_fraction=0.2), 0)
    assert (len(seen.train), len(seen.validation)) == (24, 6)
    other = read_answers(AnswerFiles(kind="generated", learners=30, validation_fraction=0.2, seed=9), 0)
    assert seen.sha256 != other.sha256
    assert not np.array_equal(seen.train[0], other.train[0])


def test_learner_in_both_halves_is_refused(tmp_path: Path) -> None:
    header = "user_id,order_id,skill_name,correct\n"
    (tmp_path / "b.csv").write_text(header + "c,1,x,1\n")
    with pytest.raises(CorpusError, match=r"^learner 'c' is both in corpus\.train and in corpus\.validation"):
        corpus(tmp_path / "a.csv", header + "b,1,x,1\nc,2,x,1\n", kind="rows", validation=str(tmp_path / "b.csv"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0\n\n\n", "holds no learner with an answer"),
        ("", "is empty; there is nothing in it to learn from"),
        (three_lines(1), "the corpus has learners: 1; at least one to learn from and one to be measured on"),
        ("1\n" + "x" * 501 + "\n1\n" + three_lines(3), "the name of skill 3 has 501 characters"),
    ],
)
def test_answers_that_cannot_be_used_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(CorpusError, match=sentence):
        corpus(tmp_path / "a.csv", text)
