import math

import numpy as np
import pytest


@pytest.mark.parametrize("text", ["a", "abc", "kjihgfedcba\n" * 30], ids=["one", "three", "three chunks"])
def test_next_token_equals_torch(client, oracle, text):
    ids = oracle.codec.encode(text)
    answer = client.post("/v1/models/tiny/next-token", json={"text": text, "top": 13}).json()
    expected = oracle.logprobs(ids)[-1]
    candidates = answer["candidates"]
    assert answer["prompt_tokens"] == len(ids)
    assert [one["token"] for one in candidates] == expected.argsort(descending=True).tolist()
    assert [one["logprob"] for one in candidates] == pytest.approx(expected.sort(descending=True)[0].tolist(), abs=1e-4)
    for one in candidates:
        assert one["probability"] == pytest.approx(math.exp(one["logprob"]))
        assert one["text"] == oracle.codec.token_text(one["token"])
    assert sum(one["probability"] for one in candidates) == pytest.approx(1, abs=1e-5)


def test_next_token_takes_ids_and_gives_the_top(client):
    by_text = client.post("/v1/models/tiny/next-token", json={"text": "abc", "top": 3}).json()
    by_ids = client.post("/v1/models/tiny/next-token", json={"tokens": [2, 3, 4], "top": 3}).json()
    assert by_text == by_ids
    assert len(by_text["candidates"]) == 3
    assert sum(one["probability"] for one in by_text["candidates"]) < 1
    assert len(client.post("/v1/models/tiny/next-token", json={"text": "abc"}).json()["candidates"]) == 10


def test_next_token_gives_at_most_the_vocabulary(client):
    answer = client.post("/v1/models/tiny/next-token", json={"text": "abc", "top": 100}).json()
    assert sorted(one["token"] for one in answer["candidates"]) == list(range(13))


@pytest.mark.parametrize("length", [2, 127, 128, 129, 130, 257, 1000])
def test_score_equals_torch(client, oracle, length):
    ids = np.random.default_rng(length).integers(1, 13, length).tolist()
    text = oracle.codec.decode(ids)
    answer = client.post("/v1/models/tiny/score", json={"text": text}).json()
    expected = oracle.logprobs(ids)[range(length - 1), ids[1:]]
    assert [token["token"] for token in answer["tokens"]] == ids
    assert "".join(token["text"] for token in answer["tokens"]) == text
    assert answer["tokens"][0]["logprob"] is None
    assert [token["logprob"] for token in answer["tokens"][1:]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert answer["total_logprob"] == pytest.approx(expected.sum().item(), rel=1e-5)
    assert answer["nats_per_token"] == pytest.approx(-expected.mean().item(), rel=1e-5)
    assert answer["perplexity"] == pytest.approx(math.exp(answer["nats_per_token"]))
    assert answer["bits_per_character"] == pytest.approx(-expected.sum().item() / math.log(2) / len(text), rel=1e-5)


def test_score_takes_ids(client):
    by_text = client.post("/v1/models/tiny/score", json={"text": "abcabc"}).json()
    assert by_text == client.post("/v1/models/tiny/score", json={"tokens": [2, 3, 4, 2, 3, 4]}).json()


def test_score_of_an_impossible_text_has_no_perplexity(client, monkeypatch):
    from carousel.service.engine.sampling.sampler import Sampler

    for logprob in (-np.inf, -800.0):
        monkeypatch.setattr(Sampler, "score", lambda *_, value=logprob: np.full(1, value))
        answer = client.post("/v1/models/tiny/score", json={"text": "abc"}).json()
        assert answer["perplexity"] is None
        assert answer["nats_per_token"] == (None if logprob == -np.inf else 800.0)
    monkeypatch.setattr(Sampler, "score", lambda *_: np.full(1, -705.0))
    assert client.post("/v1/models/tiny/score", json={"text": "abc"}).json()["perplexity"] == math.exp(705)


def test_score_of_one_token_is_refused(client):
    response = client.post("/v1/models/tiny/score", json={"text": "a"})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "invalid_request"


def test_score_of_text_with_unknown_letters_is_given(client, oracle):
    answer = client.post("/v1/models/tiny/score", json={"text": "azb"}).json()
    assert [token["token"] for token in answer["tokens"]] == [2, 0, 3]
    assert answer["total_logprob"] == pytest.approx(oracle.logprobs([2, 0, 3])[[0, 1], [0, 3]].sum().item(), abs=1e-4)
