"""Prompts whose beginning was sent before: the answers are those of cold ones, bit for bit, on every route."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import httpx
import pytest

from carousel.service.keys.caller import ANONYMOUS
from carousel.service.prefixes.cache import STRIDE
from carousel.service.prefixes.prefixes import MIN_LENGTH

TEXT = "kjihgfedcbaabcdefghijk\nabcabcabc"
BUNDLES = Path(__file__).parents[3] / "bundles"
ATTEMPTS = [{"skill": place % 5, "correct": place % 3 == 0} for place in range(2 * STRIDE + 20)]
_NUMBERS = count()


@pytest.fixture
def salt():
    """A salt that nobody has used: what is asked with it is cold."""
    return lambda: f"salt {next(_NUMBERS)}"


@pytest.fixture
def post(client):
    def send(path, instance=None, **body):
        url = path if path.startswith("/") else f"/v1/models/tiny/{path}"
        response = client.post(url if instance is None else instance.url + url, json=body)
        assert response.status_code == 200, response.text[:500]
        return response.json()

    return send


@pytest.fixture(scope="session")
def int8_server(run_server, tmp_path_factory):
    repository = tmp_path_factory.mktemp("int8")
    shutil.copytree(BUNDLES / "shakespeare", repository / "tiny")
    with run_server(repository=repository) as instance:
        assert instance.context.repository.models["tiny"].bundle.manifest.precision == "int8"
        yield instance


@pytest.fixture(params=["fp32", "int8"])
def instance(request, server):
    return server if request.param == "fp32" else request.getfixturevalue("int8_server")


def cached_of(usage):
    return usage.get("prompt_tokens_details", {}).get("cached_tokens")


def known_after(length):
    """Tokens of a prompt that are known when its first `length` were a prompt."""
    return length - 1 if length > MIN_LENGTH else 0


def test_next_token_is_the_same_at_every_cut(post, instance, salt):
    text = TEXT[:-9] + " abc abc"
    cold = post("next-token", instance, text=text, top=13, cache_salt=salt())
    assert cold.pop("cached_tokens") == 0
    for cut in range(1, len(text) + 1):
        beginning = salt()
        post("next-token", instance, text=text[:cut], cache_salt=beginning)
        warm = post("next-token", instance, text=text, top=13, cache_salt=beginning)
        assert warm.pop("cached_tokens") == known_after(cut)
        assert warm == cold


FIELDS = {"model": "tiny", "prompt": TEXT, "seed": 3, "temperature": 1.3, "max_tokens": 40, "logprobs": 3}


def test_completion_is_the_same_at_every_cut(post, instance, salt):
    fields = FIELDS | {"repetition_penalty": 1.5}
    cold = post("/v1/completions", instance, **fields, cache_salt=salt())
    assert cached_of(cold["usage"]) == 0
    for cut in range(1, len(TEXT) + 1, 2):
        beginning = salt()
        post("/v1/completions", instance, **FIELDS | {"prompt": TEXT[:cut], "max_tokens": 1}, cache_salt=beginning)
        warm = post("/v1/completions", instance, **fields, cache_salt=beginning)
        assert cached_of(warm["usage"]) == known_after(cut)
        assert warm["choices"] == cold["choices"]


def test_completions_of_one_request_start_where_each_is_known(post, salt):
    beginning, fields = salt(), {"prompt": [TEXT, "abcabcabc"], "n": 3, "repetition_penalty": 1.5}
    cold = post("/v1/completions", **FIELDS | fields, cache_salt=beginning)
    warm = post("/v1/completions", **FIELDS | fields, cache_salt=beginning)
    assert warm["choices"] == cold["choices"]
    assert (cached_of(cold["usage"]), cached_of(warm["usage"])) == (0, len(TEXT) - 1 + 8)
    assert warm["usage"]["prompt_tokens"] == len(TEXT) + 9


def test_events_of_a_completion_are_the_same(client, salt):
    body, told = FIELDS | {"stream": True, "stream_options": {"include_usage": True}, "cache_salt": salt()}, []
    for _ in range(2):
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        events = [json.loads(line) for line in lines[:-1]]
        told.append((events[-1]["usage"], [event["choices"] for event in events]))
    (cold, cold_choices), (warm, warm_choices) = told
    assert warm_choices == cold_choices
    assert (cached_of(cold), cached_of(warm)) == (0, len(TEXT) - 1)


def test_stream_is_the_same_and_says_what_was_known(connect, salt):
    stream, told, beginning = connect(), [], salt()
    for prompt in (TEXT, TEXT, TEXT + "ab"):
        sampling = {"max_tokens": 30, "seed": 4, "repetition_penalty": 1.4}
        stream.send(type="start", prompt=prompt, sampling=sampling, cache_salt=beginning)
        told.append(stream.rest())
        told.append(stream.generate("kj", "feed", max_tokens=5, seed=1))  # it goes on from a memory
    assert told[2][1:] == told[0][1:]
    assert told[3][1:] == told[1][1:]
    assert [events[0]["cached_tokens"] for events in told] == [0, 0, len(TEXT) - 1, 0, len(TEXT) - 1, 0]


def test_trace_is_the_same_at_every_cut(trace, steps, salt):
    cold = trace(attempts=ATTEMPTS, cache_salt=salt())
    assert cold.pop("cached_tokens") == 0
    for cut in [*range(1, 12), STRIDE, STRIDE + 1, 2 * STRIDE + 1, len(ATTEMPTS)]:
        beginning = salt()
        trace(attempts=ATTEMPTS[:cut], cache_salt=beginning)
        before = steps()
        warm = trace(attempts=ATTEMPTS, cache_salt=beginning)
        assert steps() - before == len(ATTEMPTS) - known_after(cut)
        assert warm.pop("cached_tokens") == known_after(cut)
        assert warm == cold


def test_trace_that_tells_of_every_attempt_eats_them_all(trace, salt):
    beginning = salt()
    first = trace(attempts=ATTEMPTS, cache_salt=beginning)
    for more in ({"each": True}, {"curve": [1]}, {"session": "cached-trace"}):
        answer = trace(attempts=ATTEMPTS, cache_salt=beginning, **more)
        assert answer["cached_tokens"] == 0
        assert answer["predictions"] == first["predictions"]
    many = trace(learners=[{"attempts": ATTEMPTS, "cache_salt": beginning}, {"attempts": ATTEMPTS[:9]}])["learners"]
    assert many[0]["cached_tokens"] == len(ATTEMPTS) - 1
    assert many[0]["predictions"] == first["predictions"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/models/tiny/next-token", {"text": TEXT}),
        ("/v1/completions", FIELDS | {"repetition_penalty": 1.5}),
        ("/v1/models/tutor/trace", {"attempts": ATTEMPTS}),
    ],
)
def test_memory_after_a_warm_start_is_the_cold_one(post, server, salt, path, fields):
    beginning, memories, answers = salt(), [], []
    model = server.context.repository.models["tutor" if "tutor" in path else "tiny"]
    for cached in (False, True):
        answer = post(path, **fields, return_state=True, cache_salt=beginning)
        assert bool(answer.get("cached_tokens") or cached_of(answer.get("usage", {}))) is cached
        memories.append(server.context.memories._signer.open(answer["state"], ANONYMOUS, model.identity))
        more = {"attempts": ATTEMPTS[:2]} if "tutor" in path else {"text": "a"}
        answers.append(
            post(
                f"/v1/models/{model.name}/{'trace' if more.get('attempts') else 'next-token'}",
                **more,
                state=answer["state"],
            )
        )
    cold, warm = memories
    assert {name: row.tobytes() for name, row in warm.snapshot.state.items()} == {
        name: row.tobytes() for name, row in cold.snapshot.state.items()
    }
    assert warm.snapshot.pending.tolist() == cold.snapshot.pending.tolist()
    assert (warm.steps, warm.context.tolist()) == (cold.steps, cold.context.tolist())
    assert answers[0] == answers[1]
    assert answers[0].get("cached_tokens") == 0  # who goes on from a memory has a better beginning


def test_prompts_share_what_they_begin_with_to_the_token(post, salt):
    beginning = salt()
    told = [
        post("next-token", text=text, cache_salt=beginning)["cached_tokens"]
        for text in (TEXT + "aaaa", TEXT + "bbbb", TEXT + "cccc", TEXT[:20], TEXT[:20] + "a" + TEXT[:9])
    ]
    assert told == [0, 0, len(TEXT), 0, 19]


def test_salts_and_models_never_meet(post, client, salt, refused):
    mine, yours = salt(), salt()
    for _ in range(2):
        cached = post("next-token", text=TEXT, cache_salt=mine)["cached_tokens"]
    assert cached == len(TEXT) - 1
    assert post("next-token", text=TEXT, cache_salt=yours)["cached_tokens"] == 0
    for wrong in ("", "s" * 129, 5):
        refused(
            client.post("/v1/models/tiny/next-token", json={"text": "a", "cache_salt": wrong}), 422, "invalid_request"
        )
    refused(client.post("/v1/models/tiny/score", json={"text": "ab", "cache_salt": "a"}), 422, "invalid_request")


def test_equal_prompts_at_once_are_all_answered_alike(post, salt):
    beginning = salt()
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: post("/v1/completions", **FIELDS, cache_salt=beginning), range(24)))
    cold = post("/v1/completions", **FIELDS, cache_salt=salt())
    assert all(answer["choices"] == cold["choices"] for answer in answers)
    assert {cached_of(answer["usage"]) for answer in answers} <= {0, len(TEXT) - 1}
    assert cached_of(post("/v1/completions", **FIELDS, cache_salt=beginning)["usage"]) == len(TEXT) - 1


def test_cancelled_prompt_is_known_as_far_as_it_was_eaten(connect, salt):
    stream, beginning, prompt = connect(), salt(), [2, 3, 4, 5] * 25_000
    sampling = {"max_tokens": 3, "seed": 1}
    stream.send(type="start", tokens=prompt, sampling=sampling, cache_salt=beginning)
    assert stream.receive()["type"] == "accepted"
    stream.send(type="cancel")
    assert stream.rest()[-1]["reason"] == "cancelled"
    stream.send(type="start", tokens=prompt[:400], sampling=sampling, cache_salt=beginning)
    warm = stream.rest()
    stream.send(type="start", tokens=prompt[:400], sampling=sampling, cache_salt=salt())
    assert stream.rest()[1:] == warm[1:]
    assert warm[0]["cached_tokens"] == 0  # a prompt of 100,000 is first looked at after 6,250


def test_prompt_that_failed_leaves_nothing(run_server, post, client):
    with run_server() as server:
        model = server.context.repository.models["tiny"]
        runner = model.engine._thread.core._runner
        bind = runner.bind

        def broken(arrays):
            step = bind(arrays)

            def run():
                step()
                if arrays.inputs["token"][0] == 5:
                    arrays.outputs["logits"][:] = float("nan")

            return run

        runner.bind = broken
        body = {"tokens": [2] * (2 * STRIDE) + [5], "cache_salt": "a"}
        response = client.post(f"{server.url}/v1/models/tiny/next-token", json=body)
        assert response.json()["error"]["code"] == "step_failed"
        assert model.prefixes._cache.bytes == 0
        assert post("next-token", server, tokens=[2] * (2 * STRIDE) + [6], cache_salt="a")["cached_tokens"] == 0


def test_metrics_count_what_was_asked_and_known(run_server, post):
    with run_server() as server:
        for _ in range(3):
            post("next-token", server, text=TEXT)
        post("next-token", server, text="ab")
        text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    value = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    tiny = 'model="tiny",version="1"'
    assert value[f"carousel_state_cache_query_tokens_total{{{tiny}}}"] == 3 * len(TEXT)
    assert value[f"carousel_state_cache_hit_tokens_total{{{tiny}}}"] == 2 * (len(TEXT) - 1)
    assert value[f'carousel_tokens_total{{kind="cached",{tiny}}}'] == 2 * (len(TEXT) - 1)
    assert value[f'carousel_tokens_total{{kind="prompt",{tiny}}}'] == len(TEXT) + 2 + 2
    assert 0 < value["carousel_state_cache_bytes"] < 10_000


def test_cache_can_be_turned_off(run_server, post):
    with run_server(state_cache_bytes=0) as server:
        answers = [post("next-token", server, text=TEXT) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["cached_tokens"] == 0
