"""Does a model hold for most probable what may come next, and nothing else? (Hochreiter & Schmidhuber 1997, 4.1)

Axes: B lines, T symbols, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from carousel.models.codec.text import TextCodec
from carousel.models.nn.language import LanguageModel
from carousel.training.corpus.symbols.symbols import Line, SymbolKind
from carousel.training.errors import RecipeError

AT_ONCE = 100


@torch.no_grad()
def legal_lines(model: LanguageModel, codec: TextCodec, kind: SymbolKind, lines: Sequence[Line]) -> Mapping[str, float]:
    """The share of lines all of whose judged places are right: where k symbols may stand, they are the k most probable.

    Each line is read from the zero state, behind a line's end.

    Returns:
        `legal` of all lines, and `legal/<group>` of each group's.

    Raises:
        RecipeError: the tokenizer makes of a line other tokens than its symbols.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    known: dict[str, int] = {}
    for at in range(0, len(lines), AT_ONCE):
        batch = lines[at : at + AT_ONCE]
        ids = [_ids(codec, kind, line) for line in batch]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=model.projection.weight.device)
        logits, _ = model(padded, model.initial_state(len(batch)))  # [B, T, V]
        for line, said in zip(batch, logits.cpu(), strict=True):
            held = _holds(line, said, codec, known)
            right["legal"].append(held)
            if line.group:
                right[f"legal/{line.group}"].append(held)
    return {name: sum(held) / len(held) for name, held in sorted(right.items())}


def _ids(codec: TextCodec, kind: SymbolKind, line: Line) -> list[int]:
    text = "\n" + kind.separator.join(line.symbols)
    ids = codec.encode(text)
    if len(ids) != len(line.symbols) + 1:
        wanted = "word" if kind.separator else "character"
        raise RecipeError(f"tokenizer.kind makes {len(ids)} tokens of {text!r}; lines of this kind take {wanted!r}")
    return ids


def _holds(line: Line, said: Tensor, codec: TextCodec, known: dict[str, int]) -> bool:
    """Logits after the line's end before it, and after each symbol. <float32>[T, V]"""
    for after, legal in zip(said, line.legal, strict=False):
        if legal is None:
            continue
        for symbol in legal - known.keys():
            (known[symbol],) = codec.encode(symbol)
        if set(after.topk(len(legal)).indices.tolist()) != {known[symbol] for symbol in legal}:
            return False
    return True
