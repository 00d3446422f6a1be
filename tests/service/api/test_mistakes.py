"""What a client is told of a message that is wrong: every mistake, under its own names, with what is allowed."""

from __future__ import annotations

import base64

import pytest

COMPLETIONS = "/v1/completions"
TRACE = "/v1/models/tutor/trace"
SCORE = "/v1/models/tiny/score"
CAPTIONS = "/v1/models/scenes/captions"
UNKNOWN = "is no field that is known here; leave it out (/docs has all)"
ATTEMPT = {"skill": 0, "correct": True}


def _told(client, path, body):
    if path == COMPLETIONS:
        body = {"model": "tiny", "prompt": "abc", **body}
    response = client.post(path, json=body)
    assert response.status_code == (400 if path == COMPLETIONS else 422), response.text
    return response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (COMPLETIONS, {"prompt": ["a"] * 129}, "prompt: has 129 entries; allowed are at most 128"),
        (COMPLETIONS, {"prompt": [[2]] * 129}, "prompt: has 129 entries; allowed are at most 128"),
        (COMPLETIONS, {"prompt": ["a", 5]}, "prompt.1: must be a string, and is 5"),
        (COMPLETIONS, {"prompt": [[2], [2, "a"]]}, "prompt.1.1: must be a whole number, and is a string"),
        (COMPLETIONS, {"stop": [""]}, "stop.0: has 0 characters; allowed are at least 1"),
        (COMPLETIONS, {"stop": ["a"] * 17}, "stop: has 17 entries; allowed are at most 16"),
        (COMPLETIONS, {"stop": ["a", "b" * 257]}, "stop.1: has 257 characters; allowed are at most 256"),
        (COMPLETIONS, {"stop": {}}, "stop: must be a string or a list, and is an object"),
        (COMPLETIONS, {"temprature": 1}, f"temprature: {UNKNOWN}"),
        (COMPLETIONS, {"stream_options": {"str": True}}, f"stream_options.str: {UNKNOWN}"),
        (COMPLETIONS, {"temperature": 1000.5}, "temperature: must be at most 1,000, and is 1000.5"),
        (COMPLETIONS, {"max_tokens": 10**30}, None),
        (COMPLETIONS, {"prompt": ["a", "xy"]}, "prompt.1: none of the prompt's 2 tokens is in the vocabulary of tiny"),
        (COMPLETIONS, {"prompt": [[2], [99]]}, "prompt.1: token 99 is not in the vocabulary; allowed are 0 to 12"),
        (SCORE, {"tokens": [1, 1.5]}, "tokens.1: must be a whole number, and is 1.5"),
        (SCORE, {"text": "abc", "priority": "low"}, "priority: must be 'interactive' or 'batch', and is a string"),
        (
            TRACE,
            {"attempts": [{"skill": 1.5, "correct": True}]},
            "attempts.0.skill: must be a string or a whole number, and is 1.5",
        ),
        (TRACE, {"attempts": [ATTEMPT, {"skill": 1}]}, "attempts.1.correct: is missing"),
        (TRACE, {"attempts": [ATTEMPT], "one-learner": 1}, f"one-learner: {UNKNOWN}"),
        (TRACE, {"attempts": [ATTEMPT], "foo": 1}, f"foo: {UNKNOWN}"),
        (TRACE, {"learners": [{"attempts": [ATTEMPT], "foo": 1}]}, f"learners.0.foo: {UNKNOWN}"),
        (TRACE, {"learners": []}, "learners: has 0 entries; allowed are at least 1"),
        (CAPTIONS, {"image": "x", "foo": 1}, f"foo: {UNKNOWN}"),
        (CAPTIONS, {"images": ["x"] * 129}, "images: has 129 entries; allowed are at most 128"),
    ],
)  # fmt: skip
def test_mistake_is_told_in_the_clients_names_with_the_limit(client, path, body, message):
    error = _told(client, path, body)
    assert error["message"] == message or message is None
    if path == COMPLETIONS:
        assert error["param"] == error["message"].partition(":")[0].partition(" ")[0]


def test_all_mistakes_are_told(client):
    error = _told(client, COMPLETIONS, {"temperature": -1, "top_p": 2, "n": 0, "stop": [""], "stream": "yes", "foo": 1})
    for told in (
        "temperature: must be at least 0, and is -1",
        "top_p: must be at most 1, and is 2",
        "n: must be at least 1, and is 0",
        "stop.0: has 0 characters; allowed are at least 1",
        "stream: must be true or false, and is a string",
        f"foo: {UNKNOWN}",
    ):
        assert told in error["message"].split("; ") or told in error["message"]
    assert "more" not in error["message"]
    assert error["param"] == "temperature"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (TRACE, {"attempts": [ATTEMPT, 3, {"skill": 1}]},
         "attempts.1: must be an object, and is 3; attempts.2.correct: is missing"),
        (TRACE, {"attempts": [ATTEMPT] * 5 + [{"skill": 1}] * 9},
         "; ".join(f"attempts.{place}.correct: is missing" for place in range(5, 13)) + " (and at least 1 more)"),
        (TRACE, {"attempts": [None] * 100_000},
         "; ".join(f"attempts.{place}: must be an object, and is null" for place in range(8))
         + " (and at least 992 more)"),
        (TRACE, {"attempts": [ATTEMPT] * 60_000 + [3] + [ATTEMPT] * 50_000},
         "attempts.60000: must be an object, and is 3 (and perhaps more)"),
        (TRACE, {"attempts": [ATTEMPT, {"skill": "x", "correct": True}], "skills": [1]},
         "attempts.1: there is no skill 'x'; this model"),
        (TRACE, {"attempts": [{"skill": place % 7 + 90, "correct": True} for place in range(20)]},
         "; ".join(f"attempts.{place}: there is no skill {place % 7 + 90}" for place in range(8))
         + " (and 12 more); this model"),
        (TRACE, {"attempts": [{"skill": "x" * 900, "correct": True}] * 2_000},
         "; ".join(f"attempts.{place}: there is no skill '{'x' * 99}..." for place in range(8))
         + " (and at least 992 more); this model"),
        (TRACE, {"attempts": [ATTEMPT], "skills": [1, "x", 99]},
         "skills.1: there is no skill 'x'; skills.2: there is no skill 99; this model"),
        (TRACE, {"attempts": [ATTEMPT], "curve": [1, "x"]}, "curve.1: there is no skill 'x'; this model"),
        (TRACE, {"attempts": [ATTEMPT], "skills": [1, None, 2.5]},
         "skills.1: must be a string or a whole number, and is null; "
         "skills.2: must be a string or a whole number, and is 2.5"),
        (TRACE, {"attempts": [ATTEMPT], "skills": [0] * 10_001},
         "skills: has 10,001 entries; allowed are at most 10,000"),
        (TRACE, {"learners": [{"attempts": [ATTEMPT]}, 5, {"attempts": [3]}]},
         "learners.1: must be an object, and is 5; learners.2.attempts.0: must be an object, and is 3"),
        (TRACE, {"learners": [4] * 9}, "; ".join(f"learners.{place}: must be an object, and is 4" for place in range(8))
         + " (and perhaps more)"),
        (TRACE, {"learners": [{"attempts": [ATTEMPT]}], "attempts": [ATTEMPT], "skills": [1]},
         "attempts and skills stand beside learners; give them in each of learners instead"),
        (SCORE, {"tokens": [1, None, "a"]},
         "tokens.1: must be a whole number, and is null; tokens.2: must be a whole number, and is a string"),
        (COMPLETIONS, {"prompt": [[2, "a"], [3], ["b"]]},
         "prompt.0.1: must be a whole number, and is a string; prompt.2.0: must be a whole number, and is a string"),
        (COMPLETIONS, {"prompt": ["a", 1, None]},
         "prompt.1: must be a string, and is 1; prompt.2: must be a string, and is null"),
        (CAPTIONS, {"images": [1, "x", None]},
         "images.0: must be a string, and is 1; images.2: must be a string, and is null"),
    ],
)  # fmt: skip
def test_wrong_entries_of_a_list_are_told_up_to_a_number(client, path, body, message):
    told = _told(client, path, body)["message"]
    assert told == message or (message.endswith("this model") and told.startswith(f"{message} knows "))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"session": "s", "n": 2}, "session"),
        ({"return_state": True, "prompt": ["a", "b"]}, "return_state"),
        ({"session": "s", "state": "t"}, "state"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_mistake_of_several_fields_names_one(client, fields, param):
    error = _told(client, COMPLETIONS, fields)
    assert error["param"] == param
    assert "e+" not in error["message"]


def test_many_mistakes_are_told_in_part(client):
    message = _told(client, SCORE, {"text": "abc"} | {f"field-{number}": 1 for number in range(20)})["message"]
    assert message.count(UNKNOWN) == 8
    assert message.endswith("(and 12 more)")


def test_name_is_told_as_it_can_be_printed(client):
    message = _told(client, SCORE, {"text": "abc", "line\nend\u202e" + "x" * 1000: 1})["message"]
    assert message.startswith(r"line\nend\u202exxx")
    assert "..." in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"n": "0", "beam_width": "x"},
            "beam_width: must be a whole number, and what came cannot be read as that; "
            "n: must be at least 1, and is 0",
        ),
        ({"stream": "perhaps"}, "stream: must be true or false, and what came cannot be read as that"),
        ({"temperature": "nan"}, "temperature: must be a finite number, and is nan"),
        ({"foo": "1"}, f"foo: {UNKNOWN}"),
    ],
)  # fmt: skip
def test_mistakes_of_a_form_are_told(client, picture, fields, message):
    response = client.post(CAPTIONS, files=[("image", ("photo", picture()))], data=fields)
    assert response.status_code == 422
    assert response.json()["error"]["message"] == message


@pytest.mark.parametrize(
    ("model", "frame", "message"),
    [
        ("tiny", {"type": "begin"}, "type must be one of 'start', 'feed', 'cancel'"),
        ("tiny", {"prompt": "abc"}, "type is missing"),
        ("tiny", {"type": "start", "prompt": 5, "start": 1}, f"prompt: must be a string, and is 5; start: {UNKNOWN}"),
        (
            "tiny",
            {"type": "start", "prompt": "a", "sampling": {"top_k": -1, "stop": ["", ""]}},
            "sampling.top_k: must be at least 0, and is -1; sampling.stop.0: has 0 characters; allowed are at least 1; "
            "sampling.stop.1: has 0 characters; allowed are at least 1",
        ),
        ("scenes", {"type": "start", "sampling": {"stop": ["a"]}}, f"sampling.stop: {UNKNOWN}"),
    ],
)
def test_mistakes_of_a_frame_are_told(connect, model, frame, message):
    stream = connect(model=model)
    stream.send(**frame)
    error, close_code = stream.refusal()
    assert (error["code"], error["message"], close_code) == ("invalid_request", message, 4422)


def test_lists_of_token_ids_are_served_like_texts(client):
    def choices(prompt):
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 5, "temperature": 0}
        response = client.post(COMPLETIONS, json=body)
        assert response.status_code == 200, response.text
        return [choice["text"] for choice in response.json()["choices"]]

    assert choices([[2, 3, 4], [5]]) == choices([2, 3, 4]) + choices([5])


def test_errors_of_openais_routes_have_its_statuses_and_fields(client, connect):
    def error(response):
        told = response.json()["error"]
        return response.status_code, told["code"], told["type"], told["param"], response.headers["x-should-retry"]

    kind = "invalid_request_error"
    post = {"model": "tiny", "prompt": "abc"}
    sent = client.post(COMPLETIONS, json=post | {"max_tokens": 10**9})
    assert error(sent) == (400, "invalid_request", kind, "max_tokens", "false")
    assert error(client.post(COMPLETIONS, json=post | {"top_k": 50})) == (
        400,
        "invalid_request",
        kind,
        "top_k",
        "false",
    )
    sent = client.post(COMPLETIONS, json=post | {"prompt": [2] * 300_000})
    assert error(sent) == (400, "prompt_too_long", kind, "prompt", "false")
    sent = client.post(COMPLETIONS, json=post | {"model": "tutor"})
    assert error(sent) == (404, "wrong_task", kind, "model", "false")
    assert error(client.get("/v1/models/nobody")) == (404, "unknown_model", kind, "model", "false")
    assert error(client.put("/v1/models")) == (405, "method_not_allowed", kind, None, "false")
    assert "type" not in client.post("/v1/models/nobody/score", json={"text": "a"}).json()["error"]


def test_retry_after_is_spread(monkeypatch):
    from carousel.service.api.wire.error_bodies import answer
    from carousel.service.errors import Unavailable

    told = {int(answer(Unavailable("capacity_exceeded", "full", 1), "/").headers["retry-after"]) for _ in range(200)}
    assert told == {1, 2, 3}
    told = {int(answer(Unavailable("capacity_exceeded", "full", 20), "/").headers["retry-after"]) for _ in range(2000)}
    assert told == set(range(20, 41))


def test_image_that_is_wrong_is_told_by_its_number(client, picture):
    image = base64.b64encode(picture()).decode()
    response = client.post(CAPTIONS, json={"images": [image, "?"]})
    assert response.json()["error"]["message"].startswith("images.1: ")


@pytest.mark.parametrize("coding", ["gzip", "br, gzip", "DEFLATE"])
@pytest.mark.parametrize("path", [COMPLETIONS, TRACE, CAPTIONS])
def test_compressed_body_is_refused_by_that_name(client, path, coding):
    response = client.post(path, json={"attempts": [ATTEMPT]}, headers={"content-encoding": coding})
    told = response.json()["error"]["message"]
    assert told.startswith(f"the body is compressed (content-encoding: {coding.lower()}), which is not read here")
    plain = client.post(TRACE, json={"attempts": [ATTEMPT]}, headers={"content-encoding": "identity"})
    assert plain.status_code == 200
