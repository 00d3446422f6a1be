"""A long text as token ids, in bounded memory.

The tokenizers library keeps some 400 bytes per token while it encodes, so a text is encoded in parts. Parts end where
no tokenizer of ours can have a token across: behind a visible character, before a blank or a line's end. The ids are
those of one call over the whole text, which is how a service encodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from carousel.models.codec.text import TextCodec

PART_CHARACTERS = 1 << 20

_BORDER = re.compile(r"\S(?=[ \n])")


def encode_text(codec: TextCodec, text: str, part_characters: int = PART_CHARACTERS) -> Tensor:
    """The ids of `text`. <int64>[N]"""
    parts = [torch.tensor(codec.encode(part), dtype=torch.int64) for part in _parts(text, part_characters)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _parts(text: str, part_characters: int) -> Iterator[str]:
    start = 0
    while start < len(text):
        border = _BORDER.search(text, start + part_characters)
        end = border.end() if border else len(text)
        yield text[start:end]
        start = end
