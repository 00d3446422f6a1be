"""A small text, and a recipe whose sizes all differ, for runs of a second."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

RECIPE = """
[run]
seed = 5
threads = 1
save_every_windows = 2

[corpus]
train = "{train}"
validation = "{validation}"

[model]
embedding_size = 6
hidden_size = 9
layers = 2

[batches]
lanes = 4
window = 13

[schedule]
epochs = 2
"""


def sentences(seed: int, count: int) -> str:
    """Lines of words whose letters can be learnt."""
    draw = random.Random(seed)
    words = ["the", "carousel", "turns", "and", "carries", "its", "error", "round", "é", "constantly"]
    return "".join(" ".join(draw.choices(words, k=draw.randint(2, 6))) + "\n" for _ in range(count))


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """The small recipe's path, its texts beside it."""
    train, validation, recipe = tmp_path / "train.txt", tmp_path / "valid.txt", tmp_path / "tiny.toml"
    train.write_text(sentences(1, 18))
    validation.write_text(sentences(2, 6))
    recipe.write_text(RECIPE.format(train=train, validation=validation))
    return recipe
