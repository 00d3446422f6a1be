"""What HTTP clients get wrong: each gets the error shape, and the next client is served as if nothing had been."""

import json
import re
import select

import pytest

from tests.service.api.conftest import check_refused

COMPLETIONS = "/v1/completions"
NEXT_TOKEN = "/v1/models/tiny/next-token"
SCORE = "/v1/models/tiny/score"


@pytest.fixture(autouse=True)
def _next_client_is_served(client):
    yield
    assert client.post(NEXT_TOKEN, json={"text": "abc"}).status_code == 200


def _post(client, path: str, content: str | bytes, content_type: str = "application/json"):
    return client.post(path, content=content, headers={"content-type": content_type})


def test_sampling_field_is_refused(client, bad_sampling):
    name, value = bad_sampling
    response = _post(client, COMPLETIONS, f'{{"model": "tiny", "prompt": "abc", "{name}": {value}}}')
    message = check_refused(response, 422, "invalid_request")
    assert name in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", '""'), ("stop", "5"),
        ("logprobs", "-1"), ("logprobs", "6"), ("logprobs", "true"),
        ("n", "0"), ("n", "17"), ("n", '"1"'),
        ("stream", '"yes"'), ("stream", "1"),
        ("stream_options", '{"else": true}'), ("stream_options", "true"),

        ("model", "5"), ("model", "null"),
        ("prompt", "null"), ("prompt", "5"), ("prompt", "{}"), ("prompt", "[true]"), ("prompt", "[1.0]"),
        ("prompt", '["a", 1]'), ("prompt", "[[2, 3], 5]"), ("prompt", "[null]"), ("prompt", json.dumps(["a"] * 129)),
        ("prompt", "[[2.5]]"), ("prompt", json.dumps([[2]] * 129)),
        ("prompt", '"\\ud800"'), ("prompt", '"abc\\udc00def"'), ("prompt", '["abc", "\\ud800"]'),
    ],
)  # fmt: skip
def test_completions_field_is_refused(client, name, value):
    fields = {"model": '"tiny"', "prompt": '"abc"'} | {name: value}
    body = "{" + ", ".join(f'"{key}": {text}' for key, text in fields.items()) + "}"
    assert name in check_refused(_post(client, COMPLETIONS, body), 422, "invalid_request")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("suffix", "end"),
        ("logit_bias", {"5": -100}),
    ],
)
def test_field_that_is_not_supported_says_so_and_may_ask_for_nothing(client, name, value):
    body = {"model": "tiny", "prompt": "abc"}
    message = check_refused(client.post(COMPLETIONS, json=body | {name: value}), 422, "invalid_request")
    assert message.startswith(f"{name}: is not supported; leave it out")
    for nothing in (None, type(value)()):
        assert client.post(COMPLETIONS, json=body | {name: nothing}).status_code == 200


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "empty_prompt"),
        ([], "empty_prompt"),
        (["abc", ""], "empty_prompt"),
        ("xyz", "unknown_tokens"),
        ("\0", "unknown_tokens"),
        ("\U0001f600\u202e", "unknown_tokens"),
        (["abc", "xyz"], "unknown_tokens"),
        ([13], "token_out_of_range"),
        ([2, -1, 3], "token_out_of_range"),
        ([10**30], "token_out_of_range"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompt_is_refused(client, prompt, code, stream):
    check_refused(client.post(COMPLETIONS, json={"model": "tiny", "prompt": prompt, "stream": stream}), 422, code)
    if not (isinstance(prompt, list) and prompt and isinstance(prompt[0], str)):
        field = "text" if isinstance(prompt, str) else "tokens"
        for path in (NEXT_TOKEN, SCORE):
            check_refused(client.post(path, json={field: prompt}), 422, code)


def test_prompt_with_nul_among_letters_is_served(client):
    assert client.post(COMPLETIONS, json={"model": "tiny", "prompt": "a\0b"}).status_code == 200


@pytest.mark.parametrize("path", [NEXT_TOKEN, SCORE])
def test_prompt_too_long_is_refused(client, path):
    message = check_refused(client.post(path, json={"tokens": [2] * 262_145}), 413, "prompt_too_long")
    assert "262,145" in message
    assert "262,144" in message
    check_refused(client.post(path, json={"text": "a" * 262_145}), 413, "prompt_too_long")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "a", "tokens": [2]},
        {"text": None, "tokens": None},
        {"text": 5},
        {"tokens": "abc"},
        {"tokens": [True]},
        {"tokens": [2.0]},
        {"text": "a", "top": 0},
        {"text": "a", "top": 101},
        {"text": "a", "top": True},
        {"text": "a", "topp": 5},
    ],
    ids=str,
)
def test_next_token_request_is_refused(client, body):
    check_refused(client.post(NEXT_TOKEN, json=body), 422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"nul", b"{'text': 'a'}", b'{"text": "a",}', b'{"text": "a"} x', b"\x00", b'{"text": "\x01"}',
        b'{"text": "\xff"}', b"\xfe\xff", b"\xed\xa0\x80", b"[" * 100_000, b'{"text":' * 100_000,
        b'{"top": ' + b"9" * 5_000 + b"}",
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
@pytest.mark.parametrize("path", [NEXT_TOKEN, COMPLETIONS])
def test_body_that_is_not_json_is_refused(client, path, body):
    check_refused(_post(client, path, body), 400, "malformed_json")


@pytest.mark.parametrize(
    "path",
    [
        NEXT_TOKEN, COMPLETIONS, "/v1/models/tiny/score", "/v1/models/tutor/trace", "/v1/models/scenes/captions",
        "/v1/models/scenes/captions/attention.svg",
    ],
)  # fmt: skip
def test_body_of_any_depth_is_refused(client, path):
    for depth in (199, 201, 700, 960, 980, 1_000, 1_100, 100_000):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            for field in ("text", "learners", "image", "unknown"):
                body = f'{{"model": "tiny", "{field}": {opening * depth}1{closing * depth}}}'
                response = _post(client, path, body)
                told = response.status_code, response.json()["error"]["code"]
                assert told in ((400 if path == COMPLETIONS else 422, "invalid_request"), (400, "malformed_json"))


@pytest.mark.parametrize("body", [b"", b"[]", b'"text"', b"5", b"null", b"true", b"NaN", b'[{"text": "a"}]'])
def test_body_that_is_no_object_is_refused(client, body):
    assert "JSON object" in check_refused(_post(client, NEXT_TOKEN, body), 422, "invalid_request")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "nonsense", ""])
def test_body_of_another_type_is_refused(client, content_type):
    response = _post(client, NEXT_TOKEN, b'{"text": "a"}', content_type)
    assert "application/json" in check_refused(response, 422, "invalid_request")


@pytest.mark.parametrize("content_type", ["Application/JSON; charset=utf-8", "application/ld+json"])
def test_body_of_another_name_for_json_is_read(client, content_type):
    assert _post(client, NEXT_TOKEN, b'{"text": "a"}', content_type).status_code == 200


@pytest.mark.parametrize("key", ["\\ud800", "x" * 100_000, "\\u0000", "\\n", "top-p"], ids=lambda key: key[:6])
def test_unknown_field_is_refused_whatever_its_name(client, key):
    check_refused(_post(client, NEXT_TOKEN, f'{{"text": "a", "{key}": 1}}'), 422, "invalid_request")


@pytest.mark.parametrize(
    "content",
    [
        '{"tokens": [' + ",".join(['"a"'] * 900_000) + "]}",
        "{" + ",".join(f'"{number}": 1' for number in range(250_000)) + "}",
        '{"model": "tiny", "prompt": [' + ",".join(["1.5"] * 900_000) + "]}",
        '{"model": "tiny", "prompt": "a", "stop": [' + ",".join(['""'] * 900_000) + "]}",
    ],
    ids=["tokens", "fields", "prompt", "stop"],
)
def test_body_of_many_mistakes_makes_few_errors(client, content):
    path = COMPLETIONS if '"model"' in content[:12] else NEXT_TOKEN
    message = check_refused(_post(client, path, content), 422, "invalid_request")
    # An error for each mistake would be a gigabyte of them, and seconds in which nobody else is served.
    more = re.search(r"and (\d+) more", message)
    assert more is None or int(more[1]) < 5


@pytest.mark.parametrize(
    "name", ["nobody", "", "../tiny", "tiny/1", "tiny\0", "模型", "x" * 100_000, "%s%n", "<script>", "TINY"]
)
def test_model_that_is_not_served_is_refused(client, name):
    check_refused(client.post(COMPLETIONS, json={"model": name, "prompt": "a"}), 404, "unknown_model")


@pytest.mark.parametrize("name", ["nobody", "%00", "%ff", "%E6%A8%A1", "tiny%20", "%7B%7D", "..%5Ctiny", "x" * 5_000])
@pytest.mark.parametrize("rest", ["", "/next-token", "/score"])
def test_model_in_a_path_that_is_not_served_is_refused(client, name, rest):
    url = f"/v1/models/{name}{rest}"
    response = client.post(url, json={"text": "abc"}) if rest else client.get(url)
    check_refused(response, 404, "unknown_model")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/model", "/v1/models/tiny/traces", "/v1/models/tiny/1", "/%00/%ff"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_path_is_refused(client, path, method):
    check_refused(client.request(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", COMPLETIONS, "POST"),
        ("PUT", NEXT_TOKEN, "POST"),
        ("OPTIONS", NEXT_TOKEN, "POST"),
        ("HEAD", NEXT_TOKEN, "POST"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("PATCH", "/readyz", "GET, HEAD"),
        ("PUT", "/v1/models/tiny/sessions/a", "DELETE, GET, HEAD"),
        ("OPTIONS", "/v1/models/tiny/sessions/a", "DELETE, GET, HEAD"),
        ("PUT", "/v1/models/tutor/trace/a/mastery.svg", "GET, HEAD"),
        ("POST", "/v1/models/tiny/stream", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_wrong_method_is_refused(client, method, path, allowed):
    response = client.request(method, path)
    assert response.status_code == 405
    if method != "HEAD":
        check_refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("model", ["tiny", "scenes", "nobody"])
def test_stream_without_an_upgrade_says_what_is_missing(client, model):
    response = client.get(f"/v1/models/{model}/stream", headers={"connection": "keep-alive"})
    assert "Upgrade" in check_refused(response, 426, "upgrade_required")
    assert (response.headers["upgrade"], response.headers["connection"]) == ("websocket", "upgrade")


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"max_tokens": 0, "echo": False, "logprobs": 1},
        {"max_tokens": 0, "echo": True, "session": "ada"},
        {"max_tokens": 0, "echo": True, "return_state": True},
        {"best_of": 17},
        {"best_of": 0},
        {"best_of": 2, "n": 3},
        {"best_of": 2, "stream": True},
        {"best_of": 2, "session": "ada"},
    ],
    ids=str,
)
def test_fields_that_make_no_sense_together_are_refused(client, fields):
    message = check_refused(
        client.post(COMPLETIONS, json={"model": "tiny", "prompt": "abc", **fields}), 422, "invalid_request"
    )
    assert next(iter(fields)) in message or "session" in message


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_body_of_100_megabytes_is_refused_unread(server, raw_client, client, chunked):
    total, chunk = 100_000_000, b"a" * 65_536
    connection = raw_client().socket
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {total}"
    connection.sendall(
        f"POST {COMPLETIONS} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n{length}\r\n\r\n".encode()
    )
    piece = b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk
    connection.setblocking(False)
    accepted, pending = 0, b""
    while accepted < total:
        readable, writable, _ = select.select([connection], [connection], [], 60)
        assert readable or writable, "the server neither reads nor answers"
        if readable:
            break
        pending = pending or piece
        sent = connection.send(pending)
        accepted, pending = accepted + sent, pending[sent:]
    # What was taken bounds what can be held: the limit of 4 MiB, and what the kernel buffers on both sides.
    assert accepted < 24_000_000
    connection.setblocking(True)
    answer = b""
    while not answer.endswith(b"}}"):
        part = connection.recv(65_536)
        assert part, answer
        answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer
    assert b"connection: close" in answer.lower()


def test_body_of_the_limit_is_read_and_one_byte_more_is_not(run_server, client):
    with run_server(max_body_bytes=2_000) as server:
        url = server.url + NEXT_TOKEN
        body = json.dumps({"text": "abc"}).encode()

        def padded(size: int) -> bytes:
            return body + b" " * (size - len(body))

        assert client.post(url, content=padded(2_000), headers={"content-type": "application/json"}).status_code == 200
        check_refused(_post(client, url, padded(2_001)), 413, "body_too_large")
        chunks = (padded(2_001)[start : start + 100] for start in range(0, 2_001, 100))
        check_refused(_post(client, url, chunks), 413, "body_too_large")


def test_refusals_are_counted_by_their_code(client, ended):
    client.post(COMPLETIONS, json={"model": "tiny", "prompt": ""})
    client.post(COMPLETIONS, json={"model": "tiny", "prompt": "a", "n": 0})
    _post(client, COMPLETIONS, b"{")
    client.post(COMPLETIONS, json={"model": "nobody", "prompt": "a"})
    _post(client, COMPLETIONS, b" " * 5_000_000)
    codes = ["empty_prompt", "invalid_request", "malformed_json", "unknown_model", "body_too_large"]
    ended(**dict.fromkeys(codes, 1))


def test_bad_requests_change_nobodys_tokens(client, unchanged):
    with unchanged():
        for _ in range(5):
            check_refused(_post(client, COMPLETIONS, b"[" * 100_000), 400, "malformed_json")
            check_refused(client.post(COMPLETIONS, json={"model": "tiny", "prompt": [13]}), 422, "token_out_of_range")
            check_refused(_post(client, COMPLETIONS, b" " * 5_000_000), 413, "body_too_large")
            check_refused(client.post(COMPLETIONS, json={"model": "tiny", "prompt": "xyz"}), 422, "unknown_tokens")


def test_half_a_surrogate_pair_elsewhere_breaks_nothing(client):
    response = _post(client, COMPLETIONS, '{"model": "\\ud800", "prompt": "abc"}')
    check_refused(response, 404, "unknown_model")
    assert _post(client, COMPLETIONS, '{"model": "tiny", "prompt": "abc", "user": "\\ud800"}').status_code == 200
