"""A long prompt with the prefill graphs and without: `python -m benchmarks.prefill`.

The int8 graphs of a 2x512 LSTM with 10,000 words and random weights, in the engine's core: no socket, no event loop,
steps on one thread. Variants take turns; medians. Prefill keeps two cores busy, so the time on the clock is what a
client waits and the processor time what it costs; other load on the machine spoils the former.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence as Many
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from carousel.benchmarks import numbers
from carousel.benchmarks.report import Machine
from carousel.benchmarks.turns import UNITS, WORDS, Seconds, model_of, take_turns
from carousel.export.onnx_graph import export_step
from carousel.export.passes.recipe import int8_step, prefill_graphs
from carousel.models.graph import STATE_PREFIX, next_name
from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import SamplingParameters
from carousel.service.engine.port import Request, Snapshot
from carousel.service.engine.prefill.runner import OnnxPrefillRunner
from carousel.service.engine.prefill.thread import PrefillThread
from carousel.service.engine.runner import HeadPorts, OnnxRunner, StepPorts
from carousel.service.engine.states.pool import StateSpec

PROMPT_TOKENS = 1_000
PROMPTS = (1, 4, 16)
LENGTHS = (16, 64, 256, 1_024, 4_096)
STREAMS = 32


class Benchmark:
    """The model's graphs, and what is timed."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        step = model_of()
        self._step, _ = int8_step(export_step(step))
        self._prefill = prefill_graphs(self._step)
        self._specs = {STATE_PREFIX + name: StateSpec(shape, "float32") for name, shape in step.state_shapes.items()}
        self._machine = Machine.this()
        print(f"machine  {self._machine}")
        print(f"model    2x{UNITS} LSTM, {WORDS:,} words, int8, random weights; medians of {rounds} turns")
        print("cells    time on the clock (processor time)")

    def prompts(self) -> None:
        """Prompts and one token after each, through the engine; and as many tokens sampled one by one."""
        print(
            f"\n| at once | {PROMPT_TOKENS:,} tokens sampled | a prompt of as many, by steps alone | with prefill |",
            end="",
        )
        print(" times as fast as sampling | as steps alone |\n|---:|---:|---:|---:|---:|---:|")
        without, core = self._core(prefill=False), self._core()
        for rows in PROMPTS:
            taken = take_turns({
                "sampled": partial(_sample, without, rows, PROMPT_TOKENS),
                "steps": partial(_run, without, rows, PROMPT_TOKENS),
                "prefill": partial(_run, core, rows, PROMPT_TOKENS),
            }, self._rounds)  # fmt: skip
            cells = "|".join(f" {_said(each)} " for each in taken.values())
            ratios = "|".join(f" {_times(taken[name], taken['prefill'])} " for name in ("sampled", "steps"))
            print(f"| {rows} |{cells}|{ratios}|", flush=True)

    def histories(self, lengths: Many[int]) -> dict[str, Any]:
        """One token after a history: fed anew without prefill and with it, and resumed from its memory. All seconds."""
        print("\n| tokens of history | fed anew, by steps alone | with prefill | resumed from a memory |")
        print("|---:|---:|---:|---:|")
        without, core = self._core(prefill=False), self._core()
        seconds: dict[str, list[float]] = {"steps": [], "prefill": [], "resume": []}
        for length in lengths:
            memory = _run(core, 1, length, keep=True)
            taken = take_turns({
                "steps": partial(_run, without, 1, length),
                "prefill": partial(_run, core, 1, length),
                "resume": partial(_run, core, 1, 1, memory),
            }, self._rounds)  # fmt: skip
            for name, each in taken.items():
                seconds[name].append(each.clock)
            print(f"| {length:,} |" + "|".join(f" {_said(each, 2)} " for each in taken.values()) + "|", flush=True)
        figures = {f"{name}_seconds": each for name, each in seconds.items()}
        return {"machine": asdict(self._machine), "lengths": list(lengths), **figures}

    def streams(self) -> None:
        """The time between two tokens of streams while prompts arrive one after another, by where they are consumed."""
        print(f"\n| {STREAMS} streams | gap between tokens, median | p99 | a prompt of {PROMPT_TOKENS:,} |")
        print("|---|---:|---:|---:|")
        print(f"| no prompt arrives |{self._gaps(self._core(), prompts=0)}|", flush=True)
        print(f"| prompts by steps alone |{self._gaps(self._core(prefill=False), prompts=1)}|", flush=True)
        print(f"| prompts between steps |{self._gaps(self._core(), prompts=3)}|", flush=True)
        core = self._core()
        thread = PrefillThread(core.prefill, lambda: bool(core.scheduler.running), "prefill")
        thread.start()
        print(f"| prompts beside steps |{self._gaps(core, prompts=3)}|", flush=True)
        thread.close()

    def _gaps(self, core: EngineCore, prompts: int) -> str:
        endless = SamplingParameters(max_tokens=1 << 30)
        for place in range(STREAMS):
            core.add(place, Request(np.array([place]), endless))
        for _ in range(20):
            core.step()
        gaps, took = list[float](), list[float]()
        for place in range(max(prompts, 1)):
            if prompts:
                core.add(STREAMS + place, _prompt(PROMPT_TOKENS))
            began, ended = time.perf_counter(), False
            while not ended:
                start = time.perf_counter()
                output = core.step()
                gaps.append(time.perf_counter() - start)
                ended = bool(output.finished) if prompts else len(gaps) == 200
            took.append(time.perf_counter() - began)
        for place in range(STREAMS):
            core.cancel(place)
        core.step()
        p99 = statistics.quantiles(gaps, n=100)[98] if len(gaps) > 1 else gaps[0]
        last = f"{statistics.median(took) * 1e3:.0f} ms" if prompts else ""
        return f" {statistics.median(gaps) * 1e3:.1f} ms | {p99 * 1e3:.1f} ms | {last} "

    def _core(self, *, prefill: bool = True) -> EngineCore:
        ports = StepPorts(
            inputs={"token": StateSpec((), "int64")},
            outputs={"logits": StateSpec((WORDS,), "float32")},
            states=self._specs,
            after={name: next_name(name) for name in self._specs},
            context={},
            head=HeadPorts("token", "logits"),
        )
        runner = OnnxRunner(self._step, ports, 1)
        many = (
            OnnxPrefillRunner(
                self._prefill,
                lambda fed: {name: np.ascontiguousarray(array) for name, array in fed.items()},
                ports.after,
            )
            if prefill
            else None
        )
        core = EngineCore(runner, 64, prefill=many)
        core.prefill.check(runner)
        return core


def _said(seconds: Seconds, digits: int = 1) -> str:
    return f"{seconds.clock * 1e3:.{digits}f} ms ({seconds.processor * 1e3:.{digits}f})"


def _times(slow: Seconds, fast: Seconds) -> str:
    return f"{slow.clock / fast.clock:.1f} ({slow.processor / fast.processor:.1f})"


def _prompt(length: int, memory: Snapshot | None = None, *, keep: bool = False) -> Request:
    ids = np.random.default_rng(length).integers(0, WORDS, length)
    return Request(ids, SamplingParameters(max_tokens=1, temperature=0.0), snapshot=memory, keep_state=keep)


def _run(
    core: EngineCore, rows: int, length: int, memory: Snapshot | None = None, *, keep: bool = False
) -> Snapshot | None:
    """Run so many prompts to their ends; the last one's memory."""
    for row in range(rows):
        core.add(row, _prompt(length, memory, keep=keep))
    kept = None
    while not core.idle:
        for _, end in core.step().finished:
            kept = end.snapshot
    return kept


def _sample(core: EngineCore, rows: int, length: int) -> None:
    """So many streams, at temperature 1 over the whole vocabulary: steps as a client that streams gets them."""
    for seed in range(rows):
        core.add(seed, Request(np.array([1]), SamplingParameters(max_tokens=length, seed=seed)))
    while not core.idle:
        core.step()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefill", description="Prompts with prefill and without."
    )
    parser.add_argument("--rounds", type=numbers.count, default=7, help="turns of each variant (7)")
    parser.add_argument(
        "--lengths", type=numbers.count, nargs="+", default=LENGTHS, help="of histories (16 64 256 1024 4096)"
    )
    parser.add_argument("--output", type=Path, help="write the histories' times here, as JSON, for benchmarks.plots")
    options = parser.parse_args()
    benchmark = Benchmark(options.rounds)
    with np.errstate(all="ignore"):
        benchmark.prompts()
        histories = benchmark.histories(options.lengths)
        benchmark.streams()
    if options.output:
        options.output.write_text(json.dumps(histories, indent=2) + "\n")


if __name__ == "__main__":
    main()
