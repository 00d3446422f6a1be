"""From strangers' files to the graphs of a bundle: a step, an encoder, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from carousel.export.adopt.beside import put_beside
from carousel.export.adopt.build import Built
from carousel.export.adopt.encoder import LENGTHS, Encoder, adopt_encoder
from carousel.export.adopt.errors import AdoptionRefused
from carousel.export.adopt.network import adopt_step
from carousel.export.adopt.read import read_model
from carousel.export.adopt.said import Said
from carousel.export.adopt.trial import Array

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph, and what its ports are (adopt.build.Built, adopt.encoder.Encoder)."""

    content: bytes
    inputs: Sequence[str]
    outputs: Sequence[str]
    states: Sequence[tuple[str, str]] = ()
    context: Sequence[str] = ()
    initial: Mapping[str, Array] = field(default_factory=dict)
    lengths: str | None = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A step, an encoder or both, and how far from the file over so many steps of so many rows; and beside a step, of
    many in a call, where that is the same."""

    step: Graph | None
    encoder: Graph | None
    steps: int
    rows: int
    largest: float
    row_independent: bool = True
    many: Graph | None = None


def adopted(
    content: bytes,
    beside: bytes | None,
    said: Said,
    lengths: str | None,
    tell: Callable[[str], None],
    *,
    encoder_only: bool = False,
) -> Result:
    """The graphs of a bundle.

    Args:
        content: of the file.
        beside: of another one, an encoder's; None for none.
        said: what the caller says of either.
        lengths: of an encoder, the input whose rows may be of unequal lengths.
        tell: is told of each stage what it found.
        encoder_only: whether the first file is an encoder.

    Raises:
        AdoptionRefused: they cannot be served; with the node or tensor, and what to do.
    """
    if encoder_only:
        alone = adopt_encoder(content, said, lengths, tell)
        return Result(None, _of_encoder(alone), 1, len(LENGTHS), alone.largest, row_independent=not alone.alone)
    if beside is None:
        if lengths is not None:
            raise AdoptionRefused(f"--lengths {lengths} is of an encoder: give one (--encoder), or --encoder-only")
        found = adopt_step(content, said, tell)
        many = None if found.many is None else _of_step(found.many)
        compared = found.compared
        return Result(_of_step(found.built), None, compared.steps, compared.rows, compared.largest, many=many)
    own, theirs = _shared_out(said, content, beside)
    found = adopt_step(content, own, tell)
    encoder = adopt_encoder(beside, theirs, lengths, tell)
    both = put_beside(encoder, found.built, found.run)
    for target, name in both.encoder.outputs.items():
        tell(f"encoder    {name} -> {target}")
    tell(f"parity     {both.largest:.1e} of both together")
    largest = max(found.compared.largest, both.largest)
    fitted = replace(_of_encoder(both.encoder), max_length=both.max_length)
    return Result(_of_step(found.built), fitted, found.compared.steps, found.compared.rows, largest)


def _shared_out(said: Said, step: bytes, encoder: bytes) -> tuple[Said, Said]:
    """What is said of either file: of an input that both have, its time of the encoder's, all else of the step's."""
    first, second = ({value.name for value in read_model(content).graph.input} for content in (step, encoder))
    alone = second - first

    def of(given: Mapping[str, Value], names: set[str], *, others: bool = False) -> dict[str, Value]:
        return {name: value for name, value in given.items() if (name in names) != others}

    own = replace(
        said,
        fixed=of(said.fixed, alone, others=True),
        shapes=of(said.shapes, alone, others=True),
        carries=of(said.carries, alone, others=True),
        times=of(said.times, second, others=True),
    )
    theirs = replace(
        said,
        fixed=of(said.fixed, alone),
        shapes=of(said.shapes, alone),
        carries=of(said.carries, alone),
        times=of(said.times, second),
        states={},
        products=False,
    )
    return own, theirs


def _of_step(built: Built) -> Graph:
    content = built.model.SerializeToString(deterministic=True)
    inputs = [name for name in built.inputs if name not in built.context]
    return Graph(content, inputs, list(built.outputs), built.states, built.context, built.initial)


def _of_encoder(encoder: Encoder) -> Graph:
    content = encoder.model.SerializeToString(deterministic=True)
    inputs = [name for name in encoder.inputs if name != encoder.lengths]
    return Graph(content, inputs, list(encoder.outputs), lengths=encoder.lengths)
