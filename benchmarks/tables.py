"""A report as tables for a terminal or a README: medians over the rounds, and ratios against the naive fp32 peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from carousel.benchmarks.record import LoadResult
from carousel.benchmarks.report import ClosedRun, Report
from carousel.benchmarks.server import Side
from carousel.models.manifest import Precision

Server = tuple[Side, Precision]
Figure = Callable[[LoadResult], float | None]
Cells = list[str]

FIRST, INTER = ("first p50", "first p99"), ("inter p50", "inter p99")
FIGURES: dict[str, tuple[Figure, str]] = {
    "tokens/s": (lambda result: result.tokens_per_second, "{:,.0f}"),
    "first p50": (lambda result: _ms(result.first_token.p50_seconds), "{:,.1f} ms"),
    "first p99": (lambda result: _ms(result.first_token.p99_seconds), "{:,.1f} ms"),
    "inter p50": (lambda result: _ms(result.inter_token.p50_seconds), "{:,.2f} ms"),
    "inter p99": (lambda result: _ms(result.inter_token.p99_seconds), "{:,.2f} ms"),
    "client CPU": (lambda result: 100 * result.client_cpu, "{:.0f}%"),
}


def text(report: Report) -> str:
    """The tables."""
    length = f"{len(report.generation.prompt)} prompt tokens, {report.generation.max_tokens} sampled"
    parts = [f"machine  {report.machine}\nmodel    {report.model}; every generation {length}"]
    parts += report.remarks
    if report.closed:
        parts += [_closed_table(report), _service_table(report.closed)]
    if report.open:
        parts.append(_open_table(report))
    return "\n\n".join(part for part in parts if part)


def servers(runs: Sequence[ClosedRun]) -> list[Server]:
    """Who was measured, in the order of the first round."""
    return list(dict.fromkeys((run.side, run.precision) for run in runs))


def baseline(measured: Sequence[Server]) -> Server | None:
    """The naive peer that ratios are against: fp32, as it is run, where it was measured."""
    naive = sorted(server for server in measured if server[0] == "naive")  # fp32 before int8
    return naive[0] if naive else None


def _closed_table(report: Report) -> str:
    runs, base = report.closed, baseline(servers(report.closed))
    against = f"naive {base[1]}" if base else "naive"
    ratios = [f"times {against}", "of bare loop", FIRST[0], f"of {against}", FIRST[1]]
    lines = [["streams", "server", "tokens/s", *ratios, *INTER, "client CPU", "errors"]]
    bare = _bare(report)
    for streams in sorted({run.streams for run in runs}):
        naive = _medians(runs, base, streams) if base else {}
        for server in servers(runs):
            if not (figures := _medians(runs, server, streams)):
                continue
            rows = min(streams, max((rows for _, rows in bare), default=streams))
            shown = {name: _cell(form, figures[name]) for name, (_, form) in FIGURES.items()}
            shown["times"] = _cell("{:.1f}", _ratio(figures["tokens/s"], naive.get("tokens/s")))
            shown["bare"] = _cell("{:.2f}", _ratio(figures["tokens/s"], bare.get((server[1], rows))))
            shown["first"] = _cell("{:.2f}", _ratio(figures[FIRST[0]], naive.get(FIRST[0])))
            results = [run.result for run in runs if (run.side, run.precision, run.streams) == (*server, streams)]
            shown["errors"] = f"{sum(result.failed + result.shed for result in results)}"
            order = ["tokens/s", "times", "bare", FIRST[0], "first", FIRST[1], *INTER, "client CPU", "errors"]
            lines.append([f"{streams:,}", " ".join(server), *(shown[name] for name in order)])
    rounds = len({run.round for run in runs})
    loops = ", ".join(f"{precision} x{rows} {rate:,.0f}" for (precision, rows), rate in bare.items())
    return (
        f"Closed loop, medians of {rounds} rounds\n{markdown(lines)}\n"
        f"Bare loop: onnxruntime alone, nothing sampled, nothing sent, of the server's precision and as many rows "
        f"(tokens/s: {loops})"
    )


def _service_table(runs: Sequence[ClosedRun]) -> str:
    """What the service says of its steps, and what it holds; empty where it was not measured."""
    head = ["streams", "server", "steps", "step", "engine overhead", "of the step", "inter p99"]
    lines = [[*head, "memory before", "in the window"]]
    for streams in sorted({run.streams for run in runs}):
        for side, precision in servers(runs):
            of_server = [run for run in runs if (run.side, run.precision, run.streams) == (side, precision, streams)]
            timed = [(run, run.steps) for run in of_server if run.steps is not None and run.steps.steps]
            if not timed:
                continue
            step = median(time.step_seconds / time.steps for _, time in timed)
            overhead = median(time.overhead_seconds / time.steps for _, time in timed)
            p99 = _median([run.result.inter_token.p99_seconds for run in of_server])
            idle, begin, end = (median(run.resident_bytes[place] for run in of_server) / 1e6 for place in range(3))
            shown = [f"{sum(time.steps for _, time in timed):,.0f}", f"{1e6 * step:,.0f} us"]
            shown += [f"{1e6 * overhead:,.0f} us", f"{100 * overhead / step:.0f}%"]
            shown += [_cell("{:.1f} steps", _ratio(p99, step)), f"{idle:,.0f} MB", f"{begin:,.0f} to {end:,.0f} MB"]
            lines.append([f"{streams:,}", f"{side} {precision}", *shown])
    if len(lines) == 1:
        return ""
    title = "The service: mean step, the part of it that is not onnxruntime (sampling included), and resident memory"
    return f"{title}\n{markdown(lines)}"


def _open_table(report: Report) -> str:
    names = ["tokens/s", *FIRST, *INTER]
    head = ["load", "arrivals/s", *names, "against unloaded", "finished", "shed", "refused after p50", "p99", "failed"]
    lines = [[*head, "client CPU"]]
    unloaded = min(report.open, key=lambda run: run.load).result.inter_token.p99_seconds
    for run in report.open:
        result = run.result
        cells = [_cell(FIGURES[name][1], FIGURES[name][0](result)) for name in names]
        cells.append(_cell("{:.2f}", _ratio(result.inter_token.p99_seconds, unloaded)))
        cells += [f"{result.generations:,}", f"{100 * result.shed / run.arrivals:.0f}%" if run.arrivals else "-"]
        cells += [_cell("{:,.1f} ms", _ms(value)) for value in (result.refusal.p50_seconds, result.refusal.p99_seconds)]
        cells += [f"{result.failed:,}", f"{100 * result.client_cpu:.0f}%"]
        lines.append([f"{run.load:g}", f"{run.rate:,.1f}", *cells])
    assert report.capacity_tokens_per_second is not None
    return (
        f"Carousel {report.open_precision}, open loop: Poisson arrivals at fractions of the closed loop's "
        f"{report.capacity_tokens_per_second:,.0f} tokens/s\n"
        "(first token: of the admitted, from the planned arrival; against unloaded: inter p99 over that of the "
        f"lowest load; shed: refused with 503)\n{markdown(lines)}"
    )


def _bare(report: Report) -> dict[tuple[Precision, int], float]:
    """Tokens per second of the bare loop, by precision and rows."""
    keys = dict.fromkeys((run.precision, run.rows) for run in report.bare)
    return {
        key: median(run.tokens_per_second for run in report.bare if (run.precision, run.rows) == key) for key in keys
    }


def _medians(runs: Sequence[ClosedRun], server: Server, streams: int) -> dict[str, float | None]:
    results = [run.result for run in runs if (run.side, run.precision, run.streams) == (*server, streams)]
    if not results:
        return {}
    return {name: _median([figure(result) for result in results]) for name, (figure, _) in FIGURES.items()}


def markdown(lines: list[Cells]) -> str:
    """A table, its first line the head, columns to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [" | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "|".join("-" * (width + 1) + ":" for width in widths)
    return "\n".join([f"| {rows[0]} |", f"|{rule}|", *(f"| {row} |" for row in rows[1:])])


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _ratio(first: float | None, second: float | None) -> float | None:
    return first / second if first is not None and second else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _cell(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)
