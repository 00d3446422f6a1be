"""A recipe: everything that defines an experiment, in one TOML file, read strictly.

A key that is not understood is refused: a misspelt setting must not silently keep its default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from carousel.training.caption_sections import (
    CaptionBatches,
    CaptionFiles,
    CaptioningLoss,
    CaptioningModelShape,
    Decoding,
    FeatureFiles,
    OwnEncoder,
    Vocabulary,
)
from carousel.training.errors import RecipeError
from carousel.training.sections import (
    AnswerFiles,
    Averaging,
    Batches,
    CorpusFiles,
    HistoryBatches,
    Model,
    Optimizer,
    Run,
    Schedule,
    Section,
    Stopping,
    TokenizerKind,
    TracingLoss,
    TracingModelShape,
)


class _Named(Section):
    name: str = Field(exclude=True)
    """The recipe file's name without its suffix."""
    run: Run = Run()


class LanguageRecipe(_Named):
    """A language model: `run.task = "language"`."""

    corpus: CorpusFiles
    tokenizer: TokenizerKind = TokenizerKind()
    model: Model = Model()
    batches: Batches = Batches()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    averaging: Averaging = Averaging()
    stopping: Stopping = Stopping()


class TracingRecipe(_Named):
    """A knowledge tracing model: `run.task = "tracing"`."""

    corpus: AnswerFiles
    model: TracingModelShape = TracingModelShape()
    batches: HistoryBatches = HistoryBatches()
    loss: TracingLoss = TracingLoss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    averaging: Averaging = Averaging()
    stopping: Stopping = Stopping()


class CaptioningRecipe(_Named):
    """A captioning model: `run.task = "captioning"`."""

    corpus: CaptionFiles
    features: FeatureFiles = FeatureFiles()
    encoder: OwnEncoder = OwnEncoder()
    vocabulary: Vocabulary = Vocabulary()
    model: CaptioningModelShape = CaptioningModelShape()
    batches: CaptionBatches = CaptionBatches()
    loss: CaptioningLoss = CaptioningLoss()
    decoding: Decoding = Decoding()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    averaging: Averaging = Averaging()
    stopping: Stopping = Stopping()


Recipe = LanguageRecipe | TracingRecipe | CaptioningRecipe
"""One experiment. A trainer looks only at the sections that all have."""

_RECIPES: Mapping[object, type[Recipe]] = {"tracing": TracingRecipe, "captioning": CaptioningRecipe}
"""By run.task; a language model's where it names none, or none that there is, which is then refused."""

FREE_ON_RESUME = frozenset({"run.threads", "run.save_every_windows", "stopping.patience"})
"""Keys that may change between a run and its resumption: none of them alters what a window computes."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides.

    Raises:
        RecipeError: with the first thing that is wrong, naming its key.
    """
    try:
        tables = tomllib.loads(_text(path.read_bytes()))
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read ({error.strerror}); give the path of a .toml file") from None
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError
        raise RecipeError(f"recipe {path} is not TOML: {error}") from None
    for override in overrides:
        _apply(tables, override)
    return _validated(path.stem, tables)


def _text(content: bytes) -> str:
    """A file's text, less the byte order mark that some editors begin it with.

    Raises:
        ValueError: it is not UTF-8.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig")


def saved_recipe(name: str, tables: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a checkpoint was made by, with `section.key=value` overrides applied.

    Raises:
        RecipeError: with the first thing that is wrong, naming its key.
    """
    changed = {section: dict(table) for section, table in tables.items()}
    for override in overrides:
        _apply(changed, override)
    return _validated(name, changed)


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
    run = tables.get("run", {})
    recipe = _RECIPES.get(run.get("task"), LanguageRecipe) if isinstance(run, dict) else LanguageRecipe
    sections = [section for section in recipe.model_fields if section != "name"]
    for section, table in tables.items():
        if section not in sections:
            raise RecipeError(f"[{section}] is not a section of a recipe; allowed are {', '.join(sections)}")
        if not isinstance(table, dict):
            raise RecipeError(f"{section} is {table!r}; it should be a section, [{section}], with keys")
    try:
        return recipe.model_validate({"name": name, "corpus": {}, **tables})
    except ValidationError as error:
        first = error.errors()[0]
    section, *rest = (str(part) for part in first["loc"])
    key = ".".join((section, *rest))
    match first["type"]:
        case "extra_forbidden":
            annotation = recipe.model_fields[section].annotation
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
    """The first key whose value differs from a saved run's, with both values (saved first); None where none does.

    A key that the saved recipe lacks, because there was none of that name yet, had what is its default now.
    """
    for section, table in recipe.model_dump(mode="json").items():
        before = saved.get(section, {})
        defaults = type(getattr(recipe, section)).model_fields
        for name in sorted({*table, *before}):
            key = f"{section}.{name}"
            was = before[name] if name in before else defaults[name].default
            if key not in FREE_ON_RESUME and table.get(name) != was:
                return key, was, table.get(name)
    return None
