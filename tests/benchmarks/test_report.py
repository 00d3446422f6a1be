import json

from carousel.benchmarks.load import Generation
from carousel.benchmarks.record import Latency, LoadResult
from carousel.benchmarks.report import BareRun, ClosedRun, Machine, OpenRun, Report
from carousel.benchmarks.server import StepTime
from carousel.benchmarks.tables import text

MACHINE = Machine("a processor", 2, "3.11", {"numpy": "2"}, 0.1)


def result(tokens, p99=0.004, shed=0):
    first, refusal = Latency(5, tokens / 1000, 0.5), Latency(shed, 0.0025, 0.006)
    return LoadResult(2.0, tokens, 3, first, Latency(9, 0.002, p99), shed, refusal, {"lost": 1}, 0.05)


def cells(text, *begin):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return next(line[len(begin) :] for line in lines if line[: len(begin)] == list(begin))


def report():
    def closed(side, precision, number, tokens, p99=0.004, steps=None):
        return ClosedRun(
            side, precision, 16, number, result(tokens, p99), steps, (100_000_000, 103_000_000, 104_000_000)
        )

    return Report(
        machine=MACHINE,
        model="words/1",
        generation=Generation((1, 2, 3), 128),
        bare=[BareRun("int8", 16, n, rate) for n, rate in enumerate((90.0, 7.0, 2000.0))],
        closed=[
            *(
                closed("carousel", "int8", n, tokens, steps=StepTime(10, 0.02, 0.005))
                for n, tokens in enumerate((60, 800, 90))
            ),
            *(closed("naive", "int8", n, 30) for n in range(3)),
            *(closed("naive", "fp32", n, tokens, 0.008) for n, tokens in enumerate((1, 9, 10))),
        ],
        open=[OpenRun(0.1, 2.5, 40, result(40)), OpenRun(2.0, 50.0, 28, result(50, p99=0.006, shed=7))],
        open_precision="int8",
        capacity_tokens_per_second=3200.0,
        remarks=["litserve is left out: not installed"],
    )


def test_tables_show_medians_over_rounds_and_ratios_against_the_naive_fp32_peer():
    shown = text(report())
    assert "| times naive fp32 |" in shown
    # 45 tokens/s of 4.5, of the bare loop's 90; first token after 90 ms of 9.
    carousel = ["45", "10.0", "0.50", "90.0 ms", "10.00", "500.0 ms", "2.00 ms", "4.00 ms", "5%", "3"]
    assert cells(shown, "16", "carousel int8") == carousel
    assert cells(shown, "16", "naive fp32")[:3] == ["4", "1.0", "-"]  # 4.5, to even; no bare loop in fp32
    assert cells(shown, "16", "naive int8")[:3] == ["15", "3.3", "0.17"]


def test_tables_show_steps_and_memory_of_the_service_alone():
    shown = text(report())
    steps = ["30", "2,000 us", "500 us", "25%", "2.0 steps", "100 MB", "103 to 104 MB"]
    services = shown[shown.index("The service:") :]
    assert cells(services, "16", "carousel int8") == steps
    assert "naive" not in services[: services.index("\n\n")]


def test_tables_show_what_is_shed_and_how_fast():
    shown = text(report())
    opened = ["25", "50.0 ms", "500.0 ms", "2.00 ms", "6.00 ms", "1.50", "3", "25%", "2.5 ms", "6.0 ms", "1", "5%"]
    assert cells(shown, "2", "50.0") == opened
    assert cells(shown, "0.1", "2.5")[5] == "1.00"
    assert "2 cores (a processor)" in shown
    assert "litserve is left out" in shown


def test_tables_leave_out_what_was_not_measured():
    empty = Report(MACHINE, "words/1", Generation((1,), 8), [], [], [], "int8", None, [])
    assert "|" not in text(empty)


def test_report_json_holds_every_run():
    content = json.loads(report().to_json())
    assert [run["result"]["tokens"] for run in content["closed"]] == [60, 800, 90, 30, 30, 30, 1, 9, 10]
    assert content["open"][1]["result"]["shed"] == 7
    assert content["machine"]["cores"] == 2
