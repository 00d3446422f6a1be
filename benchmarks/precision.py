"""`python -m benchmarks.precision`: what int8 makes of a step, in a bare loop: nothing is sampled or sent.

1. A 2x512 network with 10,000 words and random weights in fp32 and in int8.
2. Bundles of one model side by side, `--bundles`: the shipped captions in fp32 and in int8, steps and encoder.

On one thread (the default) processor time is counted, on several the time on the clock. Variants take turns, so that
other load meets all alike; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from carousel.benchmarks import numbers
from carousel.benchmarks.report import Machine
from carousel.benchmarks.turns import model_of
from carousel.export.onnx_graph import export_step
from carousel.export.passes.recipe import int8_step
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH, Bundle, open_bundle
from carousel.models.cores import usable_cores
from carousel.models.graph import STATE_PREFIX, GraphSpec, next_name, read_graph

BUNDLES = [Path(__file__).resolve().parents[1] / "bundles" / "scenes" / version for version in ("1", "2")]
ROWS = (1, 16, 64, 128)
IMAGES = (1, 4, 16)
ROUNDS = 15
SECONDS_PER_TURN = 0.05


@dataclass(frozen=True, slots=True)
class Variant:
    """A graph, and what is asked of it."""

    name: str
    graph: GraphSpec
    session: onnxruntime.InferenceSession
    asked: Sequence[str]
    """Beside the states."""
    id_count: int
    """Ids of the step graph's are in [0, this)."""
    threads: int

    def seconds_per_call(self, rows: int) -> float:
        """Mean over SECONDS_PER_TURN of a loop that carries the states, if there are any."""
        clock = time.process_time if self.threads == 1 else time.perf_counter
        random = np.random.default_rng(rows)
        fed = {
            spec.name: random.integers(0, self.id_count, rows)
            if spec.dtype == "int64"
            else random.random((rows, *(size or 0 for size in spec.shape[1:])), np.float32)
            for spec in self.graph.inputs
        }
        states = [name for name in fed if name.startswith(STATE_PREFIX)]
        outputs = [*self.asked, *map(next_name, states)]
        calls, began = -1, 0.0
        while True:
            said = self.session.run(outputs, fed)
            fed.update(zip(states, said[len(self.asked) :], strict=True))
            calls += 1
            if not calls:  # the first call is the warm-up
                began = clock()
            elif clock() - began > SECONDS_PER_TURN:
                return (clock() - began) / calls


def print_table(unit: str, counts: Sequence[int], variants: Sequence[Variant], rounds: int) -> None:
    """Milliseconds a call of each variant, and how many times as fast as the first it is."""
    print(f"\n| {unit} |" + "|".join(f" {variant.name} " for variant in variants) + "|")
    print("|---:|" + "---:|" * len(variants))
    for count in counts:
        turns = [[variant.seconds_per_call(count) for variant in variants] for _ in range(rounds)]
        medians = [statistics.median(turn) for turn in zip(*turns, strict=True)]
        cells = [f" {1e3 * seconds:.3f} ms ({medians[0] / seconds:.1f}) " for seconds in medians]
        print(f"| {count} |" + "|".join(cells) + "|", flush=True)


def of_one_network(options: argparse.Namespace) -> list[Variant]:
    """The step graphs of one network of random weights."""
    step = model_of(options.cell, options.vocabulary)
    fp32 = export_step(step)
    int8, _ = int8_step(fp32)
    print(f"model    2x512 {options.cell.upper()}, {options.vocabulary:,} tokens, random weights; ", end="")
    print(f"step graphs of {len(fp32) / 1e6:.1f} MB in fp32 and {len(int8) / 1e6:.1f} in int8")

    def variant(name: str, graph: bytes) -> Variant:
        session = _session(graph, options.threads)
        return Variant(name, read_graph(graph, name), session, ["logits"], options.vocabulary, options.threads)

    return [variant("fp32", fp32), variant("int8", int8)]


def of_bundle(bundle: Bundle, graph: str, threads: int) -> Variant:
    """A bundle's step graph, or its encoder."""
    spec = bundle.step if graph == STEP_GRAPH else bundle.encoder
    assert spec is not None
    asked = [output.name for output in spec.outputs]
    if graph == STEP_GRAPH:
        asked = [name for name in asked if name not in {state.after for state in bundle.manifest.step.states}]
    name = f"{bundle.model}/{bundle.version}, {bundle.manifest.precision}"
    return Variant(name, spec, _session(bundle.path / graph, threads), asked, bundle.output_size, threads)


def _session(graph: bytes | Path, threads: int) -> onnxruntime.InferenceSession:
    """As the service opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.dynamic_block_base", "4")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print the tables."""
    options = _parser().parse_args()
    print(f"machine  {Machine.this()}")
    print(f"cells    a call, median of {options.rounds} turns (times as fast as the first); ", end="")
    print("one thread, processor time" if options.threads == 1 else f"{options.threads or 'all'} threads, on the clock")
    print_table("rows of a step", options.rows, of_one_network(options), options.rounds)
    bundles = list(map(open_bundle, options.bundles))
    if not bundles:
        return
    print(f"\nbundles  {' and '.join(f'{bundle.model}/{bundle.version}' for bundle in bundles)}")
    steps = [of_bundle(bundle, STEP_GRAPH, options.threads) for bundle in bundles]
    print_table("rows of a step", options.rows, steps, options.rounds)
    if all(bundle.encoder for bundle in bundles):
        encoders = [of_bundle(bundle, ENCODER_GRAPH, options.threads) for bundle in bundles]
        print_table("images encoded", IMAGES, encoders, options.rounds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description="Time steps of each precision.")
    parser.add_argument("--cell", choices=["lstm", "gru"], default="lstm")
    parser.add_argument("--vocabulary", type=numbers.count, default=10_000, help="tokens (10,000)")
    parser.add_argument("--bundles", type=Path, nargs="*", default=BUNDLES, help="of one model (scenes/1 and scenes/2)")
    parser.add_argument("--rows", type=numbers.count, nargs="+", default=ROWS, help="rows of a step (1 16 64 128)")
    parser.add_argument("--rounds", type=numbers.count, default=ROUNDS, help="turns of each variant")
    parser.add_argument("--threads", type=numbers.count_or_none, default=1, help="of onnxruntime (1); 0: one per core")
    return parser


if __name__ == "__main__":
    main()
