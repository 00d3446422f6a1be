"""Numbers of command lines that measure nothing are refused before anything is started."""

from __future__ import annotations

import argparse
import importlib

import pytest

from carousel.benchmarks import numbers


@pytest.mark.parametrize(
    ("read", "allowed", "refused"),
    [
        (numbers.count, ["1", "007"], ["0", "-1", "1.5", "nan", "", "many"]),
        (numbers.count_or_none, ["0", "3"], ["-1", "1e3", "x"]),
        (numbers.seconds, ["0.5", "3600"], ["0", "-5", "nan", "inf", "3601", ""]),
        (numbers.seconds_or_none, ["0", "6"], ["-0.1", "nan", "1e9"]),
        (numbers.multiple, ["0.5", "5"], ["0", "inf", "-2", "x"]),
    ],
)
def test_numbers_are_read_or_refused(read, allowed, refused):
    assert [read(text) for text in allowed] == [float(text) for text in allowed]
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match="allowed is"):
            read(text)


@pytest.mark.parametrize(
    ("module", "option"),
    [
        ("captions", "--seconds"), ("captions", "--clients"), ("tracing", "--seconds"), ("bodies", "--seconds"),
        ("overload", "--times"), ("churn", "--requests"), ("reloads", "--streams"), ("__main__", "--seconds"),
        ("__main__", "--rounds"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["-5", "nan"])
def test_commands_refuse_what_measures_nothing(module, option, text, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"carousel.benchmarks.{module}").main([f"{option}={text}"])
    assert ended.value.code == 2
    assert f"argument {option}: is '{text}'; allowed is" in capsys.readouterr().err
