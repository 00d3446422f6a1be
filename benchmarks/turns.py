"""Calls that take turns, so that other load on the machine meets all alike, and the model that they are timed on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from carousel.models.nn.network import StepModule

WORDS = 10_000
UNITS = 512


class Seconds(NamedTuple):
    """What a call took."""

    clock: float
    """From its beginning to its end."""
    processor: float
    """Of all threads of the process: nearly the same while others use the machine."""


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Seconds]:
    """Medians of each, after a turn that warms up."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            clock, processor = time.perf_counter(), time.process_time()
            call()
            if turn:
                seconds[name].append(Seconds(time.perf_counter() - clock, time.process_time() - processor))
    return {
        name: Seconds(median(each.clock for each in taken), median(each.processor for each in taken))
        for name, taken in seconds.items()
    }


def model_of(cell: str = "lstm", words: int = WORDS) -> StepModule:
    """A network of two layers of 512 units with random weights, on which speed does not depend."""
    torch.manual_seed(0)
    return (
        LanguageModel(LanguageModelConfig(vocabulary_size=words, cell=cell, hidden_size=UNITS, layers=2))
        .eval()
        .step_module()
    )
