"""The trace route against torch, and whatever the order and the parts in which the attempts come."""

from __future__ import annotations

import json

import numpy as np
import pytest

from carousel.models.codec.interaction import InteractionCodec

SKILLS = ("counting", "addition", "fractions, like denominators", "Bruchrechnung \u00fc", "area")
CODEC = InteractionCodec(SKILLS)


@pytest.fixture(scope="session")
def tracing_oracle(make_tracing_checkpoint, tmp_path_factory):
    """P(correct) at every skill after each attempt, by torch. <float32>[N, S]"""
    import torch

    from carousel.models.nn.checkpoint import read_checkpoint
    from tests.trained import load_tracing_model

    path = make_tracing_checkpoint(tmp_path_factory.mktemp("oracle") / "tutor.safetensors")
    model, _ = load_tracing_model(read_checkpoint(path))

    def run(attempts):
        ids = torch.tensor([[CODEC.encode(one["skill"], one["correct"]) for one in attempts]])
        with torch.inference_mode():
            return model(ids, model.initial_state(1))[0][0].sigmoid().numpy()

    return run


def history(length: int, seed: int = 0) -> list[dict]:
    random = np.random.default_rng(seed)
    return [
        {"skill": SKILLS[int(skill)] if place % 3 else int(skill), "correct": bool(correct)}
        for place, (skill, correct) in enumerate(
            zip(random.integers(0, 5, length), random.integers(0, 2, length), strict=True)
        )
    ]


def probabilities(answer: dict) -> list[float]:
    return [one["probability"] for one in answer["predictions"]]


def befores(answer: dict) -> list[float | None]:
    return [one["probability"] for one in answer["each"]]


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 300])
def test_trace_equals_torch(trace, tracing_oracle, length):
    attempts = history(length, seed=length)
    answer = trace(attempts=attempts, each=True, curve=["area", 0])
    expected = tracing_oracle(attempts)
    assert [one["skill"] for one in answer["predictions"]] == list(SKILLS)
    assert probabilities(answer) == pytest.approx(expected[-1].tolist(), abs=1e-5)
    skills = [CODEC.skill_id(one["skill"]) for one in attempts]
    assert [(one["skill"], one["correct"]) for one in answer["each"]] == [
        (one["skill"], one["correct"]) for one in attempts
    ]
    assert answer["each"][0]["probability"] is None
    assert befores(answer)[1:] == pytest.approx(expected[range(length - 1), skills[1:]].tolist(), abs=1e-5)
    assert [one["skill"] for one in answer["curve"]] == ["area", "counting"]
    for one, skill in zip(answer["curve"], (4, 0), strict=True):
        assert one["probabilities"] == pytest.approx(expected[:, skill].tolist(), abs=1e-5)
    assert (answer["model"], answer["version"], answer["attempts"]) == ("tutor", 1, length)
    assert set(answer) == {"model", "version", "attempts", "cached_tokens", "predictions", "each", "curve"}


def test_trace_answers_for_the_chosen_skills_in_their_order(trace):
    attempts = history(9)
    everything = dict(zip(SKILLS, probabilities(trace(attempts=attempts)), strict=True))
    chosen = trace(attempts=attempts, skills=["area", 1, "area"])["predictions"]
    assert chosen == [{"skill": name, "probability": everything[name]} for name in ("area", "addition", "area")]


def test_trace_ignores_unknown_skills_where_told(trace):
    known = history(6)
    noisy = [*known[:2], {"skill": "alchemy", "correct": True}, *known[2:], {"skill": 99, "correct": False}]
    answer = trace(attempts=noisy, each=True, unknown_skill="ignore")
    expected = trace(attempts=known, each=True)
    assert (answer["attempts"], answer["ignored"]) == (6, 2)
    assert answer["predictions"] == expected["predictions"]
    assert befores(answer) == [*befores(expected)[:2], None, *befores(expected)[2:], None]


@pytest.mark.parametrize("keeper", ["session", "state"])
def test_trace_resumed_at_every_cut_equals_one_run_bit_for_bit(trace, keeper):
    attempts = history(40, seed=5)
    whole = trace(attempts=attempts, each=True, curve=[0, 3])
    for cut in range(1, 40):
        keep = {"session": f"cut-{cut}"} if keeper == "session" else {"return_state": True}
        first = trace(attempts=attempts[:cut], each=True, curve=[0, 3], **keep)
        resume = {"session": f"cut-{cut}"} if keeper == "session" else {"state": first["state"]}
        rest = trace(attempts=attempts[cut:], each=True, curve=[0, 3], **resume)
        assert rest["predictions"] == whole["predictions"]
        assert befores(first) + befores(rest) == befores(whole)
        for one, two, both in zip(first["curve"], rest["curve"], whole["curve"], strict=True):
            assert one["probabilities"] + two["probabilities"] == both["probabilities"]


def test_trace_answer_by_answer_equals_one_run_and_costs_a_step_each(trace, steps):
    attempts = history(30, seed=6)
    whole = trace(attempts=attempts, each=True)
    before = steps()
    answers = [trace(attempts=[one], each=True, session="ada") for one in attempts]
    assert steps() - before == 30
    assert [befores(answer)[0] for answer in answers] == befores(whole)
    assert answers[-1]["predictions"] == whole["predictions"]


def test_token_without_each_is_shorter_and_knows_nothing_of_the_first_attempt(trace):
    attempts = history(8)
    short = trace(attempts=attempts[:4], return_state=True)["state"]
    long = trace(attempts=attempts[:4], return_state=True, each=True)["state"]
    assert len(short) < len(long) < 4096
    whole = befores(trace(attempts=attempts, each=True))
    assert befores(trace(attempts=attempts[4:], state=short, each=True)) == [None, *whole[5:]]
    assert befores(trace(attempts=attempts[4:], state=long, each=True)) == whole[4:]


def test_tokens_fork(trace):
    attempts = history(8)
    state = trace(attempts=attempts[:4], return_state=True)["state"]
    right, wrong = ({"skill": "area", "correct": correct} for correct in (True, False))
    forks = [trace(attempts=[one], state=state)["predictions"] for one in (right, wrong, right)]
    assert forks[0] == forks[2] != forks[1]
    assert forks[0] == trace(attempts=[*attempts[:4], right])["predictions"]


def test_learners_are_answered_together_as_alone(trace):
    histories = [history(length, seed=length) for length in (3, 200, 1, 7, 150, 2, 9, 11, 30, 31, 1, 2)]
    body = [{"id": place, "attempts": attempts, "each": place % 2 == 0} for place, attempts in enumerate(histories)]
    answers = trace(learners=body)["learners"]
    assert [answer.pop("id") for answer in answers] == list(range(12))
    for one, answer in zip(body, answers, strict=True):
        alone = trace(attempts=one["attempts"], each=one["each"])
        told = set(answer) - {"cached_tokens"}  # the histories are known by now
        assert {key: answer[key] for key in told} == {key: alone[key] for key in told}
        assert set(alone) == told | {"model", "version", "cached_tokens"}


def test_learners_each_keep_their_own_session(trace):
    first, second = history(5, seed=1), history(6, seed=2)
    trace(learners=[{"attempts": first[:3], "session": "l1"}, {"attempts": second[:2], "session": "l2"}])
    rest = trace(learners=[{"attempts": second[2:], "session": "l2"}, {"attempts": first[3:], "session": "l1"}])
    assert [answer["session"] for answer in rest["learners"]] == ["l2", "l1"]
    assert rest["learners"][0]["predictions"] == trace(attempts=second)["predictions"]
    assert rest["learners"][1]["predictions"] == trace(attempts=first)["predictions"]


def test_text_without_a_utf8_form_comes_back_as_it_was_sent(client):
    attempts = [*history(1), {"skill": "\ud800", "correct": True}]
    body = {"learners": [{"id": "\udc00", "attempts": attempts, "each": True, "unknown_skill": "ignore"}]}
    headers = {"content-type": "application/json"}
    response = client.post("/v1/models/tutor/trace", content=json.dumps(body), headers=headers)
    (learner,) = response.json()["learners"]
    assert learner["id"] == "\udc00"
    assert learner["each"][1]["skill"] == "\ud800"


@pytest.mark.slow
def test_trace_of_a_hundred_thousand_attempts_is_given(trace):
    attempts = [{"skill": place % 5, "correct": place % 3 == 0} for place in range(100_000)]
    answer = trace(attempts=attempts, each=True)
    assert answer["attempts"] == len(answer["each"]) == 100_000
    assert befores(trace(attempts=attempts[:50], each=True)) == befores(answer)[:50]


REFUSED = [
    ({}, "invalid_request", "attempts"),
    ({"attempts": None}, "invalid_request", "attempts"),
    ({"attempts": []}, "no_attempts", "no attempt"),
    ({"attempts": [{"skill": "alchemy", "correct": True}], "unknown_skill": "ignore"}, "no_attempts", "none of"),
    ({"attempts": [*history(1), {"skill": "alchemy", "correct": True}]}, "unknown_skill", "attempts.1"),
    ({"attempts": [{"skill": 5, "correct": True}]}, "unknown_skill", "attempts.0"),
    ({"attempts": [{"skill": -1, "correct": True}]}, "unknown_skill", "attempts.0"),
    ({"attempts": [{"skill": "x" * 10_000, "correct": True}]}, "unknown_skill", "attempts.0"),
    ({"attempts": [{"skill": "\ud800", "correct": True}]}, "unknown_skill", "attempts.0"),
    ({"attempts": [{"skill": "area", "correct": 1}]}, "invalid_request", "attempts.0.correct"),
    ({"attempts": [{"skill": "area", "correct": "true"}]}, "invalid_request", "attempts.0.correct"),
    ({"attempts": [{"skill": "area", "correct": None}]}, "invalid_request", "attempts.0.correct"),
    ({"attempts": [{"skill": "area"}]}, "invalid_request", "attempts.0.correct"),
    ({"attempts": [{"skill": True, "correct": True}]}, "invalid_request", "attempts.0.skill"),
    ({"attempts": [{"skill": 1.0, "correct": True}]}, "invalid_request", "attempts.0.skill"),
    ({"attempts": [{"skill": "area", "correct": True, "when": 5}]}, "invalid_request", "attempts.0.when"),
    ({"attempts": ["area"]}, "invalid_request", "attempts.0"),
    ({"attempts": history(2), "skills": ["alchemy"]}, "unknown_skill", "skills"),
    ({"attempts": history(2), "skills": []}, "invalid_request", "skills"),
    ({"attempts": history(2), "curve": ["alchemy"]}, "unknown_skill", "curve"),
    ({"attempts": history(60), "curve": [0] * 5000}, "invalid_request", "curve"),
    ({"attempts": history(2), "unknown_skill": "guess"}, "invalid_request", "unknown_skill"),
    ({"attempts": history(2), "each": "yes"}, "invalid_request", "each"),
    ({"attempts": history(2), "sesion": "a"}, "invalid_request", "sesion"),
    ({"attempts": history(2), "session": "a", "state": "b"}, "invalid_request", "either session or state"),
    ({"attempts": history(2), "session": "../etc/passwd"}, "invalid_session_id", "passwd"),
    ({"attempts": history(2), "session": "a" * 10_240}, "invalid_session_id", "10,240"),
    ({"attempts": history(2), "session": ""}, "invalid_session_id", "1 to 128"),
    ({"attempts": history(2), "session": 5}, "invalid_request", "session"),
    ({"attempts": history(2), "learners": []}, "invalid_request", "learners"),
    ({"learners": []}, "invalid_request", "learners"),
    ({"learners": [{"attempts": history(1)}] * 1001}, "invalid_request", "learners"),
    ({"learners": [{"attempts": history(1)}, {"attempts": []}]}, "no_attempts", "learners.1.attempts"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "told"), REFUSED, ids=[f"{code}-{told}" for _, code, told in REFUSED])
def test_trace_request_is_refused(client, refused, body, code, told):
    headers = {"content-type": "application/json"}
    response = client.post("/v1/models/tutor/trace", content=json.dumps(body), headers=headers)
    assert told in refused(response, 422, code)


def test_history_longer_than_the_model_takes_is_refused(client, refused, run_server, tiny_tracing_bundle):
    attempts = [{"skill": 1, "correct": True}] * 262_145
    with run_server(repository=tiny_tracing_bundle.parent.parent, max_body_bytes=1 << 24) as wide:
        response = client.post(f"{wide.url}/v1/models/tiny-tutor/trace", json={"attempts": attempts})
    message = refused(response, 413, "prompt_too_long")
    assert "262,145" in message
    assert "262,144" in message


@pytest.mark.parametrize("fault", [{"skill": "alchemy", "correct": True}, {"skill": "area", "correct": 1}])
def test_a_malformed_learner_is_named_and_nothing_is_applied(client, refused, fault):
    learners = [
        {"attempts": history(3), "session": "applied-0"},
        {"attempts": [*history(4), fault, *history(2)], "session": "applied-1"},
        {"attempts": history(2), "session": "applied-2"},
    ]
    response = client.post("/v1/models/tutor/trace", json={"learners": learners})
    code = "unknown_skill" if fault["skill"] == "alchemy" else "invalid_request"
    assert "learners.1.attempts.4" in refused(response, 422, code)
    for place in range(3):
        refused(client.get(f"/v1/models/tutor/sessions/applied-{place}"), 404, "unknown_session")


def test_a_learner_with_a_bad_token_keeps_the_others_from_being_applied(client, refused):
    learners = [{"attempts": history(3), "session": "spared"}, {"attempts": history(3), "state": "forged"}]
    refused(client.post("/v1/models/tutor/trace", json={"learners": learners}), 400, "invalid_state_token")
    refused(client.get("/v1/models/tutor/sessions/spared"), 404, "unknown_session")


@pytest.mark.parametrize("failing", range(3))
def test_a_session_that_is_lost_while_all_are_written_keeps_the_others_from_being_applied(
    client, server, monkeypatch, refused, failing
):
    store = server.context.memories.sessions._store
    commit = store.commit

    async def lose_one(writings):
        await store.release(writings[failing].lease)
        await commit(writings)

    names = [f"half-way-{failing}-{place}" for place in range(3)]
    learners = [{"attempts": history(3), "session": name} for name in names]
    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", lose_one)
        message = refused(
            client.post("/v1/models/tutor/trace", json={"learners": learners}), 409, "session_lease_lost", True
        )
    assert names[failing] in message
    for name in names:
        refused(client.get(f"/v1/models/tutor/sessions/{name}"), 404, "unknown_session")
    assert client.post("/v1/models/tutor/trace", json={"learners": learners}).status_code == 200


def test_one_session_for_two_learners_is_refused(client, refused):
    learners = [{"attempts": history(1), "session": "twice"}, {"attempts": history(1), "session": "twice"}]
    message = refused(client.post("/v1/models/tutor/trace", json={"learners": learners}), 422, "invalid_request")
    assert "learners.1" in message
    assert "learners.0" in message


def test_routes_refuse_a_model_of_another_task(client, refused, connect, server):
    refused(client.post("/v1/models/tiny/trace", json={"attempts": history(1)}), 409, "wrong_task")
    for path, body in [
        ("/v1/models/tutor/next-token", {"text": "abc"}),
        ("/v1/models/tutor/score", {"text": "abc"}),
        ("/v1/completions", {"model": "tutor", "prompt": "abc"}),
        ("/v1/completions", {"model": "tutor", "prompt": "abc", "stream": True}),
    ]:
        assert "tracing" in refused(client.post(path, json=body), 409, "wrong_task")
    stream = connect(model="tutor")  # which streams raw steps
    stream.start("abc")
    error, close_code = stream.refusal()
    assert (error["code"], close_code) == ("wrong_task", 4409)


def test_picture_of_a_session_shows_its_last_attempts(client, trace, refused):
    attempts = history(300, seed=9)
    trace(attempts=attempts[:290], session="seen")
    for attempt in attempts[290:]:
        trace(attempts=[attempt], session="seen")
    response = client.get("/v1/models/tutor/trace/seen/mastery.svg")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("image/svg+xml")
    picture = response.text
    assert "session seen · attempts 45 to 300" in picture
    assert picture.count("<circle") == sum(one["correct"] for one in attempts[-256:]) + 1  # and the legend's
    last = trace(attempts=attempts)["predictions"]
    for one in last:
        assert f">{one['probability']:.2f}</text>" in picture or f">{one['probability'] + 0.002:.2f}</text>" in picture
    refused(client.get("/v1/models/tutor/trace/unseen/mastery.svg"), 404, "unknown_session")
    refused(client.get("/v1/models/tiny/trace/seen/mastery.svg"), 409, "wrong_task")
