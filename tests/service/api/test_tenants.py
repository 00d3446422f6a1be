"""What belongs to one tenant does not exist for another: sessions and state tokens, on every route that takes them."""

import json
from contextlib import ExitStack

import httpx
import pytest
from websockets.sync.client import connect as websockets_connect

from carousel.service.keys.key_file import key_line, new_key
from tests.service.api.conftest import StreamClient

ADA, EVE, BOB = new_key(), new_key(), new_key()
ATTEMPTS = [{"skill": 2, "correct": True}, {"skill": 0, "correct": False}]
ROUTES = [
    ("tutor", "/v1/models/tutor/trace", {"attempts": ATTEMPTS}),
    ("tutor", "/v1/models/tutor/trace", {"learners": [{"attempts": ATTEMPTS}]}),
    ("tiny", "/v1/models/tiny/next-token", {"text": "abc"}),
    ("tiny", "/v1/models/tiny/score", {"text": "abc"}),
    ("tiny", "/v1/completions", {"model": "tiny", "prompt": "abc", "max_tokens": 3, "temperature": 0}),
]
IDS = ["trace", "learners", "next-token", "score", "completions"]


@pytest.fixture(scope="module")
def shared(run_server, tmp_path_factory):
    """A server of two tenants: ada and eve of the one, bob of the other."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    lines = [("ada", "school", ADA), ("eve", "school", EVE), ("bob", "library", BOB)]
    path.write_text("\n".join(key_line(*line) for line in lines))
    with run_server(api_keys_file=path) as server:
        yield server


@pytest.fixture
def clients(shared):
    """HTTP clients of ada, eve and bob."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                httpx.Client(
                    base_url=shared.url, timeout=60, trust_env=False, headers={"Authorization": f"Bearer {key}"}
                )
            )
            for key in (ADA, EVE, BOB)
        ]


@pytest.fixture
def stream_of(shared):
    with ExitStack() as stack:

        def connect(key):
            headers = {"Authorization": f"Bearer {key}"}
            url = shared.socket_url("tiny")
            return StreamClient(stack.enter_context(websockets_connect(url, additional_headers=headers, proxy=None)))

        yield connect


def remember(body, **memory):
    """The body with a memory, which many learners have one each of."""
    if "learners" in body:
        return {"learners": [learner | memory for learner in body["learners"]]}
    return body | memory


def answer(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    told = response.json()
    kept = told["learners"][0] if "learners" in told else told
    return kept, {name: value for name, value in kept.items() if name not in ("id", "created", "state", "session")}


@pytest.mark.parametrize(("model", "path", "body"), ROUTES, ids=IDS)
def test_session_of_another_tenant_does_not_exist(clients, refused, request, model, path, body):
    ada, eve, bob = clients
    name = request.node.callspec.id
    kept = f"/v1/models/{model}/sessions/{name}"
    _, first = answer(ada, path, remember(body, session=name))
    never = refused(bob.get(f"/v1/models/{model}/sessions/never"), 404, "unknown_session")
    assert refused(bob.get(kept), 404, "unknown_session").replace(name, "never") == never
    refused(bob.delete(kept), 404, "unknown_session")
    if model == "tutor":
        refused(bob.get(f"/v1/models/tutor/trace/{name}/mastery.svg"), 404, "unknown_session")
    _, second = answer(eve, path, remember(body, session=name))  # of ada's tenant: goes on from where she was
    steps = ada.get(kept).json()["steps"]
    assert steps == eve.get(kept).json()["steps"] > 2
    _, of_bob = answer(bob, path, remember(body, session=name))  # of his own: begins
    assert of_bob == first
    assert of_bob != second
    assert ada.get(kept).json()["steps"] == steps
    assert bob.delete(kept).status_code == 204
    assert ada.get(kept).json()["steps"] == steps


@pytest.mark.parametrize(("model", "path", "body"), ROUTES, ids=IDS)
def test_state_token_of_another_tenant_is_as_good_as_forged(clients, refused, model, path, body):
    ada, eve, bob = clients
    state = answer(ada, path, remember(body, return_state=True))[0]["state"]
    message = refused(bob.post(path, json=remember(body, state=state)), 400, "invalid_state_token")
    assert (
        refused(bob.post(path, json=remember(body, state=state[:-8] + "AAAAAAAA")), 400, "invalid_state_token")
        == message
    )
    assert answer(eve, path, remember(body, state=state))[1] == answer(ada, path, remember(body, state=state))[1]


def test_state_token_that_ends_a_stream_is_of_its_tenant(clients, refused):
    ada, eve, bob = clients
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 3}
    events = ada.post("/v1/completions", json=body | {"stream": True, "return_state": True}).text.split("\n\n")
    state = json.loads(events[-3].removeprefix("data: "))["state"]
    assert eve.post("/v1/completions", json=body | {"state": state}).status_code == 200
    refused(bob.post("/v1/completions", json=body | {"state": state}), 400, "invalid_state_token")


def test_session_held_by_one_tenant_is_not_busy_for_another(clients, stream_of, refused):
    ada, _, bob = clients
    stream = stream_of(ADA)
    stream.send(type="start", prompt="abc", sampling={"max_tokens": 60_000}, session="held")
    while stream.receive()["type"] != "token":
        pass
    body = {"text": "abc", "session": "held"}
    refused(ada.post("/v1/models/tiny/score", json=body), 409, "session_busy", True)
    assert bob.post("/v1/models/tiny/score", json=body).status_code == 200
    refused(bob.delete("/v1/models/tutor/sessions/held"), 404, "unknown_session")
    stream.send(type="cancel")
    stream.rest()


def test_sockets_keep_tenants_apart(clients, stream_of):
    ada, _, bob = clients

    def run(stream, kind="start", **fields):
        stream.send(type=kind, prompt="ab", sampling={"temperature": 0, "max_tokens": 4}, **fields)
        events = stream.rest()
        return events[-1], [event["logprob"] for event in events if event["type"] == "token"]

    stream = stream_of(ADA)
    end, first = run(stream, session="socket", return_state=True)
    _, second = run(stream_of(EVE), session="socket")
    _, of_bob = run(stream_of(BOB), session="socket")
    assert of_bob == first != second
    run(stream, "feed")
    assert ada.get("/v1/models/tiny/sessions/socket").json()["steps"] == 18
    assert bob.get("/v1/models/tiny/sessions/socket").json()["steps"] == 6
    stranger = stream_of(BOB)
    stranger.send(type="start", prompt="ab", state=end["state"])
    error, code = stranger.refusal()
    assert (error["code"], code) == ("invalid_state_token", 4400)
    assert run(stream_of(EVE), state=end["state"])[1] == second


def test_a_cached_prompt_spares_its_own_tenant_only(clients):
    ada, eve, bob = clients
    body = {"model": "tiny", "prompt": "abcabcabcabc", "max_tokens": 2, "temperature": 0}

    def cached(client):
        answer = client.post("/v1/completions", json=body).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["choices"][0]["text"]

    spared, text = cached(ada)
    assert spared == 0
    assert cached(bob) == (0, text)
    assert cached(eve)[0] > 0
