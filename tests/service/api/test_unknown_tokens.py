"""What the vocabulary lacks is told, on every route."""

import json

import pytest

TEXTS = [("abc", 0), ("azb", 1), ("\u2019abcz\u2014", 3)]


@pytest.mark.parametrize(("text", "unknown"), TEXTS)
def test_every_route_tells_how_many_tokens_are_unknown(client, connect, text, unknown):
    for route in ("next-token", "score"):
        answer = client.post(f"/v1/models/tiny/{route}", json={"text": text}).json()
        assert answer["unknown_tokens"] == unknown
    stream = connect()
    for kind in ("start", "feed"):
        assert stream.generate(text, kind=kind, max_tokens=2)[0]["unknown_tokens"] == unknown
    body = {"model": "tiny", "prompt": text, "max_tokens": 2}
    assert client.post("/v1/completions", json=body).json()["unknown_tokens"] == unknown
    several = client.post("/v1/completions", json=body | {"prompt": ["abz", text], "n": 2}).json()
    assert several["unknown_tokens"] == unknown + 1
    blocks = client.post("/v1/completions", json=body | {"stream": True}).text.strip().split("\n\n")
    last = json.loads(blocks[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["unknown_tokens"] == unknown


def test_ids_of_the_unknown_token_are_told_too(client):
    answer = client.post("/v1/models/tiny/next-token", json={"tokens": [2, 0, 3, 0]}).json()
    assert answer["unknown_tokens"] == 2
