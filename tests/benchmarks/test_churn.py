import asyncio
import json

import pytest

from carousel.benchmarks.churn import Outcome, WrongAnswer, ask, main, socket_generation
from carousel.benchmarks.load import Target
from tests.benchmarks.test_load import FakeServer


def test_churn_ends_with_every_answer_right_and_no_row_in_use(tmp_path, capsys):
    output = tmp_path / "churn.json"
    assert main(["--requests", "120", "--clients", "8", "--settle", "0.1", "--output", str(output)]) == 0
    outcome = json.loads(output.read_text())
    assert (outcome["requests"], outcome["rows_in_use"], outcome["errors"]) == (120, 0, {})
    assert min(outcome["settled_bytes"], outcome["end_bytes"]) > 10e6
    assert "rows in use and requests waiting at the end: 0" in capsys.readouterr().out


def test_churn_is_bounded(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--requests", "0"])
    assert "is '0'; allowed is a whole number, 1 or more" in capsys.readouterr().err
    assert main(["--clients", "5000"]) == 1
    assert "allowed are" in capsys.readouterr().err


def test_outcome_says_the_ratio_and_what_went_wrong():
    shown = str(Outcome(10, 2.0, 100_000_000, 104_000_000, 3, {"TimeoutError: ": 2}))
    assert "ratio 1.040" in shown
    assert "at the end: 3" in shown
    assert "wrong or missing answers: 2" in shown


async def test_a_wrong_status_is_a_wrong_answer():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        target = Target(server.sockets[0].getsockname()[1], "tiny")
        await ask(target, "/", {}, (500,))
        with pytest.raises(WrongAnswer, match="answered 500"):
            await ask(target, "/", {})


async def test_a_generation_that_ends_otherwise_is_a_wrong_answer():
    fake = FakeServer(refuse={"code": "invalid", "message": "no", "retryable": False})
    start = {"type": "start", "tokens": [1], "sampling": {"max_tokens": 5}}
    async with fake.running() as target:
        await socket_generation(target, start, "error")
        with pytest.raises(WrongAnswer, match="not in finished"):
            await socket_generation(target, start, "finished")
