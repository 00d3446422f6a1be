"""The command: the file in a process of its own, a bundle at the end."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.child import Request, run
from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.said import Said
from carousel.models.bundle import open_bundle
from tests.export.adopt.strangers import FEATURES, Stranger, sequence_network, step_network
from tests.export.adopt.test_step import looping


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gru.onnx"
    path.write_bytes(sequence_network("GRU", states=True))
    return path


def test_command_publishes_a_bundle_and_says_what_it_found(file, tmp_path, capsys):
    assert main([str(file), "--repository", str(tmp_path / "bundles"), "--name", "gru", "--time", "x=1"]) == 0
    told = capsys.readouterr().out
    assert "state      h0 -> hn: 4 steps in one call are 4 calls" in told
    assert "parity     0.0e+00 over 200 steps x 5 rows" in told
    bundle = open_bundle(tmp_path / "bundles" / "gru" / "1")
    assert bundle.manifest.step.inputs == ("x",)
    assert bundle.manifest.head.outputs == ("scores",)
    assert bundle.step.input("x").shape == (None, FEATURES)
    assert [state.before for state in bundle.manifest.step.states] == ["state.h0"]


def test_command_tells_what_to_type(tmp_path, capsys):
    path = tmp_path / "two.onnx"
    path.write_bytes(step_network(states=(("left", "one"), ("right", "two"))))
    arguments = [str(path), "--repository", str(tmp_path / "bundles"), "--name", "two"]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("adopt: nothing proves which output is a state's next value; say it")
    assert not (tmp_path / "bundles").exists()
    assert main([*arguments, "--state", "left=one", "--state", "right=two"]) == 0


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--time", "x"], "'x' is not NAME=VALUE"),
        (["--time", "x=one"], "'one' is not a value"),
        (["--shape", "x=0"], "'0' is not a value"),
        (["--fix", "=3"], "'=3' is not NAME=VALUE"),
        (["--seconds", "0"], "0 is not above 0"),
        (["--memory", "-1"], "-1 is not above 0"),
    ],
)
def test_bad_flags_are_refused(file, tmp_path, capsys, flags, error):
    with pytest.raises(SystemExit, match=r"^2$"):
        main([str(file), "--repository", str(tmp_path), "--name", "gru", *flags])
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", ""])
def test_bad_name_is_refused_before_the_file_is_run(file, tmp_path, capsys, name):
    assert main([str(file), "--repository", str(tmp_path), "--name", name]) == 1
    assert "is not a model name" in capsys.readouterr().err


def test_file_that_is_not_there_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "no.onnx"), "--repository", str(tmp_path), "--name", "m"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_file_that_takes_too_long_is_ended(file):
    with pytest.raises(AdoptionRefused, match=r"not through within 0\.01 s; allow more \(--seconds\)"):
        run(Request(file, Said(times={"x": 1})), lambda _: None, max_seconds=0.01)


def test_file_that_takes_too_much_memory_is_ended(file):
    with pytest.raises(AdoptionRefused, match=r"its process ended before it was through .*--memory"):
        run(Request(file, Said(times={"x": 1})), lambda _: None, max_memory_bytes=64 << 20)


def endless(*, memory: bool = False) -> bytes:
    """A step that turns for days, or asks for a terabyte."""
    if memory:
        net = Stranger()
        net.takes("x", ["batch", 3])
        net.takes("h", ["batch", 3])
        net.node("ConstantOfShape", [net.constant("huge", np.array([1 << 38]))], ["zeros"])
        net.node("ReduceMax", ["zeros"], ["zero"], keepdims=0)
        net.node("Sum", ["x", "h", "zero"], ["sum"])
        net.node("Tanh", ["sum"], ["h_out"])
        net.gives("h_out", ["batch", 3])
        return net.content()
    model = onnx.load_model_from_string(looping())
    for tensor in model.graph.initializer:
        if tensor.name == "three":
            tensor.CopyFrom(numpy_helper.from_array(np.int64(1 << 40), "three"))
    return bytes(model.SerializeToString())


def test_network_that_does_not_end_is_ended(tmp_path, capsys):
    (tmp_path / "net.onnx").write_bytes(endless())
    flags = ["--repository", str(tmp_path / "bundles"), "--name", "net"]
    assert main([str(tmp_path / "net.onnx"), *flags, "--seconds", "5"]) == 1
    assert "was not through within 5 s; allow more (--seconds)" in capsys.readouterr().err
    assert not (tmp_path / "bundles").exists()


def test_network_that_asks_for_all_memory_is_ended(tmp_path, capsys):
    (tmp_path / "net.onnx").write_bytes(endless(memory=True))
    assert main([str(tmp_path / "net.onnx"), "--repository", str(tmp_path), "--name", "net", "--memory", "2"]) == 1
    assert re.search(r"ended before it was through .* more than 2 GiB \(--memory\)", capsys.readouterr().err)


def test_learned_initial_state_is_stored(tmp_path):
    from tests.export.adopt.test_step import learned_network

    path = tmp_path / "learned.onnx"
    path.write_bytes(learned_network()[0])
    assert main([str(path), "--repository", str(tmp_path), "--name", "m", "--time", "x=0"]) == 0
    (row,) = open_bundle(tmp_path / "m" / "1").initial.values()
    np.testing.assert_array_equal(row, learned_network()[1])
