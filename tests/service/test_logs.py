"""What is logged: each request's end once, as text or as JSON, and never what was sent."""

import io
import json
import logging
from datetime import datetime

import httpx
import pytest

from service.keys.caller import Caller
from service.keys.key_file import Key, key_line, new_key
from service.observability.logs import JsonFormatter
from service.observability.requests import RequestLine, RequestRecord


@pytest.fixture
def lines():
    """Attaches a JSON log to the service's loggers; gives what was written, as objects."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("carousel")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_line_is_one_object_whatever_is_in_the_message(lines):
    logging.getLogger("carousel.test").warning("two\nlines %s", '"\u2028\x1b[31m')
    (line,) = lines()
    assert (line["level"], line["logger"]) == ("warning", "carousel.test")
    assert line["message"] == 'two\nlines "\u2028\x1b[31m'
    assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0


def test_exception_is_in_its_line(lines):
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        logging.getLogger("carousel.test").exception("failed")
    (line,) = lines()
    assert line["exception"].splitlines()[-1] == "RuntimeError: a defect"


def test_request_says_the_same_as_text_and_as_fields():
    record = RequestRecord("1f", "tiny", "3", "/v1/completions", "ok", 0.0)
    line = RequestLine(record, 0.01234567)
    assert str(line) == "/v1/completions model=tiny version=3 outcome=ok seconds=0.0123 request_id=1f"
    assert "key" not in line.fields()
    record.caller = Caller(Key("ada", "school", bytes(32)))
    assert str(line).endswith("request_id=1f tenant=school key=ada")
    assert line.fields() == {
        "endpoint": "/v1/completions", "model": "tiny", "version": "3", "outcome": "ok", "seconds": 0.012346,
        "request_id": "1f", "tenant": "school", "key": "ada",
    }  # fmt: skip


def test_requests_are_logged_with_their_caller_and_without_what_they_sent(run_server, tmp_path, lines):
    key, secret = new_key(), "abcabcabc"
    path = tmp_path / "keys"
    path.write_text(key_line("ada", "school", key))
    headers = {"Authorization": f"Bearer {key}"}
    with run_server(api_keys_file=path) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"model": "tiny", "prompt": secret, "max_tokens": 2}
        ids = [
            client.post("/v1/completions", json=body, headers=headers).headers["x-request-id"],
            client.post("/v1/completions", json=body | {"secret": secret}, headers=headers).headers["x-request-id"],
            client.post("/v1/completions", json=body).headers["x-request-id"],
            client.get(f"/{secret}?{secret}", headers=headers).headers["x-request-id"],
        ]
    ended = [line for line in lines() if line["logger"] == "carousel.requests"]
    assert [line["request_id"] for line in ended] == ids
    assert [line["outcome"] for line in ended] == ["ok", "invalid_request", "missing_key", "not_found"]
    assert [(line.get("tenant"), line.get("key")) for line in ended] == [
        ("school", "ada"), ("school", "ada"), (None, None), ("school", "ada"),
    ]  # fmt: skip
    assert [(line["model"], line["version"]) for line in ended] == [("tiny", "1"), *[("unknown", "unknown")] * 3]
    assert all(0 < line["seconds"] < 60 for line in ended)
    everything = json.dumps(lines())
    assert secret not in everything
    assert key not in everything
