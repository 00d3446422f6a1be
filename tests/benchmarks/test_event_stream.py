"""Streams over HTTP, from a bare server that writes what the test says, cut where the test says."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from carousel.benchmarks.load import Generation, Target, Window, closed_loop, open_loop
from carousel.benchmarks.record import Recorder

GENERATION = Generation(prompt=(3, 1), max_tokens=5)
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text):
    return b"%x\r\n%s\r\n" % (len(text), text.encode())


def completion(tokens):
    events = [chunk('data: {"choices":[{"text":"a","finish_reason":null}]}\n\n') for _ in range(tokens)]
    end = [chunk('data: {"choices":[{"text":"","finish_reason":"length"}]}\n\n'), chunk("data: [DONE]\n\n")]
    return HEAD + b"".join([*events, *end]) + b"0\r\n\r\n"


def lines(tokens):
    events = [chunk(json.dumps({"index": index, "token": 7}) + "\n") for index in range(tokens)]
    return HEAD + b"".join(events) + b"0\r\n\r\n"


def refusal(status, body, headers=b""):
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


class Wire:
    """Answers each POST with `answer(max_tokens)`, in pieces of `cut` bytes."""

    def __init__(self, answer, *, cut=10**6, hang_up=False):
        self.answer, self.cut, self.hang_up = answer, cut, hang_up
        self.bodies, self.paths = [], set()
        self.connections = 0

    async def serve(self, reader, writer):
        self.connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r")[0])
            self.paths.add(head.split(b" ", 2)[1].decode())
            self.bodies.append(json.loads(await reader.readexactly(length)))
            body = self.bodies[-1]
            answer = self.answer(body.get("sampling", body)["max_tokens"])
            for at in range(0, len(answer), self.cut):
                writer.write(answer[at : at + self.cut])
                await writer.drain()
                await asyncio.sleep(0)
            if self.hang_up:
                writer.close()
                return

    @asynccontextmanager
    async def running(self, wire):
        async def serve(reader, writer):
            try:
                await self.serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield Target(server.sockets[0].getsockname()[1], "tiny", wire=wire)
        finally:
            server.close()
            await asyncio.sleep(0)


@pytest.mark.parametrize("cut", [1, 7, 10**6])
@pytest.mark.parametrize(("wire", "answer"), [("completions", completion), ("events", lines)])
async def test_every_token_is_counted_wherever_the_bytes_are_cut(wire, answer, cut):
    server = Wire(answer, cut=cut)
    async with server.running(wire) as target:
        result = await open_loop(target, GENERATION, [0.0, 0.0, 0.4], Window(1.0, 0.0))
    assert (result.generations, result.tokens) == (3, 3 * GENERATION.max_tokens)
    assert (result.first_token.count, result.inter_token.count) == (3, 3 * (GENERATION.max_tokens - 1))
    assert (result.shed, result.errors) == (0, {})
    assert server.connections == 2  # the third found an idle one
    assert server.paths == {"/v1/completions" if wire == "completions" else "/generate"}


async def test_requests_say_what_each_wire_expects():
    server = Wire(completion)
    async with server.running("completions") as target:
        await open_loop(target, GENERATION, [0.0], Window(0.2, 0.0))
    sampling = {"max_tokens": 5, "temperature": 1.0, "seed": 0}
    assert server.bodies == [{"model": "tiny", "prompt": [3, 1], **sampling, "stream": True}]
    assert json.loads(Target(1, "tiny", wire="events").request(GENERATION, 0)) == {
        "tokens": [3, 1],
        "sampling": sampling,
    }


async def test_closed_loop_goes_over_http_too():
    server = Wire(lines)
    async with server.running("events") as target:
        result = await closed_loop(target, GENERATION, streams=3, window=Window(0.3, 0.0))
    assert server.connections == 3
    assert result.generations > 3
    assert result.errors == {}


FULL = b'{"error": {"code": "capacity_exceeded", "message": "full", "retryable": true}}'


@pytest.mark.parametrize(
    ("answer", "shed", "errors"),
    [
        (refusal(503, FULL, b"Retry-After: 2\r\n"), 3, {}),
        (refusal(503, FULL), 0, {"no_retry_after": 3}),
        (refusal(503, b"busy"), 3, {}),
        (refusal(422, b'{"error": {"code": "invalid", "message": "no", "retryable": false}}'), 0, {"invalid": 3}),
        (refusal(500, b""), 0, {"http_500": 3}),
        (lines(0), 0, {"empty": 3}),
        (HEAD + chunk(f"data: {FULL.decode()}\n\n") + b"0\r\n\r\n", 3, {}),
    ],
)
async def test_refusals_and_failures_are_told_apart(answer, shed, errors):
    server = Wire(lambda _: answer)
    async with server.running("events") as target:
        result = await open_loop(target, GENERATION, [0.0, 0.1, 0.2], Window(0.4, 0.0))
    assert (result.shed, result.errors, result.generations) == (shed, errors, 0)
    assert result.refusal.count == shed


async def test_a_stream_that_breaks_off_is_lost():
    server = Wire(lambda tokens: lines(tokens)[:-5], hang_up=True)
    async with server.running("events") as target:
        connection = await target.connect(Recorder())
        result = await open_loop(target, GENERATION, [0.0], Window(0.2, 0.0))
        await connection.close()
    assert result.errors == {"connection_lost": 1}
