"""Text <-> token ids, the same code at training and at serving, so that the two cannot drift.

A codec wraps one `tokenizer.json` of the `tokenizers` library: characters, words or byte-level BPE alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from models.errors import UnencodableText

UNKNOWN_TOKEN = "<unk>"
END_OF_LINE_TOKEN = "<eos>"

CONTEXT_TOKENS = 8
"""How many ids before the next one a detokeniser looks at: enough for any UTF-8 character and for a leading blank."""

REPLACEMENT = "\ufffd"
"""How bytes that are no character, or no whole one yet, read."""


class TextCodec:
    """One tokenizer: encodes text, decodes ids, and detokenises a stream of ids incrementally."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()  # a tokenizer.json may ask for either; a prompt is never cut or filled up in silence
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        # Not get_vocab_size(): where ids leave gaps, an id may be larger than the number of tokens.
        self.vocabulary_size: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.unknown_id = self.id_of(UNKNOWN_TOKEN)
        self._texts: dict[int, str] = {}

    @classmethod
    def from_json(cls, content: str) -> TextCodec:
        """The codec of a `tokenizer.json`.

        Raises:
            ValueError: the content is not a tokenizer.
        """
        try:
            return cls(Tokenizer.from_str(content))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a tokenizer of the tokenizers library ({error})") from None

    def to_json(self) -> str:
        """The codec as `tokenizer.json`."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what the vocabulary lacks becomes the unknown token where there is one.

        Raises:
            UnencodableText: the vocabulary lacks a part of the text and has no unknown token, or the text holds half
                of a surrogate pair.
        """
        try:
            # As a batch of one: unlike `encode`, it lets other threads run, and a long text takes seconds.
            return list(self._tokenizer.encode_batch([text], add_special_tokens=False)[0].ids)
        except TypeError:  # what the library makes of a str that has no UTF-8
            raise UnencodableText(
                "text holds half of a surrogate pair; allowed is text that has a UTF-8 form"
            ) from None
        except Exception as error:  # the library raises bare Exception
            raise UnencodableText(f"text cannot be written in this model's tokens ({error})") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, None where there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def token_text(self, token: int) -> str:
        """How one token reads by itself (a byte-level token may be part of a character: U+FFFD)."""
        text = self._texts.get(token)
        if text is None:  # kept, as a detokeniser asks for each token that it is given
            text = self._texts[token] = self.decode([token])
        return text

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """A detokeniser that goes on where `context` (the prompt's ids) ended."""
        return Detokenizer(self, list(context[-CONTEXT_TOKENS:]))


class Detokenizer:
    """Ids in, text out, one by one.

    A character whose bytes are spread over several tokens is held back until it is whole, so what `push` returns holds
    U+FFFD only for bytes that are no character. What is still held back at the stream's end is dropped. The pieces,
    joined, are what `decode` makes of all ids, less that.

    Not the library's DecodeStream: it raises on runs of invalid bytes under a byte-fallback decoder, and decodes all
    that it holds back anew at every step, which is quadratic. Here at most 2 * CONTEXT_TOKENS ids are looked at.
    """

    def __init__(self, codec: TextCodec, context: list[int]) -> None:
        self._codec = codec
        self._context = context  # ids whose text has been given out (or was the prompt's)
        self._pending: list[int] = []  # ids after them, some of whose text is held back
        text = codec.decode(context)
        self._sent = len(text) - text.endswith(REPLACEMENT)  # of the text of both, characters given out

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still incomplete."""
        self._pending.append(token)
        text = self._codec.decode(self._context + self._pending)
        whole = len(text.rstrip(REPLACEMENT))
        if whole < len(text) and len(self._pending) == CONTEXT_TOKENS:
            whole = len(text) - 1  # no character has so many bytes: all but the last, which may have begun one, is void
        elif whole < len(text):
            piece = text[self._sent : whole]
            self._sent = max(self._sent, whole)
            return piece
        piece = text[self._sent : whole]
        after = self._codec.token_text(token) if len(self._pending) == 1 else self._codec.decode(self._pending)
        if after:  # else the tokens left no trace, and the context stays what it was
            self._context, self._sent = self._pending, len(after) - (len(text) - whole)
        self._pending = []
        return piece
