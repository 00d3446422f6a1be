"""`python -m benchmarks.plots runs.json [prefill.json] [...]`: the figures, from what other commands wrote.

    open_loop.png    latency against offered load
    throughput.png   tokens per second against streams, the service and every peer
    prefill.png      a long history: eaten step by step, eaten with prefill, resumed
    prefix.png       a prompt that nobody has sent, and the same one again
    frames.png       how late answers are, against streams in real time

A file is told by what it holds: `python -m benchmarks --output` writes `closed` and `open`, `python -m
benchmarks.prefill --output` and `benchmarks.prefix --output` write `lengths` with seconds for each, `python -m
benchmarks.frames --output` writes `real_time`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from carousel.benchmarks.frame_report import LIMIT_SECONDS

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8.0, 4.4, 150

GREY = "#7a7a7a"
FAINT_BOX = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
OURS, OURS_FAINT, THEIRS = "#0b6e4f", "#6bbf9c", ("#c0392b", "#e08e79", "#8e5ea2", "#d08c1d", "#4a6fa5", "#7f7f7f")
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}

Json = Mapping[str, Any]


def throughput(report: Json, path: Path) -> None:
    """Tokens per second of every server, medians over the rounds."""
    figure, axes = _figure("streams (log)", "tokens/s (log)", "Throughput against streams")
    axes.set_xscale("log", base=2)
    servers = list(dict.fromkeys((run["side"], run["precision"]) for run in report["closed"]))
    colours = iter(THEIRS)
    labels = []
    for side, precision in servers:
        runs = [run for run in report["closed"] if (run["side"], run["precision"]) == (side, precision)]
        counts = sorted({run["streams"] for run in runs})
        medians = {
            count: median(run["result"]["tokens"] / run["result"]["seconds"] for run in runs if run["streams"] == count)
            for count in counts
        }
        # A server that answered nobody within the window has no place on a logarithmic axis.
        shown = {count: rate for count, rate in medians.items() if rate}
        if not shown:
            continue
        streams, rates = list(shown), list(shown.values())
        ours = side == "carousel"
        colour = (OURS if precision == "int8" else OURS_FAINT) if ours else next(colours)
        axes.plot(streams, rates, "o-", color=colour, linewidth=2.5 if ours else 1.6)
        labels.append((streams[-1], rates[-1], f"{side} {precision}", colour))
    bare = [run for run in report["bare"] if run["precision"] == report["open_precision"]]
    if bare:
        rows = sorted({run["rows"] for run in bare})
        best = [median(run["tokens_per_second"] for run in bare if run["rows"] == count) for count in rows]
        axes.plot(rows, best, "--", color="#9a9a9a", linewidth=1.2)
        name = f"onnxruntime alone, {bare[0]['precision']}"
        axes.annotate(name, (rows[-1], best[-1]), (6, 4), textcoords="offset points", color=GREY, fontsize=9)
    counts = sorted({run["streams"] for run in report["closed"]})
    _ticks(axes, counts)
    _label_ends(axes, labels)
    _save(figure, path)


def open_loop(report: Json, path: Path) -> None:
    """Latency of the admitted and the share refused, at each offered load."""
    runs = sorted(report["open"], key=lambda run: run["load"])
    loads = [run["load"] for run in runs]
    capacity = report["capacity_tokens_per_second"]
    plt.style.use(STYLE)
    figure, (axes, shares) = plt.subplots(
        2, 1, sharex=True, figsize=(WIDTH_INCHES, HEIGHT_INCHES * 1.25), height_ratios=(3, 1), layout="constrained"
    )
    axes.set_title(f"Latency against offered load (1 = {capacity:,.0f} tokens/s, what a closed loop reaches)")
    axes.set_ylabel("milliseconds (log)")
    _plain_log(axes)
    labels = []
    for figures, name, colour in (("inter_token", "between tokens", OURS), ("first_token", "first token", THEIRS[0])):
        for quantile, line, width in (("p99", "-", 2.2), ("p50", "--", 1.4)):
            known = [(run["load"], run["result"][figures][f"{quantile}_seconds"]) for run in runs]
            # Tokens that one read brought have 0 between them, which a logarithm has no place for.
            shown = [(load, 1000 * value) for load, value in known if value]
            if not shown:
                continue
            xs, ys = zip(*shown, strict=True)
            axes.plot(xs, ys, f"o{line}", color=colour, linewidth=width)
            labels.append((xs[-1], ys[-1], f"{name}, {quantile}", colour))
    unloaded = runs[0]["result"]["inter_token"]["p99_seconds"]
    if unloaded is not None:
        axes.axhline(2000 * unloaded, color="#b0b0b0", linewidth=1, linestyle=":")
        name, at = "twice the unloaded p99 between tokens", (loads[0], 2000 * unloaded)
        axes.annotate(name, at, (0, 4), textcoords="offset points", color=GREY, fontsize=9, bbox=FAINT_BOX)
    _label_ends(axes, labels)
    refused = [100 * run["result"]["shed"] / run["arrivals"] if run["arrivals"] else 0 for run in runs]
    shares.plot(loads, refused, "o-", color=OURS)
    shares.set_ylim(-4, 104)
    shares.set_ylabel("refused (503), %")
    shares.set_xlabel("offered load, as a fraction of capacity (log)")
    shares.set_xscale("log")
    _ticks(shares, loads)
    for each in (axes, shares):
        each.axvline(1, color="#b0b0b0", linewidth=1)
    _save(figure, path)


def prefill(measured: Json, path: Path) -> None:
    """Seconds until the next token is known, against the history's length."""
    curves = (
        ("steps_seconds", "step by step", THEIRS[0]),
        ("prefill_seconds", "prefill", OURS_FAINT),
        ("resume_seconds", "resumed from a session", OURS),
    )
    _against_length(measured, path, "A history before the next token", curves)


def prefix(measured: Json, path: Path) -> None:
    """Seconds until the first token, against the prompt's length."""
    curves = (("cold_seconds", "unknown", THEIRS[0]), ("warm_seconds", "sent before", OURS))
    _against_length(measured, path, f"A prompt's first token ({measured['model']})", curves)


def frames(runs: Sequence[Json], path: Path) -> None:
    """The 99th percentile of an answer against the number of streams in real time."""
    title = f"Streams in real time, {runs[0]['hertz']:g} frames a second each ({runs[0]['network']})"
    figure, axes = _figure("streams (log)", "99th percentile of an answer, milliseconds (log)", title)
    axes.set_xscale("log", base=2)
    theirs, ours = iter(THEIRS), iter((OURS_FAINT, OURS))
    labels = []
    for side in dict.fromkeys(run["side"] for run in runs):
        latest: dict[int, float] = {}
        for run in sorted(runs, key=lambda run: run["streams"]):
            p99 = run["result"]["first_token"]["p99_seconds"]
            if run["side"] == side and p99 is not None:  # of several tries, the one that counted
                latest[run["streams"]] = min(1000 * p99, latest.get(run["streams"], math.inf))
        colour = next(ours if side.startswith("carousel") else theirs)
        axes.plot(list(latest), list(latest.values()), "o-", color=colour)
        labels.append((*list(latest.items())[-1], side, colour))
    limit = 1000 * LIMIT_SECONDS
    axes.axhline(limit, color="#b0b0b0", linewidth=1, linestyle=":")
    counts = sorted({run["streams"] for run in runs})
    note = f"{limit:g} ms"
    axes.annotate(note, (counts[0], limit), (0, 4), textcoords="offset points", color=GREY, fontsize=9, bbox=FAINT_BOX)
    _ticks(axes, [count for count in counts if count & (count - 1) == 0])
    _label_ends(axes, labels)
    _save(figure, path)


def _against_length(measured: Json, path: Path, title: str, curves: Sequence[tuple[str, str, str]]) -> None:
    figure, axes = _figure("tokens (log)", "milliseconds (log)", title)
    axes.set_xscale("log", base=2)
    labels = []
    for key, name, colour in curves:
        times = [1000 * seconds for seconds in measured[key]]
        axes.plot(measured["lengths"], times, "o-", color=colour)
        labels.append((measured["lengths"][-1], times[-1], name, colour))
    _ticks(axes, measured["lengths"])
    _label_ends(axes, labels)
    _save(figure, path)


def _figure(x: str, y: str, title: str) -> tuple[Any, Axes]:
    plt.style.use(STYLE)
    figure, axes = plt.subplots(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    _plain_log(axes)
    return figure, axes


def _plain_log(axes: Axes) -> None:
    """A logarithmic y axis that says 2,000 and not 2 x 10^3."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _ticks(axes: Axes, values: Sequence[float]) -> None:
    """The measured values, and no others, on the x axis."""
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]], gap_points: float = 14.0) -> None:
    """Each line's name at its end, moved up where it would lie on the one below."""
    axes.figure.canvas.draw()
    pixels_per_point = axes.figure.dpi / 72
    lowest: dict[float, float] = {}
    for x, y, name, colour in sorted(labels, key=lambda label: label[1]):
        at = axes.transData.transform((x, y))[1] / pixels_per_point
        shifted = max(at, lowest.get(x, at))
        lowest[x] = shifted + gap_points
        axes.annotate(
            name,
            (x, y),
            (10, shifted - at),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10,
            annotation_clip=False,
        )


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DOTS_PER_INCH)
    plt.close(figure)
    print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the files hold, and return the exit status: 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description="Figures from measurements.")
    parser.add_argument("files", type=Path, nargs="+", help="what the benchmarks' --output wrote")
    parser.add_argument("--output", type=Path, default=DOCS, help="the directory of the figures (docs)")
    options = parser.parse_args(arguments)
    for file in options.files:
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            print(f"plots: {file} cannot be read ({error})", file=sys.stderr)
            return 1
        if "resume_seconds" in content:
            prefill(content, options.output / "prefill.png")
        elif "warm_seconds" in content:
            prefix(content, options.output / "prefix.png")
        elif content.get("real_time"):
            frames(content["real_time"], options.output / "frames.png")
        elif not (content.get("closed") or content.get("open")):
            print(f"plots: {file} holds no measurement; give what a benchmark's --output wrote", file=sys.stderr)
            return 1
        if content.get("closed"):
            throughput(content, options.output / "throughput.png")
        if content.get("open"):
            open_loop(content, options.output / "open_loop.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
