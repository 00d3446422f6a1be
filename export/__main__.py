"""`python -m export CHECKPOINT --repository DIR --name NAME`: publish a checkpoint as a bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from export.parity import BATCH_SIZES
from export.publish import export_checkpoint
from models.bundle import DecodingDefaults, Limits
from models.errors import CarouselError


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, say what was done, and return the exit status: 0, or 1 with one sentence on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        limits = Limits(**_given(options, "max_prompt_tokens", "max_new_tokens"))
        decoding = DecodingDefaults(**_given(options, "temperature", "top_k", "top_p"))
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(f"argument --{str(first['loc'][0]).replace('_', '-')}: {first['msg']}")
    try:
        done = export_checkpoint(options.checkpoint, options.repository, options.name, limits=limits, decoding=decoding)
    except (CarouselError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    parity = done.parity
    print(f"exported   {done.checkpoint}, step graph of {done.graph_bytes / 1e6:.1f} MB")
    print(f"parity     largest error {parity.max_abs_error:.1e} over {parity.steps} steps x {parity.rows} rows")
    print(f"rows       equal to the row alone, bit for bit, in batches of {', '.join(map(str, BATCH_SIZES))}")
    print(f"published  {done.bundle}")
    return 0


def _given(options: argparse.Namespace, *names: str) -> dict[str, float]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description="Publish a checkpoint as a bundle.")
    parser.add_argument("checkpoint", type=Path, help="a .safetensors checkpoint, or a run directory")
    parser.add_argument("--repository", type=Path, required=True, help="directory of bundles, made if absent")
    parser.add_argument("--name", required=True, help="what the model is called there")
    parser.add_argument("--max-prompt-tokens", type=int, help="most tokens or attempts that a request may send")
    parser.add_argument("--max-new-tokens", type=int, help="most tokens that a request may ask for")
    parser.add_argument("--temperature", type=float, help="sampling temperature of a request that names none")
    parser.add_argument("--top-k", type=int, help="top-k of a request that names none (0: all tokens)")
    parser.add_argument("--top-p", type=float, help="top-p of a request that names none")
    return parser


if __name__ == "__main__":
    sys.exit(main())
