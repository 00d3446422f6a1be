"""Captioning: say of a picture what people said of it.

Axes: N pictures, K captions of each, T steps, S steps that are present, P image positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from carousel.models.bleu import ORDERS, bleu
from carousel.models.codec.caption import CaptionCodec
from carousel.models.codec.image import ImageCodecSpec, Preprocessing
from carousel.models.codec.text import UNKNOWN_TOKEN, TextCodec, TextCodecSpec
from carousel.models.features import FrozenEncoder
from carousel.models.head import GenerateHead
from carousel.models.nn.captioning import CaptioningModel, CaptioningModelConfig, CaptioningModelShape
from carousel.models.nn.checkpoint import Checkpoint
from carousel.models.nn.convolution import map_shape
from carousel.models.nn.recurrent import RecurrentState
from carousel.models.nn.validation import CaptioningValidationData
from carousel.models.step import ATTENTION, IMAGE
from carousel.training.corpus.album import Album, CaptionFiles, read_albums
from carousel.training.corpus.tokenizer import CAPTION_BEGIN, CAPTION_END, caption_codec, frequent_words
from carousel.training.errors import RecipeError, RunError
from carousel.training.sections import Recipe
from carousel.training.task import TASKS, Evaluation, Task, require_same_corpus
from carousel.training.tasks.captioning.batches import (
    IGNORED,
    Batches,
    CaptionBatches,
    CaptionWindow,
    Images,
    Marks,
    Vocabulary,
    rectangle,
)
from carousel.training.tasks.captioning.features import FeatureFiles, FeatureImages
from carousel.training.tasks.captioning.losses import Loss, uneven_attention, unseen_words
from carousel.training.tasks.captioning.pixels import OwnEncoder, PixelImages
from carousel.training.tasks.captioning.score import Decoding, decode, nats_per_token

GREY = 127.5
"""A model's own encoder reads pixels in [-1, 1]."""


class CaptioningRecipe(Recipe):
    """A captioning model."""

    corpus: CaptionFiles
    features: FeatureFiles
    encoder: OwnEncoder
    vocabulary: Vocabulary
    model: CaptioningModelShape
    batches: Batches
    loss: Loss
    decoding: Decoding


@TASKS.register("captioning")
class CaptioningTask(Task[CaptioningRecipe, CaptionWindow]):
    """A captioning model, its training pictures as batches, and its validation pictures."""

    recipe_type = CaptioningRecipe
    module: CaptioningModel
    unit = "tok"

    def __init__(self, recipe: CaptioningRecipe, train: Album, validation: Album) -> None:
        self.recipe = recipe
        self._train, self._validation = train, validation
        self.corpus_sha256, self.validation_sha256 = train.sha256, validation.sha256
        self._device = torch.device(recipe.run.device)
        words = frequent_words(train.captions, recipe.vocabulary.min_frequency)
        if not words:
            raise RecipeError(
                f"vocabulary.min_frequency is {recipe.vocabulary.min_frequency}, but no word of the training captions "
                "is seen so often, so the model could say nothing; lower it"
            )
        by_nats = _nats_instead(recipe, words, validation)
        self._by_bleu = recipe.decoding.criterion == "bleu_4" and not by_nats
        self.criterion_name = "100 - BLEU-4" if self._by_bleu else "nats/token"
        text = caption_codec(words)
        config, preprocessing, self._encoder, images, self._images = _eyes(recipe, text, train, validation)
        self.codec = CaptionCodec(text, preprocessing, CAPTION_BEGIN, CAPTION_END)
        """Over the words of the training captions."""
        unknown = text.id_of(UNKNOWN_TOKEN)
        assert unknown is not None
        self._marks = Marks(self.codec.begin_id, self.codec.end_id, unknown, recipe.vocabulary.max_tokens)
        self._batches = CaptionBatches(
            images,
            _ids(text, train),
            self._marks,
            size=recipe.batches.images,
            captions_each=recipe.batches.captions,
            seed=recipe.run.seed,
        )
        self._validation_ids = _ids(text, validation)
        self.module = CaptioningModel(config).to(self._device)
        self.windows_per_epoch = self._batches.windows_per_epoch
        self._targets_per_window = self._batches.targets / self.windows_per_epoch
        self.tokens_per_window = max(1, round(self._targets_per_window))
        self.description = "\n".join([
            *_shared_names(recipe, train, validation),
            *_left_out(recipe, words, train, "train"),
            *_left_out(recipe, words, validation, "validation"),
            *by_nats,
            f"{self.module.parameter_count:,} parameters, {text.vocabulary_size:,} tokens in the vocabulary, "
            f"{len(train.pictures):,} pictures with {self._batches.targets:,} tokens of captions, "
            f"{self.windows_per_epoch:,} windows per epoch; validation: {len(validation.pictures):,} pictures",
        ])  # fmt: skip

    @classmethod
    def open(cls, recipe: CaptioningRecipe, saved: Checkpoint | None) -> CaptioningTask:
        """See Task."""
        train, validation = read_albums(recipe.corpus)
        require_same_corpus(train.sha256, validation.sha256, saved)
        task = cls(recipe, train, validation)
        if saved is not None and task._encoder_json() != saved.header["encoder"]:
            raise RunError(
                "features.train is of another encoder than the run was started with; "
                "restore the files to resume, or start anew with another --output"
            )
        return task

    def windows(self, epoch: int, start: int) -> Iterator[CaptionWindow]:
        """The windows of an epoch, from window `start` on."""
        return self._batches.windows(epoch, start)

    def loss(self, window: CaptionWindow, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """The loss of a window <float32>[].

        Cross-entropies are divided by the mean number of targets of a window, not by this window's own: over an epoch
        every token weighs the same.
        """
        settings = self.recipe.loss
        captions = window.captions.to(self._device)
        sampled = settings.scheduled_sampling * window.epoch / max(self.recipe.schedule.epochs - 1, 1)
        features = self.module.features(window.images.to(self._device))
        logits, looked = self.module.teach(features, captions.ids, captions.present, sampled)
        targets = captions.targets[captions.present]  # [S]
        loss = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
        loss = loss / self._targets_per_window
        if settings.doubly_stochastic and looked is not None:
            loss = loss + settings.doubly_stochastic * uneven_attention(looked.float(), captions.present)
        if settings.words:
            loss = loss + settings.words * unseen_words(self.module.detect(features).float(), captions.targets)
        return loss, state

    def evaluate(self) -> Evaluation:
        """Caption the validation pictures, and predict their captions, with the module's present weights."""
        decoding = self.recipe.decoding
        self.module.eval()
        nats = nats_per_token(self.module, self._images, self._validation_ids, self._marks)
        said = decode(
            self.module,
            self._images,
            len(self._validation.pictures),
            self.codec,
            self._marks.max_tokens,
            decoding.beam_width,
            decoding.length_penalty,
        )
        captions = [self.codec.caption(hypothesis.ids) for hypothesis in said]
        one, _, _, four = bleu(captions, [picture.captions for picture in self._validation.pictures])
        figures = {"bleu_1": one, "bleu_4": four, "nats_per_token": nats}
        summary = f"BLEU-1 {one:.2f}, BLEU-4 {four:.2f}, {nats:.4f} nats/token"
        if self._validation.is_true is not None:
            truths = map(self._validation.is_true, self._validation.names, captions)
            figures["true"] = 100.0 * sum(truths) / len(captions)
            summary += f", {figures['true']:.1f} % true"
        return Evaluation(100.0 - four if self._by_bleu else nats, figures, summary, nats)

    def validation_data(self) -> CaptioningValidationData:
        """The validation pictures as the network takes them, and their captions."""
        captions = rectangle(self._validation_ids, self._marks)
        places = range(len(self._validation.pictures))
        return CaptioningValidationData(
            corpus_sha256=self._train.sha256,
            images=self._images.read(places, [0] * len(places)),
            ids=captions.ids,
            targets=captions.targets,
            references=[picture.captions for picture in self._validation.pictures],
        )

    def kept(self) -> dict[str, Any]:
        """The frozen encoder, where there is one."""
        return {"encoder": self._encoder_json()}

    def published(self, evaluation: Evaluation) -> dict[str, Any]:
        """See Task."""
        decoding = self.recipe.decoding.model_dump(include={"beam_width", "length_penalty"})
        figures = {name: evaluation.figures[name] for name in ("bleu_1", "bleu_4", "nats_per_token")}
        words, image = TextCodecSpec(), ImageCodecSpec(preprocessing=self.codec.preprocessing)
        attends = ATTENTION if self.module.attention is not None else None
        head = GenerateHead(feeds="token", from_="logits", begin=CAPTION_BEGIN, end=CAPTION_END, attends=attends)
        return {
            "codecs": {"image": image.model_dump(mode="json"), "words": words.model_dump()},
            "ports": {IMAGE: "image", "token": "words", "logits": "words"},
            "head": head.model_dump(by_alias=True),
            "files": {words.file: self.codec.text.to_json()},
            "encoder": self._encoder_json(),
            "limits": {"max_new_tokens": self._marks.max_tokens},
            "decoding": {"temperature": 0.0, **decoding},
            "validation": {"images": len(self._validation.pictures), **decoding, **figures},
        }

    def _encoder_json(self) -> dict[str, Any] | None:
        return None if self._encoder is None else self._encoder.model_dump(mode="json")


def _nats_instead(recipe: CaptioningRecipe, words: Sequence[str], validation: Album) -> list[str]:
    """Why weights are not chosen by BLEU-4 where that is 0 whatever the model says; empty where it can move."""
    known, longest = set(words), recipe.vocabulary.max_tokens
    if recipe.decoding.criterion != "bleu_4":
        return []
    for caption in validation.captions:
        runs = "".join("+" if word in known else " " for word in caption.split())
        if "+" * ORDERS in runs and longest >= ORDERS:
            return []
    return [
        f"corpus.validation: no caption has {ORDERS} words in a row that the model can say, so BLEU-4 is 0 whatever it "
        "says; the best weights are those with the lowest nats per token"
    ]


def _shared_names(recipe: CaptioningRecipe, train: Album, validation: Album) -> list[str]:
    """Of pictures that have names of both halves, for people: they may be the same.

    Raises:
        RecipeError: they are, as their features are in one file.
    """
    shared = sorted(set(train.names) & set(validation.names))
    if not shared:
        return []
    if recipe.features.validation and recipe.features.validation in recipe.features.train:
        raise RecipeError(
            f"picture {shared[0]!r} is both in corpus.train and in corpus.validation, with features of one file, "
            f"{recipe.features.validation}; list it in one"
        )
    return [
        f"corpus.validation: {len(shared):,} of {len(validation.names):,} pictures are called as some of corpus.train "
        f"are, such as {shared[0]!r}; if they are the same, its figures say nothing of others"
    ]


def _left_out(recipe: CaptioningRecipe, words: Sequence[str], album: Album, part: str) -> list[str]:
    """What of an album's captions the model does not read, for people."""
    known, longest = set(words), recipe.vocabulary.max_tokens
    captions = [caption.split() for caption in album.captions]
    cut = sum(len(caption) + 1 > longest for caption in captions)
    unknown, all_ = sum(word not in known for caption in captions for word in caption), sum(map(len, captions))
    remarks = []
    if cut:
        most = max(map(len, captions)) + 1
        remarks.append(
            f"corpus.{part}: {cut:,} of {len(captions):,} captions ({100 * cut / len(captions):.1f} %) are longer than "
            f"vocabulary.max_tokens = {longest}, their end counted, and lose their last words; the longest has {most:,}"
        )
    if unknown:
        remarks.append(
            f"corpus.{part}: {unknown:,} of {all_:,} words ({100 * unknown / all_:.1f} %) are seen less than "
            f"vocabulary.min_frequency = {recipe.vocabulary.min_frequency} times in training, and are read as <unk>"
        )
    return remarks


def _ids(text: TextCodec, album: Album) -> list[list[list[int]]]:
    return [[text.encode(caption) for caption in picture.captions] for picture in album.pictures]


def _eyes(
    recipe: CaptioningRecipe, text: TextCodec, train: Album, validation: Album
) -> tuple[CaptioningModelConfig, Preprocessing, FrozenEncoder | None, Images, Images]:
    """The network's shape, what is done to an image, the frozen encoder, and both albums' pictures as the network
    takes them."""
    if not recipe.features.train:
        return _own_eyes(recipe, text.vocabulary_size, train, validation)
    files, pooled = recipe.features, recipe.model.attention == "none"
    seen = FeatureImages(files.train, train.names, "features.train", pooled=pooled)
    held_out = FeatureImages([files.validation], validation.names, "features.validation", pooled=pooled)
    encoder = seen.encoder
    if held_out.encoder != encoder:
        raise RecipeError("features.train and features.validation are of two encoders; compute both with the same")
    if encoder.grid is None and not pooled:
        raise RecipeError("features.train holds pooled features; model.attention 'soft' needs a map, 'none' does not")
    rows, columns = encoder.grid or (1, 1)
    config = CaptioningModelConfig.of(
        recipe.model, vocabulary_size=text.vocabulary_size, rows=rows, columns=columns, feature_size=encoder.size
    )
    return config, encoder.preprocessing, encoder, seen, held_out


def _own_eyes(
    recipe: CaptioningRecipe, vocabulary_size: int, train: Album, validation: Album
) -> tuple[CaptioningModelConfig, Preprocessing, None, Images, Images]:
    if train.open_picture is None or validation.open_picture is None:
        raise RecipeError(
            "the recipe says neither where pictures nor where features are; set corpus.train_pictures and "
            "corpus.validation_pictures, or features.train and features.validation"
        )
    train.require_pictures("corpus.train_pictures", max(recipe.encoder.width, recipe.encoder.height))
    validation.require_pictures("corpus.validation_pictures", max(recipe.encoder.width, recipe.encoder.height))
    encoder = recipe.encoder
    rows, columns = map_shape(encoder.height, encoder.width, encoder.channels)
    config = CaptioningModelConfig.of(
        recipe.model,
        vocabulary_size=vocabulary_size,
        rows=rows,
        columns=columns,
        feature_size=encoder.channels[-1],
        channels=encoder.channels,
    )
    grey = (GREY, GREY, GREY)
    preprocessing = Preprocessing(width=encoder.width, height=encoder.height, mean=grey, deviation=grey)
    return (
        config,
        preprocessing,
        None,
        PixelImages(train.names, train.open_picture, preprocessing),
        PixelImages(validation.names, validation.open_picture, preprocessing),
    )
