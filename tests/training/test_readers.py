"""Files of answers: what they hold, one sentence for what they should not, and no answer that predicts itself."""

from __future__ import annotations

import numpy as np
import pytest

from models.tracing_score import auc
from training.corpus.pykt import read_pykt
from training.corpus.rows import Columns, read_rows
from training.corpus.three_line import read_three_line
from training.corpus.transcript import Transcript
from training.errors import CorpusError

ASSISTMENTS = Columns("user_id", "order_id", "skill_name", "correct")


def test_three_line_format_is_read() -> None:
    text = "3\n12,7,12\n0,1,1\n0\n\n\n1\nArea of circles,\n1,\n"
    assert read_three_line(text, "f") == [
        Transcript("", ["12", "7", "12"], [False, True, True]),
        Transcript("", ["Area of circles"], [True]),
    ]


def test_three_line_format_may_end_with_an_empty_learner_or_lines() -> None:
    expected = [Transcript("", ["5"], [True])]
    assert read_three_line("1\n5\n1\n0\n\n\n", "f") == expected
    assert read_three_line("1\r\n5\r\n1\r\n\r\n", "f") == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2\n5,6\n1,1\n3\n", "f: has 4 lines; allowed are three for each learner"),
        ("two\n5,6\n1,1\n", "f, line 1: is 'two'; allowed is a number of answers"),
        ("2\n5\n1,1\n", "f, line 2: has 1 skills; line 1 says 2"),
        ("1\n5\n1\n2\n5,6\n1\n", "f, line 6: has 1 answers; line 4 says 2"),
        ("2\n5,\n1,1\n", "f, line 2: has 1 skills; line 1 says 2"),
        ("2\n,5\n1,1\n", "f, line 2: skill 1 is empty; allowed is a name or id"),
        ("2\n5,6\n1,2\n", "f, line 3: correct is '2'; allowed are 0 and 1"),
        ("2\n5,6\n1,0.5\n", "f, line 3: correct is '0.5'; allowed are 0 and 1"),
    ],
)
def test_three_line_format_that_is_broken_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read_three_line(text, "f")
    assert str(caught.value) == sentence


def test_rows_are_ordered_within_each_learner() -> None:
    text = (
        "order_id,user_id,skill_name,correct,hints\n"
        '30,b,Area,1,0\n2,a,"Mean, median",0,1\n1,a,Area,1,0\n10,a,Area,0,2\n4,b,Area,0,0\n'
    )
    learners, skipped = read_rows([("f", text)], ASSISTMENTS)
    assert skipped == 0
    assert learners == [
        Transcript("b", ["Area", "Area"], [False, True]),
        Transcript("a", ["Area", "Mean, median", "Area"], [True, False, False]),
    ]


def test_rows_of_several_files_are_one_learners() -> None:
    files = [
        ("f", "user_id,order_id,skill_name,correct\na,7,x,1\n"),
        ("g", "correct,skill_name,order_id,user_id\n0,y,3,a\n"),
    ]
    assert read_rows(files, ASSISTMENTS)[0] == [Transcript("a", ["y", "x"], [False, True])]


def test_rows_of_one_order_are_one_attempt_at_a_combined_skill() -> None:
    text = "user_id,order_id,skill_name,correct\na,1,y,1\na,2,z,0\na,1,x,1\na,1,y,1\nb,1,x,0\n"
    assert read_rows([("f", text)], ASSISTMENTS)[0] == [
        Transcript("a", ["x & y", "z"], [True, False]),
        Transcript("b", ["x"], [False]),
    ]


def test_rows_take_other_columns_and_lists_of_skills() -> None:
    text = "who,when,what,right\na,2017.5,9~~4,true\na,2016,4,FALSE\n"
    columns = Columns("who", "when", "what", "right", "~~")
    assert read_rows([("f", text)], columns)[0] == [Transcript("a", ["4", "4 & 9"], [False, True])]


def test_rows_without_a_skill_are_left_out_and_counted() -> None:
    text = "user_id,order_id,skill_name,correct\na,1,,1\na,2,x,1\na,3, ,0\n"
    assert read_rows([("f", text)], ASSISTMENTS) == ([Transcript("a", ["x"], [True])], 2)


def test_answer_that_took_several_skills_does_not_predict_itself() -> None:
    """Coins are tossed, and each toss is written down under two skills: nothing in the past tells the next."""
    random = np.random.default_rng(0)
    lines = ["user_id,order_id,skill_name,correct"]
    for user in range(40):
        for order in range(50):
            toss = int(random.random() < 0.5)
            lines += [f"{user},{order},heads,{toss}", f"{user},{order},tails,{toss}"]
    learners, _ = read_rows([("f", "\n".join(lines))], ASSISTMENTS)

    def like_the_last(histories: list[list[bool]]) -> float:
        last = np.concatenate([history[:-1] for history in histories]).astype(float)
        return auc(last, np.concatenate([history[1:] for history in histories]).astype(bool))

    as_written = [[line.endswith("1") for line in lines[1:] if line.startswith(f"{user},")] for user in range(40)]
    assert like_the_last(as_written) > 0.7  # the leak: every second row is foretold by the one before
    assert [len(learner.correct) for learner in learners] == [50] * 40
    assert like_the_last([learner.correct for learner in learners]) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("user_id,skill_name,correct\n", "f: has no column 'order_id'; its columns are user_id, skill_name, correct"),
        ("user_id,order_id,skill_name,correct\n1,2,x\n", "f, line 2: has not as many cells as the header, 4"),
        ("user_id,order_id,skill_name,correct\n1,2,x,1,9\n", "f, line 2: has not as many cells as the header, 4"),
        ("user_id,order_id,skill_name,correct\n ,2,x,1\n", "f, line 2: user_id is empty; allowed is what tells"),
        ("user_id,order_id,skill_name,correct\n1,b,x,1\n", "f, line 2: order_id is 'b'; allowed is a number"),
        ("user_id,order_id,skill_name,correct\n1,nan,x,1\n", "f, line 2: order_id is 'nan'; allowed is a number"),
        ("user_id,order_id,skill_name,correct\n1,2,x,0.25\n", "f, line 2: correct is '0.25'; allowed are 0 and 1"),
        ('user_id,order_id,skill_name,correct\n1,2,"x,1\n', "f, line 2: is not CSV ("),
        (
            "user_id,order_id,skill_name,correct\n1,2,x,1\n1,2,y,0\n",
            "f, line 3: learner '1' has order 2 both right and wrong (the other is in f, line 2)",
        ),
    ],
)
def test_rows_that_are_broken_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read_rows([("f", text)], ASSISTMENTS)
    assert str(caught.value).startswith(sentence)


def test_pykt_files_are_read() -> None:
    text = 'fold,uid,concepts,responses\n0,16,"19,7_12,19","0,1,0"\n1,5,3,1\n'
    assert read_pykt([("f", text)]) == [
        Transcript("16", ["19", "12 & 7", "19"], [False, True, False]),
        Transcript("5", ["3"], [True]),
    ]


def test_pykt_pieces_of_a_learner_are_joined_and_their_padding_is_no_answer() -> None:
    text = 'uid,concepts,responses,selectmasks\n5,"3,4","1,0","1,1"\n6,2,1,1\n5,"4,-1","1,-1","1,-1"\n'
    assert read_pykt([("f", text)]) == [
        Transcript("5", ["3", "4", "4"], [True, False, True]),
        Transcript("6", ["2"], [True]),
    ]


def test_pykt_repeats_are_one_answer() -> None:
    text = 'uid,concepts,responses,is_repeat\n5,"3,4,9,4","1,0,0,1","0,0,1,0"\n'
    assert read_pykt([("f", text)]) == [Transcript("5", ["3", "4 & 9", "4"], [True, False, True])]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('uid,concepts\n5,"3,4"\n', "f: has no column 'responses'; its columns are uid, concepts"),
        (
            'uid,concepts,responses\n5,"3,4",1\n',
            "f, line 2: lists of one row differ in length (concepts 2, responses 1)",
        ),
        (
            'uid,concepts,responses\n5,"3,",1\n',
            "f, line 2: lists of one row differ in length (concepts 2, responses 1)",
        ),
        ('uid,concepts,responses\n5,"3_,4","1,1"\n', "f, line 2: a concept is '3_'; allowed is an id"),
        ("uid,concepts,responses\n5,3,2\n", "f, line 2: correct is '2'; allowed are 0 and 1"),
        ('uid,concepts,responses,is_repeat\n5,"3,4","1,0","0,1"\n', "f, line 2: a repeated entry is right where"),
    ],
)
def test_pykt_files_that_are_broken_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read_pykt([("f", text)])
    assert str(caught.value).startswith(sentence)
