"""Lines of symbols that are made up, against oracles written another way; and how a model is judged by them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

from carousel.models.nn.checkpoint import read_checkpoint
from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from carousel.training.__main__ import main
from carousel.training.corpus.symbols.copying import Copy
from carousel.training.corpus.symbols.countries import LANGUAGES
from carousel.training.corpus.symbols.symbols import SYMBOLS, Line
from carousel.training.corpus.text import CorpusFiles, made_up_corpus
from carousel.training.corpus.tokenizer import TokenizerKind, build_codec
from carousel.training.errors import RecipeError
from carousel.training.recipe import load_recipe
from carousel.training.tasks.language.legality import legal_lines
from carousel.training.trainer import BEST

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
INNER = r"(?:TS*(?:S|XS)|(?:TS*XX|P)(?:T|VPX)*V(?:V|PS))"
WHOLE = re.compile(rf"B(?:TB{INNER}ET|PB{INNER}EP)E")
"""Reber's grammar as an expression: the loops of its automaton read off by hand."""


def drawn(kind: str, count: int = 300, **parameters: int) -> list[Line]:
    draw = random.Random(7)
    return [SYMBOLS[kind](**parameters).line(draw) for _ in range(count)]


def test_reber_strings_are_of_the_grammar() -> None:
    lines = drawn("reber")
    assert all(WHOLE.fullmatch("".join(line.symbols)) for line in lines)
    assert {line.symbols[1] for line in lines} == {"T", "P"}


def test_reber_legal_symbols_are_those_of_all_strings_with_the_same_beginning() -> None:
    follow: dict[str, set[str]] = {}
    for line in drawn("reber", 6000):
        text = "".join(line.symbols)
        for at in range(1, len(text)):
            follow.setdefault(text[:at], set()).add(text[at])
    for line in drawn("reber", 20):
        text = "".join(line.symbols)
        for at in range(1, min(7, len(text))):
            assert line.legal[at] == follow[text[:at]]
        assert line.legal[-2] == {text[1]}


def test_anbn_is_judged_where_it_is_decided() -> None:
    for line in drawn("anbn", longest=6):
        n = len(line.symbols) // 2
        assert "".join(line.symbols) == "a" * n + "b" * n + "."
        judged = {at: legal for at, legal in enumerate(line.legal) if legal}
        assert judged == {**{at: {"b"} for at in range(n + 1, 2 * n)}, 2 * n: {"."}}


def test_count_asks_the_number_of_a() -> None:
    for line in drawn("count"):
        letters, number = "".join(line.symbols).rstrip(".").split("=")
        assert int(number) == sum(letter == "a" for letter in letters)
        asked = [min(legal) for legal in line.legal if legal]
        assert "".join(asked) == f"{number}."
        assert len(line.legal) == len(line.symbols)


def test_copy_asks_the_letters_again() -> None:
    for line in drawn("copy", letters=4, delay=9):
        text = "".join(line.symbols)
        assert re.fullmatch(r"([a-h]{4})\.{9}>\1", text)
        assert [legal and min(legal) for legal in line.legal] == [None] * 14 + list(text[:4])


def test_countries_ask_the_language_after_the_gap_that_the_group_says() -> None:
    assert len(set(LANGUAGES.values())) == 20
    for line in drawn("countries", longest=4):
        (at,) = [at for at, legal in enumerate(line.legal) if legal]
        assert line.symbols[at] == LANGUAGES[line.symbols[4]]
        assert line.group == f"gap={at - 4:03d}"
        assert line.symbols[0] == line.symbols[at - 2]


@pytest.mark.parametrize("kind", list(SYMBOLS))
def test_made_up_corpus_follows_from_its_seed_and_holds_out_what_it_can(kind: str) -> None:
    files = CorpusFiles(kind=kind, lines=50, validation_lines=20, seed=3)
    corpus = made_up_corpus(files)
    assert corpus == made_up_corpus(files)
    assert corpus != made_up_corpus(files.model_copy(update={"seed": 4}))
    shared = set(corpus.train.splitlines()) & set(corpus.validation.splitlines())
    assert bool(shared) == (kind == "anbn")
    assert len(corpus.lines) == 20


def test_line_is_legal_where_the_most_probable_are_those_that_may_come() -> None:
    """A model whose logits are a table of the symbol before, in the place of one that learns."""
    codec = build_codec(TokenizerKind(), "abcd\n")
    model = LanguageModel(LanguageModelConfig(vocabulary_size=6, embedding_size=6, hidden_size=6, layers=1))
    table = torch.zeros(6, 6)
    (a,), (b,), (c,) = map(codec.encode, "abc")
    table[a, b], table[a, c], table[b, c], table[c, a] = 2, 1, 1, 1
    model.forward = lambda ids, state: (table[ids], state)
    lines = [
        Line("ab", [None, frozenset("bc")], "both"),
        Line("ab", [None, frozenset("b")], "one"),
        Line("ac", [None, frozenset("c")], "other"),
        Line("abca", [None, None, frozenset("c"), frozenset("a")], "long"),
    ]
    assert legal_lines(model, codec, Copy(), lines) == {
        "legal": 0.75, "legal/both": 1, "legal/long": 1, "legal/one": 1, "legal/other": 0
    }  # fmt: skip
    words = build_codec(TokenizerKind(kind="word"), "abcd\n")
    with pytest.raises(RecipeError, match=r"^tokenizer\.kind makes 2 tokens of '\\nab'; .* take 'character'$"):
        legal_lines(model, words, Copy(), lines)


def test_recipe_of_symbols_is_trained_and_its_header_has_the_task_s_figures(tmp_path: Path, capsys) -> None:
    small = [
        "corpus.lines=60",
        "batches.lanes=3",
        "corpus.validation_lines=9",
        "model.hidden_size=5",
        "schedule.epochs=1",
    ]
    assert main([str(RECIPES / "reber.toml"), *small, "--output", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "legal 0." in said
    assert "best validation " in said
    assert " 1 - legal; weights in" in said
    assert set(read_checkpoint(tmp_path / "run" / BEST).header["validation"]) == {
        "tokens", "nats_per_token", "perplexity", "bits_per_character"
    }  # fmt: skip


def test_recipe_names_a_file_or_a_kind() -> None:
    for overrides in (["corpus.train=a.txt"], ["corpus.kind="]):
        with pytest.raises(RecipeError, match=r"^corpus: train is .* and kind .*; give the one"):
            load_recipe(RECIPES / "reber.toml", overrides)
    with pytest.raises(RecipeError, match=r"^corpus: parameters\.longest is not a key; reber has none$"):
        load_recipe(RECIPES / "reber.toml", ["corpus.parameters={longest=3}"])
