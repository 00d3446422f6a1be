"""The corpus of answers: skills as ids, and a split that keeps every learner whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from carousel.training.corpus.answers import AnswerCorpus, AnswerFiles, read_answers, skill_names
from carousel.training.errors import CorpusError


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
    assert seen.remarks == (
        "corpus.train: 4 rows without a skill were left out",
        "corpus.train: 8 rows are 8 answers; 0 rows were joined to another of the same order_id",
    )
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


HEADER = "user_id,order_id,skill_name,correct\n"


def remark(seen: AnswerCorpus, words: str) -> str:
    """The one remark that has these words in it."""
    (found,) = [remark for remark in seen.remarks if words in remark]
    return found


def test_skills_in_two_spellings_are_one_and_said(tmp_path: Path) -> None:
    text = HEADER + "a,1,33,1\na,2,33.0,1\nb,1,33.,0\nb,2,4,0\n"
    seen = corpus(tmp_path / "a.csv", text, kind="rows", validation_fraction=0.5)
    assert seen.codec.skill_count == 34
    assert sorted(history.tolist() for history in [*seen.train, *seen.validation]) == [[66, 8], [67, 67]]
    assert remark(seen, "in one spelling") == (
        "corpus: skills are read in one spelling, 2 of them in another: '33.' as '33', '33.0' as '33'"
    )


def test_skills_composed_otherwise_are_one(tmp_path: Path) -> None:
    text = HEADER + "a,1,Caf\u00e9,1\na,2,Cafe\u0301,1\nb,1,Caf\u00e9 & x,1\nb,2,x,1\n"
    seen = corpus(tmp_path / "a.csv", text, kind="rows", skill_separator=" & ")
    assert seen.codec.skills == ("Caf\u00e9", "Caf\u00e9 & x", "x")


@pytest.mark.parametrize(
    ("skills", "told"),
    [
        (["033", "33"], "'033' and '33'"),
        (["33.5", "33", "33.0"], "'33' and '33.0'"),
        (["Area", "area", "AREA "], "'AREA' and 'Area' and 'area'"),
        (["Word-problems", "Word problems"], "'Word problems' and 'Word-problems'"),
        (["Area", "Ar\u00adea", "Area\u200b"], "'Area' and 'Area\\u200b' and 'Ar\\xadea'"),
        (['"33,0"', "33"], "'33' and '33,0'"),
        (["\u2460", "1"], "'1' and '\u2460'"),
    ],
)
def test_skills_that_only_look_alike_are_kept_apart_and_said(tmp_path: Path, skills: list[str], told: str) -> None:
    text = HEADER + "".join(f"{user},{order},{skill},1\n" for user in "ab" for order, skill in enumerate(skills))
    seen = corpus(tmp_path / "a.csv", text, kind="rows")
    assert seen.codec.skills == tuple(sorted(skill.strip('" ') for skill in skills))
    assert f"kept apart, 1 groups: {told};" in remark(seen, "look alike")


def test_three_lines_and_pykt_spell_skills_alike_too(tmp_path: Path) -> None:
    seen = corpus(tmp_path / "a.csv", "2\n3,3.0\n1,0\n2\n1,2\n1,1\n")
    assert seen.codec.skill_count == 4
    assert remark(seen, "in one spelling")
    text = 'uid,concepts,responses\n1,"3,3.0_1","1,0"\n1.0,3,1\n2,"1,2","0,1"\n'
    seen = corpus(tmp_path / "b.csv", text, kind="pykt")
    assert sorted(history.tolist() for history in [*seen.train, *seen.validation]) == [[0, 5], [7, 2, 7]]
    assert seen.codec.skills == ("1", "1 & 3", "2", "3")
    assert remark(seen, "learners are read in one spelling") == (
        "corpus.train: learners are read in one spelling, 1 of them in another: '1.0' as '1'"
    )


def test_missing_values_and_names_like_combinations_are_said(tmp_path: Path) -> None:
    seen = corpus(tmp_path / "a.csv", HEADER + "a,1,NaN,1\na,2,x & y,1\na,3,x,0\na,3,y,0\nb,1,x,1\n", kind="rows")
    assert remark(seen, "NaN").startswith("corpus: 1 answers are at a skill called 'NaN', kept as a name;")
    seen = corpus(tmp_path / "b.csv", HEADER + "a,1,-,1\na,1,y,1\na,3,NULL,0\na,4,x,0\nb,1,x,1\n", kind="rows")
    assert remark(seen, "NULL").startswith("corpus: 2 answers are at a skill called '-' or 'NULL', kept as a name;")
    seen = corpus(tmp_path / "a.csv", HEADER + "a,1,NaN,1\na,2,x & y,1\na,3,x,0\na,3,y,0\nb,1,x,1\n", kind="rows")
    assert remark(seen, "one skill here").startswith("corpus: skill 'x & y' is a name, and what answers that took both")


def test_learner_in_both_halves_is_found_in_another_spelling(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(HEADER + "7.0,1,x,1\n")
    with pytest.raises(CorpusError, match=r"^learner '7' is both in corpus\.train and in corpus\.validation"):
        corpus(tmp_path / "a.csv", HEADER + "7,1,x,1\nc,2,x,1\n", kind="rows", validation=str(tmp_path / "b.csv"))


def test_file_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    one.write_text(three_lines(4))
    other.write_bytes(gzip.compress(three_lines(4).encode()))
    with pytest.raises(CorpusError, match=r"^corpus\.train: .*b\.csv\.gz holds what .*a\.csv holds, byte for byte"):
        read_answers(AnswerFiles(train=[str(one), str(other)]), 0)
    with pytest.raises(CorpusError, match=r"^corpus\.validation: .*b\.csv\.gz holds what .*a\.csv of corpus\.train"):
        read_answers(AnswerFiles(train=[str(one)], validation=[str(other)]), 0)


def test_history_that_is_in_both_halves_is_said(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    skills, answers = (",".join(map(str, random.integers(0, most, 25))) for most in (9, 2))
    long = [f"25\n{skills}\n{answers}\n"] * 2
    seen = corpus(tmp_path / "a.csv", "".join(long), validation_fraction=0.5)
    assert remark(seen, "attempt for attempt").startswith("corpus: 1 of the 1 validation learners have a history of 20")
    alike = f"25\n{','.join('1' * 25)}\n{','.join('1' * 25)}\n" * 4  # nobody is known by making no mistake
    assert corpus(tmp_path / "b.csv", alike).remarks == ()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("three-line", "1\n1\n1\n2\n1,1\n1,0\n"),
        ("rows", HEADER + "a,1,1,1\nb,1,1,1\nb,2,1,0\n"),
        ("pykt", 'uid,concepts,responses\na,1,1\nb,"1,1","1,0"\n'),
    ],
)
def test_files_of_answers_may_begin_with_a_byte_order_mark(tmp_path: Path, kind: str, text: str) -> None:
    for content in (text, "\ufeff" + text, "\ufeff" + text.replace("\n", "\r\n"), text.replace("\n", "\r")):
        (tmp_path / "a.csv").write_bytes(content.encode())
        seen = read_answers(AnswerFiles(kind=kind, train=str(tmp_path / "a.csv")), 0)
        assert sorted(history.tolist() for history in [*seen.train, *seen.validation]) == [[3], [3, 2]]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"skill": "correct"}, "correct and skill are both column 'correct'"),
        ({"order": "user_id"}, "order and user are both column 'user_id'"),
        ({"answer": "user_id"}, "answer and user are both column 'user_id'"),
        ({"answer": "skill_name"}, "answer and skill are both column 'skill_name'"),
    ],
)
def test_one_column_does_not_stand_for_two(tmp_path: Path, columns: dict[str, str], sentence: str) -> None:
    """A skill that is the answer itself would be foretold without a fault."""
    with pytest.raises(ValueError, match=sentence):
        corpus(tmp_path / "a.csv", HEADER + "a,1,x,1\nb,1,x,0\n", kind="rows", **columns)
    corpus(tmp_path / "a.csv", HEADER + "a,1,x,1\nb,1,x,0\n", kind="rows", answer="order_id")
