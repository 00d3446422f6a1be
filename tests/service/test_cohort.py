"""A cohort from a file: each answer predicted as torch predicts it, whatever the order of the rows."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from carousel.models.bundle import open_bundle
from carousel.models.codec.interaction import InteractionCodec
from carousel.service.__main__ import main
from carousel.service.tasks.tracing.cohort import trace_cohort
from carousel.service.tasks.tracing.cohort_file import CohortError, read_cohort

SKILLS = ("counting", "addition", "fractions, like denominators", "Bruchrechnung \u00fc", "area")


@pytest.fixture
def bundle(tiny_tracing_bundle):
    return open_bundle(tiny_tracing_bundle)


@pytest.fixture
def oracle(make_tracing_checkpoint, tmp_path):
    """P(correct) before each attempt but the first, by torch."""
    import torch

    from carousel.models.nn.checkpoint import read_checkpoint
    from tests.trained import load_tracing_model

    model, _ = load_tracing_model(read_checkpoint(make_tracing_checkpoint(tmp_path / "tutor.safetensors")))

    def run(ids):
        with torch.inference_mode():
            after = model(torch.tensor([ids]), model.initial_state(1))[0][0].sigmoid().numpy()
        return after[range(len(ids) - 1), [one // 2 for one in ids[1:]]]

    return run


def write(path: Path, rows, header=("learner", "skill", "correct")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def make_rows(learners: int, longest: int, seed: int = 0):
    """Rows of several learners, interleaved; and each learner's ids."""
    random = np.random.default_rng(seed)
    histories = {
        f"learner {one}": random.integers(0, 10, random.integers(1, longest)).tolist() for one in range(learners)
    }
    turns = random.permutation([name for name, ids in histories.items() for _ in ids]).tolist()
    left = {name: iter(ids) for name, ids in histories.items()}
    rows = [(name, SKILLS[(one := next(left[name])) // 2], one % 2) for name in turns]
    return rows, histories, list(dict.fromkeys(turns))


def test_cohort_is_predicted_as_torch_does(bundle, oracle, tmp_path):
    rows, histories, order = make_rows(40, 200)
    cohort = read_cohort(write(tmp_path / "in.csv", rows), bundle.codec(InteractionCodec))
    counts: list[int] = []
    out = tmp_path / "out.csv"
    trace_cohort(bundle, cohort, out, max_rows=3, intra_op_threads=1, on_answers=counts.append)
    told = read(out)
    assert sum(counts) == len(rows) == len(told) == cohort.answers
    assert [row["learner"] for row in told] == [name for name in order for _ in histories[name]]
    for name, ids in histories.items():
        mine = [row for row in told if row["learner"] == name]
        assert [int(row["attempt"]) for row in mine] == list(range(1, len(ids) + 1))
        assert [(row["skill"], int(row["correct"])) for row in mine] == [(SKILLS[one // 2], one % 2) for one in ids]
        assert mine[0]["probability"] == ""
        assert [float(row["probability"]) for row in mine[1:]] == pytest.approx(oracle(ids).tolist(), abs=1e-5)
    assert list(tmp_path.glob("*.part")) == []


def test_cohort_gives_the_figures_of_training(bundle, oracle, tmp_path):
    from carousel.models.tracing_score import auc

    rows, histories, _ = make_rows(30, 60, seed=4)
    cohort = read_cohort(write(tmp_path / "in.csv", rows), bundle.codec(InteractionCodec))
    trace_cohort(bundle, cohort, tmp_path / "out.csv", max_rows=8, intra_op_threads=1)
    told = [row for row in read(tmp_path / "out.csv") if row["probability"]]
    seen = auc(np.array([float(row["probability"]) for row in told]), np.array([row["correct"] == "1" for row in told]))
    expected = auc(
        np.concatenate([oracle(ids) for ids in histories.values()]).astype(np.float64),
        np.array([one % 2 == 1 for ids in histories.values() for one in ids[1:]]),
    )
    assert seen == pytest.approx(expected, abs=1e-4)


def test_cohort_takes_ids_and_other_columns_in_any_order(bundle, tmp_path):
    names = write(tmp_path / "names.csv", [("a", "area", 1), ("a", "counting", "FALSE"), ("a", "area", "true")])
    ids = write(
        tmp_path / "ids.csv",
        [(1, 9, "4", "a"), (0, 9, "0", "a"), (1, 9, "4", "a")],
        ("Correct", "when", "skill", "learner"),
    )
    ids.write_bytes(b"\xef\xbb\xbf" + ids.read_bytes() + b"\r\n")  # a byte order mark, an empty line
    by_name = read_cohort(names, bundle.codec(InteractionCodec))
    by_id = read_cohort(ids, bundle.codec(InteractionCodec), by_id=True)
    assert by_name.learners == by_id.learners
    trace_cohort(bundle, by_id, tmp_path / "out.csv", max_rows=2, intra_op_threads=1, by_id=True)
    assert [row["skill"] for row in read(tmp_path / "out.csv")] == ["4", "0", "4"]


def test_cohort_passes_over_unknown_skills_where_told(bundle, oracle, tmp_path):
    rows = [("a", "area", 1), ("a", "alchemy", 1), ("a", "counting", 0), ("b", "alchemy", 0), ("a", "magic", 0)]
    cohort = read_cohort(write(tmp_path / "in.csv", rows), bundle.codec(InteractionCodec), ignore_unknown=True)
    trace_cohort(bundle, cohort, tmp_path / "out.csv", max_rows=2, intra_op_threads=1)
    told = read(tmp_path / "out.csv")
    assert [(row["learner"], row["skill"], int(row["correct"])) for row in told] == [
        row for learner in "ab" for row in rows if row[0] == learner
    ]
    assert [row["probability"] == "" for row in told] == [True, True, False, True, True]
    assert float(told[2]["probability"]) == pytest.approx(oracle([9, 0])[0], abs=1e-5)


@pytest.fixture
def combined():
    """A codec that knows one combination."""
    return InteractionCodec(["area", "area & counting", "counting", "magic"])


ANSWERS = ("learner", "Answer_ID", "skill", "correct")


@pytest.mark.parametrize("by_id", [False, True])
def test_cohort_of_answers_joins_the_rows_of_one(combined, tmp_path, by_id):
    rows = [
        ("a", "1", "counting", 1), ("b", "1", "area", 0), ("a", "1.0", "area", 1), ("b", "2", "area", 0),
        ("a", "2", "area", 0), ("a", "2", "area", 0), ("b", "3", "counting", 1),
    ]  # fmt: skip
    if by_id:
        rows = [(learner, answer, combined.skill_id(skill), correct) for learner, answer, skill, correct in rows]
    source = write(tmp_path / "in.csv", rows, ANSWERS)
    cohort = read_cohort(source, combined, by_id=by_id, answer_column="answer_id")
    assert {learner: list(ids) for learner, ids in cohort.learners.items()} == {"a": [3, 0], "b": [0, 0, 5]}
    assert cohort.remarks == ["2 rows were joined to another of the same answer_id"]


def test_cohort_of_answers_passes_over_unknown_combinations_where_told(combined, tmp_path):
    source = write(tmp_path / "in.csv", [("a", 1, "magic", 1), ("a", 1, "area", 1), ("a", 2, "area", 0)], ANSWERS)
    cohort = read_cohort(source, combined, ignore_unknown=True, answer_column="ANSWER_ID")
    assert (list(cohort.learners["a"]), cohort.unknown) == ([-2, 0], ["area & magic"])
    assert cohort.remarks[-1] == (
        "1 of 2 answers are at 1 skills that the model does not know, and are passed over: 'area & magic'"
    )
    with pytest.raises(CohortError, match="line 2: skill is 'area & magic'; allowed are the 4 names"):
        read_cohort(source, combined, answer_column="answer_id")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [("a", 1, "area", 1), ("a", 1, "counting", 0)],
            "line 3: learner 'a' has answer_id 1 both right and wrong (the ot",
        ),
        (
            [("a", 1, "area", 1), ("a", 2, "area", 0), ("a", 1, "area", 1)],
            "line 4: learner 'a' has answer_id 1 again, aft",
        ),
        ([("a", " ", "area", 1)], "line 2: answer_id is empty; allowed is what tells answers apart"),
    ],
)
def test_cohort_of_answers_that_cannot_be_is_refused(combined, tmp_path, rows, told):
    source = write(tmp_path / "in.csv", rows, ANSWERS)
    with pytest.raises(CohortError) as caught:
        read_cohort(source, combined, answer_column="answer_id")
    assert told in str(caught.value)
    with pytest.raises(CohortError, match="the header lacks answer; needed are learner, skill, correct, answer"):
        read_cohort(source, combined, answer_column="answer")


def test_cohort_says_which_rows_look_like_one_answer(combined, tmp_path):
    rows = [
        ("a", 7, "area", 1),
        ("b", 7, "area", 1),
        ("a", 7, "counting", 1),
        ("b", 7, "area", 1),
        ("b", 8, "counting", 1),
    ]
    source = write(tmp_path / "in.csv", rows, ("learner", "order_id", "skill", "correct"))
    (remark,) = read_cohort(source, combined).remarks
    assert remark.startswith(
        "1 rows are at another skill than the row of the learner before, but have its order_id; if"
    )
    assert "--answer order_id" in remark
    assert read_cohort(source, combined, answer_column="order_id").learners["a"].tolist() == [3]


def test_cohort_of_learners_in_two_spellings_has_one(combined, tmp_path):
    source = write(tmp_path / "in.csv", [("1.0", "area", 1), ("1", "area", 0), ("01", "area", 0), ("1.", "area", 1)])
    cohort = read_cohort(source, combined)
    assert {learner: list(ids) for learner, ids in cohort.learners.items()} == {"1.0": [1, 0, 1], "01": [0]}
    assert cohort.remarks == [
        "learners written in more than one way are one, 2 spellings: '1' is '1.0', '1.' is '1.0'",
        "learners that look alike are kept apart, 1 groups: '01' and '1.0'; spell them alike if they are one",
    ]


@pytest.mark.parametrize(
    ("skills", "by_id", "read"),
    [
        (["1.0", "2.", "3"], True, [3, 5, 7]),
        (["counting & area", "area & counting", "magic"], False, [3, 3, 7]),
    ],
)
def test_cohort_reads_skills_in_other_spellings_and_says_so(combined, tmp_path, skills, by_id, read):
    source = write(tmp_path / "in.csv", [("a", skill, 1) for skill in skills])
    cohort = read_cohort(source, combined, by_id=by_id)
    assert cohort.learners["a"].tolist() == read
    (remark,) = cohort.remarks
    assert remark.startswith("skills in another spelling, ")
    assert f"{skills[0]!r} as " in remark


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("order_id", ["10", "9", "11"], 1),  # as numbers, not as texts
        ("timestamp", ["2017-03-02", "2017-03-01", "2017-02-01"], 2),
        ("order", ["1789012345678901251", "1789012345678901250", "1e3"], 1),
        ("time", ["1", "1", "2"], 0),
        ("start", ["3", "2", "1"], 0),
    ],
)
def test_cohort_says_where_rows_go_back_in_time(combined, tmp_path, column, values, told):
    rows = [row for value in values for row in (("a", value, "magic", 1), ("b", 0, "magic", 1))]
    cohort = read_cohort(write(tmp_path / "in.csv", rows, ("learner", column, "skill", "correct")), combined)
    assert [remark.partition(";")[0] for remark in cohort.remarks] == [
        f"{told} rows have a smaller {column} than the row of the learner before"
    ][: min(told, 1)]


@pytest.mark.parametrize("column", ["learner", "Skill", "correct"])
def test_cohort_of_answers_wants_a_column_of_their_own(combined, tmp_path, column):
    with pytest.raises(CohortError, match=f"{column.lower()} cannot say which rows are one answer"):
        read_cohort(write(tmp_path / "in.csv", [("a", "magic", 1)]), combined, answer_column=column)


@pytest.mark.parametrize("skill", ["5", "-1", "counting", "\u0664", "1.5", "9" * 5000, ""])
def test_cohort_of_ids_refuses_what_is_none_and_says_which_there_are(bundle, tmp_path, skill):
    source = write(tmp_path / "in.csv", [("a", 4, 1), ("a", skill, 1)])
    with pytest.raises(CohortError) as error:
        read_cohort(source, bundle.codec(InteractionCodec), by_id=True)
    message = str(error.value)
    assert f"line 3: skill is {skill[:40]!r}; allowed with --by-id are the ids 0 to 4;" in message
    assert "leave it out where skills are names" in message
    assert len(message) < 500


def test_cohort_of_names_that_is_given_ids_says_how_to_give_them(bundle, tmp_path):
    with pytest.raises(CohortError) as error:
        read_cohort(write(tmp_path / "in.csv", [("a", "4", 1)]), bundle.codec(InteractionCodec))
    message = str(error.value)
    assert f"line 2: skill is '4'; allowed are the 5 names of the model's skills, such as {SKILLS[0]!r};" in message
    assert "give --by-id where skills are ids" in message
    assert "--unknown-skill ignore" in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "lacks learner, skill, correct"),
        ("learner,skill\na,area\n", "lacks correct"),
        ("learner,skill,correct\n", "no answer"),
        ("learner,skill,Skill ,correct\na,area,area,1\n", "the header has skill 2 times; allowed is once"),
        ("learner,skill,correct\na,area,1\na,alchemy,1\n", "line 3: skill is 'alchemy'; allowed are the 5 names"),
        ("learner,skill,correct\na,area,2\n", "line 2: correct is '2'"),
        ("learner,skill,correct\na,area,\n", "line 2: correct is ''"),
        ("learner,skill,correct\na,area\n", "line 2: 2 fields; the header has 3"),
        ("learner,skill,correct\n,area,1\n", "line 2: learner is empty"),
        ('learner,skill,correct\n"a,area,1\n', "is no CSV"),
        (b"learner,skill,correct\n\xff,area,1\n", "is no CSV in UTF-8"),
    ],
)
def test_file_is_refused_with_its_line(bundle, tmp_path, content, told):
    path = tmp_path / "in.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CohortError) as caught:
        read_cohort(path, bundle.codec(InteractionCodec))
    assert told in str(caught.value)


def test_command_line_traces_a_file(tiny_tracing_bundle, tmp_path, capsys):
    rows, _, _ = make_rows(5, 20)
    source, target = write(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    command = ["trace", "--repository", str(tiny_tracing_bundle.parent.parent), "--model", "tiny-tutor"]
    assert main([*command, "--input", str(source), "--output", str(target)]) == 0
    assert len(read(target)) == len(rows)
    assert f"{len(rows)}/{len(rows)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--model": "nobody"}, "holds no model 'nobody'"),
        ({"--input": "missing.csv"}, "missing.csv"),
        ({"--output": "no/such/directory/out.csv"}, "no/such/directory"),
        ({"--repository": "missing"}, "missing holds no model"),
    ],
)
def test_command_line_says_what_is_wrong(tiny_tracing_bundle, tmp_path, capsys, change, told):
    options = {
        "--repository": str(tiny_tracing_bundle.parent.parent),
        "--model": "tiny-tutor",
        "--input": str(write(tmp_path / "in.csv", [("a", "area", 1)])),
        "--output": str(tmp_path / "out.csv"),
    } | change
    assert main(["trace", *(part for pair in options.items() for part in pair)]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


@pytest.fixture
def command(tiny_tracing_bundle, tmp_path):
    rows, _, _ = make_rows(5, 20)
    source = write(tmp_path / "in.csv", rows)
    return [
        "trace",
        "--repository",
        str(tiny_tracing_bundle.parent.parent),
        "--model",
        "tiny-tutor",
        "--input",
        str(source),
    ]


def test_command_line_writes_through_links_and_pipes(command, tmp_path):
    plain, link, behind, pipe = (tmp_path / name for name in ("plain.csv", "link.csv", "behind.csv", "pipe"))
    assert main([*command, "--output", str(plain)]) == 0
    behind.write_text("before")
    link.symlink_to(behind.name)
    assert main([*command, "--output", str(link)]) == 0
    assert (link.is_symlink(), behind.read_bytes()) == (True, plain.read_bytes())
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(pipe.read_bytes)
        assert main([*command, "--output", str(pipe)]) == 0
        assert reader.result(timeout=30) == plain.read_bytes()
    assert pipe.is_fifo()


def test_command_line_writes_to_standard_output(command, tmp_path):
    assert main([*command, "--output", str(tmp_path / "plain.csv")]) == 0
    with (tmp_path / "log").open("w") as log:
        log.write("before\n")
        log.flush()
        python = [sys.executable, "-m", "service", *command, "--output", "/dev/stdout"]
        subprocess.run(python, check=True, stdout=log, stderr=subprocess.DEVNULL)
    assert (tmp_path / "log").read_text() == "before\n" + (tmp_path / "plain.csv").read_text()


def test_command_line_refuses_a_directory_before_the_work(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "carousel.service.tasks.tracing.command.read_cohort", lambda *_, **__: pytest.fail("read the answers")
    )
    assert main([*command, "--output", str(tmp_path)]) == 1
    assert f"{tmp_path}: is a directory; give the path of a file" in capsys.readouterr().err


def test_command_line_does_not_write_over_its_input(command, tmp_path, capsys):
    source = Path(command[command.index("--input") + 1])
    before = source.read_bytes()
    (tmp_path / "link.csv").symlink_to(source)
    for output in (source, tmp_path / "link.csv"):
        assert main([*command, "--output", str(output)]) == 1
        assert "which the result would replace" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_command_line_joins_rows_of_one_answer(command, tiny_tracing_bundle, tmp_path, capsys):
    rows = [("a", 1, "area", 1), ("a", 1, "area", 1), ("a", 2, "counting", 0)]
    source = write(tmp_path / "answers.csv", rows, ("learner", "order", "skill", "correct"))
    out = tmp_path / "out.csv"
    assert main([*command[:-1], str(source), "--answer", "order", "--output", str(out)]) == 0
    assert [row["skill"] for row in read(out)] == ["area", "counting"]
    assert f"{source}: 1 rows were joined to another of the same order\n" in capsys.readouterr().err


def test_command_line_refuses_a_language_model(tiny_bundle, tmp_path, capsys):
    source = write(tmp_path / "in.csv", [("a", "area", 1)])
    command = ["trace", "--repository", str(tiny_bundle.parent.parent), "--model", "tiny"]
    assert main([*command, "--input", str(source), "--output", str(tmp_path / "out.csv")]) == 1
    assert "language model" in capsys.readouterr().err


def test_memory_is_a_few_bytes_an_answer(bundle, tmp_path):
    source = tmp_path / "in.csv"
    with source.open("w", encoding="utf-8") as file:
        file.write("learner,skill,correct\n")
        file.writelines(f"{row % 500},area,{row % 3 % 2}\n" for row in range(100_000))
    tracemalloc.start()
    try:
        cohort = read_cohort(source, bundle.codec(InteractionCodec))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cohort.answers == 100_000
    assert peak < 100_000 * 8 + 500 * 1000 + 1_000_000


def test_help_speaks_of_both_commands():
    shown = subprocess.run(
        [sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "trace" in shown
