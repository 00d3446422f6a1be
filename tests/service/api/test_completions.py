import itertools
import json

import pytest

from carousel.service.server.chunks import ChunkWriter

PATH = "/v1/completions"


def _complete(client, **fields):
    response = client.post(PATH, json={"model": "tiny", "prompt": "abc", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def _events(client, **fields) -> list[dict]:
    """The events of a streamed completion, which must end in [DONE]."""
    with client.stream("POST", PATH, json={"model": "tiny", "prompt": "abc", "stream": True, **fields}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = response.read().decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def _joined(events: list[dict], index: int = 0) -> str:
    return "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == index)


def _usage(prompt, completion, cached=0):
    total = prompt + completion
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def test_completion_equals_torch(client, oracle):
    ids = oracle.codec.encode("abc")
    tokens, logprobs = oracle.greedy(ids, 21)
    answer = _complete(client, temperature=0, max_tokens=21, logprobs=0)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    assert choice["text"] == oracle.codec.decode(tokens)
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=1e-4)
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    assert answer["usage"] == _usage(3, 21)


def test_completion_samples_16_tokens_unless_told(client):
    assert _complete(client)["usage"]["completion_tokens"] == 16


def test_completion_of_ids_equals_that_of_their_text(client):
    assert _complete(client, prompt=[2, 3, 4], seed=5)["choices"] == _complete(client, seed=5)["choices"]


def test_completion_repeats_with_the_seed_and_differs_without(client):
    texts = [_complete(client, seed=seed, max_tokens=60)["choices"][0]["text"] for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    drawn = [_complete(client, max_tokens=60)["choices"][0]["text"] for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_completion_of_several_prompts_keeps_their_order(client):
    prompts = ["abc", "kj", "ddddd"]
    answer = _complete(client, prompt=prompts, temperature=0, max_tokens=11, logprobs=1)
    for index, prompt in enumerate(prompts):
        (alone,) = _complete(client, prompt=prompt, temperature=0, max_tokens=11, logprobs=1)["choices"]
        assert answer["choices"][index] == alone | {"index": index}
    assert answer["usage"] == _usage(10, 33)


def test_completion_copies_differ_and_the_first_is_that_of_the_seed(client):
    fields = {"seed": 9, "max_tokens": 30, "logprobs": 0}
    answer = _complete(client, prompt=["abc", "kj"], n=3, **fields)
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 3
    assert answer["choices"][0] == _complete(client, **fields)["choices"][0]
    assert answer["usage"] == _usage(5, 180)


@pytest.mark.parametrize("fields", [{"prompt": ["abc"] * 4}, {"n": 4}, {"prompt": ["abc"] * 2, "n": 2}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_completion_choices_are_independent_and_repeat_with_the_seed(client, fields, stream):
    def texts(**more):
        asked = {"max_tokens": 40, **fields, **more}
        if stream:
            events = _events(client, **asked)
            return [_joined(events, index) for index in range(4)]
        return [choice["text"] for choice in _complete(client, **asked)["choices"]]

    assert len(set(texts())) == 4
    first = texts(seed=9)
    assert len(set(first)) == 4
    assert texts(seed=9) == first
    assert not set(texts(seed=10)) & set(first)  # the second choice of a seed is not the first of the next


def test_completion_of_seed_minus_one_draws_one(client):
    texts = {_complete(client, seed=-1, max_tokens=60)["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 2


def test_completion_echo_puts_the_prompt_before_the_text(client):
    plain, echoed = (_complete(client, prompt=["abc", "kj"], seed=1, echo=echo) for echo in (False, True))
    for prompt, one, other in zip(["abc", "kj"], plain["choices"], echoed["choices"], strict=True):
        assert other["text"] == prompt + one["text"]
    events = _events(client, prompt=["abc", "kj"], seed=1, echo=True)
    assert [_joined(events, index) for index in (0, 1)] == [choice["text"] for choice in echoed["choices"]]


def test_completion_logprobs_equal_torch(client, oracle):
    ids = oracle.codec.encode("abc")
    choice = _complete(client, logprobs=3, seed=2, max_tokens=8, temperature=0.7)["choices"][0]
    logprobs = choice["logprobs"]
    tokens = oracle.codec.encode(choice["text"])
    assert logprobs["tokens"] == list(choice["text"])
    assert logprobs["text_offset"] == list(range(8))
    expected = oracle.logprobs(ids + tokens)[len(ids) - 1 : -1]  # of the model itself, whatever the temperature
    for step, token in enumerate(tokens):
        assert logprobs["token_logprobs"][step] == pytest.approx(expected[step, token].item(), abs=1e-4)
        best = expected[step].topk(3).indices.tolist()
        told = best if token in best else [*best, token]  # the sampled one is always told, besides
        assert list(logprobs["top_logprobs"][step]) == [oracle.codec.token_text(one) for one in told]
        assert list(logprobs["top_logprobs"][step].values()) == pytest.approx(expected[step, told].tolist(), abs=1e-4)
        assert logprobs["top_logprobs"][step][oracle.codec.token_text(token)] == logprobs["token_logprobs"][step]


@pytest.mark.parametrize("count", [0, 1])
def test_completion_logprobs_always_tell_the_sampled_token(client, count):
    fields = {"max_tokens": 60, "temperature": 1.5, "seed": 5}
    logprobs = _complete(client, logprobs=count, **fields)["choices"][0]["logprobs"]
    streamed = [event["choices"][0]["logprobs"] for event in _events(client, logprobs=count, **fields)[:-1]]
    for told in (logprobs["top_logprobs"], [top for part in streamed for top in part["top_logprobs"]]):
        assert len(told) == 60
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], told, strict=True):
            assert top[token] == logprob
        assert {len(top) for top in told} == ({1} if count == 0 else {1, 2})


def test_stream_joined_is_the_whole_text(client):
    whole = _complete(client, seed=8, max_tokens=150)
    events = _events(client, seed=8, max_tokens=150)
    assert _joined(events) == whole["choices"][0]["text"]
    assert len({event["id"] for event in events}) == 1
    assert all(event["object"] == "text_completion" for event in events)
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert all("usage" not in event for event in events)


def test_stream_of_several_prompts_and_copies_joined_is_each_whole_text(client):
    fields = {"prompt": ["abc", "kj"], "n": 2, "seed": 8, "max_tokens": 40}
    whole = _complete(client, **fields)
    events = _events(client, **fields)
    assert [_joined(events, index) for index in range(4)] == [choice["text"] for choice in whole["choices"]]
    ends = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1, 2, 3]


def test_stream_ends_with_usage_where_asked(client):
    events = _events(client, prompt=["abc", "kj"], max_tokens=7, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == _usage(5, 14)


def test_stream_logprobs_joined_are_those_of_the_whole(client):
    fields = {"logprobs": 2, "seed": 2, "max_tokens": 9, "stop": "zz"}
    whole = _complete(client, **fields)["choices"][0]["logprobs"]
    parts = [event["choices"][0]["logprobs"] for event in _events(client, **fields)[:-1]]
    assert {key: list(itertools.chain.from_iterable(part[key] for part in parts)) for key in whole} == whole


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("as_list", [False, True])
def test_stop_string_ends_the_text_before_it(client, length, as_list):
    tokens = _complete(client, seed=6, max_tokens=80, logprobs=0)["choices"][0]["logprobs"]["tokens"]
    stop = "".join(tokens[40 : 40 + length])
    needed = next(count for count in range(81) if stop in "".join(tokens[:count]))
    fields = {"seed": 6, "max_tokens": 80, "stop": ["nowhere", stop] if as_list else stop}
    answer = _complete(client, **fields)
    (choice,) = answer["choices"]
    assert choice["text"] == "".join(tokens).split(stop)[0]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == needed
    events = _events(client, **fields)
    assert _joined(events) == choice["text"]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_stop_string_that_only_begins_is_shown_at_the_end(client):
    full = _complete(client, seed=6, max_tokens=30)["choices"][0]["text"]
    choice = _complete(client, seed=6, max_tokens=30, stop=full[-3:] + "zzz")["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (full, "length")


def test_stop_strings_that_overlap_end_at_the_first(client):
    full = _complete(client, seed=6, max_tokens=30)["choices"][0]["text"]
    stops = [full[12:20], full[13:15]]  # the shorter is complete first, inside the longer
    choice = _complete(client, seed=6, max_tokens=30, stop=stops)["choices"][0]
    assert choice["text"] == full[: min(full.index(stops[1]), 13)]


@pytest.mark.parametrize(
    "fields",
    [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-30}],
    ids=lambda fields: next(iter(fields)),
)
def test_sampling_that_leaves_one_token_is_greedy(client, fields):
    greedy = _complete(client, temperature=0, max_tokens=25)["choices"]
    assert _complete(client, max_tokens=25, seed=1, **fields)["choices"] == greedy


def test_repetition_penalty_equals_its_definition(client, oracle):
    history = oracle.codec.encode("abc")
    for _ in range(9):
        logits = oracle.logits(history)[-1].clone()
        for token in set(history):
            logits[token] = logits[token] / 1.7 if logits[token] > 0 else logits[token] * 1.7
        history.append(int(logits.argmax()))
    answer = _complete(client, temperature=0, repetition_penalty=1.7, max_tokens=9)
    assert answer["choices"][0]["text"] == oracle.codec.decode(history[3:])


def test_null_fields_take_the_defaults(client):
    fields = ("max_tokens", "temperature", "top_k", "top_p", "stop", "logprobs", "stream_options", "user")
    answer = _complete(client, seed=4, **dict.fromkeys(fields))
    assert answer["choices"] == _complete(client, seed=4)["choices"]


def test_tokens_of_one_choice_go_past_asgi_and_say_the_same(client, monkeypatch):
    written = []
    write = ChunkWriter.write_text
    monkeypatch.setattr(ChunkWriter, "write_text", lambda self, text: (written.append(text), write(self, text)))
    asked = {"max_tokens": 60, "seed": 5}
    whole = _complete(client, **asked)["choices"][0]["text"]
    events = _events(client, **asked)
    assert _joined(events) == whole
    assert len({event["id"] for event in events}) == 1
    assert len(written) > 20
    written.clear()
    _events(client, **asked, n=2)
    assert not written  # the events of two choices go through a queue that nothing may overtake
