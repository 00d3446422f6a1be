"""The sections of a recipe: every key with its type, range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from carousel.models.nn.language import LanguageModelConfig
from carousel.models.nn.recurrent import Cell
from carousel.models.nn.tracing import TracingModelConfig
from carousel.models.step import Task

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _as_list(value: object) -> object:
    return ([value] if value else []) if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(_as_list)]

SMALLEST_VOCABULARY = {"word": 3, "bpe": 257}
"""One token more than a tokenizer has anyhow: <unk> and <eos>, or the 256 bytes."""


class Section(BaseModel):
    """Keys with values; one that is not understood is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Run(Section):
    """How the run is carried out."""

    task: Task = "language"
    """What is learnt; decides which other sections a recipe has."""
    seed: CountOrNone = 1
    device: Literal["cpu", "cuda"] = "cpu"
    threads: CountOrNone = 0
    """CPU threads; 0 leaves the choice to torch. Bit-for-bit resumption needs the same number."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 multiplies matrices in bfloat16 (autocast); parameters, averages and the loss stay float32."""
    save_every_windows: Count = 100


class CorpusFiles(Section):
    """UTF-8 texts, plain or .gz."""

    train: str
    validation: str = ""
    """Empty: the last `validation_fraction` of the training text is held out instead."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    line_ends: Literal["lf", "keep"] = "lf"
    """lf: CR LF and a lone CR are read as LF, as prompts and stop strings have it; keep: as they are in the file."""


class TokenizerKind(Section):
    """What a token is."""

    kind: Literal["character", "word", "bpe"] = "character"
    vocabulary_size: CountOrNone = 0
    """Words: at most so many, the most frequent, <unk> and <eos> included; 0 is all. BPE: bytes and merges."""
    min_frequency: Count = 1
    """Words seen less often become <unk>; BPE pairs seen less often are not merged."""

    @model_validator(mode="after")
    def _size_fits_kind(self) -> TokenizerKind:
        if self.kind == "character":
            if (self.vocabulary_size, self.min_frequency) != (0, 1):
                raise ValueError("vocabulary_size and min_frequency are for kinds word and bpe, kind is character")
        elif self.vocabulary_size < SMALLEST_VOCABULARY[self.kind] and (self.kind == "bpe" or self.vocabulary_size):
            smallest = SMALLEST_VOCABULARY[self.kind]
            raise ValueError(f"vocabulary_size is {self.vocabulary_size}; kind {self.kind} takes {smallest} or more")
        return self


class Model(Section):
    """The network: LanguageModelConfig less the vocabulary, which the tokenizer decides."""

    cell: Cell = "lstm"
    embedding_size: Count = 512
    hidden_size: Count = 512
    layers: Count = 2
    tied: bool = False
    locked: bool = True
    embedding_dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    hidden_dropout: Probability = 0.0
    output_dropout: Probability = 0.0
    weight_drop: Probability = 0.0

    def config(self, vocabulary_size: int) -> LanguageModelConfig:
        """With the vocabulary filled in."""
        return LanguageModelConfig(vocabulary_size=vocabulary_size, **self.model_dump())


class Batches(Section):
    """How the training stream is cut."""

    lanes: Count = 32
    """B: contiguous parts of the text that are read side by side."""
    window: Count = 128
    """T: steps between two updates, and how far gradients reach back."""


class AnswerFiles(Section):
    """Learners' answers: files, plain or .gz, or learners that are made up."""

    kind: Literal["three-line", "rows", "pykt", "generated"] = "three-line"
    train: Paths = []
    """One file or several, read as one; none for kind generated."""
    validation: Paths = []
    """Empty: `validation_fraction` of the training files' learners are held out instead."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    user: str = "user_id"
    """rows: the column that tells learners apart."""
    order: str = "order_id"
    """rows: the column, of numbers or of times as ISO 8601 writes them, that orders a learner's answers."""
    answer: str = ""
    """rows: the column that says which rows are one answer; empty where `ties` says it."""
    ties: Literal["one-answer", "file"] = "one-answer"
    """rows: what a learner's rows of one order are: one answer, or answers of their own in the file's order."""
    skill: str = "skill_name"
    """rows: the column of the skill."""
    correct: str = "correct"
    """rows: the column of 0 or 1."""
    skill_separator: str = ""
    """rows: what stands between the skills of one cell; empty where a cell holds one."""
    learners: Annotated[int, Field(ge=2)] = 4000
    """generated: how many."""
    seed: CountOrNone = 1
    """generated: of the learners and what happens to them."""

    @model_validator(mode="after")
    def _files_fit_kind(self) -> AnswerFiles:
        if self.kind == "generated" and (self.train or self.validation):
            raise ValueError("kind generated reads no files; leave out train and validation")
        if self.kind != "generated" and not self.train:
            raise ValueError(f"kind {self.kind} takes files; set corpus.train to one path or a list of them")
        if self.answer and self.ties != "one-answer":
            raise ValueError("answer says which rows are one answer, and so does ties; set one of them")
        columns: dict[str, str] = {}
        for name in ("user", "order", "skill", "correct"):
            other = columns.setdefault(getattr(self, name), name)
            if other != name:
                raise ValueError(f"{name} and {other} are both column {getattr(self, name)!r}; each has one of its own")
        if columns.get(self.answer, "order") != "order":
            raise ValueError(f"answer and {columns[self.answer]} are both column {self.answer!r}; give another")
        return self


class TracingModelShape(Section):
    """The network: TracingModelConfig less the number of skills, which the corpus decides."""

    cell: Cell = "lstm"
    embedding_size: Count = 100
    hidden_size: Count = 200
    layers: Count = 1
    shared: bool = False
    """Skills learn only how they differ from what all share; for many skills and few learners."""
    locked: bool = True
    attempt_dropout: Probability = 0.0
    """How often an attempt goes unread: its input is zero, for that step alone."""
    input_dropout: Probability = 0.0
    hidden_dropout: Probability = 0.0
    output_dropout: Probability = 0.0
    weight_drop: Probability = 0.0

    def config(self, skill_count: int) -> TracingModelConfig:
        """With the skills filled in."""
        return TracingModelConfig(skill_count=skill_count, **self.model_dump())


class HistoryBatches(Section):
    """How learners' histories become updates."""

    learners: Count = 32
    """B: learners of about the same length, read side by side."""
    window: Count = 200
    """T: attempts between two updates, and how far gradients reach back; a longer history goes on with its state."""


class TracingLoss(Section):
    """What is added to the loss of the next answer (DKT+, Yeung & Yeung 2018, arXiv:1806.02180)."""

    reconstruction: NotNegative = 0.0
    """lambda_r: on the loss of the answer just seen."""
    waviness_l1: NotNegative = 0.0
    """lambda_w1: on the mean |change| of a probability from one attempt to the next."""
    waviness_l2: NotNegative = 0.0
    """lambda_w2: on the mean squared change."""


class Optimizer(Section):
    """How a gradient becomes an update."""

    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 2e-3
    betas: Annotated[tuple[Probability, Probability], Field(strict=False)] = (0.9, 0.99)
    """AdamW only."""
    weight_decay: NotNegative = 0.0
    """On matrices; biases are left alone."""
    clip_norm: NotNegative = 0.5
    """Largest L2 norm of the whole gradient; 0 is no limit."""
    clip_value: NotNegative = 0.0
    """Largest magnitude of one gradient entry, applied before clip_norm; 0 is no limit."""


class Schedule(Section):
    """How long, and the learning rate on the way."""

    epochs: Count = 20
    shape: Literal["cosine", "constant"] = "cosine"
    warmup_steps: CountOrNone = 0
    final_learning_rate: NotNegative = 1e-5
    """Where the cosine ends."""


class Averaging(Section):
    """Which mean of the weights is validated and exported."""

    kind: Literal["none", "ema", "nt-asgd"] = "none"
    decay: Probability = 0.998
    """ema only: the share of the past in each step's average."""
    patience: Count = 5
    """nt-asgd only: averaging starts once the figure is worse than the best of those this many validations ago."""


class Stopping(Section):
    """When to give up before the last epoch."""

    patience: CountOrNone = 0
    """Validations without a new best after which the run ends; 0 is never."""
