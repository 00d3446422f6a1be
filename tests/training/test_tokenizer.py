"""The three kinds of tokenizer, and encoding a long text in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carousel.models.codec.text import TextCodec
from carousel.training.corpus.encoding import encode_text
from carousel.training.corpus.text import read_corpus
from carousel.training.corpus.tokenizer import TokenizerKind, build_codec, caption_codec, frequent_words

TEXT = "the cat's hat \n<unk> sat  on\tthe <unk> mat , 42 times\n\n naïve 猫 the end\n"
KINDS = {
    "character": TokenizerKind(),
    "word": TokenizerKind(kind="word"),
    "bpe": TokenizerKind(kind="bpe", vocabulary_size=280),
}
CODECS = {name: build_codec(kind, TEXT) for name, kind in KINDS.items()}
DATA = Path(__file__).parents[3] / "shared" / "data"


def test_character_tokenizer_has_one_token_per_character() -> None:
    codec = CODECS["character"]
    assert codec.vocabulary_size == len(set(TEXT)) + 1
    ids = codec.encode(TEXT)
    assert len(ids) == len(TEXT)
    assert codec.unknown_id not in ids  # the text's "<unk>" is five characters here
    assert codec.decode(ids) == TEXT
    assert codec.encode("t\u2603e") == [*codec.encode("t"), codec.unknown_id, *codec.encode("e")]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("I\u2019ll \u2018go\u2019", "I'll 'go'"),
        ('\u201cNo\u201d "no"', "'No' 'no'"),
        ("a\u2014b \u2013 c\u2212d", "a--b - c-d"),
        ("so\u2026\u00a0go\ton", "so... go on"),
        ("a\r\nb\rc\n\r\n\u2028d", "a\nb\nc\n\n\nd"),
        ("\ufeffgo\u200b\u00ad on", "go on"),
    ],
)
@pytest.mark.parametrize("kind", ["character", "word"])
def test_what_the_training_text_lacks_is_read_as_what_it_has(kind: str, typed: str, read: str) -> None:
    text = "I'll 'go' on -- so... 'No' 'no'\na b c a--b c-d\n - go ,\nd b\n"
    codec = TextCodec.from_json(build_codec(KINDS[kind], text).to_json())  # as a bundle brings it
    assert codec.encode(typed) == codec.encode(read)
    assert codec.unknown_id not in codec.encode(typed)
    if kind == "character":
        assert codec.decode(codec.encode(text)) == text
    else:
        assert codec.vocabulary_size == len({*text.split(), "<unk>", "<eos>"})


def test_string_to_wait_for_is_as_the_tokens_would_write_it() -> None:
    text = "I'll go on -- so\n\nthe end\n"
    codec = build_codec(TokenizerKind(), text)
    assert codec.as_written("\r\n\r\n") == "\n\n"
    assert codec.as_written("I\u2019ll\u2026") == "I\u2019ll\u2026"  # of the dots it would write <unk>
    assert codec.as_written("I\u2019ll\u2014") == "I'll--"
    words = build_codec(TokenizerKind(kind="word"), text)
    assert [words.as_written(each) for each in (" the", "\n", "go\n", "I\u2019ll", "dog\u2019")] == [
        " the", "\n", "go\n", "I'll", "dog\u2019",
    ]  # fmt: skip
    assert codec.as_written("\u200b") == "\u200b"
    assert build_codec(KINDS["bpe"], text).as_written("\r\n") == "\r\n"


@pytest.mark.parametrize("kind", ["character", "bpe"])
@given(
    text=st.text(st.sampled_from("a'\"\u2019\u201c\r\n\t \u2014-.\u2026\ufeffe\u0301\u00e9"), min_size=1, max_size=40)
)
def test_tokenizer_gives_back_its_training_text_whatever_is_in_it(kind: str, text: str) -> None:
    codec = build_codec(KINDS[kind], text)
    assert codec.decode(codec.encode(text)) == text


def test_composed_characters_are_one_where_the_training_text_has_them() -> None:
    codec = build_codec(TokenizerKind(), "caf\u00e9")
    assert codec.encode("cafe\u0301") == codec.encode("caf\u00e9")
    apart = build_codec(TokenizerKind(), "cafe\u0301")
    assert apart.decode(apart.encode("cafe\u0301")) == "cafe\u0301"


def test_word_tokenizer_ends_lines_and_knows_the_texts_own_unknown() -> None:
    codec = CODECS["word"]
    words = TEXT.split()
    assert codec.vocabulary_size == len(set(words) | {"<unk>", "<eos>"})
    ids = codec.encode(TEXT)
    assert len(ids) == len(words) + TEXT.count("\n")
    assert ids.count(codec.unknown_id) == 2
    assert codec.encode("dog\n") == [codec.unknown_id, codec.encode("\n")[0]]
    assert codec.decode(codec.encode("the cat's hat\n sat\n\n on")) == "the cat's hat\n sat\n\n on"


def test_word_tokenizer_decodes_a_line_end_at_the_start() -> None:
    codec = CODECS["word"]
    assert codec.decode(codec.encode("\n\n the end")) == "\n\n the end"
    assert codec.token_text(codec.encode("\n")[0]) == "\n"


def test_word_tokenizer_streams_what_it_decodes() -> None:
    codec = CODECS["word"]
    ids = codec.encode(TEXT)
    detokenizer = codec.detokenizer()
    assert "".join(map(detokenizer.push, ids)) == codec.decode(ids)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({"vocabulary_size": 4}, {"b", "a"}), ({"min_frequency": 3}, {"b"}), ({"min_frequency": 2}, {"a", "b", "c"})],
)
def test_word_tokenizer_keeps_the_most_frequent_words(settings: dict[str, int], kept: set[str]) -> None:
    codec = build_codec(TokenizerKind(kind="word", **settings), "c b a b c a b d")
    assert {word for word in "abcd" if codec.encode(word) != [codec.unknown_id]} == kept
    assert codec.vocabulary_size == len(kept) + 2


@given(st.text(max_size=60))
def test_byte_pair_tokenizer_gives_back_any_text(text: str) -> None:
    codec = CODECS["bpe"]
    assert codec.decode(codec.encode(text)) == text


def test_byte_pair_tokenizer_learns_as_many_tokens_as_asked_and_always_the_same() -> None:
    kind = TokenizerKind(kind="bpe", vocabulary_size=270)
    codec = build_codec(kind, TEXT)
    assert codec.vocabulary_size == 270
    assert codec.unknown_id is None
    assert len(codec.encode(TEXT)) < len(TEXT.encode())
    assert build_codec(kind, TEXT).to_json() == codec.to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_survives_json(kind: str) -> None:
    codec = CODECS[kind]
    again = TextCodec.from_json(codec.to_json())
    assert again.encode(TEXT) == codec.encode(TEXT)
    assert again.decode(codec.encode(TEXT)) == codec.decode(codec.encode(TEXT))
    assert again.vocabulary_size == codec.vocabulary_size


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(
    text=st.text(st.sampled_from(" \n\t\r\u00a0\u3000the'ts1,.é猫\u0301\x85\x1c<unk>"), max_size=80),
    part=st.integers(1, 7),
)
def test_encoding_in_parts_is_encoding_at_once(kind: str, text: str, part: int) -> None:
    assert encode_text(CODECS[kind], text, part).tolist() == CODECS[kind].encode(text)


@pytest.mark.data
@pytest.mark.parametrize(
    ("train", "validation", "vocabulary", "tokens"),
    [
        ("ptb/ptb.train.txt.gz", "ptb/ptb.valid.txt.gz", 10_000, 73_760),
        ("wikitext-2/train.txt.gz", "wikitext-2/valid.txt.gz", 33_278, 217_646),
    ],
)
def test_word_tokenizer_finds_the_published_vocabulary(
    train: str, validation: str, vocabulary: int, tokens: int
) -> None:
    if not (DATA / train).exists():
        pytest.skip(f"{train} is not at hand")
    corpus = read_corpus(str(DATA / train), str(DATA / validation), 0.1)
    codec = build_codec(TokenizerKind(kind="word"), corpus.train)
    assert codec.vocabulary_size == vocabulary
    assert len(encode_text(codec, corpus.validation)) == tokens


def test_caption_codec_gives_back_words_and_knows_its_marks() -> None:
    codec = caption_codec(["a", "dog", "'s", "t-shirt"])
    assert codec.encode("a dog 's red t-shirt") == [3, 4, 5, 0, 6]
    assert codec.decode([3, 4, 5, 6]) == "a dog 's t-shirt"
    assert (codec.unknown_id, codec.id_of("<s>"), codec.id_of("</s>"), codec.vocabulary_size) == (0, 1, 2, 7)
    pieces = codec.detokenizer()
    assert "".join(pieces.push(id_) for id_ in (3, 4, 5, 6)) == "a dog 's t-shirt"


def test_frequent_words_come_by_frequency_and_then_by_letter() -> None:
    assert frequent_words(["a dog runs", "a cat runs", "a cow"], 1) == ["a", "runs", "cat", "cow", "dog"]
    assert frequent_words(["a dog runs", "a cat runs", "a cow"], 2) == ["a", "runs"]
