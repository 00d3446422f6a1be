"""Files of answers: what they hold, one sentence for what they should not, and no answer that predicts itself."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.models.tracing_score import auc
from carousel.training.corpus.pykt import read_pykt
from carousel.training.corpus.rows import Columns, read_rows
from carousel.training.corpus.three_line import read_three_line
from carousel.training.corpus.transcript import Transcript
from carousel.training.errors import CorpusError

ASSISTMENTS = Columns("user_id", "order_id", "skill_name", "correct")


def test_three_line_format_is_read() -> None:
    text = "3\n12,7,12\n0,1,1\n0\n\n\n1\nArea of circles,\n1,\n"
    assert read_three_line(text, "f") == [
        Transcript("", [("12",), ("7",), ("12",)], [False, True, True]),
        Transcript("", [("Area of circles",)], [True]),
    ]


def test_three_line_format_may_end_with_an_empty_learner_or_lines() -> None:
    expected = [Transcript("", [("5",)], [True])]
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
    assert read_rows([("f", text)], ASSISTMENTS).learners == [
        Transcript("b", [("Area",), ("Area",)], [False, True]),
        Transcript("a", [("Area",), ("Mean, median",), ("Area",)], [True, False, False]),
    ]


def test_rows_of_several_files_are_one_learners() -> None:
    files = [
        ("f", "user_id,order_id,skill_name,correct\na,7,x,1\n"),
        ("g", "correct,skill_name,order_id,user_id\n0,y,3,a\n"),
    ]
    assert read_rows(files, ASSISTMENTS).learners == [Transcript("a", [("y",), ("x",)], [False, True])]


def test_rows_of_one_order_are_one_attempt_at_a_combined_skill() -> None:
    text = "user_id,order_id,skill_name,correct\na,1,y,1\na,2,z,0\na,1,x,1\na,1,y,1\nb,1,x,0\n"
    assert read_rows([("f", text)], ASSISTMENTS).learners == [
        Transcript("a", [("x", "y"), ("z",)], [True, False]),
        Transcript("b", [("x",)], [False]),
    ]


def test_rows_take_other_columns_and_lists_of_skills() -> None:
    text = "who,when,what,right\na,2017.5,9~~4,true\na,2016,4,FALSE\n"
    columns = Columns("who", "when", "what", "right", "~~")
    assert read_rows([("f", text)], columns).learners == [Transcript("a", [("4",), ("4", "9")], [False, True])]


def test_rows_without_a_skill_are_left_out_and_counted() -> None:
    text = "user_id,order_id,skill_name,correct\na,1,,1\na,2,x,1\na,3, ,0\n"
    reading = read_rows([("f", text)], ASSISTMENTS)
    assert reading.learners == [Transcript("a", [("x",)], [True])]
    assert reading.remarks[0] == "2 rows without a skill were left out"


def test_answer_that_took_several_skills_does_not_predict_itself() -> None:
    """Coins are tossed, and each toss is written down under two skills: nothing in the past tells the next."""
    random = np.random.default_rng(0)
    lines = ["user_id,order_id,skill_name,correct"]
    for user in range(40):
        for order in range(50):
            toss = int(random.random() < 0.5)
            lines += [f"{user},{order},heads,{toss}", f"{user},{order},tails,{toss}"]
    learners = read_rows([("f", "\n".join(lines))], ASSISTMENTS).learners

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
        (
            "user_id,skill_name,correct\n",
            "f: has no column 'order_id'; its columns are 'user_id', 'skill_name', 'correct'",
        ),
        ("user_id, order_id\n", "f: has no column 'order_id'; its columns are 'user_id', ' order_id'"),
        ("user_id;order_id\n", "f: has no column 'user_id'; its columns are 'user_id;order_id'; cells are to be sepa"),
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


ROWS = "user_id,order_id,skill_name,correct\n"


@pytest.mark.parametrize(
    "orders",
    [
        ["1789012345678901248", "1789012345678901249", "1789012345678901250", "1789012345678901251"],
        ["0.12345678901234567890", "0.12345678901234567891", ".12345678901234567892", "12345678901234567893e-20"],
        ["-3", "-2.5", "0", "1E2"],
        ["20170301T000000.5", "2017-03-01 00:00:01.25", "2017-03-01T000001.5", "2017-W09-3 00:00:02.0"],
        ["2017-03-01", "2017-03-01 00:00:00.000000001", "2017-03-01T00:00:00.000000002", "2017-03-01 00:01"],
        ["1969-12-31 23:59:59.5", "1969-12-31 23:59:59.75", "1970-01-01", "1970-01-01 00:00:00.25"],
        [
            "2017-03-01T12:00:00+02:00", "2017-03-01T10:30:00Z", "2017-03-01 11:00:00 UTC",
            "2017-03-01 09:00:00.5 -0300",
        ],
    ],
)  # fmt: skip
def test_orders_compare_exactly(orders: list[str]) -> None:
    rows = [f"a,{order},s{place},{place % 2}\n" for place, order in enumerate(orders)]
    learners = read_rows([("f", ROWS + "".join(reversed(rows)))], ASSISTMENTS).learners
    assert learners == [Transcript("a", [("s0",), ("s1",), ("s2",), ("s3",)], [False, True, False, True])]


def test_orders_that_are_equal_however_written_are_one_answer() -> None:
    for one, other in [("7", "7.0"), ("1e3", "1000"), ("2017-03-01", "2017-03-01 00:00:00"),
                       ("2017-03-01T12:00+01:00", "2017-03-01T11:00Z")]:  # fmt: skip
        reading = read_rows([("f", ROWS + f"a,{one},x,1\na,{other},y,1\n")], ASSISTMENTS)
        assert reading.learners == [Transcript("a", [("x", "y")], [True])]
        assert reading.remarks == ("2 rows are 1 answers; 1 rows were joined to another of the same order_id",)


@pytest.mark.parametrize(
    ("orders", "sentence"),
    [
        (["1,234"], "order_id is '1,234'; allowed is a number, or a date and time as in 2017-03-01 09:30:00"),
        (["1_000"], "order_id is '1_000'; allowed is a number"),
        (["\u0663"], "order_id is '\u0663'; allowed is a number"),
        (["inf"], "order_id is 'inf'; allowed is a number"),
        (["1e99999999999999999999"], "order_id is '1e99999999999999999999'; allowed is a number"),
        ([""], "order_id is ''; allowed is a number"),
        (["3/1/2017 9:30"], "order_id is '3/1/2017 9:30'; allowed is a number"),
        (["2017-03-01 09:30.5"], "order_id is '2017-03-01 09:30.5'; allowed is a number"),  # minutes and a half
        (["2017-03-01T09,5"], "order_id is '2017-03-01T09,5'; allowed is a number"),
        (["2017-13-01"], "order_id is '2017-13-01'; allowed is a number"),
        (["7", "2017-03-01"], "order_id is '2017-03-01', a time without a zone, but in f, line 2 it is a number;"),
        (["2017-03-01", "2017-03-01Z"], "order_id is '2017-03-01Z'; allowed is a number"),
        (["2017-03-01", "2017-03-01T00:00Z"], "order_id is '2017-03-01T00:00Z', a time with a zone, but in f, line 2"),
    ],
)
def test_orders_that_do_not_compare_are_refused(orders: list[str], sentence: str) -> None:
    text = ROWS + "".join(f'a,"{order}",x,1\n' for order in orders)
    with pytest.raises(CorpusError) as caught:
        read_rows([("f", text)], ASSISTMENTS)
    assert str(caught.value).startswith(f"f, line {len(orders) + 1}: {sentence}")


def test_order_both_right_and_wrong_is_shown_as_written_with_a_way_on() -> None:
    with pytest.raises(CorpusError) as caught:
        read_rows([("f", ROWS + "a,1567140000123,x,1\na,1567140000123,y,0\n")], ASSISTMENTS)
    assert "learner 'a' has order 1567140000123 both right and wrong (the other is in f, line 2)" in str(caught.value)
    assert "corpus.answer" in str(caught.value)
    assert "corpus.ties = 'file'" in str(caught.value)


def test_ties_in_the_files_order_are_answers_of_their_own() -> None:
    columns = Columns("user_id", "order_id", "skill_name", "correct", ties="file")
    reading = read_rows([("f", ROWS + "a,5,y,1\na,5,x,0\na,4,z,1\na,5,y,1\n")], columns)
    assert reading.learners == [Transcript("a", [("z",), ("y",), ("x",), ("y",)], [True, True, False, True])]
    assert reading.remarks == (
        "4 rows are 4 answers",
        "2 answers have the order_id of the one before; they stand in the file's order",
    )


ANSWERS = Columns("user_id", "order_id", "skill_name", "correct", answer="answer_id")
ANSWER_ROWS = "user_id,order_id,answer_id,skill_name,correct\n"


def test_answer_column_says_which_rows_are_one_answer() -> None:
    text = ANSWER_ROWS + "a,5,p,y,1\na,5,q,x,0\na,5,p.,x,1\na,6,p.,x,1\nb,5,p,y,0\na,5,p,z,1\na,6,7,u,0\na,7,7.0,w,0\n"
    reading = read_rows([("f", text)], ANSWERS)
    assert reading.learners == [
        Transcript("a", [("y", "z"), ("x",), ("x",), ("u", "w")], [True, False, True, False]),
        Transcript("b", [("y",)], [False]),
    ]
    assert reading.remarks == (
        "8 rows are 5 answers; 3 rows were joined to another of the same answer_id, 1 with no skill that it had not",
        "2 answers have the order_id of the one before; they stand in the file's order",
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a,1,,x,1\n", "f, line 2: answer_id is empty; allowed is what tells answers apart"),
        (
            "a,1,p,x,1\na,2,p,y,0\n",
            "f, line 3: learner 'a' has answer p both right and wrong (the other is in f, line 2); rows of one",
        ),
        (
            "a,1,p,x,1\na,3,p,x,1\na,2,q,x,1\n",
            "f, line 4: learner 'a' gives this answer in the midst of the one in f, line 2; rows that share",
        ),
    ],
)
def test_answer_columns_that_cannot_be_are_refused(rows: str, sentence: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read_rows([("f", ANSWER_ROWS + rows)], ANSWERS)
    assert str(caught.value).startswith(sentence)


def test_rows_that_say_the_same_twice_are_counted() -> None:
    reading = read_rows([("f", ROWS + "a,1,x,1\na,1,x,1\na,1,y,1\na,2,x,1\n")], ASSISTMENTS)
    assert reading.remarks == (
        "4 rows are 2 answers; 2 rows were joined to another of the same order_id, 1 with no skill that it had not",
    )


def test_learners_in_two_spellings_are_one_and_those_that_look_alike_are_said() -> None:
    reading = read_rows([("f", ROWS + "1,1,x,1\n1.0,2,y,0\n01,1,x,1\n")], ASSISTMENTS)
    assert reading.learners == [
        Transcript("1", [("x",), ("y",)], [True, False]),
        Transcript("01", [("x",)], [True]),
    ]
    assert reading.remarks[1:] == (
        "learners are read in one spelling, 1 of them in another: '1.0' as '1'",
        "learners that look alike are kept apart, 1 groups: '01' and '1'; spell them alike if they are one",
    )


def test_numbers_that_may_have_lost_digits_are_said() -> None:
    rows = "1.78901234567890e+18,1.78901E+18,x,1\n2,9007199254740993.0,x,0\n12e5,7.0,x,1\n"
    remarks = read_rows([("f", ROWS + rows)], ASSISTMENTS).remarks
    assert remarks[1:] == (
        "order_id is written as a rounded number, such as 1.78901E+18; whoever wrote the file may have made several "
        "orders one",
        "learners are written as rounded numbers, 1 of them, such as '1.78901234567890e+18'; if they are ids, whoever "
        "wrote the file may have made several one",
    )
    assert len(read_rows([("f", ROWS + "1,1.789012345678901E18,x,1\n")], ASSISTMENTS).remarks) == 2  # as Java writes
    assert len(read_rows([("f", ROWS + "9007199254740993,9007199254740992.5,x,1\n")], ASSISTMENTS).remarks) == 2
    assert len(read_rows([("f", ROWS + "9007199254740993,9007199254740991.0,x,1\n")], ASSISTMENTS).remarks) == 1


def test_column_that_stands_twice_is_refused() -> None:
    for columns, text in [(ASSISTMENTS, "user_id,order_id,skill_name,skill_name,correct\n1,2,x,y,1\n")]:
        with pytest.raises(CorpusError, match=r"^f: has 2 columns 'skill_name'; allowed is one: rename the others$"):
            read_rows([("f", text)], columns)
    with pytest.raises(CorpusError, match=r"^f: has 2 columns 'selectmasks'"):
        read_pykt([("f", "uid,concepts,responses,selectmasks,selectmasks\n1,2,1,1,1\n")])


def test_lines_may_end_as_an_old_macs_do() -> None:
    assert read_three_line("1\r5\r1\r", "f") == [Transcript("", [("5",)], [True])]
    assert read_three_line("1\na\u2028b\n1\n", "f") == [Transcript("", [("a\u2028b",)], [True])]


def test_pykt_files_are_read() -> None:
    text = 'fold,uid,concepts,responses\n0,16,"19,7_12,19","0,1,0"\n1,5,3,1\n'
    assert read_pykt([("f", text)]).learners == [
        Transcript("16", [("19",), ("12", "7"), ("19",)], [False, True, False]),
        Transcript("5", [("3",)], [True]),
    ]


def test_pykt_pieces_of_a_learner_are_joined_and_their_padding_is_no_answer() -> None:
    text = 'uid,concepts,responses,selectmasks\n5,"3,4","1,0","1,1"\n6,2,1,1\n5,"4,-1","1,-1","1,-1"\n'
    assert read_pykt([("f", text)]).learners == [
        Transcript("5", [("3",), ("4",), ("4",)], [True, False, True]),
        Transcript("6", [("2",)], [True]),
    ]


def test_pykt_repeats_are_one_answer() -> None:
    text = 'uid,concepts,responses,is_repeat\n5,"3,4,9,4","1,0,0,1","0,0,1,0"\n'
    assert read_pykt([("f", text)]).learners == [Transcript("5", [("3",), ("4", "9"), ("4",)], [True, False, True])]


WINDOWS = (
    "uid,concepts,responses,selectmasks\n"
    '7,"1,2,3,4","1,0,1,0","1,1,1,1"\n7,"2,3,4,5","0,1,0,1","-1,-1,-1,1"\n7,"3,4,5,6","1,0,1,1","-1,-1,-1,1"\n'
)


def test_pykt_copies_in_windows_are_passed_over() -> None:
    reading = read_pykt([("f", WINDOWS)])
    assert reading.learners == [
        Transcript("7", [(skill,) for skill in "123456"], [True, False, True, False, True, True])
    ]
    assert reading.remarks == (
        "6 answers; 0 entries were joined to the one that they repeat (is_repeat)",
        "6 entries that selectmasks marks -1 were passed over",
    )


def test_pykt_window_that_ends_in_a_repeat_goes_on_with_the_answer_before() -> None:
    text = (
        "uid,concepts,responses,selectmasks,is_repeat\n"
        '7,"1,2,3","1,0,1","1,1,1","0,0,0"\n7,"2,3,9","0,1,1","-1,-1,1","0,0,1"\n'
    )
    assert read_pykt([("f", text)]).learners == [Transcript("7", [("1",), ("2",), ("3", "9")], [True, False, True])]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("uid,concepts,responses", '7,"1,2,3,4","1,0,1,0"\n7,"2,3,4,5","0,1,0,1"\n'),
        ("uid,concepts,responses", '7,"1,2,3,4","1,0,1,0"\n7,"1,2,3,4","1,0,1,0"\n'),
        ("uid,concepts,responses", '7,"1,2,3,4,5,6","1,0,1,0,1,1"\n7,"4,5,6,7,8,9","0,1,1,0,0,0"\n'),
        ("uid,concepts,responses,selectmasks", '7,"1,2,3,4","1,0,1,0","1,1,1,1"\n7,"2,3,4,5","0,1,0,1","1,1,1,1"\n'),
        ("uid,concepts,responses", '7,"1,2,3,4","1,0,1,0"\n7,"5,6","1,0"\n7,"1,2,3,4","1,0,1,0"\n'),
        ("uid,concepts,responses,timestamps", '7,"3,3,3","1,1,1","1,2,3"\n7,"3,3,3","1,1,1","2,3,4"\n'),
    ],
)
def test_pykt_pieces_that_overlap_unmarked_are_refused(header: str, rows: str) -> None:
    with pytest.raises(
        CorpusError, match=r"^f, line [34]: this piece of learner '7' overlaps one before, and no select"
    ):
        read_pykt([("f", f"{header}\n{rows}")])


def test_pykt_pieces_that_only_look_like_copies_are_read() -> None:
    text = (
        "uid,concepts,responses,timestamps\n"
        '7,"19,19,19","1,1,1",NA\n7,"19,19,19","1,1,1",NA\n8,"1,2","0,1","5,6"\n8,"1,2","0,1","6,9"\n'
    )
    assert [len(learner.correct) for learner in read_pykt([("f", text)]).learners] == [6, 4]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('uid,concepts\n5,"3,4"\n', "f: has no column 'responses'; its columns are 'uid', 'concepts'"),
        (
            'uid,concepts,responses\n5,"3,4",1\n',
            "f, line 2: lists of one row differ in length (concepts 2, responses 1)",
        ),
        (
            'uid,concepts,responses\n5,"3,",1\n',
            "f, line 2: lists of one row differ in length (concepts 2, responses 1)",
        ),
        ('uid,concepts,responses\n5,"3_,4","1,1"\n', "f, line 2: a concept is '3_'; allowed is an id"),
        ('uid,concepts,responses\n5,"3_-1,4","1,1"\n', "f, line 2: a concept is '3_-1'; allowed is an id"),
        ('uid,concepts,responses,selectmasks\n5,3,1,1\n5,"3,4","1,1",\n', "f, line 3: selectmasks is empty; allowed"),
        ('uid,concepts,responses,is_repeat\n5,"3,4","1,1"," "\n', "f, line 2: is_repeat is empty; allowed is a mark"),
        ("uid,concepts,responses\n5,3,2\n", "f, line 2: correct is '2'; allowed are 0 and 1"),
        ('uid,concepts,responses,is_repeat\n5,"3,4","1,0","0,1"\n', "f, line 2: a repeated entry is right where"),
        (
            'uid,concepts,responses,is_repeat\n5,"3,4","1,0","0,yes"\n',
            "f, line 2: is_repeat holds 'yes'; allowed are 0, 1,",
        ),
        (
            'uid,concepts,responses,selectmasks\n5,"3,4","1,0","0,1"\n',
            "f, line 2: selectmasks holds '0'; allowed are 1, -1",
        ),
        ("uid,concepts,responses\n5,,1\n", "f, line 2: lists of one row differ in length (concepts 0, responses 1)"),
        ("uid,concepts,responses\n,3,1\n", "f, line 2: uid is empty; allowed is what tells learners apart"),
        (
            "uid,concepts,responses,cidxs\n5,3,1,0\n5,3,1,0\n",
            "f, line 3: learner '5' has the answer of cidxs 0 a second",
        ),
        (
            'uid,concepts,responses,selectmasks,qidxs,rest,orirow\n5,"3,4","1,0","-1,1","0,1","0,0","0,0"\n',
            "f: has the column 'qidxs', so it is pyKT's for questions, which writes an answer once",
        ),
    ],
)
def test_pykt_files_that_are_broken_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(CorpusError) as caught:
        read_pykt([("f", text)])
    assert str(caught.value).startswith(sentence)
