"""The command `carousel`."""

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from carousel import __main__ as command
from carousel import __version__

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        ([], "usage: carousel "),
        (["serve"], "usage: carousel serve "),
        (["train"], "usage: carousel train "),
        (["export"], "usage: carousel export "),
        (["adopt"], "usage: carousel adopt "),
        (["trace"], "usage: carousel trace "),
        (["key"], "usage: carousel key "),
    ],
)
def test_each_command_helps_under_its_own_name(arguments, usage, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        command.main([*arguments, "--help"])
    assert capsys.readouterr().out.startswith(usage)


def test_version(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        command.main(["--version"])
    assert capsys.readouterr().out == f"carousel {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["sing"], ["--port", "1"]])
def test_what_is_no_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        command.main(arguments)
    assert "carousel: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--port", "eighty"], "--port: Input should be a valid integer"),
        (["--port", "70000"], "--port: Input should be less than or equal to 65535"),
        (["key", "ada", "--tenant", "school", "--port", "1"], "unrecognized arguments: --port 1"),
        (["--port", "1", "key", "ada", "--tenant", "school"], "--port says nothing to key"),
        (["--host", "::", "trace", "--model", "m", "--input", "a", "--output", "b"], "--host says nothing to trace"),
    ],
)
def test_bad_flags_of_the_service_are_refused(arguments, error):
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert error in done.stderr


def test_what_the_extra_installs_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "carousel.training.__main__", raising=False)
    assert command.main(["train", "recipe.toml"]) == 2
    assert "pip install '.[train]'" in capsys.readouterr().err


def test_flags_go_before_the_environment(tiny_bundle):
    command = [sys.executable, "-m", "carousel", "serve", "--port", "0", "--repository", str(tiny_bundle.parents[1])]
    environment = {"PATH": "/usr/bin:/bin", "CAROUSEL_PORT": "1", "CAROUSEL_REPOSITORY": "/nowhere"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            ready = next(found for line in process.stderr if (found := re.search(r"ready on http://([\w.:]+)", line)))
            with urllib.request.urlopen(f"http://{ready[1]}/v1/models", timeout=10) as answer:
                assert b'"tiny"' in answer.read()
        finally:
            process.terminate()
            process.wait(timeout=30)
