"""Memories of every task, kept by the server or by the client: resumed they continue as if never interrupted."""

from __future__ import annotations

import json
import time

import pytest

TEXT = "kjihgfedcbaabcdefghijk\nabcabcabc"
ATTEMPTS = [{"skill": place % 5, "correct": place % 3 == 0} for place in range(7)]


@pytest.fixture
def post(client):
    def send(path: str, **body):
        response = client.post(path if path.startswith("/") else f"/v1/models/tiny/{path}", json=body)
        assert response.status_code == 200, response.text[:500]
        return response.json()

    return send


@pytest.fixture(params=["session", "state"])
def keeping(request):
    """Fields that keep a memory under a name, and fields that resume from an answer."""
    if request.param == "session":
        return (lambda name: {"session": name}), (lambda answer: {"session": answer["session"]})
    return (lambda name: {"return_state": True}), (lambda answer: {"state": answer["state"]})


def test_score_resumed_at_every_cut_equals_one_run_bit_for_bit(post, keeping):
    keep, resume = keeping
    whole = post("score", text=TEXT)["tokens"]
    for cut in range(2, len(TEXT)):
        first = post("score", text=TEXT[:cut], **keep(f"score-{cut}"))
        rest = post("score", text=TEXT[cut:], **resume(first))
        assert first["tokens"] + rest["tokens"] == whole


def test_score_of_one_token_is_given_where_something_came_before(post):
    first = post("score", text="ab", session="one-token")
    rest = post("score", text="c", session="one-token")
    assert first["tokens"] + rest["tokens"] == post("score", text="abc")["tokens"]
    assert rest["total_logprob"] == rest["tokens"][0]["logprob"]


def test_next_token_resumed_at_every_cut_equals_one_run_bit_for_bit(post, keeping):
    keep, resume = keeping
    whole = post("next-token", text=TEXT, top=13)["candidates"]
    for cut in range(1, len(TEXT)):
        first = post("next-token", text=TEXT[:cut], **keep(f"next-{cut}"))
        rest = post("next-token", text=TEXT[cut:], top=13, **resume(first))
        assert rest["candidates"] == whole
        assert rest["prompt_tokens"] == len(TEXT) - cut


def test_next_token_without_text_asks_after_what_the_session_holds(post):
    first = post("next-token", text="abc", session="typed")
    for _ in range(2):
        assert post("next-token", session="typed")["candidates"] == first["candidates"]


def test_next_token_is_a_proposal_that_score_and_completions_do_not_see(post):
    post("next-token", text="abc", session="mixed")
    scored = post("score", text="de", session="mixed")
    assert scored["tokens"] == post("score", text="abcde")["tokens"][3:]
    resumed = post("/v1/completions", model="tiny", prompt="f", temperature=0, max_tokens=9, session="mixed")
    whole = post("/v1/completions", model="tiny", prompt="abcdef", temperature=0, max_tokens=9)
    assert resumed["choices"] == whole["choices"]
    assert resumed["session"] == "mixed"


@pytest.mark.parametrize("stream", [False, True])
def test_completions_go_on_from_a_memory(client, post, keeping, stream):
    keep, resume = keeping
    name = f"completions-{stream}"

    def complete(**body):
        body = {"model": "tiny", "temperature": 0, "max_tokens": 5, "logprobs": 0, "stream": stream} | body
        if not stream:
            answer = post("/v1/completions", **body)
            return answer, answer["choices"][0]["logprobs"]["token_logprobs"]
        events = client.post("/v1/completions", json=body).text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        return chunks[-1], [one for part in logprobs if part for one in part["token_logprobs"]]

    first, before = complete(prompt="abc", **keep(name))
    tokens = post("/v1/completions", model="tiny", prompt="abc", temperature=0, max_tokens=5)["choices"][0]["text"]
    _, after = complete(prompt="de", **resume(first))
    _, whole = complete(prompt=f"abc{tokens}de")
    assert after == whole
    assert len(before) == 5


@pytest.mark.parametrize("fields", [{"n": 2}, {"prompt": ["a", "b"]}])
@pytest.mark.parametrize("memory", [{"session": "many"}, {"return_state": True}, {"state": "x"}])
def test_completions_of_many_texts_have_no_memory(client, refused, fields, memory):
    body = {"model": "tiny", "prompt": "a"} | fields | memory
    assert "n of 1" in refused(client.post("/v1/completions", json=body), 422, "invalid_request")


def logprobs(events):
    return [event["logprob"] for event in events if event["type"] == "token"]


def test_socket_start_goes_on_from_a_session_and_keeps_it(connect, post):
    def run(stream, prompt, kind="start", **fields):
        stream.send(type=kind, prompt=prompt, sampling={"temperature": 0, "max_tokens": 4}, **fields)
        return stream.rest()

    first = run(connect(), "abc", session="socket")
    assert first[-1]["session"] == "socket"
    stream = connect()
    second = run(stream, "d", session="socket", return_state=True)
    third = run(stream, "e", kind="feed")
    assert third[-1]["session"] == "socket"
    texts = [events[-1]["text"] for events in (first, second)]
    whole = run(connect(), f"abc{texts[0]}d{texts[1]}e")
    assert logprobs(third) == logprobs(whole)
    forked = run(connect(), "e", state=second[-1]["state"])
    assert logprobs(forked) == logprobs(whole)
    assert "session" not in forked[-1]


def test_socket_feed_of_a_deleted_session_is_refused(client, connect):
    stream = connect()
    stream.send(type="start", prompt="abc", sampling={"max_tokens": 2}, session="fleeting")
    stream.rest()
    assert client.delete("/v1/models/tiny/sessions/fleeting").status_code == 204
    stream.send(type="feed", prompt="abc")
    error, close_code = stream.refusal()
    assert (error["code"], close_code) == ("unknown_session", 4404)


def test_session_is_described_and_deleted(client, refused, trace):
    path = "/v1/models/tutor/sessions/described"
    refused(client.get(path), 404, "unknown_session")
    started = time.time()
    trace(attempts=ATTEMPTS[:3], session="described")
    trace(attempts=ATTEMPTS[3:], session="described")
    info = client.get(path).json()
    assert (info["session"], info["model"], info["version"], info["steps"]) == ("described", "tutor", 1, 7)
    assert started - 1 < info["created_at"] < info["updated_at"] < time.time() + 1
    assert 3500 < info["expires_in_seconds"] <= 3600
    refused(client.get("/v1/models/tiny/sessions/described"), 404, "unknown_session")  # another model's id is another
    assert client.delete(path).status_code == 204
    refused(client.delete(path), 404, "unknown_session")
    cold = trace(attempts=ATTEMPTS[:1], each=True, session="described")
    assert cold["each"][0]["probability"] is None


@pytest.mark.parametrize("method", ["get", "delete"])
def test_session_of_an_impossible_id_or_model_is_refused(client, refused, method):
    send = getattr(client, method)
    refused(send(f"/v1/models/tutor/sessions/{'a' * 7_000}"), 422, "invalid_session_id")
    refused(send("/v1/models/tutor/sessions/a%20b"), 422, "invalid_session_id")
    refused(send("/v1/models/nobody/sessions/a"), 404, "unknown_model")
    refused(send("/v1/models/tutor/sessions/..%2Fa"), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/tutor/trace", {"attempts": ATTEMPTS[:1]}),
        ("/v1/models/tiny/next-token", {"text": "abc"}),
        ("/v1/models/tiny/score", {"text": "abc"}),
        ("/v1/completions", {"model": "tiny", "prompt": "abc"}),
        ("/v1/completions", {"model": "tiny", "prompt": "abc", "stream": True}),
    ],
    ids=["trace", "next-token", "score", "completions", "completions-stream"],
)
def test_every_route_refuses_what_is_wrong_with_a_memory(client, refused, post, path, body):
    def send(**fields):
        return client.post(path, json=body | fields)

    for session in ("a/b", "..", "x" * 10_240, "", "a\n"):
        refused(send(session=session), 422, "invalid_session_id")
    tokens = [
        post("score", text="abc", return_state=True)["state"],
        post("/v1/models/tutor/trace", attempts=ATTEMPTS, return_state=True)["state"],
    ]
    state, foreign = reversed(tokens) if "attempts" in body else tokens
    for token in ("", "forged", state[:-1], state[:-8] + "AAAAAAAA", "A" + state[1:], state + "A", "\u00fc" * 50):
        refused(send(state=token), 400, "invalid_state_token")
    refused(send(state=foreign), 409, "model_mismatch")
    assert send(state=state).status_code == 200


def test_socket_refuses_what_is_wrong_with_a_memory(connect):
    for fields, code, close_code in [
        ({"session": "a/b"}, "invalid_session_id", 4422),
        ({"state": "forged"}, "invalid_state_token", 4400),
        ({"session": "a", "state": "b"}, "invalid_request", 4422),
    ]:
        stream = connect()
        stream.send(type="start", prompt="abc", **fields)
        error, closed = stream.refusal()
        assert (error["code"], closed) == (code, close_code)


def test_session_held_by_a_stream_is_busy_and_free_after_it(client, connect, refused, post, eventually):
    stream = connect()
    stream.send(type="start", prompt="abc", sampling={"max_tokens": 60_000}, session="held")
    while stream.receive()["type"] != "token":
        pass
    refused(client.post("/v1/models/tiny/score", json={"text": "abc", "session": "held"}), 409, "session_busy", True)
    refused(client.delete("/v1/models/tiny/sessions/held"), 409, "session_busy", True)
    stream.send(type="cancel")
    stream.rest()
    post("score", text="abc", session="held")


def test_session_of_a_client_that_leaves_is_as_it_was(client, connect, post, eventually):
    post("score", text="abc", session="left")
    stream = connect()
    stream.send(type="start", prompt="def", sampling={"max_tokens": 60_000}, session="left")
    while stream.receive()["type"] != "token":
        pass
    stream.socket.close()
    eventually(lambda: client.post("/v1/models/tiny/next-token", json={"session": "left"}).status_code == 200)
    rest = post("score", text="def", session="left")
    assert rest["tokens"] == post("score", text="abcdef")["tokens"][3:]


def test_session_that_expired_is_gone_until_it_is_deleted(run_server, refused, client, eventually):
    with run_server(session_ttl_seconds=1) as server:
        url = f"{server.url}/v1/models/tutor"
        assert client.post(f"{url}/trace", json={"attempts": ATTEMPTS, "session": "old"}).status_code == 200
        eventually(lambda: client.get(f"{url}/sessions/old").status_code == 410)
        refused(client.get(f"{url}/sessions/old"), 410, "session_expired")
        refused(client.post(f"{url}/trace", json={"attempts": ATTEMPTS, "session": "old"}), 410, "session_expired")
        assert 'carousel_sessions_evicted_total{reason="ttl"} 1.0' in client.get(f"{server.url}/metrics").text
        assert client.delete(f"{url}/sessions/old").status_code == 204
        assert client.post(f"{url}/trace", json={"attempts": ATTEMPTS, "session": "old"}).status_code == 200


def test_sessions_beyond_the_bound_make_room(run_server, refused, client):
    with run_server(max_sessions=2) as server:
        url = f"{server.url}/v1/models/tutor"
        for name in ("a", "b", "a", "c"):
            assert client.post(f"{url}/trace", json={"attempts": ATTEMPTS, "session": name}).status_code == 200
        refused(client.get(f"{url}/sessions/b"), 410, "session_expired")
        assert client.get(f"{url}/sessions/a").status_code == 200
        metrics = client.get(f"{server.url}/metrics").text
        assert "carousel_sessions 2.0" in metrics
        assert 'carousel_sessions_evicted_total{reason="lru"} 1.0' in metrics


def test_token_is_believed_by_another_process_of_the_same_key(run_server, client, refused):
    body = {"attempts": ATTEMPTS, "return_state": True}
    old, new = "o" * 32, "n" * 32
    with run_server(state_key=old) as one, run_server(state_key=f"{new},{old}") as two, run_server() as stranger:
        state = client.post(f"{one.url}/v1/models/tutor/trace", json=body).json()["state"]
        resumed = client.post(f"{two.url}/v1/models/tutor/trace", json=body | {"state": state})
        assert resumed.status_code == 200
        refused(
            client.post(f"{one.url}/v1/models/tutor/trace", json=body | {"state": resumed.json()["state"]}),
            400,
            "invalid_state_token",
        )
        refused(
            client.post(f"{stranger.url}/v1/models/tutor/trace", json=body | {"state": state}),
            400,
            "invalid_state_token",
        )
