"""Which pages may use the server, and by which names it may be called."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from carousel.service.keys.origins import Origins, is_loopback, origin_of
from carousel.service.settings import Settings


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example", "https://app.example"),
        (" HTTPS://App.Example/ ", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_origin_is_written_as_browsers_do(text, origin):
    assert origin_of(text) == origin


@pytest.mark.parametrize(
    "text",
    ["", "null", "app.example", "ws://app.example", "file://", "https://", "https://a.example/path", "https://a:b",
     "https://user@a.example", "https://a.example?q", "https://[::1"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(ValueError, match="is no origin; give what browsers send"):
        origin_of(text)


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("http://LOCALHOST:8000", "localhost:8000", True),
        ("https://carousel.example", "carousel.example", True),
        ("http://carousel.example", "carousel.example:80", True),
        ("https://carousel.example", "carousel.example:443", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://localhost:3000", "localhost:8000", False),
        ("http://localhost", "localhost:8000", False),
        ("https://evil.example", "carousel.example", False),
        ("https://carousel.example.evil.example", "carousel.example", False),
        ("null", "carousel.example", False),
        ("file://", "", False),
        ("", "", False),
        ("http://", "", False),
        ("chrome-extension://abc", "abc", False),
        ("http://[", "[", False),
    ],
)
def test_page_of_the_same_origin_is_let_in(origin, host, allowed):
    assert Origins((), "0.0.0.0").allows(origin, host) == allowed


def test_named_origins_are_let_in_and_all_others_are_not():
    origins = Origins(("https://app.example",), "127.0.0.1")
    assert origins.allows("https://app.example", "elsewhere")
    assert origins.allows("https://app.example")
    assert not origins.allows("http://app.example")
    assert not origins.allows("https://evil.example")
    assert Origins(("*",), "127.0.0.1").allows("null")


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True), ("localhost:8000", True), ("127.0.0.1:8000", True), ("[::1]:8000", True),
        ("my.localhost", True), ("carousel", True), ("192.168.1.7:8000", True), ("", True),
        ("app.example", True), ("app.example:8000", True),
        ("evil.example", False), ("evil.example:8000", False), ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False), ("evil.example.", False), ("[::1", False),
    ],
)  # fmt: skip
def test_server_of_this_machine_knows_its_names(host, known):
    assert Origins(("https://app.example",), "127.0.0.1").knows(host) == known
    assert Origins((), "0.0.0.0").knows(host)
    assert Origins(("*",), "127.0.0.1").knows(host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("carousel.example", False)],
)  # fmt: skip
def test_what_is_reached_from_this_machine_only(host, expected):
    assert is_loopback(host) == expected


def test_settings_are_lists_with_commas(monkeypatch):
    monkeypatch.setenv("CAROUSEL_CORS_ORIGINS", "https://App.example/, http://localhost:3000,")
    monkeypatch.setenv("CAROUSEL_IGNORED_FIELDS", "metadata, store")
    settings = Settings()
    assert settings.cors_origins == ("https://app.example", "http://localhost:3000")
    assert settings.ignored_fields == ("metadata", "store")
    monkeypatch.setenv("CAROUSEL_CORS_ORIGINS", "https://app.example/path")
    with pytest.raises(ValidationError, match="is no origin"):
        Settings()
