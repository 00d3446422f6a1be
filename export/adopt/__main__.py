"""`python -m export.adopt MODEL.onnx --repository DIR --name NAME`: a network that others made becomes a bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from carousel.export.adopt.adopted import Graph
from carousel.export.adopt.child import MAX_MEMORY_BYTES, MAX_SECONDS, Request, run
from carousel.export.adopt.head import generates
from carousel.export.adopt.publish import publish_adopted
from carousel.export.adopt.said import Said
from carousel.models.bundle import require_publishable
from carousel.models.errors import CarouselError

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m export.adopt") -> int:
    """Adopt, say what was found and why, and return the exit status: 0, or 1 with one sentence on stderr."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    said = Said(
        fixed=dict(options.fix),
        shapes=dict(options.shape),
        times=dict(options.time),
        carries=dict(options.carry),
        states=dict(options.state),
        dequantize=options.dequantize,
        products=options.products,
    )
    samples = options.head == "generate"
    if samples and (options.feeds is None or options.reads is None or options.encoder_only):
        parser.error("--head generate is of a step, and needs --feeds, --from and --codec")
    if not samples and (options.feeds is not None or options.reads is not None or options.codec):
        parser.error("--feeds, --from and --codec are of --head generate")
    try:
        sampled = generates(options.feeds, options.reads, dict(options.codec)) if samples else None
        require_publishable(options.repository, options.name)
        found = run(
            Request(options.model, said, options.encoder, options.encoder_only, options.lengths),
            _say,
            max_seconds=options.seconds,
            max_memory_bytes=options.memory << 30,
        )
        bundle = publish_adopted(options.repository, options.name, found, sampled)
    except (CarouselError, OSError) as error:
        print(f"adopt: {error}", file=sys.stderr)
        return 1
    encoder, step = (part or Graph(b"", (), ()) for part in (found.encoder, found.step))
    outputs = encoder.outputs if found.step is None else step.outputs
    print(f"ports      in {', '.join([*encoder.inputs, *step.inputs])}; out {', '.join(outputs)}")
    print(f"published  {bundle}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Make a bundle of a recurrent network that others made. Names are those of the file."
    )
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("--repository", type=Path, required=True, help="directory of bundles, made if absent")
    parser.add_argument("--name", required=True, help="what the model is called there")
    flags: dict[str, tuple[Callable[[str], Any], str, str]] = {
        "fix": (float, "INPUT=VALUE", "what a control input is given in every call, such as a sample rate"),
        "shape": (_sizes, "INPUT=SIZES", "the sizes of a row at one step, with commas; without batch, time and carry"),
        "time": (int, "INPUT=AXIS", "which axis of an input is time: the step takes one place of it"),
        "carry": (int, "INPUT=COUNT", "how many of a step's last values go in front of the next step's"),
        "state": (str, "INPUT=OUTPUT", "an input that is an output of the step before, where nothing proves it"),
    }
    for flag, (kind, form, meaning) in flags.items():
        parser.add_argument(
            f"--{flag}",
            type=_pair(kind),
            metavar=form,
            action="append",
            default=[],
            help=f"{meaning}; may be given again",
        )
    encoders = parser.add_mutually_exclusive_group()
    encoders.add_argument(
        "--encoder", type=Path, metavar="FILE", help="another ONNX file, which gives a sequence its context and states"
    )
    encoders.add_argument("--encoder-only", action="store_true", help="the network needs its whole input in one call")
    parser.add_argument(
        "--lengths",
        metavar="INPUT",
        help="the encoder's input whose rows may be of unequal lengths, which its nodes are told",
    )
    parser.add_argument(
        "--head", choices=("tensors", "generate"), default="tensors",
        help="outputs are given as they are, or ids are sampled and fed back (default: tensors)",
    )  # fmt: skip
    parser.add_argument("--feeds", metavar="PORT", help="the port that sampled ids are fed to")
    parser.add_argument("--from", dest="reads", metavar="PORT", help="the port of logits that they are sampled from")
    parser.add_argument(
        "--codec", type=_pair(Path), metavar="PORT=FILE", action="append", default=[],
        help="what a port's ids are: a tokenizer.json, or a JSON list of tokens",
    )  # fmt: skip
    parser.add_argument("--dequantize", action="store_true", help="give dynamically quantised products float weights")
    parser.add_argument(
        "--products",
        action="store_true",
        help="convolutions over a few frames as products: faster, not to the bit",
    )
    parser.add_argument(
        "--seconds", type=_positive(float), default=MAX_SECONDS, help=f"that it may take (default: {MAX_SECONDS:g})"
    )
    parser.add_argument(
        "--memory", type=_positive(int), default=MAX_MEMORY_BYTES >> 30, metavar="GIB",
        help=f"memory that it may address (default: {MAX_MEMORY_BYTES >> 30})",
    )  # fmt: skip
    return parser


def _pair(kind: Callable[[str], Value]) -> Callable[[str], tuple[str, Value]]:
    def parse(text: str) -> tuple[str, Value]:
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
        try:
            return name, kind(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: {value!r} is not a value of this flag") from None

    return parse


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(each) for each in text.split(",")) if text else ()
    if any(size < 1 for size in sizes):
        raise ValueError(text)
    return sizes


def _positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
