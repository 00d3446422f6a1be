"""Raw streams in company: clients that vanish, cancel, do not read, send ahead, and go on elsewhere. Nobody else
notices, and every answer is the file's own."""

import asyncio
import json

import numpy as np
import onnx
import pytest
from websockets.asyncio.client import connect

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.trial import Trial
from tests.export.adopt.strangers import FEATURES, sequence_network

STREAMS, STEPS = 30, 120
DEADLINE_SECONDS = 120


@pytest.fixture(scope="module")
def file():
    return sequence_network("GRU", states=False)


@pytest.fixture(scope="module")
def servers(run_server, file, tmp_path_factory):
    root = tmp_path_factory.mktemp("crowd")
    (root / "net.onnx").write_bytes(file)
    assert main([str(root / "net.onnx"), "--repository", str(root / "b"), "--name", "net", "--time", "x=1"]) == 0
    options = {"repository": root / "b", "max_rows": 8, "state_key": "k" * 40}
    with run_server(**options) as one, run_server(**options) as other:
        yield one, other


class Client:
    """Sends steps of one sequence as frames of one, and holds each answer against the file's."""

    def __init__(self, rows, truth, sent=0):
        self.rows, self.truth, self.sent, self.read = rows, truth, sent, sent

    async def begin(self, server, **start):
        self.socket = await connect(server.socket_url("net"), proxy=None, compression=None)
        await self.tell(type="start", raw=True, binary=True, **start)
        assert (await self.told())["type"] == "accepted"
        return self

    async def tell(self, **frame):
        await self.socket.send(json.dumps(frame))

    async def told(self):
        return json.loads(await self.socket.recv())

    async def send(self, count):
        for row in self.rows[self.sent : self.sent + count]:
            await self.socket.send(row.tobytes())
        self.sent += count

    async def check(self, count):
        for expected in self.truth[self.read : self.read + count]:
            answer = await self.socket.recv()
            assert isinstance(answer, bytes), answer
            np.testing.assert_array_equal(np.frombuffer(answer, "<f4"), expected)
        self.read += count

    async def in_turn(self, count):
        for _ in range(count):
            await self.send(1)
            await self.check(1)


async def vanishes(client, one, other, number):
    await client.begin(one)
    await client.in_turn(3 + 5 * number % 40)
    await client.send(2)
    client.socket.transport.abort()


async def cancels(client, one, other, number):
    await client.begin(one)
    await client.in_turn(7 + number)
    await client.tell(type="cancel")
    assert (await client.told())["reason"] == "cancelled"
    await client.socket.close()


async def sends_ahead(client, one, other, number):
    await client.begin(one)
    sending = asyncio.create_task(client.send(STEPS))
    await client.check(STEPS)
    await sending
    await client.socket.close()


async def reads_late(client, one, other, number):
    await client.begin(one)
    await client.send(STEPS)
    await client.check(STEPS)
    await client.socket.close()


async def moves(client, one, other, number):
    await client.begin(one, return_state=True)
    await client.in_turn(STEPS // 2)
    await client.tell(type="finish")
    state = (await client.told())["state"]
    await client.socket.close()
    await client.begin(other, state=state)
    await client.in_turn(STEPS // 2)
    await client.socket.close()


async def stays(client, one, other, number):
    await client.begin(one)
    await client.in_turn(STEPS)
    await client.tell(type="finish")
    assert (await client.told())["steps"] == STEPS
    await client.socket.close()


async def test_streams_are_what_they_are_alone_whoever_comes_and_goes(servers, file):
    x = np.random.default_rng(6).standard_normal((STREAMS, STEPS, FEATURES)).astype("<f4")
    truth = Trial(onnx.load_model_from_string(file))({"x": x})["scores"]
    kinds = (stays, vanishes, cancels, sends_ahead, reads_late, moves)
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            client = Client(x[number], truth[number])
            group.create_task(kinds[number % len(kinds)](client, *servers, number))
