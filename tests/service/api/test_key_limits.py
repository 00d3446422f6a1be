"""A key's limits: refused before anything is read, counted to the token whichever way a request ends."""

from contextlib import ExitStack, contextmanager

import httpx
import pytest
from websockets.sync.client import connect as websockets_connect

from carousel.service.keys.key_file import key_line, new_key
from tests.service.api.conftest import StreamClient

ADA, BOB = new_key(), new_key()
ATTEMPTS = [{"skill": 2, "correct": True}, {"skill": 0, "correct": False}]


class Limited:
    """A server where ada has limits and bob has none."""

    def __init__(self, server, stack):
        self._server, self._stack = server, stack
        self.ada, self.bob = (
            stack.enter_context(
                httpx.Client(
                    base_url=server.url, timeout=60, trust_env=False, headers={"Authorization": f"Bearer {key}"}
                )
            )
            for key in (ADA, BOB)
        )

    def stream(self):
        headers = {"Authorization": f"Bearer {ADA}"}
        url = self._server.socket_url("tiny")
        return StreamClient(self._stack.enter_context(websockets_connect(url, additional_headers=headers, proxy=None)))


@pytest.fixture
def limited(run_server, tmp_path):
    @contextmanager
    def run(limits):
        path = tmp_path / "keys"
        path.write_text(f"{key_line('ada', 'school', ADA)} {limits}\n{key_line('bob', 'school', BOB)}\n")
        with run_server(api_keys_file=path) as server, ExitStack() as stack:
            yield Limited(server, stack)

    return run


def test_requests_beyond_a_keys_rate_are_refused_unread(limited, refused):
    with limited("requests_per_second=0.01 burst=3") as server:
        for _ in range(3):
            assert server.ada.get("/v1/models").status_code == 200
        for response in (
            server.ada.get("/v1/models"),
            server.ada.get("/nowhere"),
            server.ada.post("/v1/completions", content=b"{" * 1_000_000),
            server.ada.delete("/v1/models/tiny/sessions/s"),
        ):
            assert "0.01 a second and 3 at once" in refused(response, 429, "rate_limited", True)
            assert 95 <= int(response.headers["retry-after"]) <= 130
        assert server.bob.get("/v1/models").status_code == 200
        assert server.ada.get("/readyz").status_code == 200
        assert 'outcome="rate_limited"' in server.bob.get("/metrics").text


def test_each_generation_of_a_socket_counts_and_nothing_else_of_it(limited):
    with limited("requests_per_second=0.01 burst=2") as server:
        stream = server.stream()
        for _ in range(2):
            stream.generate("abc", max_tokens=2)
            stream.send(type="cancel")
        stream.start("abc", kind="feed")
        error, code = stream.refusal()
        assert (error["code"], error["retryable"], code) == ("rate_limited", True, 4429)
        assert "try again in" in error["message"]


def test_quota_ends_what_runs_a_model_and_nothing_else(limited, refused):
    with limited("tokens_per_day=9") as server:
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 20}
        assert server.ada.post("/v1/completions", json=body).status_code == 200
        response = server.ada.post("/v1/models/tutor/trace", content=b"[")
        assert "9 a day" in refused(response, 429, "quota_exceeded", True)
        assert int(response.headers["retry-after"]) > 86_400  # 23 tokens were taken of 9
        stream = server.stream()
        stream.start("abc")
        error, code = stream.refusal()
        assert (error["code"], code) == ("quota_exceeded", 4429)
        assert server.ada.get("/v1/models").status_code == 200
        assert server.bob.post("/v1/completions", json=body).status_code == 200


@pytest.fixture
def spent(limited, monkeypatch, eventually):
    """A server with a quota, and what waits until just so many tokens have been counted since it was last called."""
    amounts = []
    monkeypatch.setattr(
        "carousel.service.keys.caller.Caller.spend", lambda self, tokens: amounts.append((self.name, tokens))
    )

    def tokens(expected, sequences=1):
        eventually(lambda: len(amounts) >= sequences)
        assert {name for name, _ in amounts} == {"ada"}
        assert [sum(count for _, count in amounts), len(amounts)] == [expected, sequences]
        amounts.clear()

    with limited("tokens_per_minute=1e9") as server:
        yield server, tokens, amounts


@pytest.mark.parametrize("stream", [False, True])
def test_completions_spend_prompt_and_completion(spent, stream):
    server, tokens, _ = spent
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 5, "stream": stream}
    server.ada.post("/v1/completions", json=body)
    tokens(3 + 5)
    server.ada.post("/v1/completions", json=body | {"prompt": ["abc", "abcd"], "n": 2})
    tokens(3 + 4 + 4 * 5, sequences=4)  # a prompt is eaten once, and paid for once
    server.ada.post("/v1/completions", json=body | {"echo": True, "logprobs": 1, "n": 2})
    tokens(3 + 2 * 5, sequences=3)
    answer = server.ada.post("/v1/completions", json=body | {"prompt": [2] * 100, "n": 8, "stream": False})
    tokens(answer.json()["usage"]["total_tokens"], sequences=8)
    server.bob.post("/v1/completions", json=body)  # has no quota: nobody counts
    server.ada.post("/v1/completions", json=body | {"prompt": ""})  # refused: nothing ran
    server.ada.post("/v1/completions", json=body | {"max_tokens": 1})
    tokens(3 + 1)


def test_all_that_runs_a_model_spends(spent, picture, captioner):
    server, tokens, _ = spent
    server.ada.post("/v1/models/tiny/next-token", json={"text": "abcd"})
    tokens(4 + 1)
    server.ada.post("/v1/models/tiny/score", json={"text": "abcdef"})
    tokens(6)
    server.ada.post("/v1/completions", json={"model": "tiny", "prompt": "abc", "echo": True, "max_tokens": 0})
    tokens(3)
    server.ada.post("/v1/models/tutor/trace", json={"attempts": ATTEMPTS})
    tokens(2)
    server.ada.post("/v1/models/tutor/trace", json={"learners": [{"attempts": ATTEMPTS}] * 3})
    tokens(6, sequences=3)
    for width in (1, 3):
        answer = server.ada.post(
            "/v1/models/endless/captions", files={"image": picture()}, data={"beam_width": width, "max_tokens": 7}
        )
        assert len(answer.json()["images"][0]["captions"][0]["tokens"]) == 7
        tokens(1 + 7)


def test_what_goes_on_from_a_memory_pays_for_no_token_twice(spent):
    server, tokens, _ = spent
    completion = {"model": "tiny", "prompt": "abc", "max_tokens": 5, "session": "ada"}
    for _ in range(3):
        server.ada.post("/v1/completions", json=completion)
        tokens(3 + 5)
    server.ada.post("/v1/models/tiny/next-token", json={"text": "ab", "session": "ada"})
    tokens(2 + 1)
    server.ada.post("/v1/models/tiny/score", json={"text": "abcd", "session": "ada"})
    tokens(4)
    stream = server.stream()
    for kind in ("start", "feed", "feed"):
        stream.generate("abc", kind=kind, max_tokens=6)
        tokens(3 + 6)


def test_generation_that_is_cancelled_or_whose_client_leaves_spends_what_it_ran(spent, eventually):
    server, tokens, amounts = spent
    stream = server.stream()
    stream.generate("abc", max_tokens=6)
    tokens(3 + 6)
    stream.start("abc", kind="feed", max_tokens=60_000)
    while stream.receive()["type"] != "token":
        pass
    stream.send(type="cancel")
    told = stream.rest()[-1]["usage"]["completion_tokens"]
    eventually(lambda: amounts)
    ((name, ran),) = amounts
    assert name == "ada"
    assert ran >= 3 + told
    amounts.clear()
    stream.start("abc", max_tokens=60_000)
    while stream.receive()["type"] != "token":
        pass
    stream.socket.close()
    eventually(lambda: amounts)
    assert 3 < amounts[0][1] < 60_000
