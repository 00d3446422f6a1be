"""`python -m benchmarks.captions`: 64 clients with an image each, against a loop over steps per request.

1. Whole captions over HTTP, greedy, each client's next image as soon as the last one is captioned: images per second
   of the service and of the peer (naive_captions.py), in turns, and what processor time an image takes of each. On the
   same bundle both must say the same of every image. `--fp32` names the bundle of the same model that people would run
   the peer on; then it has a turn on that one, too.
2. The service alone over WebSockets: when the first word comes.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import uvloop
from PIL import Image

from carousel.benchmarks import numbers
from carousel.benchmarks.http import Client
from carousel.benchmarks.load import Target
from carousel.benchmarks.record import LoadResult, Recorder
from carousel.benchmarks.report import Machine
from carousel.benchmarks.server import SERVICE, ServerFailed, launched, processor_seconds, service_settings
from carousel.benchmarks.websocket import WebSocket
from carousel.models.bundle import open_bundle, versions
from carousel.models.errors import BundleNotFound, CarouselError

REPOSITORY = Path(__file__).resolve().parents[1] / "bundles"
MODEL = "scenes"
WARMUP_SECONDS = 1.0
IMAGES = 64
PIXELS = 128
BOUNDARY = "multipart/form-data; boundary=b"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status: 0, or 1 with one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        bundle = (options.bundle or shipped()).resolve()
        if open_bundle(bundle).encoder is None:
            raise BundleNotFound(f"{bundle} is no captioning bundle; name one with --bundle")
        images = read_images(options.images)[:IMAGES] if options.images else draw_images()
        measure(bundle, images, options)
    except (CarouselError, ServerFailed, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def measure(bundle: Path, images: list[bytes], options: argparse.Namespace) -> None:
    """Both sides in turns, then the service's streams; print the tables."""
    print(Machine.this(), flush=True)
    sides = {"carousel": bundle, "naive": bundle}
    if options.fp32 is not None:
        sides["naive, fp32"] = options.fp32.resolve()
    rates: dict[str, list[float]] = {side: [] for side in sides}
    tails: dict[str, list[float]] = {side: [] for side in sides}
    costs: dict[str, list[float]] = {side: [] for side in sides}
    texts: dict[str, dict[int, str]] = {}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            command = (
                SERVICE if side == "carousel" else ["carousel.benchmarks.naive_captions", "--bundle", str(sides[side])]
            )
            with launched(command, service_settings(bundle) if side == "carousel" else {}, bundle) as target:
                before = processor_seconds(target)
                loop = closed_loop(target, images, options.clients, options.seconds)
                durations, texts[side], answers = uvloop.run(loop)
                costs[side].append((processor_seconds(target) - before) / answers)
            rates[side].append(len(durations) / options.seconds)
            tails[side].append(float(np.quantile(durations, 0.99)))
            print(f"round {number + 1}, {side}: {rates[side][-1]:,.0f} images/s", file=sys.stderr, flush=True)
    both = texts["carousel"].keys() & texts["naive"].keys()
    same = sum(texts["carousel"][place] == texts["naive"][place] for place in both)
    words = np.mean([len(text.split()) for text in texts["carousel"].values()])
    print(f"\n{options.clients} clients, {bundle.parent.name}/{bundle.name}, {words:.1f} words a caption")
    print(f"both sides say the same of {same} of {len(both)} images\n")
    print("| | images/s | 99th percentile | carousel against it | processor time an image | carousel against it |")
    print("|---|---|---|---|---|---|")
    for side, values in rates.items():
        ratio = median(a / b for a, b in zip(rates["carousel"], values, strict=True))
        cheaper = median(a / b for a, b in zip(costs[side], costs["carousel"], strict=True))
        print(f"| {side} | {median(values):,.0f} | {median(tails[side]) * 1e3:.0f} ms | {ratio:.1f} ", end="")
        print(f"| {median(costs[side]) * 1e3:.2f} ms | {cheaper:.1f} |")
    with launched(SERVICE, service_settings(bundle), bundle) as target:
        result = uvloop.run(streams(target, images, options.clients, options.seconds))
    first, rate = result.first_token, result.generations / result.seconds
    p50, p99 = (first.p50_seconds or 0) * 1e3, (first.p99_seconds or 0) * 1e3
    print(f"\nstreamed: {rate:,.0f} images/s; first word after {p50:.0f} ms (99th percentile: {p99:.0f} ms)")


async def closed_loop(
    target: Target, images: list[bytes], clients: int, seconds: float
) -> tuple[list[float], dict[int, str], int]:
    """All clients at once, each with one image in flight: the seconds of each caption in the window, what was said of
    each image, and how many captions there were, the warm-up's among them."""
    path = f"/v1/models/{target.model}/captions"
    durations: list[float] = []
    texts: dict[int, str] = {}
    answers = 0
    forms = [form(image) for image in images]
    start = perf_counter() + WARMUP_SECONDS

    async def ask(number: int) -> None:
        nonlocal answers
        client = await Client.open(target)
        while (began := perf_counter()) < start + seconds:
            number = (number + 1) % len(images)
            answer = await client.post(path, forms[number], BOUNDARY)
            if start < perf_counter() < start + seconds:
                durations.append(perf_counter() - began)
            texts[number] = json.loads(answer)["images"][0]["captions"][0]["text"]
            answers += 1
        client.close()

    await asyncio.gather(*(ask(number) for number in range(clients)))
    return durations, texts, answers


async def streams(target: Target, images: list[bytes], clients: int, seconds: float) -> LoadResult:
    """The same over WebSockets, each word as it comes."""
    start = perf_counter() + WARMUP_SECONDS
    recorder = Recorder(start, start + seconds)

    async def ask(number: int) -> None:
        connection = await WebSocket.open(target.uri, recorder)
        while (began := perf_counter()) < start + seconds:
            number = (number + 1) % len(images)
            await connection.generate(images[number], began)
        await connection.close()

    await asyncio.gather(*(ask(number) for number in range(clients)))
    return recorder.result()


def form(image: bytes, beam_width: int = 1) -> bytes:
    """A request for the best caption of a beam so wide; a greedy one where it is 1."""
    part = "--b\r\ncontent-disposition: form-data; name="
    head = f'{part}"beam_width"\r\n\r\n{beam_width}\r\n{part}"image"; filename="i"\r\n\r\n'
    return head.encode() + image + b"\r\n--b--\r\n"


def draw_images() -> list[bytes]:
    """Images that all differ: JPEGs of a few soft colours."""
    random, files = np.random.default_rng(0), []
    for _ in range(IMAGES):
        colours = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        buffer = io.BytesIO()
        colours.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def read_images(directory: Path) -> list[bytes]:
    """The files of a directory, by name."""
    paths = sorted(path for path in directory.iterdir() if path.is_file())
    if not paths:
        raise FileNotFoundError(f"{directory} holds no file; give a directory of images")
    return [path.read_bytes() for path in paths]


def shipped() -> Path:
    """The newest version of the shipped captioning bundle."""
    newest = versions(REPOSITORY, MODEL)
    if not newest:
        raise BundleNotFound(f"{REPOSITORY} holds no {MODEL}; name a captioning bundle with --bundle")
    return REPOSITORY / MODEL / str(newest[-1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.captions", description="Captions against a naive loop.")
    parser.add_argument("--bundle", type=Path, help="<repository>/<model>/<version>; default: the shipped scenes")
    parser.add_argument("--fp32", type=Path, help="the same model's bundle in fp32, for the peer")
    parser.add_argument("--images", type=Path, help="a directory of image files; default: drawn ones")
    parser.add_argument("--clients", type=numbers.count, default=64, help="that ask at once")
    parser.add_argument("--seconds", type=numbers.seconds, default=6.0, help="measured per run")
    parser.add_argument("--rounds", type=numbers.count, default=3, help="how often each side is measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
