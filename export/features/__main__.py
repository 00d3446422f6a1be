"""`python -m export.features ENCODER.onnx --images PATH --output FILE`: what a frozen encoder sees in images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from carousel.export.extractor import open_extractor
from carousel.export.features.file import write_features
from carousel.models.codec.image import Preprocessing
from carousel.models.errors import CarouselError
from carousel.models.output_file import STDOUT, check_output, descriptor_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the features, say what was done, and return the exit status: 0, or 1 with one sentence on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        preprocessing = Preprocessing(width=options.size, height=options.size, **_given(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = "size" if first["loc"][0] in ("width", "height") else first["loc"][0]
        parser.error(f"argument --{where}: {first['msg']}")
    try:
        check_output(options.output, make_parents=True, inputs=[options.encoder, *options.images])
        extractor = open_extractor(
            options.encoder, preprocessing, input_name=options.input_name, feature=options.feature
        )
        header = write_features(extractor, options.images, options.output, flip=options.flip)
    except (CarouselError, OSError) as error:
        print(f"export.features: {error}", file=sys.stderr)
        return 1
    grid = header.encoder.grid
    positions = f"{grid[0]} x {grid[1]} positions of " if grid else ""
    said = f"wrote {options.output}: {len(header.images):,} images, {positions}{header.encoder.size:,} features"
    print(said, file=sys.stderr if descriptor_of(options.output) == STDOUT else sys.stdout)
    return 0


def _given(options: argparse.Namespace) -> dict[str, object]:
    """The preprocessing's fields that were given; one number stands for all three channels."""
    names = ("mean", "deviation", "channels", "layout", "fit")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return {name: value * 3 if isinstance(value, list) and len(value) == 1 else value for name, value in given.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.features", description="Compute what a frozen encoder sees in a set of images."
    )
    parser.add_argument("encoder", type=Path, help="an ONNX file: an image in, a feature map or vector out")
    parser.add_argument(
        "--images", type=Path, action="append", required=True, help="a directory or a zip; may be given again"
    )
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--size", type=int, required=True, help="width and height that an image is brought to")
    numbers = {
        "mean": "what is taken from each channel's values in [0, 255]: 3 numbers, or 1 for all (0)",
        "deviation": "what they are divided by then: 3 numbers, or 1 for all (255)",
    }
    for name, meaning in numbers.items():
        parser.add_argument(f"--{name}", type=float, nargs="+", metavar="NUMBER", help=meaning)
    parser.add_argument("--channels", choices=("rgb", "bgr"), help="the order of the channels (rgb)")
    parser.add_argument("--layout", choices=("chw", "hwc"), help="the order of an image's and a map's axes (chw)")
    parser.add_argument("--fit", choices=("stretch", "crop"), help="squeeze the whole picture, or cut it (stretch)")
    parser.add_argument("--input", dest="input_name", help="the graph's input that is the image")
    parser.add_argument("--feature", help="the tensor of the graph that is the features, be it an output or not")
    parser.add_argument("--flip", action="store_true", help="take the mirror images")
    return parser


if __name__ == "__main__":
    sys.exit(main())
