"""A recipe: everything that defines an experiment, in one TOML file, read strictly.

A key that is not understood is refused: a misspelt setting must not silently keep its default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.nn.language import LanguageModelConfig
from models.nn.recurrent import Cell
from training.errors import RecipeError

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

SMALLEST_VOCABULARY = {"word": 3, "bpe": 257}
"""One token more than a tokenizer has anyhow: <unk> and <eos>, or the 256 bytes."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Run(_Section):
    """How the run is carried out."""

    seed: CountOrNone = 1
    device: Literal["cpu", "cuda"] = "cpu"
    threads: CountOrNone = 0
    """CPU threads; 0 leaves the choice to torch. Bit-for-bit resumption needs the same number."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 multiplies matrices in bfloat16 (autocast); parameters, averages and the loss stay float32."""
    save_every_windows: Count = 100


class CorpusFiles(_Section):
    """UTF-8 texts, plain or .gz."""

    train: str
    validation: str = ""
    """Empty: the last `validation_fraction` of the training text is held out instead."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1


class TokenizerKind(_Section):
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


class Model(_Section):
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


class Batches(_Section):
    """How the training stream is cut."""

    lanes: Count = 32
    """B: contiguous parts of the text that are read side by side."""
    window: Count = 128
    """T: steps between two updates, and how far gradients reach back."""


class Optimizer(_Section):
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


class Schedule(_Section):
    """How long, and the learning rate on the way."""

    epochs: Count = 20
    shape: Literal["cosine", "constant"] = "cosine"
    warmup_steps: CountOrNone = 0
    final_learning_rate: NotNegative = 1e-5
    """Where the cosine ends."""


class Averaging(_Section):
    """Which mean of the weights is validated and exported."""

    kind: Literal["none", "ema", "nt-asgd"] = "none"
    decay: Probability = 0.998
    """ema only: the share of the past in each step's average."""
    patience: Count = 5
    """nt-asgd only: averaging starts once the figure is worse than the best of those this many validations ago."""


class Stopping(_Section):
    """When to give up before the last epoch."""

    patience: CountOrNone = 0
    """Validations without a new best after which the run ends; 0 is never."""


class Recipe(_Section):
    """One experiment."""

    name: str = Field(exclude=True)
    """The recipe file's name without its suffix."""
    run: Run = Run()
    corpus: CorpusFiles
    tokenizer: TokenizerKind = TokenizerKind()
    model: Model = Model()
    batches: Batches = Batches()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    averaging: Averaging = Averaging()
    stopping: Stopping = Stopping()


SECTIONS = tuple(name for name in Recipe.model_fields if name != "name")

FREE_ON_RESUME = frozenset({"run.threads", "run.save_every_windows", "stopping.patience"})
"""Keys that may change between a run and its resumption: none of them alters what a window computes."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides.

    Raises:
        RecipeError: with the first thing that is wrong, naming its key.
    """
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read ({error.strerror}); give the path of a .toml file") from None
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError
        raise RecipeError(f"recipe {path} is not TOML: {error}") from None
    for override in overrides:
        _apply(tables, override)
    return _validated(path.stem, tables)


def _apply(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise RecipeError(f"override {override!r} is not of the form section.key=value")
    table = tables.setdefault(section, {})
    if isinstance(table, dict):  # a section that is none is refused below
        table[name] = _value(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word, such as a path


def _validated(name: str, tables: Mapping[str, Any]) -> Recipe:
    for section, table in tables.items():
        if section not in SECTIONS:
            raise RecipeError(f"[{section}] is not a section of a recipe; allowed are {', '.join(SECTIONS)}")
        if not isinstance(table, dict):
            raise RecipeError(f"{section} is {table!r}; it should be a section, [{section}], with keys")
    try:
        return Recipe.model_validate({"name": name, "corpus": {}, **tables})
    except ValidationError as error:
        first = error.errors()[0]
    section, *rest = (str(part) for part in first["loc"])
    key = ".".join((section, *rest))
    match first["type"]:
        case "extra_forbidden":
            annotation = Recipe.model_fields[section].annotation
            assert annotation is not None
            allowed = ", ".join(annotation.model_fields)
            raise RecipeError(f"{key} is not a key of a recipe; allowed in [{section}] are {allowed}")
        case "missing":
            raise RecipeError(f"{key} is missing; set it in the recipe or add {key}=VALUE to the command")
        case "value_error":
            raise RecipeError(f"{section}: {first['ctx']['error']}")
        case _:
            reason = first["msg"].replace("Input should", "it should")
            raise RecipeError(f"{key} is {first['input']!r}; {reason}")


def first_difference(recipe: Recipe, saved: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key whose value differs from a saved run's, with both values (saved first); None where none does."""
    for section, table in recipe.model_dump(mode="json").items():
        before = saved.get(section, {})
        for name in sorted({*table, *before}):
            key = f"{section}.{name}"
            if key not in FREE_ON_RESUME and table.get(name) != before.get(name):
                return key, before.get(name), table.get(name)
    return None
