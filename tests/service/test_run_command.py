"""`run`: a file of rows through a model, against the model's file run its own way."""

from __future__ import annotations

import csv
import resource
import subprocess
import sys

import numpy as np
import onnx
import pytest

from carousel.export.adopt.__main__ import main as adopt
from carousel.export.adopt.trial import Trial
from carousel.service.__main__ import main
from carousel.service.tasks.prediction import rows_file
from tests.export.adopt.strangers import CLASSES, FEATURES, sequence_network

STEPS = 23


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_bundle, tiny_tracing_bundle):
    root = tmp_path_factory.mktemp("run")
    (root / "net.onnx").write_bytes(sequence_network("LSTM", states=False))
    flags = ["--repository", str(root / "bundles"), "--name", "net", "--time", "x=1"]
    assert adopt([str(root / "net.onnx"), *flags]) == 0
    for bundle in (tiny_bundle, tiny_tracing_bundle):
        (root / "bundles" / bundle.parent.name).symlink_to(bundle.parent, target_is_directory=True)
    return root / "bundles"


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).standard_normal((STEPS, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def truth(x):
    return Trial(onnx.load_model_from_string(sequence_network("LSTM", states=False)))({"x": x[None]})["scores"][0]


@pytest.fixture
def run(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(rows_file, "PIECE", 5)

    def run(source, target, *flags, model="net"):
        paths = ["--input", str(tmp_path / source), "--output", str(tmp_path / target)]
        return main(["run", "--model", model, "--repository", str(repository), *paths, *flags])

    return run


def lines_of(path):
    return list(csv.reader(path.read_text().splitlines()))


@pytest.mark.parametrize("kind", ["npy", "raw", "csv", "named", "other names"])
@pytest.mark.parametrize("target", ["out.csv", "out.npy"])
def test_file_of_any_kind_is_what_the_model_says_of_it(run, tmp_path, x, truth, kind, target):
    source = tmp_path / f"in.{kind if kind in ('npy', 'raw') else 'csv'}"
    if kind == "npy":
        np.save(source, x)
    elif kind == "raw":
        source.write_bytes(x.astype("<f4").tobytes())
    else:
        named = {
            "csv": [],
            "named": [f"x.{place}" for place in range(FEATURES)],
            "other names": list("abcdefgh")[:FEATURES],
        }
        order = list(range(FEATURES))[:: -1 if kind == "named" else 1]
        with source.open("w", newline="") as file:
            writer = csv.writer(file)
            if named[kind]:
                writer.writerow(named[kind][place] for place in order)
            writer.writerows([repr(float(row[place])) for place in order] for row in x)
    assert run(source.name, target) == 0
    if target.endswith("npy"):
        seen = np.load(tmp_path / target)
    else:
        head, *rows = lines_of(tmp_path / target)
        assert head == [f"scores.{place}" for place in range(CLASSES)]
        seen = np.array(rows, np.float32)
    np.testing.assert_array_equal(seen, truth)


def test_tokens_and_attempts_are_rows_of_numbers(run, tmp_path):
    (tmp_path / "in.csv").write_text("token\n1\n2\n0\n")
    assert run("in.csv", "out.csv", "--outputs", "logits", model="tiny") == 0
    assert len(lines_of(tmp_path / "out.csv")) == 4
    (tmp_path / "in.csv").write_text("correct,skill,when\n1,2,monday\n0,1,tuesday\n")
    assert run("in.csv", "out.csv", model="tiny-tutor") == 0
    assert len(lines_of(tmp_path / "out.csv")) == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("1,2\n", "line 1 has 2 columns"),
        ("x.0,y\n1,2\n", "line 1: there is no column 'x.1'"),
        (
            ",".join("1" * FEATURES) + "\n" + ",".join(["a"] + ["1"] * (FEATURES - 1)),
            "line 2, column x.0: 'a' is no number",
        ),
        ("\n" + ",".join(["nan"] + ["1"] * (FEATURES - 1)), "line 2, column x.0: nan is no number that float32 has"),
        (",".join(["1e300"] + ["1"] * (FEATURES - 1)), "line 1, column x.0: 1e+300 is no number that float32 has"),
    ],
)
def test_wrong_cell_is_told_with_its_place(run, tmp_path, capsys, content, sentence):
    (tmp_path / "in.csv").write_text(content)
    assert run("in.csv", "out.csv") == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_what_does_not_fit_is_refused(run, tmp_path, x, capsys):
    np.save(tmp_path / "in.npy", x[:, 1:])
    (tmp_path / "odd.raw").write_bytes(b"abc")
    (tmp_path / "ids.csv").write_text("token\n99999\n")
    for flags, sentence in (
        (("in.npy", "out.csv"), "rows of x are"),
        (("odd.raw", "out.csv"), "has 3 bytes; a row of x has"),
        (("none.csv", "out.csv"), "No such file"),
        (("in.npy", "in.npy"), "which the result would replace"),
        (("in.npy", "out.csv", "--outputs", "mood"), "there is no output 'mood'".replace("there is", "net has")),
    ):
        assert run(*flags) == 1
        assert sentence in capsys.readouterr().err, sentence
    assert run("ids.csv", "out.csv", model="tiny") == 1
    assert "out of range" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(repository, tmp_path):
    def peak(rows):
        np.save(tmp_path / "long.npy", np.zeros((rows, FEATURES), np.float32))
        paths = ["--input", str(tmp_path / "long.npy"), "--output", str(tmp_path / "long.csv")]
        code = (
            "import resource, sys; from carousel.service.__main__ import main; "
            f"main({['run', '--model', 'net', '--repository', str(repository), *paths]!r}); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert resource.RUSAGE_SELF == 0
    assert peak(60_000) < peak(5_000) + 6_000  # kilobytes; the rows alone are 2 MB, what is said of them 10
