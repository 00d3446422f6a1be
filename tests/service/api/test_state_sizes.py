"""States are counted in bytes: what is told of them, what is refused because of them, whatever their types."""

from __future__ import annotations

import shutil

import httpx
import numpy as np
import pytest

from tests.service import step_graphs as graphs

WIDTH = 4000
"""States of 16,000 bytes: more than the limits below."""


@pytest.fixture(scope="module")
def models(tiny_bundle, tmp_path_factory):
    repository = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_bundle.parent, repository / "tiny")
    graphs.publish_graph(graphs.step_graph(graphs.TANH, WIDTH), repository, "wide", tiny_bundle)
    graphs.publish_graph(graphs.typed_graph(), repository, "typed", tiny_bundle)
    return repository


@pytest.fixture(scope="module")
def sized(run_server, models):
    with (
        run_server(
            repository=models, max_session_bytes=15_000, max_state_token_bytes=12_000, max_rows_bytes=1024 * 1024
        ) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        yield client


def test_catalogue_tells_what_states_take(sized):
    sizes = {model["id"]: model["state_bytes"] for model in sized.get("/v1/models").json()["data"]}
    typed = sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in graphs.TYPED.items())
    assert sizes == {"tiny": 4 * 7 * 4, "wide": 4 * WIDTH, "typed": typed}


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ({"session": "ada"}, ["16,000 bytes", "at most 15,000 are kept (CAROUSEL_MAX_SESSION_BYTES)"]),
        ({"return_state": True}, ["16,000 bytes", "at most 12,000 are signed (CAROUSEL_MAX_STATE_TOKEN_BYTES)"]),
    ],
)
def test_state_that_cannot_be_kept_is_refused_before_anything_is_computed(sized, refused, memory, words):
    def eaten():
        lines = sized.get("/metrics").text.splitlines()
        return [line for line in lines if 'kind="prompt",model="wide"' in line or 'model="wide",version="1"} ' in line]

    before = [line for line in eaten() if line.startswith("carousel_tokens_total")]
    for path, body in {
        "/v1/models/wide/next-token": {"text": "abc"},
        "/v1/models/wide/score": {"text": "abc"},
        "/v1/completions": {"model": "wide", "prompt": "abc"},
    }.items():
        message = refused(sized.post(path, json=body | memory), 413, "memory_too_large")
        assert all(word in message for word in words), message
    assert [line for line in eaten() if line.startswith("carousel_tokens_total")] == before
    assert sized.get("/v1/models/wide/sessions/ada").status_code == 404
    assert sized.post("/v1/models/wide/next-token", json={"text": "abc"}).status_code == 200


def test_token_longer_than_is_read_is_refused_with_what_to_do(sized, refused):
    body = {"text": "abc", "state": "A" * 17_000}
    message = refused(sized.post("/v1/models/tiny/next-token", json=body), 400, "invalid_state_token")
    assert message == (
        "the state token has 17,000 characters, and at most 16,043 are read (CAROUSEL_MAX_STATE_TOKEN_BYTES): "
        "send one back exactly as it was received, or start anew without it"
    )


def test_states_within_the_limits_are_kept(sized):
    for memory in ({"session": "ada"}, {"return_state": True}):
        answer = sized.post("/v1/models/tiny/next-token", json={"text": "abc", **memory})
        assert answer.status_code == 200, answer.text
    sizes = [line for line in sized.get("/metrics").text.splitlines() if line.startswith("carousel_sessions_bytes ")]
    assert 1152 < float(sizes[0].split()[1]) < 2000


def test_sessions_make_room_by_the_bytes_they_take(run_server, models, refused):
    with (
        run_server(repository=models, session_store_bytes=1024 * 1024) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        for place in range(80):  # of 17,400 bytes each, with what it takes to find them
            body = {"text": "abc", "session": f"s{place}"}
            assert client.post("/v1/models/wide/next-token", json=body).status_code == 200
        refused(client.get("/v1/models/wide/sessions/s0"), 410, "session_expired")
        assert client.get("/v1/models/wide/sessions/s79").status_code == 200
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        assert 50 < float(lines["carousel_sessions"]) < 80
        assert 0.9 * 2**20 < float(lines["carousel_sessions_bytes"]) <= 2**20


def test_model_with_large_rows_runs_fewer_of_them_and_says_so(run_server, models):
    with (
        run_server(repository=models, max_rows=4096, max_rows_bytes=1024 * 1024) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        serving = {model["id"]: model["serving"] for model in client.get("/v1/models").json()["data"]}
        row = 8 + 4 * 13 + 2 * 4 * WIDTH  # id, logits, states twice
        rows = 1024 * 1024 // row
        assert (
            serving["wide"]["max_rows"] == server.context.repository.models["wide"].engine.describe().max_rows == rows
        )
        assert serving["wide"]["reasons"]["max_rows"] == (
            f"a row takes {row:,} bytes, and rows may take 1,048,576 (CAROUSEL_MAX_ROWS_BYTES): "
            f"there are {rows:,} instead of 4,096 (CAROUSEL_MAX_ROWS)"
        )
        assert serving["tiny"]["max_rows"] == 1024 * 1024 // (8 + 4 * 13 + 2 * 4 * 28)
        assert client.post("/v1/completions", json={"model": "wide", "prompt": "abc"}).status_code == 200


@pytest.mark.parametrize("keeping", ["session", "state"])
def test_states_of_every_type_resume_bit_for_bit(sized, keeping):
    text = "abcdefghijk" * 3
    whole = sized.post("/v1/models/typed/next-token", json={"text": text, "top": 13}).json()["candidates"]
    for cut in (1, 7, 20, 32):
        memory = {"session": f"at-{cut}"} if keeping == "session" else {"return_state": True}
        first = sized.post("/v1/models/typed/next-token", json={"text": text[:cut], **memory})
        assert first.status_code == 200, first.text
        if keeping == "state":
            memory = {"state": first.json()["state"]}
        rest = sized.post("/v1/models/typed/next-token", json={"text": text[cut:], "top": 13, **memory})
        assert rest.status_code == 200, rest.text
        assert rest.json()["candidates"] == whole


def test_beginning_of_states_of_every_type_is_found_again(sized):
    body = {"text": "kjihgfedcba" * 3, "top": 13}
    first, again = (sized.post("/v1/models/typed/next-token", json=body).json() for _ in range(2))
    assert (first["cached_tokens"], again["cached_tokens"]) == (0, 32)
    assert first["candidates"] == again["candidates"]
