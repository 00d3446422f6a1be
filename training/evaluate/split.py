"""A captioning checkpoint and the pictures that it is to be judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from carousel.models.codec.image import Preprocessing
from carousel.models.errors import CheckpointError
from carousel.models.features import FrozenEncoder
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.models.nn.load import caption_codec, load
from carousel.training.corpus.album import Album, read_validation
from carousel.training.errors import RunError
from carousel.training.evaluate.metrics import judge
from carousel.training.recipe import saved_recipe
from carousel.training.tasks.captioning.batches import Images
from carousel.training.tasks.captioning.features import FeatureImages
from carousel.training.tasks.captioning.pixels import PixelImages
from carousel.training.tasks.captioning.score import decode
from carousel.training.tasks.captioning.task import CaptioningRecipe
from carousel.training.trainer import BEST


class Split:
    """A trained model, and the captioned pictures of its recipe's validation files or of others.

    Args:
        path: a checkpoint that validated best, or the directory of its run.
        overrides: `section.key=value` that replace values of its recipe: other captions, pictures, features.

    Raises:
        CheckpointError: it holds no captioning model.
        RecipeError: an override cannot be used.
        CorpusError: a file cannot be used.
        RunError: pictures or features are not said, or those of another encoder.
    """

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        checkpoint = read_checkpoint(path / BEST if path.is_dir() else path)
        trained = load(checkpoint)
        if not isinstance(trained.network, CaptioningModel):
            raise CheckpointError(f"checkpoint is of task {trained.task!r}; allowed is one that captions images")
        self.model, self.codec = trained.network, caption_codec(trained)
        recipe = saved_recipe(checkpoint.header["provenance"]["recipe"], checkpoint.header["recipe"], overrides)
        assert isinstance(recipe, CaptioningRecipe)
        self.decoding = recipe.decoding
        self.name = recipe.name
        self.album = read_validation(recipe.corpus)
        self._images = _images(trained.encoder, recipe, self.album, self.codec.preprocessing)
        self._max_tokens = trained.limits.max_new_tokens
        if recipe.run.threads:
            torch.set_num_threads(recipe.run.threads)
        self.model.to("cuda" if recipe.run.device == "cuda" and torch.cuda.is_available() else "cpu")

    def caption(self, beam_width: int, length_penalty: float) -> list[str]:
        """The best caption of each picture, as a service would say it; a width of 1 is greedy."""
        said = decode(
            self.model,
            self._images,
            len(self.album.pictures),
            self.codec,
            self._max_tokens,
            beam_width,
            length_penalty,
        )
        return [self.codec.caption(hypothesis.ids) for hypothesis in said]

    def figures(self, captions: Sequence[str]) -> dict[str, float]:
        """Every metric by name; of scenes also `true`, the captions that are true of their scene, in hundredths."""
        figures = asdict(judge(captions, [picture.captions for picture in self.album.pictures]))
        is_true = self.album.is_true
        if is_true is not None:
            true = sum(map(is_true, self.album.names, captions))
            figures["true"] = 100.0 * true / len(captions)
        return figures


def _images(
    encoder: FrozenEncoder | None, recipe: CaptioningRecipe, album: Album, preprocessing: Preprocessing
) -> Images:
    """The pictures as the model takes them."""
    if encoder is None:
        if album.open_picture is None:
            raise RunError("the model reads pictures itself; say where they are with corpus.validation_pictures=PATH")
        album.require_pictures("corpus.validation_pictures", preprocessing.side)
        return PixelImages(album.names, album.open_picture, preprocessing)
    key = "features.validation"
    pooled = recipe.model.attention == "none"
    images = FeatureImages([recipe.features.validation], album.names, key, pooled=pooled)
    if images.encoder != encoder:
        raise RunError(
            f"{key}: {recipe.features.validation} is of another encoder, or of another preprocessing, than the model "
            "was trained on; compute the features with that one"
        )
    return images
