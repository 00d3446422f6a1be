"""`python -m benchmarks.faithful`: does the service say of an image what its bundle says offline, and is it true?

Every image is captioned by a running service, many at once, greedily and by beam search, and by the offline decoder
(models/nn/beam.py) over the bundle's graphs, one at a time in onnxruntime. The two must agree word for word. Without
`--images` the images are scenes of a seed that no recipe trains on; of these it is known what is true.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
import uvloop
from torch import Tensor

from carousel.benchmarks import numbers
from carousel.benchmarks.captions import BOUNDARY, form, read_images, shipped
from carousel.benchmarks.http import Client
from carousel.benchmarks.load import Target
from carousel.benchmarks.server import SERVICE, ServerFailed, launched, service_settings
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH, Bundle, open_bundle
from carousel.models.codec.caption import caption_codec
from carousel.models.errors import BundleNotFound, CarouselError
from carousel.models.graph import STATE_PREFIX, next_name
from carousel.models.nn.beam import best_captions
from carousel.models.step import IMAGE
from carousel.training.corpus.scene_drawing import encode_scene
from carousel.training.corpus.scene_words import describes
from carousel.training.corpus.scenes import make_scenes

SEED = 20_261_121
CLIENTS = 32


class BundleCaptioner:
    """A bundle's graphs, for one image (models.nn.beam.Captioner)."""

    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._encoder = onnxruntime.InferenceSession(bundle.path / ENCODER_GRAPH, options)
        self._step = onnxruntime.InferenceSession(bundle.path / STEP_GRAPH, options)
        self._states = [spec.name.removeprefix(STATE_PREFIX) for spec in bundle.states]
        self._context = [spec.name for spec in bundle.context]
        self._outputs = ["logits", *(next_name(spec.name) for spec in bundle.states)]

    def encode(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See CaptioningModel.encode."""
        names = [output.name for output in self._encoder.get_outputs()]
        said = dict(zip(names, map(torch.from_numpy, self._encoder.run(names, {IMAGE: images.numpy()})), strict=True))
        states = {name.removeprefix(STATE_PREFIX): said[name] for name in said if name.startswith(STATE_PREFIX)}
        return states, {name: said[name] for name in self._context}

    def step(
        self, token: Tensor, state: dict[str, Tensor], context: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], None]:
        """See CaptioningModel.step."""
        fed = {"token": token.numpy()}
        fed |= {STATE_PREFIX + name: part.numpy() for name, part in state.items()}
        fed |= {name: part.expand(len(token), *part.shape[1:]).numpy() for name, part in context.items()}
        logits, *after = map(torch.from_numpy, self._step.run(self._outputs, fed))
        return logits, dict(zip(self._states, after, strict=True)), None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, and return the exit status: 0 where all agree, else 1."""
    options = _parser().parse_args(arguments)
    try:
        path = (options.bundle or shipped()).resolve()
        bundle = open_bundle(path)
        if bundle.encoder is None:
            raise BundleNotFound(f"{path} is no captioning bundle; name one with --bundle")
        scenes = [] if options.images else make_scenes(options.seed, options.count)
        files = read_images(options.images)[: options.count] if options.images else list(map(encode_scene, scenes))
        agreed = True
        with launched(SERVICE, service_settings(path), path) as target:
            for width in (1, options.beam_width):
                served = uvloop.run(ask(target, files, width))
                said = offline(bundle, files, width)
                same = sum(one == other for one, other in zip(served, said, strict=True))
                agreed &= same == len(files)
                how = "greedy" if width == 1 else f"beam of {width}"
                print(f"{how}: the service says what the bundle says offline of {same:,} of {len(files):,} images")
                if scenes:
                    true = sum(describes(text, scene) for text, scene in zip(served, scenes, strict=True))
                    print(f"{how}: {true / len(scenes):.1%} of the captions are true of their scenes")
    except (CarouselError, ServerFailed, OSError) as error:
        print(f"faithful: {error}", file=sys.stderr)
        return 1
    return 0 if agreed else 1


async def ask(target: Target, files: Sequence[bytes], width: int) -> list[str]:
    """The service's best caption of each file."""
    captions = [""] * len(files)
    left = iter(range(len(files)))

    async def take_turns() -> None:
        client = await Client.open(target)
        for place in left:
            answer = await client.post(f"/v1/models/{target.model}/captions", form(files[place], width), BOUNDARY)
            captions[place] = json.loads(answer)["images"][0]["captions"][0]["text"]
        client.close()

    await asyncio.gather(*(take_turns() for _ in range(min(CLIENTS, len(files)))))
    return captions


def offline(bundle: Bundle, files: Sequence[bytes], width: int) -> list[str]:
    """The same from the graphs alone."""
    codec, manifest, captioner = caption_codec(bundle), bundle.manifest, BundleCaptioner(bundle)
    captions = []
    for file in files:
        (best,) = best_captions(
            captioner,
            torch.from_numpy(codec.preprocess(file)[None]),
            codec.begin_id,
            codec.end_id,
            manifest.limits.max_new_tokens,
            width=width,
            length_penalty=manifest.decoding.length_penalty,
        )
        captions.append(codec.caption(best.ids))
    return captions


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithful", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bundle", type=Path, help="<repository>/<model>/<version>; default: the shipped scenes")
    parser.add_argument("--images", type=Path, help="a directory of image files; default: new scenes")
    parser.add_argument("--count", type=numbers.count, default=600, help="how many images")
    parser.add_argument("--seed", type=numbers.count_or_none, default=SEED, help="of the scenes")
    parser.add_argument("--beam-width", type=numbers.count, default=3, help="of the beam search")
    return parser


if __name__ == "__main__":
    sys.exit(main())
