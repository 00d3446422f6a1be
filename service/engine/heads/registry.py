"""All heads of a model, by what a request brings for them."""

from __future__ import annotations

from collections.abc import Mapping

from carousel.service.engine.heads.generate import Generate
from carousel.service.engine.heads.head import Head
from carousel.service.engine.heads.read import Read
from carousel.service.engine.heads.score import Score
from carousel.service.engine.heads.search import Search
from carousel.service.engine.heads.tensors import GiveTensors
from carousel.service.engine.parameters import HeadParameters
from carousel.service.engine.rows.table import RowTable
from carousel.service.engine.runner import StepPorts
from carousel.service.engine.sampling.sampler import Sampler
from carousel.service.engine.states.pool import StatePool


def open_heads(
    ports: StepPorts, table: RowTable, pool: StatePool, max_rows: int
) -> Mapping[type[HeadParameters], Head]:
    """One of each: their arrays are small until somebody asks for more."""
    heads: list[Head] = [GiveTensors(ports.outputs, max_rows)]
    if ports.head.reads is not None:
        (size,) = ports.outputs[ports.head.reads].shape
        heads.append(Read(ports.head.reads, table, max_rows, size))
        if ports.head.feeds is not None:
            sampler, reads, attends = Sampler(size), ports.head.reads, ports.head.attends
            heads += [
                Score(reads, table, sampler, max_rows),
                Search(reads, attends, table, pool, max_rows),
                Generate(reads, attends, table, sampler, max_rows, size),
            ]
    return {head.takes: head for head in heads}
