"""`python -m benchmarks.bodies`: how long a stream stands still beside large bodies and large answers.

One stream of the shipped `shakespeare`, token after token over a WebSocket, alone and beside each kind of body, sent
again as soon as it is answered. Says the longest gap between two tokens, and what the bodies were answered with.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter
from typing import Any

from websockets.asyncio.client import connect

from carousel.benchmarks import numbers
from carousel.benchmarks.load import Target
from carousel.benchmarks.server import SERVICE, ServerFailed, launched
from carousel.benchmarks.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "shakespeare" / "2"
SKILLS = 22
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Body:
    """A request."""

    name: str
    path: str
    make: Callable[[], Any]
    """Its JSON."""


def _attempts(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [{"skill": draw.randrange(SKILLS), "correct": draw.random() < 0.5} for _ in range(count)]


def _text(count: int) -> str:
    draw = random.Random(0)
    return "".join(draw.choices("abcdefgh \n", k=count))


def _image() -> str:
    return base64.b64encode((ROOT / "docs" / "scene.png").read_bytes()).decode()


BODIES = (
    Body("no body", "", dict),
    Body("/trace, 130,000 attempts", "/v1/models/tutor/trace", lambda: {"attempts": _attempts(130_000)}),
    Body("/trace, refused: no skill of that number at the end", "/v1/models/tutor/trace",
         lambda: {"attempts": [*_attempts(130_000), {"skill": 99, "correct": True}]}),
    Body("/trace, 1,000 learners of 100", "/v1/models/tutor/trace",
         lambda: {"learners": [{"id": str(number), "attempts": _attempts(100)} for number in range(1000)]}),
    Body("/trace, 5,000 attempts with each and a curve", "/v1/models/tutor/trace",
         lambda: {"attempts": _attempts(5000), "each": True, "curve": list(range(SKILLS))}),
    Body("/score, 4,000 characters", "/v1/models/shakespeare/score", lambda: {"text": _text(4000)}),
    Body("/score, 3.5 MB, refused as too long", "/v1/models/shakespeare/score", lambda: {"text": _text(3_500_000)}),
    Body("completions, 100 prompts of 1,000 characters, logprobs", "/v1/completions",
         lambda: {"model": "shakespeare", "prompt": [_text(1000)] * 100, "max_tokens": 0, "echo": True, "logprobs": 5}),
    Body("/captions, 64 images with attention", "/v1/models/scenes/captions",
         lambda: {"images": [_image()] * 64, "attention": True}),
)  # fmt: skip


async def measure(target: Target, body: Body, seconds: float) -> tuple[float, list[tuple[int, float]]]:
    """The longest gap between two tokens of one stream, in seconds, and each answer's status and time."""
    content = json.dumps(body.make()).encode()
    answers: list[tuple[int, float]] = []
    longest = 0.0
    async with connect(target.uri, compression=None, ping_interval=None, proxy=None) as socket:
        end = perf_counter() + seconds

        async def send() -> None:
            while body.path and perf_counter() < end:
                answers.append(await asyncio.to_thread(_post, target, body.path, content))

        sending = asyncio.create_task(send())
        while perf_counter() < end or not sending.done():
            await socket.send(json.dumps({"type": "start", "prompt": "ROMEO:\n", "sampling": {"max_tokens": 1000}}))
            last = None
            while (event := json.loads(await socket.recv()))["type"] != "finished":
                if event["type"] == "error":
                    raise ServerFailed(f"the stream ended in {event}")
                now = perf_counter()
                if last is not None and event["type"] == "token":
                    longest = max(longest, now - last)
                last = now if event["type"] == "token" else None
        await sending
    return longest, answers


def _post(target: Target, path: str, content: bytes) -> tuple[int, float]:
    connection = HTTPConnection(target.host, target.port, timeout=TIMEOUT_SECONDS)
    asked = perf_counter()
    try:
        connection.request("POST", path, content, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, perf_counter() - asked
    finally:
        connection.close()


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table; 1 with a sentence on stderr where the server fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bodies", description="A stream beside large bodies.")
    parser.add_argument(
        "--seconds", type=numbers.seconds, default=3.0, help="how long each body is sent again and again"
    )
    options = parser.parse_args(arguments)
    lines = [["beside the stream", "MB", "answers", "status", "an answer takes", "longest gap between tokens"]]
    try:
        with launched(SERVICE, {"CAROUSEL_REPOSITORY": str(BUNDLE.parent.parent)}, BUNDLE) as target:
            for body in BODIES:
                longest, answers = asyncio.run(measure(target, body, options.seconds))
                took = sorted(seconds for _, seconds in answers)
                lines.append(
                    [
                        body.name,
                        f"{len(json.dumps(body.make())) / 1e6:.1f}" if body.path else "-",
                        f"{len(answers)}",
                        " ".join(sorted({str(status) for status, _ in answers})) or "-",
                        f"{took[len(took) // 2]:.2f} s" if took else "-",
                        f"{1000 * longest:.1f} ms",
                    ]
                )
                print(f"{body.name}: {lines[-1][-1]}", file=sys.stderr, flush=True)
    except ServerFailed as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(markdown(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
