"""What becomes of an adopted network's outputs, but being given as they are: ids are sampled from one, and fed back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from carousel.export.adopt.errors import AdoptionRefused
from carousel.models.codec.text import TextCodec


@dataclass(frozen=True, slots=True)
class Generates:
    """That ids are sampled, and fed back.

    Args:
        feeds: the input that gets them.
        reads: the output that they are sampled from: logits, or log-probabilities.
        tokens: what they are, for either; a `tokenizer.json`.
    """

    feeds: str
    reads: str
    tokens: tuple[bytes, bytes]


def generates(feeds: str, reads: str, files: Mapping[str, Path]) -> Generates:
    """That ids are sampled, with the tokens of files by port; one file alone is that of both.

    Raises:
        AdoptionRefused: there is no file of tokens, or it is none.
        OSError: it cannot be read.
    """
    if not files:
        raise AdoptionRefused(f"--head generate needs to know what ids are: --codec {feeds}=FILE")
    if wrong := [port for port in files if port not in (feeds, reads)]:
        raise AdoptionRefused(f"--codec {wrong[0]}=...: ids go through {feeds} and {reads} alone")
    tokens = {port: tokenizer_of(path) for port, path in files.items()}
    only = next(iter(tokens.values()))
    return Generates(feeds, reads, (tokens.get(feeds, only), tokens.get(reads, only)))


def tokenizer_of(path: Path) -> bytes:
    """A `tokenizer.json`, made of one that it is, or of a list of tokens in the order of their ids.

    A list is read as JSON: the tokens themselves, an object whose `tokens` they are, or one of ids by token. A text is
    then split into characters.

    Raises:
        AdoptionRefused: it is neither.
        OSError: it cannot be read.
    """
    try:
        content = path.read_text(encoding="utf-8")
        told = json.loads(content)
    except ValueError as error:
        raise AdoptionRefused(f"--codec {path}: is no JSON ({error})") from None
    if isinstance(told, dict) and "model" in told:
        try:
            return TextCodec.from_json(content).to_json().encode()
        except ValueError as error:
            raise AdoptionRefused(f"--codec {path}: {error}") from None
    tokens = told.get("tokens", told) if isinstance(told, dict) else told
    ids = {token: place for place, token in enumerate(tokens)} if isinstance(tokens, list) else tokens
    if (
        not isinstance(ids, dict)
        or not all(isinstance(token, str) for token in ids)
        or sorted(map(str, ids.values())) != sorted(map(str, range(len(tokens))))
    ):
        raise AdoptionRefused(
            f"--codec {path}: is neither a tokenizer.json of the tokenizers library nor a list of tokens, each once"
        )
    unknown = next((token for token in ids if token.strip("<>[]|").lower() in ("unk", "unknown")), "")
    tokenizer = Tokenizer(models.WordLevel(ids, unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return TextCodec(tokenizer).to_json().encode()
