"""The numbers of command lines: what is none, or measures nothing, is refused before anything is started."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

MAX_SECONDS = 3600.0


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"is {text!r}; allowed is a whole number, {least} or more")
        return number

    return read


def _number(what: str, is_allowed: Callable[[float], bool]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not is_allowed(number):
            raise argparse.ArgumentTypeError(f"is {text!r}; allowed is {what}")
        return number

    return read


count = _whole(1)
count_or_none = _whole(0)
seconds = _number(f"above 0, at most {MAX_SECONDS:,.0f} seconds", lambda number: 0 < number <= MAX_SECONDS)
seconds_or_none = _number(f"0 to {MAX_SECONDS:,.0f} seconds", lambda number: 0 <= number <= MAX_SECONDS)
multiple = _number("a number above 0, at most 1,000", lambda number: 0 < number <= 1000)
