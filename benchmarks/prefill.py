"""A long prompt with the prefill graph and without: `python -m benchmarks.prefill`.

The int8 graphs of a 2x512 LSTM with 10,000 words and random weights, in the engine's core: no socket, no event loop.
On one thread (the default) processor time is counted, so that other load on the machine does not matter much; on
several, the time on the clock. Variants take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from benchmarks.report import Machine
from export.int8_graph import build_int8_step
from export.int8_prefill import build_int8_prefill
from export.step_module import StepModule, step_module
from models.graph import NEXT_STATE_PREFIX, STATE_PREFIX
from models.nn.language import LanguageModel, LanguageModelConfig
from service.engine import prefill as engine_prefill
from service.engine.core import EngineCore
from service.engine.runner import OnnxPrefillRunner, OnnxRunner
from service.engine.sequence import Array, SamplingParameters, Sequence, Snapshot
from service.engine.state_pool import StateSpec

WORDS = 10_000
UNITS = 512
PROMPT_TOKENS = 1_000
CHUNK_TOKENS = 64
STREAMS = 32
BOUNDS = (0, 16, 32, 64, 128, 256)


def bare_graph(step: bytes) -> bytes:
    """The step graph without its projection to logits."""
    graph = onnx.load_from_string(step).graph
    nodes, weights = _recurrent(graph)
    outputs = [value for value in graph.output if value.name != "logits"]
    return _model(helper.make_graph(nodes, "bare", graph.input, outputs, weights))


def scan_graph(step: bytes) -> bytes:
    """The step graph without its projection as the body of one Scan. tokens int64[batch, steps]"""
    graph = onnx.load_from_string(step).graph
    nodes, weights = _recurrent(graph)
    states = [value for value in graph.input if value.name.startswith(STATE_PREFIX)]
    afters = [value for value in graph.output if value.name.startswith(NEXT_STATE_PREFIX)]
    token = helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"])
    body = helper.make_graph(nodes, "body", [*states, token], afters)

    def outer(prefix: str, values: list[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(prefix + value.name, TensorProto.FLOAT, ["batch", UNITS]) for value in values
        ]

    ids = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "steps"])
    before, after = outer("in.", states), outer("out.", afters)
    names = [value.name for value in before]
    scan = helper.make_node("Scan", [*names, "by_step"], [value.name for value in after], body=body, num_scan_inputs=1)
    transposed = helper.make_node("Transpose", ["tokens"], ["by_step"], perm=[1, 0])
    return _model(helper.make_graph([transposed, scan], "scan", [ids, *before], after, weights))


def _recurrent(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [node for node in graph.node if "logits" not in node.output]
    used = {name for node in nodes for name in node.input}
    return nodes, [tensor for tensor in graph.initializer if tensor.name in used]


def _model(graph: onnx.GraphProto) -> bytes:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


class Benchmark:
    """The model's graphs in sessions, and what is timed."""

    def __init__(self, threads: int, rounds: int) -> None:
        self._threads = threads
        self._rounds = rounds
        self._clock = time.process_time if threads == 1 else time.perf_counter
        step = _words()
        self._step, self._prefill = build_int8_step(step), build_int8_prefill(step)
        self._specs = {STATE_PREFIX + name: StateSpec((size,), "float32") for name, size in step.state_sizes.items()}
        print(f"machine  {Machine.this()}")
        print(f"model    2x{UNITS} LSTM, {WORDS:,} words, int8: step.onnx of {len(self._step) / 1e6:.1f} MB, ", end="")
        print(f"prefill.onnx of {len(self._prefill) / 1e6:.1f}; {threads or 'all'} threads, ", end="")
        print(f"{'processor time' if threads == 1 else 'time on the clock'}, medians of {rounds} turns")

    def candidates(self) -> None:
        """Microseconds a token of each graph, in a bare loop."""
        print(
            f"\n| rows x {CHUNK_TOKENS} tokens | step | step without projection | one Scan | layer by layer (shipped) |"
        )
        print("|---:|---:|---:|---:|---:|")
        step, bare = self._session(self._step), self._session(bare_graph(self._step))
        scan, layers = self._session(scan_graph(self._step)), self._session(self._prefill)
        for rows in (1, 4, 8, 16):
            ids = np.random.default_rng(rows).integers(0, WORDS, (rows, CHUNK_TOKENS))
            seconds = self._turns({
                "step": partial(_by_steps, step, ids),
                "bare": partial(_by_steps, bare, ids),
                "scan": partial(scan.run, None, _fed(scan, ids)),
                "layers": partial(layers.run, None, _fed(layers, ids)),
            })  # fmt: skip
            cells = [f" {each / ids.size * 1e6:.0f} us ({seconds['step'] / each:.1f}) " for each in seconds.values()]
            print(f"| {rows} |" + "|".join(cells) + "|", flush=True)

    def prompts(self) -> None:
        """A prompt and one token after it, through the engine."""
        print(f"\n| prompts of {PROMPT_TOKENS:,} tokens at once | without prefill | with | times as fast |")
        print("|---:|---:|---:|---:|")
        without, core = self._core(prefill=False), self._core()
        for rows in (1, 4, 16):
            seconds = self._turns({
                "without": partial(_run, without, rows, PROMPT_TOKENS),
                "with": partial(_run, core, rows, PROMPT_TOKENS),
            })  # fmt: skip
            cells = f" {seconds['without'] * 1e3:.1f} ms | {seconds['with'] * 1e3:.1f} ms "
            print(f"| {rows} |{cells}| {seconds['without'] / seconds['with']:.1f} |", flush=True)

    def resumes(self) -> None:
        """One token after a history: fed anew without prefill and with it, and resumed from its memory."""
        print("\n| tokens of history | fed anew, without prefill | with | resumed from a memory |")
        print("|---:|---:|---:|---:|")
        without, core = self._core(prefill=False), self._core()
        for length in (10, 100, 1_000, 4_000):
            memory = _run(core, 1, length, keep=True)
            seconds = self._turns({
                "without": partial(_run, without, 1, length),
                "with": partial(_run, core, 1, length),
                "resumed": partial(_run, core, 1, 1, memory),
            })  # fmt: skip
            print(f"| {length:,} |" + "|".join(f" {each * 1e3:.2f} ms " for each in seconds.values()) + "|", flush=True)

    def streams(self) -> None:
        """The time between two tokens of streams while prompts arrive one after another, by MAX_TOKENS."""
        print(
            f"\n| tokens between two steps | gap of {STREAMS} streams, median | p99 | a prompt of {PROMPT_TOKENS:,} |"
        )
        print("|---:|---:|---:|---:|")
        shipped = engine_prefill.MAX_TOKENS
        print(f"| no prompt arrives |{self._gaps(self._core(), prompts=0)}|", flush=True)
        for bound in BOUNDS:
            engine_prefill.MAX_TOKENS = bound
            core = self._core(prefill=bound > 0)
            print(f"| {bound or 'no prefill'} |{self._gaps(core, prompts=3 if bound else 1)}|", flush=True)
        engine_prefill.MAX_TOKENS = shipped

    def _gaps(self, core: EngineCore, prompts: int) -> str:
        endless = SamplingParameters(max_tokens=1 << 30)
        streams = [Sequence(np.array([place]), endless) for place in range(STREAMS)]
        for stream in streams:
            core.add(stream)
        for _ in range(20):
            core.step()
        gaps, took = list[float](), list[float]()
        for _ in range(max(prompts, 1)):
            prompt = _prompt(PROMPT_TOKENS)
            if prompts:
                core.add(prompt)
            began, ended = self._clock(), False
            while not ended:
                start = self._clock()
                output = core.step()
                gaps.append(self._clock() - start)
                ended = bool(output.finished) if prompts else len(gaps) == 200
            took.append(self._clock() - began)
        for stream in streams:
            core.cancel(stream)
        core.step()
        p99 = statistics.quantiles(gaps, n=100)[98] if len(gaps) > 1 else gaps[0]
        last = f"{statistics.median(took) * 1e3:.0f} ms" if prompts else ""
        return f" {statistics.median(gaps) * 1e3:.1f} ms | {p99 * 1e3:.1f} ms | {last} "

    def _turns(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Median seconds of each; they take turns, so that other load meets all alike."""
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(self._rounds + 1):
            for name, call in calls.items():
                start = self._clock()
                call()
                if turn:  # the first is the warm-up
                    seconds[name].append(self._clock() - start)
        return {name: statistics.median(each) for name, each in seconds.items()}

    def _core(self, *, prefill: bool = True) -> EngineCore:
        runner = OnnxRunner(self._step, "language", self._specs, WORDS, self._threads)
        many = OnnxPrefillRunner(self._prefill, "language") if prefill else None
        core = EngineCore(runner, 64, prefill=many)
        core.warm_up()
        return core

    def _session(self, graph: bytes) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _words() -> StepModule:
    torch.manual_seed(0)
    return step_module(LanguageModel(LanguageModelConfig(WORDS, "lstm", hidden_size=UNITS, layers=2)).eval())


def _prompt(length: int, memory: Snapshot | None = None, *, keep: bool = False) -> Sequence:
    ids = np.random.default_rng(length).integers(0, WORDS, length)
    return Sequence(ids, SamplingParameters(max_tokens=1, temperature=0.0), snapshot=memory, keep_state=keep)


def _run(
    core: EngineCore, rows: int, length: int, memory: Snapshot | None = None, *, keep: bool = False
) -> Snapshot | None:
    """Run so many prompts to their ends; the last one's memory."""
    for _ in range(rows):
        core.add(_prompt(length, memory, keep=keep))
    kept = None
    while not core.idle:
        for _, end in core.step().finished:
            kept = end.snapshot
    return kept


def _fed(session: onnxruntime.InferenceSession, ids: Array) -> dict[str, Array]:
    """The ids, and states of zeros."""
    return {
        spec.name: ids if "int64" in spec.type else np.zeros((len(ids), UNITS), np.float32)
        for spec in session.get_inputs()
    }


def _by_steps(session: onnxruntime.InferenceSession, ids: Array) -> None:
    fed = _fed(session, ids)
    states = [name for name in fed if name.startswith(STATE_PREFIX)]
    for column in ids.T:
        after = session.run(None, {**fed, "token": column})
        fed |= dict(zip(states, after[-len(states) :], strict=True))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefill", description="Prompts with prefill and without."
    )
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime (1); 0: one per core")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each variant (7)")
    options = parser.parse_args()
    benchmark = Benchmark(options.threads, options.rounds)
    with np.errstate(all="ignore"):
        benchmark.candidates()
        benchmark.prompts()
        benchmark.resumes()
        benchmark.streams()


if __name__ == "__main__":
    main()
