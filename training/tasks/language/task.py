"""Language modelling: predict every token of a text from those before it.

Axes: B lanes, T steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from carousel.models.codec.text import TextCodec, TextCodecSpec
from carousel.models.figures import LanguageValidation
from carousel.models.head import GenerateHead
from carousel.models.nn.checkpoint import Checkpoint
from carousel.models.nn.language import LanguageModel, LanguageModelConfig, LanguageModelShape
from carousel.models.nn.recurrent import RecurrentState, detach
from carousel.models.nn.score import TorchForward, score_text
from carousel.models.nn.validation import ValidationData
from carousel.training.corpus.encoding import encode_text
from carousel.training.corpus.text import CorpusFiles, TextCorpus, made_up_corpus, read_corpus
from carousel.training.corpus.tokenizer import TokenizerKind, build_codec
from carousel.training.errors import CorpusError
from carousel.training.sections import Recipe
from carousel.training.task import TASKS, Evaluation, Task, require_same_corpus
from carousel.training.tasks.language.batches import Batches, Lanes, Window
from carousel.training.tasks.language.legality import legal_lines


class LanguageRecipe(Recipe):
    """A language model."""

    corpus: CorpusFiles
    tokenizer: TokenizerKind
    model: LanguageModelShape
    batches: Batches


@TASKS.register("language")
class LanguageTask(Task[LanguageRecipe, Window]):
    """A language model, its corpus as lanes, and its validation text as one stream."""

    recipe_type = LanguageRecipe
    module: LanguageModel
    unit = "tok"
    criterion_name = "nats/token"

    def __init__(self, recipe: LanguageRecipe, corpus: TextCorpus, codec: TextCodec) -> None:
        self.recipe = recipe
        self._corpus = corpus
        if recipe.corpus.kind:
            self.criterion_name = "1 - legal"
        self.corpus_sha256, self.validation_sha256 = corpus.sha256, corpus.validation_sha256
        self._codec = codec
        self._device = torch.device(recipe.run.device)
        batches = recipe.batches
        ids = encode_text(codec, corpus.train).to(self._device)
        self._lanes = Lanes(ids, batches.lanes, batches.window, recipe.run.seed)
        self._validation_ids = encode_text(codec, corpus.validation).to(self._device)
        if len(self._validation_ids) < 2:
            raise CorpusError(
                f"the validation text is too short (tokens: {len(self._validation_ids)}); at least 2 tokens are "
                "needed, one to read and one to predict"
            )
        self.module = LanguageModel(LanguageModelConfig.of(recipe.model, vocabulary_size=codec.vocabulary_size)).to(
            self._device
        )
        self.windows_per_epoch = self._lanes.windows_per_epoch
        self.tokens_per_window = batches.lanes * batches.window
        self.description = "\n".join([
            *corpus.remarks,
            *self._unknown_characters(),
            f"{self.module.parameter_count:,} parameters, {codec.vocabulary_size:,} tokens in the vocabulary, "
            f"{self.windows_per_epoch:,} windows of {self.tokens_per_window:,} tokens per epoch",
        ])  # fmt: skip

    @classmethod
    def open(cls, recipe: LanguageRecipe, saved: Checkpoint | None) -> LanguageTask:
        """See Task."""
        files = recipe.corpus
        keep = files.line_ends == "keep"
        corpus = (
            made_up_corpus(files)
            if files.kind
            else read_corpus(files.train, files.validation, files.validation_fraction, keep_line_ends=keep)
        )
        require_same_corpus(corpus.sha256, corpus.validation_sha256, saved)
        if saved is None:
            return cls(recipe, corpus, build_codec(recipe.tokenizer, corpus.train))
        return cls(recipe, corpus, TextCodec.from_json(saved.header["tokenizer"]))

    def _unknown_characters(self) -> list[str]:
        if self.recipe.tokenizer.kind != "character":  # of words some are always unknown, of bytes none
            return []
        unknown = self._validation_ids.tolist().count(self._codec.unknown_id)
        if not unknown:
            return []
        return [
            f"corpus.validation: {unknown:,} of {len(self._validation_ids):,} characters are not in the training text; "
            "the model cannot foretell them"
        ]

    def windows(self, epoch: int, start: int) -> Iterator[Window]:
        """The windows of an epoch, from window `start` on."""
        return self._lanes.windows(epoch, start)

    def initial_state(self) -> RecurrentState:
        """Zeros, as at an epoch's start. <float32>[B, H] each"""
        return self.module.initial_state(self.recipe.batches.lanes)

    def loss(self, window: Window, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Mean cross-entropy of a window in nats <float32>[], and the state after it, cut from its history."""
        logits, after = self.module(window.ids, state)  # [B, T, V]
        # The model's logits lie time-major in memory: flattened in that order they need no copy.
        flat = logits.transpose(0, 1).flatten(0, 1)  # [T * B, V]
        return functional.cross_entropy(flat.float(), window.targets.t().flatten()), detach(after)

    def evaluate(self) -> Evaluation:
        """Score the validation text with the module's present weights."""
        self.module.eval()
        figures = score_text(TorchForward(self.module, 1), self._validation_ids, len(self._corpus.validation))
        corpus = self.recipe.corpus
        legal = legal_lines(self.module, self._codec, corpus.symbols(), self._corpus.lines) if corpus.kind else {}
        return Evaluation(
            criterion=1.0 - legal["legal"] if legal else figures.nats_per_token,
            nats=figures.nats_per_token if legal else 0.0,
            figures={**figures.model_dump(), **legal},
            summary="".join(f"{name} {share:.4f}, " for name, share in legal.items())
            + f"{figures.nats_per_token:.4f} nats/token, perplexity {figures.perplexity:.3f}, "
            f"{figures.bits_per_character:.4f} bits/character",
        )

    def validation_data(self) -> ValidationData:
        """The validation text as ids."""
        return ValidationData(
            "language", self._corpus.sha256, [self._validation_ids], characters=len(self._corpus.validation)
        )

    def kept(self) -> dict[str, Any]:
        """The tokenizer itself."""
        return {"tokenizer": self._codec.to_json()}

    def published(self, evaluation: Evaluation) -> dict[str, Any]:
        """See Task."""
        spec = TextCodecSpec()
        return {
            "codecs": {"text": spec.model_dump()},
            "ports": {"token": "text", "logits": "text"},
            "head": GenerateHead(feeds="token", from_="logits").model_dump(by_alias=True),
            "files": {spec.file: self._codec.to_json()},
            "validation": {name: evaluation.figures[name] for name in LanguageValidation.model_fields},
        }
