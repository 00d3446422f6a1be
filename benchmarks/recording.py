"""What does measuring a step cost, of the step? `python -m benchmarks.recording [BUNDLE ...]`.

In process, on one thread: steps of so many rows that all sample (or, of a tracing model, all eat an attempt), and what
the service records of each (the step; of each row that sampled, the time since its last token), in turns; medians over
all. A step is the engine's whole loop body.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

from carousel.models.bundle import open_bundle
from carousel.service.engine.parameters import SamplingParameters
from carousel.service.engine.port import Request
from carousel.service.engine.threads.engine_thread import MAX_HELD_REPORTS
from carousel.service.observability.metrics import Metrics, ModelMetrics
from carousel.service.served.opening import open_core
from carousel.service.tasks.tracing.histories import trace_request

BUNDLES = ("bundles/shakespeare/2", "bundles/tutor/2")
ROWS = (1, 16, 64, 128)
STEPS = 400


def shares(path: Path) -> Iterator[tuple[int, float, float]]:
    """Rows, seconds of a step and seconds of recording it; of a language model or a tracing one."""
    bundle = open_bundle(path)
    metrics = ModelMetrics(Metrics(), bundle.model, bundle.version)
    samples = bundle.manifest.task == "language"
    ids = bundle.output_size if samples else 2 * bundle.output_size
    for rows in ROWS:
        core = open_core(bundle, 1, rows)
        random = np.random.default_rng(rows)
        for seed in range(rows):
            if samples:
                core.add(seed, Request(random.integers(0, ids, 1), SamplingParameters(STEPS + 9, seed=seed)))
            else:
                core.add(seed, trace_request(random.integers(0, ids, STEPS + 9)))
        core.step()
        at_once = 1 if samples else min(STEPS, MAX_HELD_REPORTS)
        steps, recordings = [], []
        for _ in range(STEPS // at_once):
            began = time.perf_counter()
            reports = [output.report for output in (core.step() for _ in range(at_once)) if output.report is not None]
            stepped = time.perf_counter()
            assert [report.rows for report in reports] == [rows] * at_once
            metrics.steps(reports)
            if samples:
                for _ in range(rows):
                    metrics.inter_token_seconds.observe(stepped - began)
            recordings.append((time.perf_counter() - stepped) / at_once)
            steps.append((stepped - began) / at_once)
        yield rows, median(steps), median(recordings)


def main(paths: list[str]) -> None:
    """Print one line a number of rows."""
    print("| model | rows | a step | recording it | share |\n|---|---:|---:|---:|---:|")
    for path in map(Path, paths or BUNDLES):
        for rows, step, recording in shares(path):
            model = f"{path.parent.name} {path.name}"
            print(f"| {model} | {rows} | {step * 1e6:.0f} us | {recording * 1e6:.1f} us | {recording / step:.1%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
