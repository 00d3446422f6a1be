"""`python -m benchmarks.churn`: clients that come and go, and what the service still holds afterwards.

So many requests in random order, over WebSockets and HTTP, at the three shipped bundles: generations read to their end,
cancelled and abandoned half-way, completions streamed and whole, scores, answers of learners with sessions, captions,
and requests that must be refused. Sessions are of a bounded set of names, so that what a healthy service keeps is
bounded too. Printed as it goes: resident memory, against what it was after the first minute (`--settle`); at the end,
the rows still in use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import uvloop
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from carousel.benchmarks import numbers
from carousel.benchmarks.captions import BOUNDARY, draw_images
from carousel.benchmarks.captions import form as caption_form
from carousel.benchmarks.load import MAX_STREAMS, LoadRefused, Target, allow_connections
from carousel.benchmarks.report import Machine
from carousel.benchmarks.server import SERVICE, ServerFailed, exposition, launched, resident_bytes, service_settings

REPOSITORY = Path(__file__).resolve().parents[1] / "bundles"
LANGUAGE = "shakespeare"
MAX_REQUESTS = 10_000_000
SESSIONS = 500
"""How many names of sessions clients use between them."""
SESSION_STATUSES = (200, 409)
"""409: another client is at that session just now."""
ANSWER_SECONDS = 60.0
REST_SECONDS = 10.0
EVERY = 5_000
"""Requests between two lines of the output."""

Json = dict[str, Any]
Then = Literal["read", "cancel", "leave"]
Request = Callable[[random.Random], Awaitable[None]]


class WrongAnswer(Exception):
    """The service answered otherwise than it must."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind."""

    requests: int
    seconds: float
    settled_bytes: int
    """Resident after the first minute; 0 where the run was shorter."""
    end_bytes: int
    rows_in_use: int
    errors: Mapping[str, int]

    def __str__(self) -> str:
        ratio = f"{self.end_bytes / self.settled_bytes:.3f}" if self.settled_bytes else "no first minute to compare"
        lines = [
            f"{self.requests:,} requests in {self.seconds:,.0f} s",
            f"resident at the end {self.end_bytes / 1e6:,.1f} MB, after the first minute "
            f"{self.settled_bytes / 1e6:,.1f} MB, ratio {ratio}",
            f"rows in use and requests waiting at the end: {self.rows_in_use}",
            f"wrong or missing answers: {sum(self.errors.values())}",
            *(f"  {count} x {error}" for error, count in self.errors.items()),
        ]
        return "\n".join(lines)


async def ask(
    target: Target,
    path: str,
    body: Json | bytes,
    statuses: Sequence[int] = (200,),
    *,
    kind: str = "application/json",
    leave_after: int = -1,
) -> None:
    """One request on a connection of its own; the client hangs up at the answer's end, or after so many bytes.

    Raises:
        WrongAnswer: the answer's status is none of these.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        head = f"POST {path} HTTP/1.1\r\nhost: b\r\nconnection: close\r\ncontent-type: {kind}\r\n"
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        answer = await reader.read(leave_after)
    finally:
        writer.close()
    status = int(answer.split(b" ", 2)[1]) if answer else 0
    if status not in statuses:
        raise WrongAnswer(f"{path} answered {status or 'nothing'}: {answer[-200:]!r}")


async def socket_generation(target: Target, start: Json | bytes | str, last: str, *, then: Then = "read") -> None:
    """A WebSocket with one generation; after three tokens the client goes on to read, cancels or leaves.

    Raises:
        WrongAnswer: it ended in another event than `last`.
    """
    async with connect(target.uri, compression=None, ping_interval=None, proxy=None) as socket:
        await socket.send(json.dumps(start) if isinstance(start, dict) else start)
        tokens = 0
        while (event := json.loads(await socket.recv()))["type"] not in ("finished", "error"):
            tokens += event["type"] == "token"
            if tokens == 3 and then == "leave":
                socket.transport.abort()  # no goodbye
                return
            if tokens == 3 and then == "cancel":
                then = "read"
                await socket.send('{"type": "cancel"}')
        if event["type"] != last:
            raise WrongAnswer(f"a generation ended in {event}, not in {last}")


class Clients:
    """What clients do, at one service with the three shipped bundles."""

    def __init__(self, language: Target) -> None:
        self._language = language
        self._tutor = replace(language, model="tutor")
        self._scenes = replace(language, model="scenes")
        self._images = draw_images()
        self._kinds: Sequence[tuple[int, Request]] = (
            (20, self._generation),
            (8, partial(self._long_generation, then="cancel")),
            (8, partial(self._long_generation, then="leave")),
            (10, partial(self._completion, stream=False)),
            (10, partial(self._completion, stream=True)),
            (4, self._left_completion),
            (6, self._continued),
            (10, self._probability),
            (15, self._answers),
            (5, self._caption),
            (14, self._mistake),
        )

    async def one(self, dice: random.Random) -> None:
        """One request of a random kind.

        Raises:
            WrongAnswer: the service answered otherwise than it must.
        """
        weights, kinds = zip(*self._kinds, strict=True)
        await dice.choices(kinds, weights)[0](dice)

    async def _generation(self, dice: random.Random) -> None:
        await socket_generation(self._language, self._start(dice, 24), "finished")

    async def _long_generation(self, dice: random.Random, *, then: Then) -> None:
        await socket_generation(self._language, self._start(dice, 2000), "finished", then=then)

    async def _completion(self, dice: random.Random, **fields: Any) -> None:
        body = {"model": self._language.model, "prompt": "To be", "max_tokens": dice.randint(1, 24), **fields}
        await ask(self._language, "/v1/completions", body)

    async def _left_completion(self, dice: random.Random) -> None:
        body = {"model": self._language.model, "prompt": "To be", "max_tokens": 500, "n": 4, "stream": True}
        await ask(self._language, "/v1/completions", body, leave_after=dice.randint(50, 2000))

    async def _continued(self, dice: random.Random) -> None:
        body = {"model": self._language.model, "prompt": "and ", "max_tokens": 5, "session": _session(dice)}
        await ask(self._language, "/v1/completions", body, SESSION_STATUSES)

    async def _probability(self, dice: random.Random) -> None:
        path = f"/v1/models/{self._language.model}/{dice.choice(('score', 'next-token'))}"
        await ask(self._language, path, {"text": "Now is the winter of our discontent"})

    async def _answers(self, dice: random.Random) -> None:
        attempts = [{"skill": dice.randrange(20), "correct": dice.random() < 0.5} for _ in range(dice.randint(1, 20))]
        body: Json = {"attempts": attempts}
        if dice.random() < 0.7:
            body["session"] = _session(dice)
        await ask(self._tutor, f"/v1/models/{self._tutor.model}/trace", body, SESSION_STATUSES)

    async def _caption(self, dice: random.Random) -> None:
        image = dice.choice(self._images)
        if dice.random() < 0.5:
            await socket_generation(self._scenes, image, "finished", then=dice.choice(("read", "leave")))
        else:
            path = f"/v1/models/{self._scenes.model}/captions"
            await ask(self._scenes, path, caption_form(image), kind=BOUNDARY)

    async def _mistake(self, dice: random.Random) -> None:
        language, tutor, scenes = self._language, self._tutor, self._scenes
        skill = {"attempts": [{"skill": "no such skill", "correct": True}]}
        mistakes: Sequence[Callable[[], Awaitable[None]]] = (
            lambda: socket_generation(language, {**self._start(dice, 9), "nonsense": 1}, "error"),
            lambda: socket_generation(language, "{", "error"),
            lambda: ask(language, "/v1/completions", b"{", (400,)),
            lambda: ask(language, "/v1/completions", {"model": "none", "prompt": "a"}, (404,)),
            lambda: ask(tutor, f"/v1/models/{tutor.model}/trace", skill, (422,)),
            lambda: ask(scenes, f"/v1/models/{scenes.model}/captions", {"image": "bm8gaW1hZ2U="}, (400,)),
        )
        await dice.choice(mistakes)()

    def _start(self, dice: random.Random, most: int) -> Json:
        sampling = {"max_tokens": dice.randint(1, most), "seed": dice.getrandbits(32)}
        return {"type": "start", "prompt": "the king"[dice.randrange(8) :], "sampling": sampling}


def _session(dice: random.Random) -> str:
    return f"churn-{dice.randrange(SESSIONS)}"


async def churn(target: Target, wanted: int, clients: int, settle_seconds: float) -> Outcome:
    """Make the requests, `clients` at a time, and report the memory while it goes on."""
    work = Clients(target)
    errors: Counter[str] = Counter()
    begun = 0
    settled = 0
    began = perf_counter()

    async def client(number: int) -> None:
        nonlocal begun, settled
        dice = random.Random(number)
        while begun < wanted:
            begun += 1
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await work.one(dice)
            except (WrongAnswer, OSError, TimeoutError, WebSocketException) as error:
                errors[f"{type(error).__name__}: {error}"[:200]] += 1
            elapsed = perf_counter() - began
            if not settled and elapsed > settle_seconds:
                settled = resident_bytes(target)
                _progress(begun, elapsed, settled, settled)
            elif begun % EVERY == 0:
                _progress(begun, elapsed, resident_bytes(target), settled)

    await asyncio.gather(*map(client, range(clients)))
    in_use = rows_in_use(target)
    deadline = perf_counter() + REST_SECONDS  # whoever left is noticed within a step or two
    while in_use and perf_counter() < deadline:
        await asyncio.sleep(0.1)
        in_use = rows_in_use(target)
    return Outcome(begun, perf_counter() - began, settled, resident_bytes(target), in_use, errors)


def rows_in_use(target: Target) -> int:
    """Active rows and waiting requests of all models, as the service itself counts them."""
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(exposition(target))
        for sample in family.samples
        if sample.name == "carousel_queue_depth"
        or (sample.name == "carousel_rows" and sample.labels["state"] == "active")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit status: 0, or 1 where a request failed or a row is still in use."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description="Clients that come and go.")
    parser.add_argument("--requests", type=numbers.count, default=100_000, help="in all")
    parser.add_argument("--clients", type=numbers.count, default=32, help="at a time")
    parser.add_argument(
        "--settle", type=numbers.seconds_or_none, default=60.0, help="seconds until memory is held to be warm"
    )
    parser.add_argument("--output", type=Path, help="write the outcome here, as JSON")
    options = parser.parse_args(arguments)
    try:
        if not (0 < options.requests <= MAX_REQUESTS and 0 < options.clients <= MAX_STREAMS):
            raise LoadRefused(
                f"{options.requests:,} requests by {options.clients:,} clients; allowed are 1 to {MAX_REQUESTS:,} by "
                f"1 to {MAX_STREAMS:,}"
            )
        allow_connections(options.clients)
        print(Machine.this(), flush=True)
        bundle = REPOSITORY / LANGUAGE / "1"  # a version is not named in a request
        with launched(SERVICE, {**service_settings(bundle), "CAROUSEL_LOG_LEVEL": "warning"}, bundle) as target:
            outcome = uvloop.run(churn(target, options.requests, options.clients, options.settle))
    except (LoadRefused, ServerFailed) as error:
        print(f"churn: {error}", file=sys.stderr)
        return 1
    print(outcome)
    if options.output:
        options.output.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
    return 1 if outcome.errors or outcome.rows_in_use else 0


def _progress(begun: int, seconds: float, resident: int, settled: int) -> None:
    ratio = f", {resident / settled:.3f} of that after the first minute" if settled else ""
    print(f"{begun:>9,} requests, {seconds:6.0f} s: {resident / 1e6:,.1f} MB resident{ratio}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
