"""Completions of which several are asked, or whose prompt is weighed: it is eaten once, and nothing else changes."""

import json
import operator

import numpy as np
import pytest

from carousel.service.work.choices import choice_seed

PATH = "/v1/completions"
PROMPTS = ["abcabcabcabckk", "kj", "d"]


@pytest.fixture
def complete(client):
    def post(prompt="abc", **fields):
        response = client.post(PATH, json={"model": "tiny", "prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    return post


@pytest.fixture
def streamed(client):
    """The events of a streamed completion put together as the choices of a whole one."""

    def post(prompt="abc", **fields):
        response = client.post(PATH, json={"model": "tiny", "prompt": prompt, "stream": True, **fields})
        assert response.status_code == 200, response.text
        blocks = response.text.strip().split("\n\n")
        assert blocks[-1] == "data: [DONE]"
        choices: dict[int, dict] = {}
        for block in blocks[:-1]:
            for part in json.loads(block.removeprefix("data: "))["choices"]:
                choice = choices.setdefault(
                    part["index"], {"index": part["index"], "text": "", "logprobs": None, "finish_reason": None}
                )
                choice["text"] += part["text"]
                choice["finish_reason"] = part["finish_reason"]
                if part["logprobs"] is not None:
                    before = choice["logprobs"] or {name: [] for name in part["logprobs"]}
                    choice["logprobs"] = {name: before[name] + part["logprobs"][name] for name in before}
        return [choices[index] for index in sorted(choices)]

    return post


@pytest.fixture
def eaten(server):
    """How many ids of prompts the model has eaten so far."""
    labels = {"model": "tiny", "version": "1", "kind": "prompt"}
    return lambda: int(server.context.metrics.registry.get_sample_value("carousel_tokens_total", labels))


@pytest.mark.parametrize("fields", [{"n": 8}, {"best_of": 8}, {"n": 2, "echo": True, "logprobs": 1}], ids=str)
def test_prompt_is_eaten_once_however_many_choices_there_are(complete, eaten, fields, server, eventually):
    random = np.random.default_rng(len(str(fields)))
    prompt = random.integers(1, 13, 1_000).tolist()
    before = eaten()
    answer = complete(prompt, max_tokens=5, **fields)
    copies = max(fields.get("n", 1), fields.get("best_of", 1))
    assert eaten() - before <= 1_000 + copies  # each eats the last token, to have something to sample from
    assert answer["usage"]["prompt_tokens"] == 1_000
    assert answer["usage"]["completion_tokens"] == 5 * copies


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("fields", [{}, {"echo": True, "logprobs": 2}], ids=["eaten", "weighed"])
def test_choices_are_those_of_their_seeds_alone(complete, streamed, prompt, fields):
    asked = {"max_tokens": 30, "repetition_penalty": 1.4, "logprobs": 2, **fields}
    together = complete(prompt, seed=9, n=4, **asked)["choices"]
    for index, choice in enumerate(together):
        (alone,) = complete(prompt, seed=choice_seed(9, index), **asked)["choices"]
        assert choice == alone | {"index": index}  # log-probabilities too, bit for bit
    assert streamed(prompt, seed=9, n=4, **asked) == together


def test_choices_without_a_cache_of_prompts_are_the_same(complete, run_server, client):
    asked = {"model": "tiny", "prompt": PROMPTS[0], "seed": 9, "n": 4, "max_tokens": 30}
    with run_server(state_cache_bytes=0, max_rows=2) as server:
        answer = client.post(server.url + PATH, json=asked).json()
    assert answer["choices"] == complete(PROMPTS[0], seed=9, n=4, max_tokens=30)["choices"]


def test_failure_while_the_prompt_is_eaten_fails_all_choices(client, refused):
    body = {"model": "tiny", "prompt": [2] * 50_000, "n": 8, "timeout_seconds": 0.01}
    for stream in (False, True):
        response = client.post(PATH, json=body | {"stream": stream})
        refused(response, 504, "deadline_exceeded", retryable=True)


@pytest.mark.parametrize("max_tokens", [0, 1, 7])
def test_echo_with_logprobs_weighs_the_prompt(complete, streamed, oracle, max_tokens):
    asked = {"echo": True, "logprobs": 3, "max_tokens": max_tokens, "temperature": 0}
    answer = complete(PROMPTS, **asked)
    for prompt, choice in zip(PROMPTS, answer["choices"], strict=True):
        logprobs, length = choice["logprobs"], len(prompt) + max_tokens
        ids = oracle.codec.encode(choice["text"])
        assert choice["text"].startswith(prompt)
        assert (len(ids), choice["finish_reason"]) == (length, "length")
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert logprobs["text_offset"] == list(range(length))
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        expected = oracle.logprobs(ids)
        assert logprobs["token_logprobs"][1:] == pytest.approx(expected[range(length - 1), ids[1:]].tolist(), abs=1e-4)
        for place, top in enumerate(logprobs["top_logprobs"][1:]):
            best = expected[place].topk(3).indices.tolist()
            told = best if ids[place + 1] in best else [*best, ids[place + 1]]
            assert list(top) == [oracle.codec.token_text(token) for token in told]
            assert list(top.values()) == pytest.approx(expected[place, told].tolist(), abs=1e-4)
            assert top[logprobs["tokens"][place + 1]] == logprobs["token_logprobs"][place + 1]
    prompts = sum(map(len, PROMPTS))
    assert answer["usage"]["prompt_tokens"] == prompts
    assert answer["usage"]["completion_tokens"] == 3 * max_tokens
    assert streamed(PROMPTS, **asked) == answer["choices"]


def test_echo_of_a_prompt_alone(complete, streamed):
    (choice,) = complete("abc", echo=True, max_tokens=0)["choices"]
    assert choice == {"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length"}
    assert streamed("abc", echo=True, max_tokens=0) == [choice]
    ids = complete([2, 3, 4], echo=True, max_tokens=0, logprobs=2)
    assert ids["choices"] == complete("abc", echo=True, max_tokens=0, logprobs=2)["choices"]


def test_echo_with_logprobs_goes_on_from_a_memory(complete, oracle):
    state = complete("abc", max_tokens=4, temperature=0, return_state=True)
    text = "abc" + state["choices"][0]["text"]
    (choice,) = complete("kj", echo=True, logprobs=1, max_tokens=3, temperature=0, state=state["state"])["choices"]
    ids = oracle.codec.encode(text + choice["text"])
    places = range(len(text) - 1, len(ids) - 1)
    expected = oracle.logprobs(ids)[places, ids[len(text) :]]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)


def test_long_prompt_is_weighed_and_answered(complete, oracle):
    ids = np.random.default_rng(4).integers(1, 13, 5_000).tolist()
    (choice,) = complete(ids, echo=True, logprobs=1, max_tokens=0)["choices"]
    expected = oracle.logprobs(ids)[range(4_999), ids[1:]]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected.tolist(), abs=1e-4)
    assert choice["text"] == oracle.codec.decode(ids)


def test_tokens_of_a_context_are_scored_as_lm_eval_does_it(complete, oracle):
    # lm-evaluation-harness 0.4, LocalCompletionsAPI: its loglikelihood request, and what it makes of the answer.
    requests = [([2, 3, 4], [5, 6]), ([7], [7, 7, 7])]
    greedy, _ = oracle.greedy([2, 3], 4)
    requests.append(([2, 3], greedy))
    for context, continuation in requests:
        payload = {
            "prompt": context + continuation, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
            "echo": True,
        }  # fmt: skip
        answer = complete(**payload)
        for choice in sorted(answer["choices"], key=operator.itemgetter("index")):
            tokens = choice["logprobs"]["token_logprobs"][len(context) : -1]
            tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
            is_greedy = all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))
            ids = context + continuation
            expected = oracle.logprobs(ids)[range(len(context) - 1, len(ids) - 1), continuation]
            assert sum(tokens) == pytest.approx(expected.sum().item(), abs=1e-3)
            assert is_greedy == (oracle.greedy(context, len(continuation))[0] == continuation)


def test_best_of_gives_the_texts_of_the_highest_mean_logprob(complete):
    asked = {"seed": 3, "max_tokens": 12, "logprobs": 0}
    for prompts in ("abc", ["abc", "kj"]):
        of = len(prompts) if isinstance(prompts, list) else 1
        every = complete(prompts, n=6, **asked)["choices"]
        best = complete(prompts, n=2, best_of=6, **asked)
        for place in range(of):
            own = every[6 * place : 6 * place + 6]
            own.sort(key=lambda choice: -sum(choice["logprobs"]["token_logprobs"]))
            chosen = best["choices"][2 * place : 2 * place + 2]
            assert [choice["text"] for choice in chosen] == [choice["text"] for choice in own[:2]]
        assert [choice["index"] for choice in best["choices"]] == list(range(2 * of))
        assert best["usage"]["completion_tokens"] == 6 * of * 12
    alone = complete("abc", best_of=6, seed=3, max_tokens=12)["choices"]
    assert [choice["text"] for choice in alone] == [complete("abc", n=1, best_of=6, **asked)["choices"][0]["text"]]
