"""`python -m export CHECKPOINT --repository DIR --name NAME`: publish a checkpoint as a bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from carousel.export.checks.captioning import ENCODER_BATCH_SIZES
from carousel.export.checks.parity import MAX_BATCH
from carousel.export.checks.prefill import LONGEST_CHUNK
from carousel.export.progress import ConsoleProgress
from carousel.export.publish import export_checkpoint
from carousel.models.bundle import ENCODER_GRAPH
from carousel.models.errors import CarouselError
from carousel.models.manifest import DecodingDefaults, Limits, Precision
from carousel.models.nn.threads import limit_threads
from carousel.models.step import PREFILL_GRAPH

DECODING = ("temperature", "top_k", "top_p", "beam_width", "length_penalty")
"""The flags that are fields of DecodingDefaults."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m export") -> int:
    """Export, say what was done, and return the exit status: 0, or 1 with one sentence on stderr."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    limit_threads()
    try:
        limits = Limits(**_given(options, "max_prompt_tokens", "max_new_tokens"))
        decoding = DecodingDefaults(**_given(options, *DECODING))
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(f"argument --{str(first['loc'][0]).replace('_', '-')}: {first['msg']}")
    if options.max_worsening is not None and options.precision != "int8":
        parser.error("argument --max-worsening: is for --precision int8 alone")
    try:
        with ConsoleProgress() as progress:
            done = export_checkpoint(
                options.checkpoint,
                options.repository,
                options.name,
                encoder=options.encoder,
                limits=limits,
                decoding=decoding,
                precision=options.precision,
                max_worsening=options.max_worsening,
                progress=progress,
            )
    except (CarouselError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    parity = done.parity
    sizes = " and ".join(f"{file} of {size / 1e6:.1f} MB" for file, size in done.graph_bytes.items())
    print(f"exported   {done.checkpoint}: {sizes}")
    print(f"parity     largest error {parity.max_abs_error:.1e} over {parity.steps} steps x {parity.rows} rows")
    print(f"rows       equal to the row alone, bit for bit, in batches of 1 to {MAX_BATCH}")
    if ENCODER_GRAPH in done.graph_bytes:
        print(f"images     so, too, in batches of {', '.join(map(str, ENCODER_BATCH_SIZES))}")
    if PREFILL_GRAPH in done.graph_bytes:
        print(f"prefill    leaves the step's states, bit for bit, in chunks of 1 to {LONGEST_CHUNK}")
    for product in done.in_fp32:
        print(f"int8       left out: {product}")
    if done.no_prefill:
        print(f"prefill    left out: {done.no_prefill}")
    if done.figures is not None and done.figures.fp32 is not None:
        cost, allowed = done.figures.worsening, done.figures.allowed_worsening
        print(f"int8       worse than fp32 by {cost:.5f} in {done.figures.measure}; allowed is {allowed:g}")
    print(f"published  {done.bundle}")
    return 0


def _given(options: argparse.Namespace, *names: str) -> dict[str, float]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Publish a checkpoint as a bundle.")
    parser.add_argument("checkpoint", type=Path, help="a .safetensors checkpoint, or a run directory")
    parser.add_argument("--repository", type=Path, required=True, help="directory of bundles, made if absent")
    parser.add_argument("--name", required=True, help="what the model is called there")
    parser.add_argument("--encoder", type=Path, help="the ONNX file whose features a captioning model was trained on")
    parser.add_argument("--max-prompt-tokens", type=int, help="most tokens or attempts that a request may send")
    parser.add_argument("--max-new-tokens", type=int, help="most tokens that a request may ask for")
    parser.add_argument("--temperature", type=float, help="sampling temperature of a request that names none")
    parser.add_argument("--top-k", type=int, help="top-k of a request that names none (0: all tokens)")
    parser.add_argument("--top-p", type=float, help="top-p of a request that names none")
    parser.add_argument("--beam-width", type=int, help="of a caption request that names none (1: greedy)")
    parser.add_argument("--length-penalty", type=float, help="of a caption request that names none")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the graph's products")
    parser.add_argument(
        "--max-worsening",
        type=float,
        metavar="X",
        help="int8: refuse above this; relative perplexity (0.005 where not given), AUC (0.002) or BLEU-4 (0.3)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
