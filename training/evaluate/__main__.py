"""Judge a captioning model: `python -m training.evaluate CHECKPOINT [section.key=value ...]`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from carousel.models.errors import CarouselError
from carousel.models.nn.threads import limit_threads
from carousel.models.output_file import STDOUT, check_output, descriptor_of, open_output
from carousel.training.errors import RunError
from carousel.training.evaluate.sheet import picture_sheet
from carousel.training.evaluate.split import Split
from carousel.training.trainer import BEST

LABELS = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor_exact_stem": "METEOR (exact, stem)",
    "cider_d": "CIDEr-D",
    "true": "true captions",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 2 is a mistake of the caller's."""
    options = _parser().parse_intermixed_args(arguments)
    limit_threads()
    try:
        _evaluate(options)
    except (CarouselError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _evaluate(options: argparse.Namespace) -> None:
    read = [options.checkpoint, options.checkpoint / BEST]
    for output in filter(None, (options.captions, options.sheet)):
        check_output(output, inputs=read)
        read.append(output)
    split = Split(options.checkpoint, options.overrides)
    if options.sheet and split.album.open_picture is None:
        raise RunError("a sheet shows pictures; say where they are with corpus.validation_pictures=PATH")
    if options.sheet:
        split.album.require_pictures("corpus.validation_pictures")
    width = split.decoding.beam_width if options.beam_width is None else options.beam_width
    penalty = split.decoding.length_penalty if options.length_penalty is None else options.length_penalty
    columns: dict[str, Mapping[str, float]] = {}
    captions: list[str] = []
    for beam_width in sorted({1, width}):
        captions = split.caption(beam_width, penalty)
        columns["greedy" if beam_width == 1 else f"beam {beam_width}"] = split.figures(captions)
    decoding, figures = list(columns.items())[-1]
    outputs = [descriptor_of(output) for output in (options.captions, options.sheet) if output]
    told = sys.stderr if STDOUT in outputs else sys.stdout
    print(f"{split.name}: {len(captions):,} pictures, length penalty {penalty:g}", file=told)
    print("\n".join(_table(columns)), file=told)
    if options.captions:
        content = json.dumps(dict(zip(split.album.names, captions, strict=True)), indent=1, ensure_ascii=False)
        _write(options.captions, content + "\n")
        print(f"captions of {decoding}: {options.captions}", file=told)
    if options.sheet:
        remark = ", ".join(f"{LABELS[name]} {value:.1f}" for name, value in figures.items() if name in LABELS)
        title = f"{split.name}, {decoding}"
        sheet = picture_sheet(title, f"{len(captions):,} pictures: {remark}", split.album, captions, options.pictures)
        _write(options.sheet, sheet)
        print(f"sheet of {decoding}: {options.sheet}", file=told)


def _write(path: Path, text: str) -> None:
    with open_output(path) as file:
        file.write(text.encode())


def _table(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Metrics down, decodings across."""
    lines = [" " * 22 + "".join(f"{name:>10}" for name in columns)]
    for name, label in LABELS.items():
        values = [figures[name] for figures in columns.values() if name in figures]
        if values:
            lines.append(f"{label:<22}" + "".join(f"{value:>10.2f}" for value in values))
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description="Judge a captioning model by its recipe's validation pictures."
    )
    parser.add_argument("checkpoint", type=Path, help="a best.safetensors, or a run directory")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="replaces a value of its recipe, such as the files"
    )
    parser.add_argument("--beam-width", type=_width, metavar="K", help="1 is greedy alone; default: the recipe's")
    parser.add_argument("--length-penalty", type=_penalty, metavar="A", help="default: the recipe's")
    parser.add_argument(
        "--captions", type=Path, metavar="FILE", help="write what was generated: JSON, picture's name to caption"
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write an HTML page of pictures and captions")
    parser.add_argument("--pictures", type=_width, metavar="N", default=24, help="on the sheet; default 24")
    return parser


def _width(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _penalty(text: str) -> float:
    number = float(text)
    if not (0 <= number < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return number


if __name__ == "__main__":
    sys.exit(main())
