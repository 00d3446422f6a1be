"""The sections of a captioning recipe: every key with its type, range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from carousel.models.nn.captioning import Attention, CaptioningModelConfig
from carousel.models.nn.recurrent import Cell
from carousel.training.sections import Count, CountOrNone, NotNegative, Paths, Probability, Section


class CaptionFiles(Section):
    """Captions and pictures: files, or scenes that are made up."""

    kind: Literal["tsv", "flickr8k", "coco", "csv", "generated"] = "tsv"
    train: str = ""
    """The captions; plain or .gz."""
    validation: str = ""
    train_list: str = ""
    """Names, one a line: only these of the pictures in `train` are taken; empty is all."""
    validation_list: str = ""
    train_pictures: str = ""
    """Directory or zip of the pictures; none where [features] names files."""
    validation_pictures: str = ""
    image: str = "image"
    """csv: the column of the picture's name."""
    caption: str = "caption"
    """csv: the column of a caption."""
    scenes: Annotated[int, Field(ge=2)] = 10_000
    """generated: how many to learn from."""
    validation_scenes: Count = 500
    """generated: how many more to be measured on."""
    seed: CountOrNone = 1
    """generated: of the scenes."""

    @model_validator(mode="after")
    def _files_fit_kind(self) -> CaptionFiles:
        if self.kind == "generated" and (self.train or self.validation):
            raise ValueError("kind generated reads no files; leave out train and validation")
        if self.kind != "generated" and not (self.train and self.validation):
            raise ValueError(f"kind {self.kind} takes two files of captions; set corpus.train and corpus.validation")
        return self


class FeatureFiles(Section):
    """Features of a frozen encoder, as `python -m export.features` writes them."""

    train: Paths = Field(default=[])
    """One file, or several of the same pictures (as they are, and mirrored): each time a picture is read, one of them
    is drawn. None: the model's own encoder reads the pictures."""
    validation: str = ""

    @model_validator(mode="after")
    def _both_or_neither(self) -> FeatureFiles:
        if bool(self.train) != bool(self.validation):
            raise ValueError("train and validation go together; set both or neither")
        return self


class OwnEncoder(Section):
    """The model's own convolutional encoder; of no account where [features] names files."""

    width: Annotated[int, Field(ge=8, le=1024)] = 64
    """What pictures are brought to, in pixels."""
    height: Annotated[int, Field(ge=8, le=1024)] = 64
    channels: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (32, 64, 128)
    """Of each stage; each halves the picture."""


class Vocabulary(Section):
    """Which words a model of captions can say, and how many at most."""

    min_frequency: Count = 5
    """Words seen less often in the training captions are read as <unk> and never said."""
    max_tokens: Annotated[int, Field(ge=2)] = 24
    """Longest caption, its end token counted; of longer ones the last words are left out."""


class CaptioningModelShape(Section):
    """The network: CaptioningModelConfig less what vocabulary and encoder decide."""

    cell: Cell = "lstm"
    attention: Attention = "soft"
    embedding_size: Count = 256
    hidden_size: Count = 512
    value_size: Count = 512
    key_size: Count = 256
    tied: bool = False
    locked: bool = False
    image_dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    output_dropout: Probability = 0.0

    @model_validator(mode="after")
    def _tied_sizes_fit(self) -> CaptioningModelShape:
        if self.tied and self.attention == "none" and self.embedding_size != self.hidden_size:
            raise ValueError(
                "tied without attention takes embedding_size = hidden_size; "
                f"they are {self.embedding_size} and {self.hidden_size}"
            )
        return self

    def config(
        self, vocabulary_size: int, grid: tuple[int, int], feature_size: int, channels: tuple[int, ...] = ()
    ) -> CaptioningModelConfig:
        """With the vocabulary and the encoder's map filled in; `channels` of an encoder of the model's own."""
        rows, columns = grid
        return CaptioningModelConfig(vocabulary_size, rows, columns, feature_size, channels, **self.model_dump())


class CaptionBatches(Section):
    """How captioned pictures become updates."""

    images: Count = 32
    """N: pictures read side by side."""
    captions: Count = 5
    """K: captions of a picture that share one reading of it; one with more is read several times."""


class CaptioningLoss(Section):
    """What is added to the loss of the next word, and what a model is led by while it learns."""

    doubly_stochastic: NotNegative = 0.0
    """On the mean over captions and positions of (1 - attention over all steps)^2 (Xu et al. 2015)."""
    words: NotNegative = 0.0
    """On the cross-entropy of which words an image's captions hold, of each word and image; own encoders only."""
    scheduled_sampling: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often, in the last epoch, a word read is one that the model said; rising from 0 (Bengio et al. 2015)."""


class Decoding(Section):
    """How validation captions are generated, and what a published model does unasked."""

    beam_width: Annotated[int, Field(ge=1, le=16)] = 3
    """1 is greedy."""
    length_penalty: NotNegative = 0.0
    """A caption's score is its log-probability over its length to this power."""
    criterion: Literal["bleu_4", "nats_per_token"] = "bleu_4"
    """By which validation figure the best weights are known; of equals, those with fewer nats. nats_per_token
    also where BLEU-4 is 0 whatever the model says, as no validation caption has four words."""
