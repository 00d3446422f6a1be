"""Streams whose time is over before anything of them was sent: their status says so."""

import threading
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from carousel.service.engine.runner import OnnxRunner

COMPLETION = {"model": "tiny", "prompt": "abc", "max_tokens": 200, "temperature": 0}


@pytest.fixture
def held_after(run_server, monkeypatch):
    """A server whose models stop after so many steps, until the block is left; and a client of it."""
    goes_on = threading.Event()
    left = 10**9

    class Runner(OnnxRunner):
        def bind(self, arrays):
            step = super().bind(arrays)

            def held() -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    goes_on.wait(60)
                step()

            return held

    monkeypatch.setattr("carousel.service.served.opening.OnnxRunner", Runner)

    @contextmanager
    def run(steps):
        nonlocal left
        with ExitStack() as stack:
            server = stack.enter_context(run_server())
            stack.callback(goes_on.set)
            left = steps
            yield stack.enter_context(httpx.Client(base_url=server.url, timeout=60, trust_env=False))

    return run


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"prompt": ["abc", "abd"]}], ids=["one", "copies", "prompts"])
def test_text_that_a_stop_string_holds_back_does_not_make_a_late_stream_a_200(client, held_after, refused, more):
    text = client.post("/v1/completions", json=COMPLETION).json()["choices"][0]["text"]
    other = client.post("/v1/completions", json=COMPLETION | {"prompt": "abd"}).json()["choices"][0]["text"]
    with held_after(steps=12) as late:
        fields = {**more, "stop": [text, other], "stream": True, "timeout_seconds": 0.3}
        refused(late.post("/v1/completions", json=COMPLETION | fields), 504, "deadline_exceeded", retryable=True)


def test_text_that_was_sent_makes_a_late_stream_end_with_the_error(held_after):
    with held_after(steps=12) as late:
        response = late.post("/v1/completions", json=COMPLETION | {"stream": True, "timeout_seconds": 0.3})
    assert response.status_code == 200
    assert '"deadline_exceeded"' in response.text.strip().split("\n\n")[-1]
    assert "[DONE]" not in response.text


def test_caption_without_a_word_is_a_504(held_after, picture, refused):
    with held_after(steps=0) as late:
        form = {"stream": "true", "timeout_seconds": "0.3"}
        response = late.post("/v1/models/scenes/captions", files={"image": picture()}, data=form)
        refused(response, 504, "deadline_exceeded", retryable=True)


def test_batch_stream_that_waits_says_so_and_tells_its_error_as_the_last_event(held_after, monkeypatch):
    monkeypatch.setattr("carousel.service.api.routes.event_stream.COMMENT_SECONDS", 0.1)
    with held_after(steps=0) as late:
        fields = {"stream": True, "timeout_seconds": 0.75, "priority": "batch"}
        response = late.post("/v1/completions", json=COMPLETION | fields)
    *comments, error = response.text.strip().split("\n\n")
    assert response.status_code == 200
    assert len(comments) >= 3
    assert set(comments) == {": waiting"}
    assert '"deadline_exceeded"' in error


def test_stream_that_is_not_batch_keeps_its_status_for_longer(held_after, monkeypatch, refused):
    monkeypatch.setattr("carousel.service.api.routes.event_stream.COMMENT_SECONDS", 1.0)
    with held_after(steps=0) as late:
        fields = {"stream": True, "timeout_seconds": 1.5}
        refused(late.post("/v1/completions", json=COMPLETION | fields), 504, "deadline_exceeded", retryable=True)


def test_stream_that_goes_on_says_nothing_but_its_events(client, monkeypatch):
    monkeypatch.setattr("carousel.service.api.routes.event_stream.COMMENT_SECONDS", 0.02)
    monkeypatch.setattr("carousel.service.api.routes.event_stream.PATIENCE_TURNS", 50)
    text = client.post("/v1/completions", json=COMPLETION | {"stream": True, "max_tokens": 2000}).text
    assert all(line.startswith("data: ") for line in text.strip().split("\n\n"))
