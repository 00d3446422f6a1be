"""A real Prometheus on deploy/prometheus.yml watches a real service under load: every panel and alert gets its data."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from carousel.service.keys.key_file import key_line, new_key

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
WINDOW = "10s"
DEADLINE_SECONDS = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return found


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def configure(home: Path, name: str, service: str) -> dict[str, Any]:
    """A configuration of deploy/, that scrapes this service and often."""
    shutil.copy(DEPLOY / "alerts.yml", home)
    configuration = yaml.safe_load((DEPLOY / name).read_text())
    assert configuration["scrape_configs"][0]["static_configs"] == [{"targets": ["carousel:8000"]}]
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [service]}]
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    return configuration


@contextmanager
def watching(home: Path, configuration: dict[str, Any]) -> Iterator[httpx.Client]:
    """A Prometheus."""
    (home / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = free_address()
    command = (
        "prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
        f"--web.listen-address={address}",
    )  # fmt: skip
    with process(*command, log=home / "log"), httpx.Client(base_url=f"http://{address}/api/v1") as client:
        until(lambda: answers(client), (home / "log").read_text())
        yield client


@contextmanager
def serving(log: Path, **environment: str) -> Iterator[str]:
    """A service; gives where it listens."""
    with process(sys.executable, "-m", "service", log=log, CAROUSEL_PORT="0", **environment) as child:
        ready = until(
            lambda: child.poll() is not None or re.search(r"ready on http://(\S+)", log.read_text()), "no service"
        )
        assert child.poll() is None, log.read_text()
        yield ready[1]


@contextmanager
def process(*command: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        child = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=os.environ | environment)
        try:
            yield child
        finally:
            child.terminate()
            child.wait(30)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("service") / "log", CAROUSEL_MAX_SESSIONS="3") as address:
        yield address


def drive(service: str) -> None:
    """A little of everything: streams, traces with more sessions than are kept, an error, an unknown model."""
    with httpx.Client(base_url=f"http://{service}", timeout=30) as client:
        for learner in range(5):
            attempt = {"skill": "Counting", "correct": True}
            client.post("/v1/models/tutor/trace", json={"session": f"l{learner}", "attempts": [attempt]})
        body = {"model": "shakespeare", "prompt": "The lady ", "max_tokens": 50}
        assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/v1/completions", json=body | {"stream": True}).status_code == 200
        assert client.post("/v1/completions", json=body | {"model": "none"}).status_code == 404
        assert client.post("/v1/models/shakespeare/score", json={"text": ""}).status_code == 422


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("prometheus")
    with watching(home, configure(home, "prometheus.yml", service)) as client:
        with ThreadPoolExecutor(4) as pool:
            end = time.monotonic() + 8
            while time.monotonic() < end:
                list(pool.map(drive, [service] * 4))
        yield client


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status/buildinfo").status_code == 200
    except httpx.TransportError:
        return False


def query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    expression = expression.replace("$__rate_interval", WINDOW).replace("$model", ".*")
    expression = expression.replace("$job", "carousel").replace("$instance", ".*")
    answer = client.get("/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    data = answer["data"]
    return data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]


def targets() -> list[Any]:
    return [
        pytest.param(panel, target, id=f"{path.stem}-{panel['title']}-{target['refId']}")
        for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize(("panel", "target"), targets())
def test_panel_shows_data(prometheus, service, panel, target):
    samples = query(prometheus, target["expr"])
    if not samples or all(math.isnan(float(sample["value"][1])) for sample in samples):  # the load lies too far back
        drive(service)
        samples = until(lambda: query(prometheus, target["expr"]), f"no data: {target['expr']}")
    assert any(math.isfinite(float(sample["value"][1])) for sample in samples)
    for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
        assert all(label in sample["metric"] for sample in samples), f"no label {label}"
    if panel["type"] == "heatmap":
        assert len({sample["metric"]["le"] for sample in samples}) > 5
    if panel["type"] == "stat":
        assert len(samples) == 1


def rules() -> list[Any]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [pytest.param(rule["expr"], id=rule["alert"]) for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("expression", rules())
def test_alert_watches_data(prometheus, service, expression):
    """Without its threshold, and without looking back to before the test, an alert's expression has a value."""
    watched = re.sub(r"\s(>|==)\s[\d.]+", "", expression).replace(" offset 6h", "").removeprefix("absent")
    assert watched != expression
    drive(service)
    samples = until(lambda: query(prometheus, watched), f"no data: {watched}")
    assert {"model", "instance"} & set(samples[0]["metric"])


def test_rules_are_evaluated_without_an_error(prometheus):
    def evaluated() -> list[dict[str, Any]] | None:
        loaded = [rule for group in prometheus.get("/rules").json()["data"]["groups"] for rule in group["rules"]]
        return loaded if all(rule["health"] != "unknown" for rule in loaded) else None

    loaded = until(evaluated, "rules are not evaluated")
    assert len(loaded) == len(rules())
    assert [rule["lastError"] for rule in loaded if rule["health"] != "ok"] == []


def test_prometheus_with_a_key_scrapes_a_service_that_asks_for_one(tmp_path):
    key = new_key()
    (tmp_path / "api_keys").write_text(key_line("prometheus", "metrics", key))
    (tmp_path / "prometheus_key").write_text(key + "\n")
    with serving(tmp_path / "service.log", CAROUSEL_API_KEYS_FILE=str(tmp_path / "api_keys")) as address:
        configuration = configure(tmp_path, "prometheus.keys.yml", address)
        configuration["scrape_configs"][0]["authorization"]["credentials_file"] = str(tmp_path / "prometheus_key")
        with watching(tmp_path, configuration) as client:
            until(lambda: [one for one in query(client, "up") if one["value"][1] == "1"], "not scraped")
            assert query(client, "carousel_ready")[0]["value"][1] == "1"
