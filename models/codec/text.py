"""Text <-> token ids, the same code at training and at serving, so that the two cannot drift.

A codec wraps one `tokenizer.json` of the `tokenizers` library: characters, words or byte-level BPE alike.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from tokenizers import Encoding, Tokenizer, decoders

from carousel.models.codec.ids import below, enter_ids, takes_ids
from carousel.models.codec.spec import CODECS, Array, FileCodecSpec, Ids, text_of
from carousel.models.errors import TextTooLong, UnencodableText
from carousel.models.graph import TensorSpec

UNKNOWN_TOKEN = "<unk>"
END_OF_LINE_TOKEN = "<eos>"

LONG = 4096
"""Ids from which on decoding them takes longer than to let other threads run meanwhile."""

CONTEXT_TOKENS = 8
"""How many ids before the next one a detokeniser looks at: enough for any UTF-8 character and for a leading blank."""

MAX_CHARACTER_BYTES = 4
"""In UTF-8."""

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How a vocabulary with byte fallback calls a byte."""


def _byte_letters() -> Mapping[str, int]:
    """The letters that byte-level tokens are written in, with their bytes.

    GPT-2's: a printable byte is its own letter in Latin-1, the others are those from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_letters()


def _kinds(decoder: decoders.Decoder | None) -> Iterator[str]:
    """The kinds of a decoder and of all that it is made of, as `tokenizer.json` calls them."""
    waiting: list[Any] = [] if decoder is None else [json.loads(decoder.__getstate__())]
    while waiting:
        part = waiting.pop()
        yield part["type"]
        waiting += part.get("decoders", [])


@CODECS.register("text")
class TextCodecSpec(FileCodecSpec):
    """Text in, text out, through a tokenizer of the `tokenizers` library."""

    kind: Literal["text"] = "text"
    file: str = "tokenizer.json"

    def open(self, files: Mapping[str, bytes]) -> TextCodec:
        """The codec of the file."""
        return TextCodec.from_json(text_of(files, self.file))


class TextCodec:
    """One tokenizer: encodes text, decodes ids, and detokenises a stream of ids incrementally."""

    id_ports: ClassVar[int] = 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()  # a tokenizer.json may ask for either; a prompt is never cut or filled up in silence
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        # Not get_vocab_size(): where ids leave gaps, an id may be larger than the number of tokens.
        self.vocabulary_size: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        unknown: str | None = getattr(tokenizer.model, "unk_token", None)
        self.unknown_id = self.id_of(UNKNOWN_TOKEN if unknown is None else unknown)
        """What stands for what the vocabulary lacks; None where nothing does."""
        self._texts: dict[int, str] = {}
        self._bytes: dict[int, bytes | None] = {}
        kinds = set(_kinds(tokenizer.decoder))
        self._byte_level = "ByteLevel" in kinds
        self.falls_back = "ByteFallback" in kinds
        """Whether tokens that are one byte each (`<0xE4>`) stand for what the vocabulary lacks."""

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

    @property
    def id_count(self) -> int:
        """See IdCodec."""
        return self.vocabulary_size

    def require(self, port: TensorSpec, *, fed: bool) -> None:
        """Ids, or a row with a place for each: logits out, one-hot rows in."""
        size = self.vocabulary_size
        if not (takes_ids(port, size) if fed else (port.dtype, port.shape[1:]) == ("float32", (size,))):
            kinds = "an id or a one-hot row" if fed else "a float32 row"
            raise ValueError(f"{self.vocabulary_size:,} tokens; {port} is not {kinds} of them")

    def join(self, columns: Sequence[Ids]) -> Ids:
        """See IdCodec."""
        return below(columns[0], self.id_count, "id")

    def enter(self, ids: Ids, ports: Mapping[str, Array]) -> None:
        """Write ids into the port of a step: as they are, or as one-hot rows."""
        (port,) = ports.values()
        enter_ids(ids, port)

    def to_json(self) -> str:
        """The codec as `tokenizer.json`."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str, longest: int | None = None) -> list[int]:
        """The ids of `text`; what the vocabulary lacks becomes the unknown token where there is one.

        Args:
            text: to encode; a long one lets other threads run meanwhile.
            longest: how many ids there may be, if there is a bound.

        Raises:
            UnencodableText: the vocabulary lacks a part of the text and has no unknown token, or the text holds half
                of a surrogate pair.
            TextTooLong: there are more ids than that.
        """
        encoding = self._encoding(text, self._tokenizer.encode_batch_fast)
        if longest is not None and len(encoding) > longest:
            raise TextTooLong(len(encoding))
        return list(encoding.ids)

    def offsets(self, text: str) -> list[int]:
        """Where in `text` each of its tokens begins, in characters. Raises what `encode` does."""
        return [start for start, _ in self._encoding(text, self._tokenizer.encode_batch).offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        if len(ids) < LONG:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
            return text
        (text,) = self._tokenizer.decode_batch([ids], skip_special_tokens=False)  # lets other threads run
        return text

    def as_written(self, text: str) -> str:
        """How tokens write what `text` is read as, where the normaliser changes it and nothing else gets lost; else
        `text`. (A model that is read CR LF as LF writes LF, and never a CR LF that somebody waits for.)"""
        normalizer = self._tokenizer.normalizer
        normal = text if normalizer is None else str(normalizer.normalize_str(text))
        if normal in ("", text):
            return text
        try:
            return normal if self.decode(self.encode(text)) == normal else text
        except UnencodableText:
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

    def partial_bytes(self, token: int) -> bytes | None:
        """The bytes that a token stands for, which may be part of a character; None where it is whole characters."""
        if not (self._byte_level or self.falls_back):
            return None
        if token not in self._bytes:
            self._bytes[token] = self._bytes_of(self._tokenizer.id_to_token(token) or "")
        return self._bytes[token]

    def token_name(self, token: int) -> str:
        """A token's text; of one that is part of a character its bytes, as OpenAI writes them: `bytes:\\xe4\\xbb`."""
        content = self.partial_bytes(token)
        if content is None:
            return self.token_text(token)
        try:
            content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        return self.token_text(token)

    def _encoding(self, text: str, encode_batch: Callable[..., list[Encoding]]) -> Encoding:
        """Of a batch of one: unlike `encode`, it lets other threads run. `encode_batch_fast` leaves offsets out, which
        take most of the time; to free them takes the interpreter's lock."""
        try:
            return encode_batch([text], add_special_tokens=False)[0]
        except TypeError:  # what the library makes of a str that has no UTF-8
            raise UnencodableText(
                "text holds half of a surrogate pair; allowed is text that has a UTF-8 form"
            ) from None
        except Exception as error:  # the library raises bare Exception
            raise UnencodableText(f"text cannot be written in this model's tokens ({error})") from None

    def _bytes_of(self, token: str) -> bytes | None:
        if self._byte_level:
            try:
                return bytes(_BYTE_OF[letter] for letter in token)
            except KeyError:  # an added token, which stands for itself
                return token.encode()
        byte = _FALLBACK.fullmatch(token)
        return None if byte is None else bytes.fromhex(byte[1])

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """A detokeniser that goes on where `context` (the prompt's ids) ended."""
        return Detokenizer(self, list(context[-CONTEXT_TOKENS:]))


class Detokenizer:
    """Ids in, text out, one by one.

    A character whose bytes are spread over several tokens is held back until it is whole; whether it is, its bytes
    say, as U+FFFD is a character like any other. What `push` returns holds U+FFFD where the text does, and for bytes
    that are no character. What is still held back at the stream's end is dropped. The pieces, joined, are what `decode`
    makes of all ids, less that. (Byte fallback alone differs: there one void byte makes the library give up all
    characters of bytes beside it, also those that it had read before.)

    Not the library's DecodeStream: it raises on such runs, takes a character U+FFFD for one that is unfinished, and
    decodes all that it holds back anew at every step, which is quadratic.
    """

    def __init__(self, codec: TextCodec, context: list[int]) -> None:
        self._codec = codec
        self._context: list[int] = []
        """Ids whose text has been given out, for the blank that some tokenizers set before the next."""
        self._shown = 0
        """Characters of their text."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending: list[int] = []
        """Tokens of bytes since the last whole character."""
        if context and codec.partial_bytes(context[-1]) is None:
            self._goes_on_from(context, codec.decode(context))
        else:
            for token in context:
                self.push(token)

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still incomplete."""
        content = self._codec.partial_bytes(token)
        if content is not None:
            return self._push_bytes(token, content)
        void = self._utf8.decode(b"", True) if self._pending else ""
        self._pending = []
        piece = self._codec.decode([*self._context, token])[self._shown :]
        if text := self._codec.token_text(token):  # else it left no trace, and the context stays what it was
            self._goes_on_from([token], text)
        return void + piece

    def _push_bytes(self, token: int, content: bytes) -> str:
        piece = self._utf8.decode(content)
        if not self._codec.falls_back:
            return piece
        self._pending = [*self._pending, token][-MAX_CHARACTER_BYTES:]
        if not self._utf8.getstate()[0]:
            self._goes_on_from(self._pending, self._codec.decode(self._pending))
            self._pending = []
        return piece

    def _goes_on_from(self, context: list[int], text: str) -> None:
        self._context, self._shown = context, len(text)
