"""Do a captioning bundle's two graphs do together what the torch model does, and does each row keep to itself?

Axes: B batch rows, P image positions, D features of a position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from carousel.export.checks.parity import MAX_ABS_ERROR, MAX_BATCH, ParityError, random_floats, require_row_independence
from carousel.export.extractor import Extractor
from carousel.export.runtime import open_session
from carousel.models.bundle import ENCODER_GRAPH, STEP_GRAPH
from carousel.models.codec.image import Preprocessing
from carousel.models.features import FEATURES
from carousel.models.graph import CONTEXT_PREFIX, STATE_PREFIX, next_name
from carousel.models.manifest import Parity, Precision
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.step import ATTENTION, IMAGE

Floats = npt.NDArray[np.float32]

ENCODER_BATCH_SIZES = (1, 2, 3, 7, 16, 32)
"""Where an image is compared with itself alone. Fewer than a step's: an encoder takes milliseconds an image."""


def measure_captioning_parity(
    model: CaptioningModel,
    step: bytes,
    encoder: bytes,
    preprocessing: Preprocessing,
    extractor: Extractor | None,
    precisions: Mapping[str, Precision] | None = None,
    *,
    steps: int = 512,
    rows: int = 4,
    seed: int = 0,
) -> Parity:
    """Run both graphs, one after the other, against the model and against themselves, on random images and tokens.

    Args:
        model: in evaluation mode: the truth.
        step: the ONNX step graph made from it.
        encoder: and the encoder graph.
        preprocessing: of its images.
        extractor: the frozen encoder in front of it, which torch does not have: the truth takes what that gives.
        precisions: of the two, by name; fp32 where not given.
        steps: how long the encoder's state is carried.
        rows: how many images. B
        seed: of the images and tokens.

    Raises:
        ParityError: a state, memory, logit or attention is off by more than a logit may be (where an int8 graph made
            it: is no number), or a row depends on its neighbours.
    """
    errors = _largest_errors(model, step, encoder, preprocessing, extractor, steps, rows, seed)
    int8 = [name for name, precision in (precisions or {}).items() if precision == "int8"]
    for name, error in errors.items():
        rounded = ENCODER_GRAPH in int8 or (STEP_GRAPH in int8 and not name.startswith((STATE_PREFIX, CONTEXT_PREFIX)))
        allowed = math.inf if rounded else MAX_ABS_ERROR["logits"]
        if not error <= allowed:  # NaN is refused too
            raise ParityError(
                f"{name} of the exported graphs: an entry is off by {error:.2g} from the torch model within {steps} "
                f"steps; allowed is {allowed:g}, so nothing was published"
            )
    tokens = np.random.default_rng(seed).integers(0, model.config.vocabulary_size, MAX_BATCH)  # [B]
    require_row_independence(step, {"token": tokens}, random_floats(step, MAX_BATCH, seed))
    images = random_images(preprocessing, max(ENCODER_BATCH_SIZES), seed)
    require_row_independence(encoder, {}, {IMAGE: images}, sizes=ENCODER_BATCH_SIZES)
    return Parity(steps=steps, rows=rows, max_abs_error=max(errors.values()), row_independent=True)


def random_images(preprocessing: Preprocessing, count: int, seed: int) -> Floats:
    """Blurred colours, preprocessed. <float32>[count, *preprocessing.shape]"""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 9, 9, 3), np.uint8)  # as rough as a photograph; white noise is no image
    return np.stack([preprocessing.apply(Image.fromarray(pixels)) for pixels in coarse])


@torch.inference_mode()
def _largest_errors(
    model: CaptioningModel,
    step: bytes,
    encoder: bytes,
    preprocessing: Preprocessing,
    extractor: Extractor | None,
    steps: int,
    rows: int,
    seed: int,
) -> dict[str, float]:
    """By output: max |of the graphs - of the model| from the image on; NaN where either has one."""
    images = random_images(preprocessing, rows, seed)
    features = images
    if extractor is not None:
        (features,) = open_session(extractor.model.SerializeToString(), threads=1).run([FEATURES], {IMAGE: images})
    state, context = model.encode(torch.from_numpy(features))
    truth = _named(STATE_PREFIX, state) | _named(CONTEXT_PREFIX, context)
    fed: dict[str, Floats] = dict(
        zip(truth, open_session(encoder, threads=1).run([*truth], {IMAGE: images}), strict=True)
    )
    errors = {name: _error(fed[name], truth[name]) for name in truth}
    session = open_session(step, threads=1)
    states = [STATE_PREFIX + name for name in state]
    looks = [ATTENTION] if model.step_module().grid else []
    outputs = ["logits", *map(next_name, states), *looks]
    tokens = np.random.default_rng(seed).integers(0, model.config.vocabulary_size, (steps, rows))
    for token in tokens:
        logits, state, attention = model.step(torch.from_numpy(token), state, context)
        said = dict(zip(outputs, session.run(outputs, {"token": token, **fed}), strict=True))
        fed |= {name: said[next_name(name)] for name in states}
        expected = {"logits": logits} | ({} if attention is None else {ATTENTION: attention})
        for name, tensor in expected.items():
            errors[name] = float(np.maximum(errors.get(name, 0.0), _error(said[name], tensor)))
    return errors


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _error(seen: Floats, truth: Tensor) -> float:
    return float(np.abs(seen - truth.numpy()).max())
