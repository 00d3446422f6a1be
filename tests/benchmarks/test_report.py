import json

from benchmarks.load import Generation
from benchmarks.record import Latency, LoadResult
from benchmarks.report import BareRun, ClosedRun, Machine, OpenRun, Report
from benchmarks.server import StepTime

MACHINE = Machine("a processor", 2, "3.11", {"numpy": "2"}, 0.1)


def result(tokens, p99=0.004, shed=0):
    return LoadResult(2.0, tokens, 3, Latency(0, None, None), Latency(9, 0.002, p99), shed, {"lost": 1}, 0.05)


def cells(text, *begin):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return next(line[len(begin) :] for line in lines if line[: len(begin)] == list(begin))


def report():
    return Report(
        MACHINE,
        "words/1",
        Generation((1, 2, 3), 128),
        [BareRun(16, 9000.0)],
        [
            *(
                ClosedRun("carousel", 16, n, result(tokens), StepTime(10, 0.02, 0.005))
                for n, tokens in enumerate((60, 800, 90))
            ),
            *(ClosedRun("naive", 16, n, result(tokens, 0.008), None) for n, tokens in enumerate((1, 9, 10))),
        ],
        [OpenRun(2.5, result(40, shed=7))],
    )


def test_report_prints_medians_over_rounds_and_their_ratio():
    text = report().to_text()
    assert cells(text, "16", "carousel") == ["45", "-", "-", "2.00 ms", "4.00 ms", "5%", "3"]
    assert cells(text, "16", "naive") == ["4", "-", "-", "2.00 ms", "8.00 ms", "5%", "3"]  # 4.5, to even
    assert cells(text, "16", "ratio")[:5] == ["10.00", "-", "-", "1.00", "0.50"]


def test_report_prints_overhead_bare_and_open_loop():
    text = report().to_text()
    assert cells(text, "16", "30") == ["2,000 us", "500 us", "25%"]
    assert cells(text, "16", "9,000") == []
    assert cells(text, "2.5", "320")[-3:] == ["3", "7", "1"]
    assert "2 cores (a processor)" in text


def test_report_json_holds_every_run():
    content = json.loads(report().to_json())
    assert [run["result"]["tokens"] for run in content["closed"]] == [60, 800, 90, 1, 9, 10]
    assert content["open"][0]["result"]["shed"] == 7
    assert content["machine"]["cores"] == 2
