from concurrent.futures import ThreadPoolExecutor

import pytest


def _text(events: list[dict]) -> str:
    return "".join(event["text"] for event in events if event["type"] == "token")


def _tokens(events: list[dict]) -> list[int]:
    return [event["token"] for event in events if event["type"] == "token"]


def _assert_greedy(oracle, history: list[int], events: list[dict]) -> None:
    """The tokens are torch's after the whole history, and so are their log-probabilities."""
    tokens, logprobs = oracle.greedy(history, len(_tokens(events)))
    assert _tokens(events) == tokens
    assert [event["logprob"] for event in events if event["type"] == "token"] == pytest.approx(logprobs, abs=2e-5)


def test_stream_is_accepted_then_tokens_then_finished(connect, oracle):
    accepted, *tokens, finished = connect().generate("abcd", max_tokens=20, seed=3)
    assert accepted.pop("request_id")
    assert accepted == {
        "type": "accepted",
        "model": "tiny",
        "version": 1,
        "prompt_tokens": 4,
        "cached_tokens": 0,
        "unknown_tokens": 0,
    }
    assert [token["index"] for token in tokens] == list(range(20))
    ids = oracle.codec.encode("abcd")
    history = ids + _tokens(tokens)
    expected = oracle.logprobs(history)[range(len(ids) - 1, len(history) - 1), history[len(ids) :]]
    assert [token["logprob"] for token in tokens] == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(set(token) == {"type", "index", "token", "text", "logprob"} for token in tokens)
    text = oracle.codec.decode(_tokens(tokens))
    assert _text(tokens) == text
    assert finished == {
        "type": "finished",
        "reason": "length",
        "text": text,
        "usage": {"prompt_tokens": 4, "completion_tokens": 20, "total_tokens": 24},
    }


def test_stream_escapes_what_json_must(connect):
    events = connect().generate("\n\n", max_tokens=60, temperature=0, repetition_penalty=0.01)
    assert "\n" in events[-1]["text"]  # and every frame was JSON


def test_stream_samples_256_tokens_unless_told(connect):
    assert connect().generate("a")[-1]["usage"]["completion_tokens"] == 256


def test_stream_equals_the_completion_of_the_seed(connect, client):
    fields = {"seed": 11, "max_tokens": 90, "temperature": 0.8, "top_k": 9, "top_p": 0.9}
    events = connect().generate("abc", **fields)
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "abc", **fields}).json()
    assert _text(events) == answer["choices"][0]["text"]


def test_stream_runs_several_generations(connect):
    stream = connect()
    first = stream.generate("abc", max_tokens=9, seed=1)
    stream.generate("kk", max_tokens=5)
    again = stream.generate("abc", max_tokens=9, seed=1)
    assert again[1:] == first[1:]  # start begins from an empty memory
    assert again[0]["request_id"] != first[0]["request_id"]


def test_feed_goes_on_exactly(connect, oracle):
    stream = connect()
    history: list[int] = []
    steps = [("start", "abc", 5), ("feed", "dek\n", 7), ("feed", [2, 9], 4), ("feed", "a" * 300, 6)]
    for kind, prompt, count in steps:
        history += oracle.codec.encode(prompt) if isinstance(prompt, str) else prompt
        events = stream.generate(prompt, kind, temperature=0, max_tokens=count)
        assert len(_tokens(events)) == count
        _assert_greedy(oracle, history, events)
        history += _tokens(events)
    assert events[0]["prompt_tokens"] == 300


def test_feed_goes_on_from_a_cancelled_generation(connect, oracle):
    stream = connect()
    stream.start("abc", max_tokens=60_000, seed=1)
    head = [stream.receive() for _ in range(4)]
    stream.send(type="cancel")
    events = [*head, *stream.rest()]
    assert events[-1]["reason"] == "cancelled"
    assert events[-1]["text"] == _text(events)
    assert events[-1]["usage"]["completion_tokens"] == len(_tokens(events)) < 60_000
    history = [*oracle.codec.encode("abc"), *_tokens(events), 12]
    _assert_greedy(oracle, history, stream.generate([12], "feed", temperature=0, max_tokens=5))


def test_feed_goes_on_from_a_generation_cancelled_before_it_ran(connect, run_server, oracle):
    with run_server(max_rows=1) as server:
        busy = connect(server)
        busy.start("a", max_tokens=60_000)
        assert [busy.receive()["type"] for _ in range(2)] == ["accepted", "token"]
        stream = connect(server)
        for kind, prompt in (("start", "abc"), ("feed", "de")):
            stream.start(prompt, kind)
            assert stream.receive()["type"] == "accepted"
            stream.send(type="cancel")
            (finished,) = stream.rest()
            assert (finished["reason"], finished["text"]) == ("cancelled", "")
            assert finished["usage"] == {
                "prompt_tokens": len(prompt),
                "completion_tokens": 0,
                "total_tokens": len(prompt),
            }
        busy.send(type="cancel")
        busy.rest()
        events = stream.generate("k", "feed", temperature=0, max_tokens=8)
        _assert_greedy(oracle, oracle.codec.encode("abcdek"), events)


def test_feed_knows_the_text_before_it_at_a_stop_string(connect, oracle):
    stream = connect()
    full = stream.generate("abc", max_tokens=40, seed=2)
    stop = full[-1]["text"][20:22]
    events = stream.generate("abc", max_tokens=40, seed=2, stop=[stop])
    ids = oracle.codec.encode("abc") + _tokens(events)
    assert oracle.codec.decode(ids).endswith(stop)  # the model has eaten the stop string, the client has not seen it
    _assert_greedy(oracle, [*ids, 12], stream.generate("k", "feed", max_tokens=6, temperature=0))


def test_cancel_ends_a_prompt_that_is_still_being_tokenised(connect, oracle):
    stream = connect()
    stream.start("abcde" * 20_000, max_tokens=60_000)
    stream.send(type="cancel")
    accepted, finished = stream.rest()
    assert accepted["prompt_tokens"] == 100_000
    assert (finished["reason"], finished["usage"]["completion_tokens"]) == ("cancelled", 0)


def test_cancel_that_crosses_with_finished_is_harmless(connect):
    stream = connect()
    stream.generate("abc", max_tokens=3)
    for _ in range(3):
        stream.send(type="cancel")
    events = stream.generate("abc", max_tokens=4, seed=1)
    assert events[-1]["reason"] == "length"
    assert len(_tokens(events)) == 4


def test_two_cancels_end_a_generation_once(connect):
    stream = connect()
    stream.start("abc", max_tokens=60_000)
    assert stream.receive()["type"] == "accepted"
    stream.send(type="cancel")
    stream.send(type="cancel")
    assert stream.rest()[-1]["reason"] == "cancelled"
    assert stream.generate("abc", max_tokens=2)[-1]["reason"] == "length"


@pytest.mark.parametrize("length", [1, 2, 6])
def test_stop_string_is_held_back(connect, length):
    pieces = [event["text"] for event in connect().generate("abc", max_tokens=80, seed=6)[1:-1]]
    stop = "".join(pieces[50 : 50 + length])
    needed = next(count for count in range(81) if stop in "".join(pieces[:count]))
    expected = "".join(pieces).split(stop)[0]
    events = connect().generate("abc", max_tokens=80, seed=6, stop=["nowhere", stop])
    finished = events[-1]
    assert (finished["reason"], finished["text"], _text(events)) == ("stop", expected, expected)
    assert finished["usage"]["completion_tokens"] == len(_tokens(events)) == needed


def test_stop_string_that_only_begins_is_shown_at_the_end(connect):
    full = connect().generate("abc", max_tokens=30, seed=6)[-1]["text"]
    events = connect().generate("abc", max_tokens=30, seed=6, stop=[full[-4:] + "zzz"])
    assert (events[-1]["reason"], events[-1]["text"], _text(events)) == ("length", full, full)


def test_seed_gives_the_same_tokens_alone_and_among_others(connect, client):
    alone = connect().generate("abc", max_tokens=400, seed=42)[1:]
    streams = [connect() for _ in range(8)]
    for number, stream in enumerate(streams):
        fields = (
            {"seed": 42} if number in (0, 5) else {"seed": number, "temperature": 0.5 + number / 10, "top_k": number}
        )
        stream.start("abc" if number in (0, 5) else "kjh" * (number + 1), max_tokens=400, **fields)
    results = [stream.rest()[1:] for stream in streams]
    assert results[0] == results[5] == alone  # log-probabilities too, bit for bit
    assert all(_tokens(other) != _tokens(alone) for place, other in enumerate(results) if place not in (0, 5))


def test_more_streams_than_rows_all_end(connect):
    streams = [connect() for _ in range(20)]  # of 8 rows
    for number, stream in enumerate(streams):
        stream.start("ab", max_tokens=30 + number, seed=7)
    texts = [stream.rest()[-1]["text"] for stream in streams]
    assert len(set(texts)) == 20
    assert all(texts[-1].startswith(text) for text in texts)


def test_every_endpoint_works_while_a_stream_runs(connect, client):
    expected = connect().generate("abc", max_tokens=2000, seed=3)[1:]
    stream = connect()
    stream.start("abc", max_tokens=2000, seed=3)
    requests = [
        ("/v1/models/tiny/next-token", {"text": "abc"}),
        ("/v1/models/tiny/score", {"text": "abcabc"}),
        ("/v1/completions", {"model": "tiny", "prompt": ["ab", "cd"], "n": 2}),
    ]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda request: client.post(request[0], json=request[1]).status_code, requests * 3))
    assert answers == [200] * 9
    assert stream.rest()[1:] == expected
