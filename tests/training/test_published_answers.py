"""The published sets, where they are at hand, hold as many learners and answers as their authors say."""

from __future__ import annotations

from pathlib import Path

import pytest

from carousel.training.corpus.answers import AnswerFiles, read_answers
from carousel.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="the published sets are not beside the repository"),
]


@pytest.mark.parametrize(
    ("recipe", "learners", "answers", "skills"),
    [
        ("assist2009_updated", 2_921, 224_218, 111),  # ids 1 to 110
        ("assist2009_xiong", 3_372, 222_753, 146),
        ("assist2015", 13_935, 484_040, 101),
        ("statics2011", 229, 130_184, 1_224),
    ],
)
def test_recipe_reads_its_set_whole(
    recipe: str, learners: int, answers: int, skills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    corpus = read_answers(load_recipe(ROOT / "training" / "recipes" / f"{recipe}.toml").corpus, seed=1)
    histories = [*corpus.train, *corpus.validation]
    assert (len(histories), sum(map(len, histories)), corpus.codec.skill_count) == (learners, answers, skills)


def test_pykt_set_is_read_whole() -> None:
    files = AnswerFiles(kind="pykt", train=str(DATA / "assist2015_pykt" / "train_valid.csv.gz"))
    corpus = read_answers(files, seed=1)
    histories = [*corpus.train, *corpus.validation]
    assert (len(histories), sum(map(len, histories))) == (15_275, 544_339)
