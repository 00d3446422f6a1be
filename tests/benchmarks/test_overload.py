"""The overload table: what is compared, and what is told of those who were refused."""

from __future__ import annotations

from carousel.benchmarks.overload import text
from carousel.benchmarks.record import Recorder


def result(*, gap, wait, refusals=(), errors=()):
    recorder = Recorder(0.0, 10.0)
    recorder.first_token(1.0 + wait, asked=1.0)
    recorder.next_token(1.0 + wait + gap, previous=1.0 + wait)
    recorder.finished(1.0 + wait + gap, asked=1.0)
    for seconds in refusals:
        recorder.failed("capacity_exceeded", shed=True, seconds=seconds)
    for code in errors:
        recorder.failed(code, shed=False)
    return recorder.result()


def test_table_compares_overload_with_capacity():
    told = text(result(gap=0.01, wait=0.1), result(gap=0.02, wait=0.5, refusals=[0.003, 0.005], errors=["empty"]))
    rows = {line.split("|")[1].strip(): line for line in told.splitlines() if line.startswith("|")}
    assert rows["first token"].endswith("|       5.00 |")
    assert rows["between tokens"].endswith("|       2.00 |")
    assert rows["whole generation"].endswith("|       4.73 |")
    assert "refused: 2, p50 4.0 ms, p99 5.0 ms; finished: 1; failed: 1 {'empty': 1}" in told
