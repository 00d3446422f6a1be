"""Streams of frames: rows as bytes up a WebSocket, an answer down for each. In a closed loop, or at a pace.

Frames are made, and masked, before the clock starts, and an answer is met where the event loop delivers it: the client
shares the machine with what it measures.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, process_time

import numpy as np

from carousel.benchmarks.connection import GenerationFailed
from carousel.benchmarks.load import LoadFailed, Target, Window
from carousel.benchmarks.networks import Network
from carousel.benchmarks.record import LoadResult, Recorder
from carousel.benchmarks.websocket import BINARY, TEXT, WebSocket, frame

FRAMES = 251
"""That differ; streams begin at different ones and go round."""
KEPT_STREAMS, KEPT_ANSWERS = 3, 200
"""Whose first answers are kept, and how many."""
TICK_SECONDS = 0.001
"""What an event loop's timers can tell apart. A frame's time counts from when it was due, not from the tick."""
START = json.dumps({"type": "start", "raw": True, "binary": True})


class Frames:
    """What all streams send: `stream`'s frame of a number is the same in every run.

    Args:
        network: whose steps they are.
        steps: of a frame.
    """

    def __init__(self, network: Network, steps: int) -> None:
        values = 0.1 * np.random.default_rng(0).standard_normal((FRAMES, steps * network.values)).astype("<f4")
        self.steps = steps
        self._rows: list[bytes] = [row.tobytes() for row in (values if network.signed else abs(values))]
        self._wire = [frame(BINARY, row) for row in self._rows]

    def rows(self, stream: int, number: int) -> bytes:
        """What a frame holds."""
        return self._rows[(7 * stream + number) % FRAMES]

    def wire(self, stream: int) -> list[bytes]:
        """A stream's frames as they are sent, in order; then they begin again."""
        start = 7 * stream % FRAMES
        return self._wire[start:] + self._wire[:start]


class FrameStream(WebSocket):
    """One stream; `begin` it before the first frame."""

    async def begin(self, frames: Sequence[bytes], *, keeps: bool) -> None:
        """Start it.

        Raises:
            GenerationFailed: the server refused.
        """
        self._frames, self._number = frames, 0
        self._due: deque[float] = deque()
        self._keeps = KEPT_ANSWERS if keeps else 0
        self.kept: list[bytes] = []
        self.closed_loop = False
        await self.generate(START, perf_counter())
        self._end = self.failed = asyncio.get_running_loop().create_future()
        """Never done, but by an error of the server's."""

    async def close(self) -> None:
        """Hang up, with frames in flight."""
        self.closed_loop, self._end = False, None
        await super().close()

    def ask(self, due: float) -> None:
        """Send the next frame, which was to be sent at that time."""
        self._due.append(due)
        self._transport.write(self._frames[self._number])
        self._number = (self._number + 1) % FRAMES

    def _read_other(self, opcode: int, payload: bytes, now: float) -> None:
        if opcode == BINARY:
            self._recorder.first_token(now, self._due.popleft())
            if len(self.kept) < self._keeps:
                self.kept.append(payload)
            if self.closed_loop:
                self.ask(now)
        elif opcode == TEXT and json.loads(payload)["type"] == "accepted" and self._end is not None:
            self._end.set_result(None)
        else:
            super()._read_other(opcode, payload, now)


async def run(
    target: Target,
    frames: Frames,
    streams: int,
    window: Window,
    period: float | None = None,
    look: Callable[[], None] = lambda: None,
) -> tuple[LoadResult, list[list[bytes]]]:
    """So many streams at once.

    Args:
        target: who is asked.
        frames: what is sent.
        streams: how many.
        window: how long.
        period: seconds between two frames of a stream, answered or not, the streams in even turns; None is a closed
            loop, each stream's next frame as soon as the last is answered.
        look: called as the window begins and as it ends, with all streams busy; the first time on another thread.

    Returns:
        The figures, a frame counted as a first token is, and the first answers of the first streams.

    Raises:
        LoadFailed: the server refused a stream, or ended it.
    """
    recorder, opened = Recorder(), dict[int, FrameStream]()

    async def begin(number: int) -> None:
        opened[number] = stream = await FrameStream.open(target.uri, recorder)
        await stream.begin(frames.wire(number), keeps=number < KEPT_STREAMS)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(streams):
                group.create_task(begin(number))
        start = perf_counter() + window.warmup_seconds
        end = start + window.seconds
        recorder.measure(start, end)
        pacing = asyncio.create_task(_pace(list(opened.values()), period, end))
        await asyncio.sleep(start - perf_counter())
        cpu = process_time()
        await asyncio.to_thread(look)
        ends = [stream.failed for stream in opened.values()]
        await asyncio.wait([pacing, *ends], return_when=asyncio.FIRST_COMPLETED)
        for failed in ends:
            if failed.done():
                failed.result()
        cpu = process_time() - cpu
        look()
    except* GenerationFailed as failures:
        raise LoadFailed(f"a stream failed with {failures.exceptions[0]}") from None
    finally:
        await asyncio.gather(*(stream.close() for stream in opened.values()))
    return recorder.result(cpu / window.seconds), [opened[number].kept for number in range(min(streams, KEPT_STREAMS))]


async def _pace(streams: Sequence[FrameStream], period: float | None, end: float) -> None:
    """Send what is to be sent, until the window's end."""
    if period is None:
        for stream in streams:
            stream.closed_loop = True
            stream.ask(perf_counter())
        await asyncio.sleep(end - perf_counter())
        return
    began, gap, number = perf_counter(), period / len(streams), 0
    while (due := began + number * gap) < end:
        if (early := due - perf_counter()) > 0:
            await asyncio.sleep(max(early, TICK_SECONDS))
        streams[number % len(streams)].ask(due)
        number += 1
