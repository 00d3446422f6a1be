"""Recipes: what is not understood is refused, by key, in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from carousel.training.errors import RecipeError
from carousel.training.recipe import first_difference, load_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_that_is_shipped_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem


def test_recipes_that_the_documents_name_are_shipped() -> None:
    shipped = {path.stem for path in RECIPES.glob("*.toml")}
    assert shipped >= {"shakespeare_lstm", "shakespeare_gru", "ptb", "wikitext2", "own_text"}
    assert shipped >= {"flickr8k_attention", "flickr8k_show_and_tell", "scenes"}
    assert shipped >= {"assist2009_updated", "assist2009_xiong", "assist2015", "statics2011", "tutor"}


def test_recipe_overrides_are_toml_values_or_bare_words(recipe_path: Path) -> None:
    overrides = [
        "model.tied=true",
        "optimizer.learning_rate=1e-2",
        "optimizer.betas=[0.8, 0.95]",
        "corpus.train=a/b.txt",
    ]
    recipe = load_recipe(recipe_path, [*overrides, "averaging.kind=ema", "corpus.validation=", "stopping.patience=3"])
    assert recipe.model.tied is True
    assert recipe.optimizer.learning_rate == 0.01
    assert recipe.optimizer.betas == (0.8, 0.95)
    assert recipe.corpus.train == "a/b.txt"
    assert recipe.averaging.kind == "ema"
    assert recipe.corpus.validation == ""
    assert recipe.stopping.patience == 3
    assert recipe.batches.lanes == 4  # not overridden


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("modle.layers=2", "[modle] is not a section of a recipe; allowed are run, optimizer, schedule, averaging"),
        ("batches.lane=2", "batches.lane is not a key of a recipe; allowed in [batches] are lanes, window"),
        ("batches.lanes=0", "batches.lanes is 0; it should be greater than or equal to 1"),
        ("batches.lanes=2.5", "batches.lanes is 2.5; it should be a valid integer"),
        ("batches.lanes=many", "batches.lanes is 'many'; it should be a valid integer"),
        ("batches.lanes=true", "batches.lanes is True; it should be a valid integer"),
        ("model.cell=rnn", "model.cell is 'rnn'; it should be 'elman', 'gru' or 'lstm'"),
        ("model.cell=lsmt", "model.cell is 'lsmt'; it should be 'elman', 'gru' or 'lstm' (perhaps 'lstm'?)"),
        ("model.cell=3", "model.cell is 3; it should be a valid string"),
        ("model.weight_drop=1.0", "model.weight_drop is 1.0; it should be less than 1"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate is nan; it should be a finite number"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1; it should be greater than 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1 is missing"),
        ("run.precision=fp16", "run.precision is 'fp16'; it should be 'fp32' or 'bf16'"),
        ("tokenizer.vocabulary_size=9", "tokenizer: vocabulary_size and min_frequency are for kinds word and bpe"),
        ("tokenizer.kind=bpe", "tokenizer: vocabulary_size is 0; kind bpe takes 257 or more"),
        ("corpus.validation_fraction=1", "corpus.validation_fraction is 1; it should be less than 1"),
        ("lanes=3", "override 'lanes=3' is not of the form section.key=value"),
        ("batches.lanes", "override 'batches.lanes' is not of the form section.key=value"),
    ],
)
def test_recipe_refuses_in_one_sentence(recipe_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_path, [override])
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_recipe_without_a_corpus_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(
        RecipeError, match=r"^corpus: train is '' and kind ''; give the one, a file, or the other, what is made up"
    ):
        load_recipe(tmp_path / "empty.toml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"[run\n", "is not TOML"), (b"\xff", "is not TOML"), (b"run = 3\n", "run is 3; it should be a section")],
)
def test_recipe_file_that_is_none_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(tmp_path / "bad.toml")


def test_recipe_may_begin_with_a_byte_order_mark(recipe_path: Path) -> None:
    plain = load_recipe(recipe_path)
    recipe_path.write_bytes(b"\xef\xbb\xbf" + recipe_path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_recipe(recipe_path) == plain
    recipe_path.write_bytes(recipe_path.read_text("utf-8-sig").encode("utf-16"))
    with pytest.raises(RecipeError, match=r"is not TOML: it is UTF-16; save it as UTF-8$"):
        load_recipe(recipe_path)


def test_recipe_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml cannot be read \(No such file or directory\)"):
        load_recipe(tmp_path / "none.toml")


def test_recipe_difference_names_the_first_key_that_matters(recipe_path: Path) -> None:
    saved = load_recipe(recipe_path).model_dump(mode="json")
    free = load_recipe(recipe_path, ["run.threads=2", "run.save_every_windows=9", "stopping.patience=1"])
    assert first_difference(free, saved) is None
    changed = load_recipe(recipe_path, ["model.layers=3", "optimizer.clip_norm=1.0"])
    assert first_difference(changed, saved) == ("optimizer.clip_norm", 0.5, 1.0)


def test_recipe_of_an_older_run_had_todays_defaults(recipe_path: Path) -> None:
    saved = load_recipe(recipe_path).model_dump(mode="json")
    del saved["run"]["task"], saved["model"]["tied"]
    assert first_difference(load_recipe(recipe_path), saved) is None
    assert first_difference(load_recipe(recipe_path, ["model.tied=true"]), saved) == ("model.tied", False, True)


@pytest.fixture
def tracing_recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "answers.toml"
    path.write_text('[run]\ntask = "tracing"\n\n[corpus]\ntrain = "a.csv"\n')
    return path


def test_tracing_recipe_takes_one_file_or_several(tracing_recipe_path: Path) -> None:
    assert load_recipe(tracing_recipe_path).corpus.train == ["a.csv"]
    recipe = load_recipe(tracing_recipe_path, ['corpus.train=["b.csv", "c.csv"]', "corpus.validation=d.csv"])
    assert (recipe.corpus.train, recipe.corpus.validation) == (["b.csv", "c.csv"], ["d.csv"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["tokenizer.kind=word"],
            "[tokenizer] is not a section of a recipe; allowed are run, optimizer, schedule, averaging, stopping",
        ),
        (["batches.lanes=3"], "batches.lanes is not a key of a recipe; allowed in [batches] are learners, window"),
        (["model.tied=true"], "model.tied is not a key of a recipe"),
        (["corpus.train="], "corpus: kind three-line takes files; set corpus.train to one path or a list of them"),
        (["corpus.kind=generated"], "corpus: kind generated reads no files; leave out train and validation"),
        (["corpus.kind=json"], "corpus.kind is 'json'; it should be 'three-line', 'rows', 'pykt' or 'generated'"),
        (["corpus.learners=1"], "corpus.learners is 1; it should be greater than or equal to 2"),
        (["corpus.train=5"], "corpus.train is 5; it should be a valid list"),
        (["loss.waviness_l1=-1"], "loss.waviness_l1 is -1; it should be greater than or equal to 0"),
        (
            ["run.task=captions"],
            "run.task is 'captions'; it should be 'captioning', 'language', 'series' or 'tracing' (perhaps",
        ),
    ],
)
def test_tracing_recipe_refuses_in_one_sentence(tracing_recipe_path: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tracing_recipe_path, overrides)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
