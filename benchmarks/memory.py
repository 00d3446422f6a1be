"""`python -m benchmarks.memory [BUNDLE ...]`: what a model takes, on disk and in a service of it alone.

Each bundle is served by a process of its own: what that holds once it is ready and, of a language model, after so many
streams. Without a bundle: the 2x512 LSTM of random weights, in int8 and in fp32.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from carousel.benchmarks import numbers
from carousel.benchmarks.load import Generation, Window, closed_loop
from carousel.benchmarks.report import Machine
from carousel.benchmarks.server import resident_bytes, running
from carousel.benchmarks.words import VOCABULARY_SIZE, words_bundle
from carousel.models.bundle import Bundle, open_bundle

WINDOW = Window(seconds=3.0, warmup_seconds=1.0)
MAX_TOKENS = 128


def stored_bytes(bundle: Bundle) -> int:
    """Of all files in a bundle's directory."""
    return sum(file.stat().st_size for file in bundle.path.iterdir())


def held_bytes(bundle: Bundle, streams: int) -> tuple[int, int | None]:
    """What a service holds that serves this bundle alone: ready, and after streams if it is a language model's."""
    with TemporaryDirectory() as directory:
        alone = Path(directory) / bundle.model / str(bundle.version)
        shutil.copytree(bundle.path, alone)
        with running("carousel", alone) as target:
            ready = resident_bytes(target)
            if bundle.manifest.task != "language":
                return ready, None
            prompt = tuple(range(min(4, bundle.output_size)))
            uvloop.run(closed_loop(target, Generation(prompt, MAX_TOKENS), streams, WINDOW))
            return ready, resident_bytes(target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="What a model takes in memory.")
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE", help="<repository>/<model>/<version>")
    parser.add_argument(
        "--vocabulary",
        type=numbers.count,
        default=VOCABULARY_SIZE,
        help="words of the model that is made for this (10,000)",
    )
    parser.add_argument("--streams", type=numbers.count, default=64, help="at once (64)")
    options = parser.parse_args(arguments)
    paths = options.bundles or [
        words_bundle(precision, vocabulary_size=options.vocabulary) for precision in ("int8", "fp32")
    ]
    print(f"machine  {Machine.this()}\n")
    print(f"| bundle | tokens or skills | on disk | resident when ready | after {options.streams} streams |")
    print("|---|---:|---:|---:|---:|")
    for bundle in map(open_bundle, paths):
        ready, after = held_bytes(bundle, options.streams)
        sizes = [stored_bytes(bundle), ready, after]
        cells = ["-" if size is None else f"{size / 1e6:,.1f} MB" for size in sizes]
        name = f"{bundle.model} {bundle.version}, {bundle.manifest.precision}"
        print(f"| {name} | {bundle.output_size:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
