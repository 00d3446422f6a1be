"""Tokenizers made from a training text: characters, words, or byte-level BPE; and the words of captions.

Each is a whole pipeline of the `tokenizers` library, so `tokenizer.json` alone lets a service tokenise as training did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, Self

from pydantic import model_validator
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from carousel.models.codec.text import END_OF_LINE_TOKEN, UNKNOWN_TOKEN, TextCodec
from carousel.models.strict import Count, CountOrNone, Strict
from carousel.training.corpus.typography import normalizer_for

CAPTION_BEGIN = "<s>"
CAPTION_END = "</s>"

SMALLEST_VOCABULARY = {"word": 3, "bpe": 257}
"""One token more than a tokenizer has anyhow: <unk> and <eos>, or the 256 bytes."""


class TokenizerKind(Strict):
    """What a token is."""

    kind: Literal["character", "word", "bpe"] = "character"
    vocabulary_size: CountOrNone = 0
    """Words: at most so many, the most frequent, <unk> and <eos> included; 0 is all. BPE: bytes and merges."""
    min_frequency: Count = 1
    """Words seen less often become <unk>; BPE pairs seen less often are not merged."""

    @model_validator(mode="after")
    def _size_fits_kind(self) -> Self:
        if self.kind == "character":
            if (self.vocabulary_size, self.min_frequency) != (0, 1):
                raise ValueError("vocabulary_size and min_frequency are for kinds word and bpe, kind is character")
        elif self.vocabulary_size < SMALLEST_VOCABULARY[self.kind] and (self.kind == "bpe" or self.vocabulary_size):
            smallest = SMALLEST_VOCABULARY[self.kind]
            raise ValueError(f"vocabulary_size is {self.vocabulary_size}; kind {self.kind} takes {smallest} or more")
        return self


def build_codec(kind: TokenizerKind, text: str) -> TextCodec:
    """The codec that `kind` asks for, its vocabulary taken from `text`."""
    match kind.kind:
        case "character":
            return TextCodec(_character(text))
        case "word":
            return TextCodec(_word(text, kind.vocabulary_size, kind.min_frequency))
        case "bpe":
            return TextCodec(_byte_pairs(text, kind.vocabulary_size, kind.min_frequency))


def caption_codec(words: Sequence[str]) -> TextCodec:
    """The codec of captions over these words: <unk>, the tokens that begin and end a caption, and the words in order.

    A caption's words are apart by single blanks, and so they are given back.
    """
    tokens = [UNKNOWN_TOKEN, CAPTION_BEGIN, CAPTION_END, *words]
    tokenizer = Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate(tokens)}, UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextCodec(tokenizer)


def frequent_words(captions: Iterable[str], min_frequency: int) -> list[str]:
    """The words seen at least so often, the most frequent first, equals in alphabetical order."""
    counts = Counter(word for caption in captions for word in caption.split())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, count in ordered if count >= min_frequency]


def _character(text: str) -> Tokenizer:
    tokens = [UNKNOWN_TOKEN, *sorted(set(text))]
    tokenizer = Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate(tokens)}, UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if (normalizer := normalizer_for(text)) is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def _word(text: str, vocabulary_size: int, min_frequency: int) -> Tokenizer:
    """Words between blanks; a line's end is the token <eos> (Mikolov's and Merity's convention)."""
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN_TOKEN: 0}, UNKNOWN_TOKEN))
    line_end = normalizers.Replace("\n", f" {END_OF_LINE_TOKEN} ")
    normalizer = normalizer_for(text)
    tokenizer.normalizer = line_end if normalizer is None else normalizers.Sequence([normalizer, line_end])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # This decoder sets a blank before each token that lacks its prefix: a blank, which no word can begin with.
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix=" ", cleanup=False), decoders.Replace(Regex(rf"\A ?{END_OF_LINE_TOKEN}\z"), "\n")]
    )
    counts = Counter(text.split())
    reserved = [UNKNOWN_TOKEN, END_OF_LINE_TOKEN]
    words = [
        word
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= min_frequency and word not in reserved
    ]
    tokens = (reserved + words)[: vocabulary_size or None]
    tokenizer.model = models.WordLevel({token: id_ for id_, token in enumerate(tokens)}, UNKNOWN_TOKEN)
    return tokenizer


def _byte_pairs(text: str, vocabulary_size: int, min_frequency: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2): every byte is a token, so nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer
