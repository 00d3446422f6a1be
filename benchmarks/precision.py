"""`python -m benchmarks.precision`: one step in fp32, in int8, and in int8 with candidates, in a bare loop.

Nothing is sampled or sent. The candidates' graph is timed with and without its logits handed back, since onnxruntime
computes every output of a graph, asked for or not. The variants take turns, so that other load meets all alike.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import onnxruntime
import torch

from benchmarks.report import Machine
from export.int8_graph import build_int8_step
from export.onnx_graph import export_step
from export.step_module import step_module
from models.graph import STATE_PREFIX, next_name
from models.nn.language import LanguageModel, LanguageModelConfig
from models.step import CANDIDATE_OUTPUTS

ROWS = (1, 16, 64, 128)
CANDIDATES = 40
ROUNDS = 15
SECONDS_PER_TURN = 0.05


@dataclass(frozen=True, slots=True)
class Variant:
    """A step graph, and what is asked of it beside the states."""

    name: str
    session: onnxruntime.InferenceSession
    asked: Sequence[str]

    def seconds_per_step(self, vocabulary_size: int, rows: int) -> float:
        """Mean over SECONDS_PER_TURN of a loop that carries the state."""
        states = {
            spec.name: np.zeros((rows, spec.shape[1]), np.float32)
            for spec in self.session.get_inputs()
            if spec.name.startswith(STATE_PREFIX)
        }
        outputs = [*self.asked, *map(next_name, states)]
        tokens = np.random.default_rng(rows).integers(0, vocabulary_size, (64, rows))
        steps, began = 0, 0.0
        while True:
            said = self.session.run(outputs, {"token": tokens[steps % len(tokens)], **states})
            states = dict(zip(states, said[len(self.asked) :], strict=True))
            if not began:  # the first step is the warm-up
                began = perf_counter()
                continue
            steps += 1
            if perf_counter() - began > SECONDS_PER_TURN:
                return (perf_counter() - began) / steps


def main() -> None:
    """Print the table."""
    options = _parser().parse_args()
    torch.manual_seed(0)
    config = LanguageModelConfig(options.vocabulary, options.cell, hidden_size=512, layers=2)
    step = step_module(LanguageModel(config).eval())
    fp32, int8, best = (
        export_step(step),
        build_int8_step(step),
        build_int8_step(step, min(CANDIDATES, config.vocabulary_size)),
    )
    candidates = _session(best, options.threads)
    variants = [
        Variant("fp32, logits", _session(fp32, options.threads), ["logits"]),
        Variant("int8, logits", _session(int8, options.threads), ["logits"]),
        Variant(f"int8, logits and {CANDIDATES} candidates", candidates, ["logits", *CANDIDATE_OUTPUTS]),
        Variant(f"int8, {CANDIDATES} candidates", candidates, CANDIDATE_OUTPUTS),
    ]
    print(f"machine  {Machine.this()}")
    print(f"model    2x512 {config.cell.upper()}, {config.vocabulary_size:,} tokens, random weights; ", end="")
    print(f"graphs of {len(fp32) / 1e6:.1f} and {len(int8) / 1e6:.1f} MB; {options.threads or 'all'} threads")
    print(f"step     median of {options.rounds} turns (times as fast as fp32)\n")
    print("| rows |" + "|".join(f" {variant.name} " for variant in variants) + "|")
    print("|---:|" + "---:|" * len(variants))
    for rows in options.rows:
        turns = [
            [variant.seconds_per_step(config.vocabulary_size, rows) for variant in variants]
            for _ in range(options.rounds)
        ]
        medians = [statistics.median(turn) for turn in zip(*turns, strict=True)]
        cells = [f" {1e3 * seconds:.3f} ms ({medians[0] / seconds:.1f}) " for seconds in medians]
        print(f"| {rows} |" + "|".join(cells) + "|", flush=True)


def _session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """As the service opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.dynamic_block_base", "4")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description="Time steps of each precision.")
    parser.add_argument("--cell", choices=["lstm", "gru"], default="lstm")
    parser.add_argument("--vocabulary", type=int, default=10_000, help="tokens (10,000)")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of a step (1 16 64 128)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each variant")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0: one per core")
    return parser


if __name__ == "__main__":
    main()
