"""A request's time runs from when it is let in, whatever is done for it: on every route."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import httpx
import pytest

from carousel.service.pictures.images import ImageReader
from carousel.service.work.memories import Memories
from carousel.service.work.prompt import prompt_ids

SOON = 0.05
LATE = "0.05 s are over; ask for less, or for more time"

TEXT_ROUTES = {
    "/v1/completions": {"model": "tiny", "prompt": "abc"},
    "/v1/models/tiny/next-token": {"text": "abc"},
    "/v1/models/tiny/score": {"text": "abc"},
}


@pytest.fixture
def over():
    """What `for_ever` waits for: the test's end, at the latest."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def for_ever(over):
    """What no client waits for."""
    return lambda *_: over.wait(60)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", TEXT_ROUTES)
def test_deadline_covers_tokenising(client, refused, ended, monkeypatch, path, streamed):
    async def slow(*arguments, **options):
        await asyncio.sleep(60)
        return await prompt_ids(*arguments, **options)

    for module in ("completions", "probability"):
        monkeypatch.setattr(f"carousel.service.tasks.language.{module}.prompt_ids", slow)
    body = {**TEXT_ROUTES[path], "timeout_seconds": SOON}
    if path == "/v1/completions":
        body["stream"] = streamed
    assert LATE in refused(client.post(path, json=body), 504, "deadline_exceeded", retryable=True)
    ended(deadline_exceeded=1)


@pytest.mark.parametrize("path", [*TEXT_ROUTES, "/v1/models/tutor/trace"])
def test_deadline_covers_waiting_for_a_session(client, refused, ended, monkeypatch, path):
    recall = Memories.recall

    @asynccontextmanager
    async def slow(self, model, choice):
        await asyncio.sleep(60)
        async with recall(self, model, choice) as found:
            yield found

    monkeypatch.setattr(Memories, "recall", slow)
    body = TEXT_ROUTES.get(path, {"attempts": [{"skill": 0, "correct": True}]})
    response = client.post(path, json={**body, "session": "ada", "timeout_seconds": SOON})
    assert LATE in refused(response, 504, "deadline_exceeded", retryable=True)
    ended(deadline_exceeded=1)


@pytest.mark.parametrize(("files", "form"), [(1, {}), (8, {}), (1, {"stream": "true"}), (1, {"priority": "batch"})])
def test_deadline_covers_decoding_and_the_encoder(client, refused, picture, monkeypatch, for_ever, files, form):
    monkeypatch.setattr(ImageReader, "_decoded", for_ever)
    parts = [("image", ("photo", picture())) for _ in range(files)]
    response = client.post("/v1/models/scenes/captions", files=parts, data={"timeout_seconds": str(SOON), **form})
    assert LATE in refused(response, 504, "deadline_exceeded", retryable=True)


@pytest.mark.parametrize("drawn", [False, True])
def test_deadline_covers_the_picture_before_its_caption_and_after_it(
    client, refused, picture, monkeypatch, for_ever, drawn
):
    if drawn:
        monkeypatch.setattr("carousel.service.tasks.captioning.routes.attention_svg", lambda *_, **__: for_ever())
    else:
        monkeypatch.setattr(ImageReader, "_decoded", for_ever)
    response = client.post(
        "/v1/models/scenes/captions/attention.svg", files={"image": picture()}, data={"timeout_seconds": "0.3"}
    )
    assert "0.3 s are over" in refused(response, 504, "deadline_exceeded", retryable=True)


@pytest.mark.parametrize("model", ["tiny", "scenes"])
def test_deadline_covers_a_stream_that_is_prepared(connect, picture, monkeypatch, for_ever, ended, model):
    async def slow(*_, **__):
        await asyncio.sleep(60)

    monkeypatch.setattr("carousel.service.tasks.language.stream.prompt_ids", slow)
    monkeypatch.setattr(ImageReader, "_decoded", for_ever)
    stream = connect(model=model)
    if model == "tiny":
        stream.send(type="start", prompt="abc", timeout_seconds=SOON)
    else:
        stream.send(type="start", timeout_seconds=SOON)
        stream.socket.send(picture())
    error, code = stream.refusal()
    assert (error["code"], error["retryable"], code) == ("deadline_exceeded", True, 4504)
    assert LATE in error["message"]
    ended(deadline_exceeded=1)


def test_setting_bounds_what_is_prepared(run_server, refused, picture, monkeypatch, for_ever, over):
    monkeypatch.setattr(ImageReader, "_decoded", for_ever)
    with run_server(deadline_seconds=0.02) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        response = client.post("/v1/models/scenes/captions", files={"image": picture()})
        refused(response, 504, "deadline_exceeded", retryable=True)
        over.set()
