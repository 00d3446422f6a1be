"""The captioning bundle that is shipped: it opens, it is small, and what it says of scenes it never saw is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from carousel.models.bundle import Bundle, open_bundle
from carousel.models.codec.caption import caption_codec
from carousel.models.graph import next_name
from carousel.training.corpus.scene_drawing import encode_scene
from carousel.training.corpus.scene_words import describes
from carousel.training.corpus.scenes import make_scenes

ROOT = Path(__file__).parents[2]
FRESH_SEED, SCENES = 424242, 200


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(ROOT / "bundles" / "scenes" / "2")


def test_scenes_is_small_and_says_where_it_came_from(bundle: Bundle) -> None:
    assert sum(map(len, bundle.files.values())) < 8_000_000
    assert bundle.manifest.provenance.recipe == "scenes"
    comment = (ROOT / "training" / "recipes" / "scenes.toml").read_text()
    assert bundle.manifest.precision == "int8"
    assert f"{bundle.manifest.figures.fp32['nats_per_token']:.4f} nats per token" in comment


def test_scenes_says_what_is_true_of_fresh_scenes(bundle: Bundle) -> None:
    scenes, codec = make_scenes(FRESH_SEED, SCENES), caption_codec(bundle)
    images = np.stack([codec.preprocess(encode_scene(scene)) for scene in scenes])
    encoder, step = (onnxruntime.InferenceSession(bundle.files[name]) for name in ("encoder.onnx", "step.onnx"))
    begun = dict(zip([spec.name for spec in bundle.encoder.outputs], encoder.run(None, {"image": images}), strict=True))
    states = [spec.name for spec in bundle.states]
    token, said = np.full(SCENES, codec.begin_id), []
    for _ in range(bundle.manifest.limits.max_new_tokens):
        logits, *after = step.run(["logits", *map(next_name, states)], begun | {"token": token})
        begun |= dict(zip(states, after, strict=True))
        token = logits.argmax(1)
        said.append(token)
    captions = [codec.caption(ids) for ids in np.stack(said, 1).tolist()]
    assert sum(map(describes, captions, scenes)) >= 0.95 * SCENES
