"""A recipe: everything that defines an experiment, in one TOML file, read strictly.

A key that is not understood is refused: a misspelt setting must not silently keep its default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from carousel.models.registry import UnknownName
from carousel.models.strict import first_wrong
from carousel.training.errors import RecipeError
from carousel.training.sections import Recipe, Run
from carousel.training.task import TASKS

FREE_ON_RESUME = frozenset({"run.threads", "run.save_every_windows", "run.log_gradients_every", "stopping.patience"})
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
    recipe = TASKS[_task_of(tables)].recipe_type
    sections = [section for section in recipe.model_fields if section != "name"]
    for section, table in tables.items():
        if section not in sections:
            raise RecipeError(f"[{section}] is not a section of a recipe; allowed are {', '.join(sections)}")
        if not isinstance(table, dict):
            raise RecipeError(f"{section} is {table!r}; it should be a section, [{section}], with keys")
    try:
        return recipe.model_validate({**{section: {} for section in sections}, **tables, "name": name})
    except ValidationError as error:
        (section, *rest), reason = first_wrong(error)
    key = ".".join((section, *rest))
    match reason:
        case " is not a key":
            annotation = recipe.model_fields[section].annotation
            assert annotation is not None
            allowed = ", ".join(annotation.model_fields)
            reason = f" is not a key of a recipe; allowed in [{section}] are {allowed}"
        case " is missing":
            reason = f" is missing; set it in the recipe or add {key}=VALUE to the command"
    raise RecipeError(key + reason)


def _task_of(tables: Mapping[str, Any]) -> str:
    """Which task a recipe is of; the default where it names none, and where [run] is not yet known to be a section."""
    run = tables.get("run", {})
    task = run.get("task") if isinstance(run, dict) else None
    if not isinstance(task, str):
        return Run().task
    try:
        return TASKS.known(task)
    except UnknownName as error:
        raise RecipeError(f"run.task is {task!r}; {error}") from None


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
