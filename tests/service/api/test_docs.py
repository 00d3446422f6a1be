"""/docs works without the internet, and what OpenAPI has no place for is described all the same."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from carousel.service.api.docs import EVENTS, RAW_EVENTS, frames

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LINK = re.compile(r'(?:src|href)="([^"]+)"')


def test_page_loads_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "://" not in page.text
    links = LINK.findall(page.text)
    assert len(links) == 4
    for link in links:
        part = client.get(f"/{link}")
        assert part.status_code == 200
        assert part.headers["x-content-type-options"] == "nosniff"  # so the type must be right
        kind = {"js": "text/javascript", "css": "text/css", "png": "image/png"}[link.rpartition(".")[2]]
        assert part.headers["content-type"].partition(";")[0] == kind


@pytest.mark.parametrize("file", ["nothing.js", "..%2f__init__.py", "%2fetc%2fpasswd", "resources"])
def test_file_of_another_name_is_not_found(client, refused, file):
    refused(client.get(f"/docs/{file}"), 404, "not_found")


def test_frames_and_events_are_described(client, connect):
    schema = client.get("/openapi.json").json()
    assert schema == client.get("/openapi.json").json()
    schemas, text = schema["components"]["schemas"], schema["info"]["description"]
    for frame in frames():
        assert set(schemas[frame.__name__]["properties"]) == set(frame.model_fields)
        assert f"`{frame.__name__}`" in text
    references = set(re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text))
    assert references <= set(schemas)
    stream = connect()
    seen = {event["type"]: set(event) - {"type"} for event in stream.generate("abc", max_tokens=2)}
    stream.start("", max_tokens=1)
    refused = stream.refusal()[0]
    seen["error"] = set(refused) - {"type"}
    raw = connect()
    raw.send(type="start", raw=True)
    raw.send(type="steps", inputs={"token": [1]})
    raw.send(type="steps", inputs={"token": [-1]})
    raw.send(type="finish")
    seen_raw = {event["type"]: set(event) - {"type"} for event in (raw.receive() for _ in range(4))}
    for kinds, events in ((seen, EVENTS), (seen_raw, RAW_EVENTS)):
        assert set(kinds) == set(events)
        for kind, fields in kinds.items():
            told = re.sub(r"\(.*?\)|;.*", "", events[kind])
            assert {name.strip() for name in told.split(",")} == fields, kind
            assert f"| `{kind}` | {events[kind]} |" in text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_browser_shows_the_routes_and_is_refused_nothing(server, tmp_path):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    command += ["--virtual-time-budget=20000", "--dump-dom", f"{server.url}/docs"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Content Security Policy" not in shown.stderr
    assert 'id="operations-models-' in shown.stdout
    assert "Streams over a WebSocket" in shown.stdout
    assert "CaptionStart" in shown.stdout
