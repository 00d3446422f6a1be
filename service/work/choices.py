"""The choices of a completion: texts that go on from one prompt, which is consumed once however many are wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from carousel.service.engine.parameters import FinishReason, Ids, SamplingParameters
from carousel.service.engine.port import Place
from carousel.service.prefixes.prefixes import Beginning
from carousel.service.served.repository import ServedModel
from carousel.service.work.generation import Finished, Generation, Token, TokenTaker, Usage
from carousel.service.work.memories import Recall
from carousel.service.work.weighing import Weighed, weigh

Event = Weighed | Token | Finished
"""What comes of a choice: `Choices.events`."""


@dataclass(frozen=True, slots=True)
class ChoiceParameters:
    """What the choices of a request have in common.

    Args:
        stops: strings that end a text; it ends before them.
        weigh: how many of the most probable tokens to tell in each place of the prompt, which is weighed; None where it
            is only consumed.
        cache_salt: prompts with another one are not met.
        on_overflow: called when the events of a choice are read too slowly.
    """

    stops: list[str]
    weigh: int | None
    cache_salt: str | None
    on_overflow: Callable[[], None]


class Choices:
    """The first choice consumes the prompt, and the others go on from a copy of the state that it led to.

    Args:
        model: the model.
        places: taken for the choices, one each.
        prompt: <int64>[N]
        samplings: how to sample each choice; a `max_tokens` of 0 samples nothing.
        parameters: for all.
        recall: memory to go on from, and to keep where there is but one choice.
    """

    def __init__(
        self,
        model: ServedModel,
        places: Sequence[Place],
        prompt: Ids,
        samplings: Sequence[SamplingParameters],
        parameters: ChoiceParameters,
        recall: Recall,
    ) -> None:
        self._model = model
        self._places = places
        self._prompt = prompt
        self._samplings = samplings
        self._parameters = parameters
        self._recall = recall
        self._generations: dict[int, Generation] = {}
        self._weighed: Weighed | None = None
        self._beginning: Beginning | None = None
        """How who comes after whoever has consumed the prompt starts."""
        self._consumed = asyncio.Event()
        """Set once they can."""
        self._cancelled = False

    def cancel(self) -> None:
        """End all early, whether their events are read already or not: the last one of each is Finished."""
        self._cancelled = True
        for place in self._places:
            place.cancel()
        self._consumed.set()

    async def events(self, index: int, taker: TokenTaker | None = None) -> AsyncIterator[Event]:
        """What comes of one choice: Weighed, where that is asked for; the tokens; Finished.

        All but the first wait for the first, so that somebody must read that one's.

        Args:
            index: which.
            taker: see `Generation.events`.

        Raises:
            ServiceError: slow_reader, step_failed, deadline_exceeded or model_unavailable.
        """
        sampling = self._samplings[index]
        if index > 0:
            self._places[index].defer()
            await self._consumed.wait()
        elif self._parameters.weigh is not None or sampling.max_tokens == 0:
            await self._weigh(sampling)
        if self._weighed is not None and self._parameters.weigh is not None:
            yield self._weighed
        if sampling.max_tokens == 0:
            reason = FinishReason.CANCELLED if self._weighed is None else FinishReason.LENGTH
            yield Finished(reason, "", Usage(len(self._prompt), 0), None)
            return
        async for event in self._begin(index, sampling).events(taker):
            yield event

    async def keep(self, index: int, end: Finished) -> None:
        """Write the memory of a choice that has ended, where it is to be kept."""
        if end.snapshot is not None:
            consumed = end.usage.prompt_tokens + end.usage.completion_tokens
            await self._recall.keep(end.snapshot, consumed=consumed, context=self._generations[index].context)

    async def _weigh(self, sampling: SamplingParameters) -> None:
        alone = sampling.max_tokens == 0
        self._weighed = await weigh(
            self._model,
            self._places[0],
            self._prompt,
            self._recall.snapshot,
            alternatives=self._parameters.weigh or 0,
            keep_state=not alone,
            alone=alone,
        )
        if self._weighed is not None:
            self._go_on_from(self._weighed.beginning)

    def _begin(self, index: int, sampling: SamplingParameters) -> Generation:
        parameters, recall = self._parameters, self._recall
        forks = index == 0 and self._beginning is None and len(self._samplings) > 1
        generation = self._generations[index] = Generation(
            self._model,
            self._places[index],
            self._prompt,
            sampling,
            parameters.stops,
            snapshot=recall.snapshot,
            context=recall.context,
            keep_state=recall.choice.keeps,
            beginning=self._beginning,
            on_consumed=self._go_on_from if forks else None,
            on_overflow=parameters.on_overflow,
            cache_salt=parameters.cache_salt,
        )
        if self._cancelled:
            generation.cancel()
        return generation

    def _go_on_from(self, beginning: Beginning | None) -> None:
        self._beginning = beginning
        self._consumed.set()


def choice_seed(seed: int, index: int) -> int:
    """The seed of one of a request's choices: that of the request for the first, and of streams independent of it, and
    of those of other seeds, for the rest."""
    if index == 0:
        return seed
    (word,) = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return int(word) >> 1


async def merged(sources: list[AsyncIterator[Event]]) -> AsyncIterator[tuple[int, Event]]:
    """The events of several generations as they come, each with its generation's index."""
    if len(sources) == 1:
        async for event in sources[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(maxsize=2 * len(sources))

    async def pump(index: int, source: AsyncIterator[Event]) -> None:
        try:
            async for event in source:
                await queue.put((index, event))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.create_task(pump(index, source)) for index, source in enumerate(sources)]
    try:
        left = len(sources)
        while left:
            index, outcome = await queue.get()
            if isinstance(outcome, Exception):
                raise outcome
            left -= isinstance(outcome, Finished)
            yield index, outcome
    finally:
        for task in tasks:
            task.cancel()
