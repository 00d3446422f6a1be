"""What deploy/ and docker-compose.yml hold is what the service is: each file judged by the tool that will read it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from carousel.service.observability.metrics import Metrics
from carousel.service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
KEYS = yaml.safe_load((ROOT / "docker-compose.keys.yml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    if environment is None:  # what other tests leave behind is none of compose's business
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_compose_file_is_valid_with_every_profile():
    profiles = ("--profile", "redis", "--profile", "gpu")
    services = run(tool("docker-compose"), *profiles, "config", "--services").split()
    assert sorted(services) == ["carousel", "carousel-gpu", "grafana", "prometheus", "redis"]


def test_compose_gives_a_gpu_to_the_one_service_that_asks_for_cuda():
    merged = yaml.safe_load(run(tool("docker-compose"), "--profile", "gpu", "config"))["services"]
    (device,) = merged["carousel-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert merged["carousel-gpu"]["environment"].pop("CAROUSEL_PROVIDERS") == "cuda"
    assert merged["carousel"]["environment"].pop("CAROUSEL_PROVIDERS") == ""
    assert merged["carousel-gpu"]["environment"] == merged["carousel"]["environment"]
    assert merged["carousel-gpu"]["build"]["args"] == {"EXTRA": "gpu"}
    assert "ARG EXTRA=\n" in DOCKERFILE
    assert "gpu" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    published = [str(port) for name in merged for port in merged[name].get("ports", [])]
    assert len(set(published)) == len(published), "two services on one port"


def test_gpu_build_is_that_of_the_same_onnxruntime():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (base,) = (entry for entry in project["dependencies"] if entry.startswith("onnxruntime"))
    (gpu,) = project["optional-dependencies"]["gpu"]
    assert gpu == base.replace("onnxruntime", "onnxruntime-gpu[cuda,cudnn]")
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert pins["onnxruntime-gpu"] == pins["onnxruntime"]


def test_compose_with_keys_is_valid_and_gives_each_its_file():
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.keys.yml")
    merged = yaml.safe_load(run(tool("docker-compose"), *files, "config"))["services"]
    keys_file = Path(merged["carousel"]["environment"]["CAROUSEL_API_KEYS_FILE"])
    assert any(str(keys_file.parent) in str(volume) for volume in merged["carousel"]["volumes"])
    mounted = [
        str(volume) for volume in merged["prometheus"]["volumes"] if "/etc/prometheus/prometheus.yml" in str(volume)
    ]
    assert len(mounted) == 1
    assert "prometheus.keys.yml" in mounted[0]
    assert set(KEYS["secrets"]) == {"prometheus_key"}
    assert set(KEYS["services"]["carousel"]["environment"]) <= {
        f"CAROUSEL_{name.upper()}" for name in Settings.model_fields
    }


def test_prometheus_with_a_key_is_prometheus_and_the_key():
    plain, keyed = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("prometheus.yml", "prometheus.keys.yml"))
    (secret,) = KEYS["services"]["prometheus"]["secrets"]
    assert keyed["scrape_configs"][0].pop("authorization") == {"credentials_file": f"/run/secrets/{secret}"}
    assert keyed == plain


def test_secrets_stay_out_of_git():
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert all(secret["file"].startswith("./secrets/") for secret in KEYS["secrets"].values())


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_service_is_confined(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith("0")
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert re.search(r":v?\d+\.\d+\.\d+(-[a-z]+)?$", service["image"]), "an image without a pinned version"
    assert "healthcheck" in service or "HEALTHCHECK" in DOCKERFILE
    assert all(port.startswith(("127.0.0.1:", "${CAROUSEL_HOST:-127.0.0.1}:")) for port in service.get("ports", []))


SETTINGS = [f"CAROUSEL_{field.upper()}" for field in Settings.model_fields]
OUTSIDE = {"CAROUSEL_HOST": "10.0.0.7", "CAROUSEL_PORT": "9000", "CAROUSEL_REPOSITORY": "./elsewhere/models"}
"""What the image sets, and what is meant outside of the container."""


def composed(*options: str, **environment: str) -> Any:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
    output = run(tool("docker-compose"), *options, "config", environment=bare | environment)
    return yaml.safe_load(output)["services"]


@pytest.mark.parametrize("service", ["carousel", "carousel-gpu"])
def test_compose_passes_every_setting_and_nothing_else(service):
    inside = {name: f"a value of {name}" for name in SETTINGS if name not in OUTSIDE}
    merged = composed("--profile", "gpu", **inside, **OUTSIDE)[service]
    expected = inside | ({"CAROUSEL_PROVIDERS": "cuda"} if service == "carousel-gpu" else {})
    assert merged["environment"] == expected
    port = "9000" if service == "carousel" else "8001"
    assert [str(one) for one in merged["ports"]] == [f"10.0.0.7:{port}:8000/tcp"]
    assert str(ROOT / "elsewhere" / "models") in str(merged["volumes"])
    assert set(re.findall(r"CAROUSEL_\w+", DOCKERFILE)) <= set(OUTSIDE)


def test_compose_changes_no_default(monkeypatch):
    merged = composed()["carousel"]
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    defaults = Settings()
    for name, value in merged["environment"].items():
        monkeypatch.setenv(name, value)
    assert Settings() == defaults
    assert [str(one) for one in merged["ports"]] == ["127.0.0.1:8000:8000/tcp"]
    assert str(ROOT / "bundles") in str(merged["volumes"])


def test_compose_with_keys_leaves_no_service_without():
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.keys.yml")
    merged = composed(*files, "--profile", "gpu", CAROUSEL_API_KEYS_FILE="somewhere")
    for service in ("carousel", "carousel-gpu"):
        assert merged[service]["environment"]["CAROUSEL_API_KEYS_FILE"] == "/run/keys/api_keys"
        assert "secrets/service" in str(merged[service]["volumes"])


def test_compose_mounts_what_is_there():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
            source = source.removeprefix("${CAROUSEL_REPOSITORY:-").removesuffix("}")
            assert source in COMPOSE["volumes"] or (ROOT / source).exists()


def test_dockerfile_copies_every_package_and_nothing_that_is_not_there():
    rooms = {path.name for path in (ROOT / "carousel").iterdir() if path.is_symlink()}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert {"carousel", *rooms} <= copied
    assert all((ROOT / source).exists() for source in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed


def test_prometheus_configuration_and_rules_are_valid():
    run(tool("promtool"), "check", "config", "deploy/prometheus.yml")


def test_alerts_fire_when_they_should_and_only_then():
    run(tool("promtool"), "test", "rules", "deploy/alerts_test.yml")


def test_every_alert_has_a_severity_a_summary_and_a_runbook_and_is_tested():
    tested = (DEPLOY / "alerts_test.yml").read_text()
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert {"summary", "runbook"} == set(rule["annotations"])
            assert rule["alert"] in tested


def expressions() -> list[tuple[str, str]]:
    """Where each PromQL expression stands, and the expression."""
    found = [
        (f"{path.stem}: {panel['title']}", target["expr"])
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]
    rules: dict[str, Any] = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    return found + [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_expression_asks_for_metrics_that_there_are(where, expression):
    known = {sample for metric in Metrics().registry.collect() for sample in names_of(metric.name, metric.type)}
    asked = set(re.findall(r"\b(?:carousel|process)_\w+", expression))
    assert asked or expression.startswith("up{")
    assert asked <= known, where


def names_of(name: str, kind: str) -> list[str]:
    if kind == "histogram":
        return [f"{name}_bucket", f"{name}_sum", f"{name}_count"]
    return [f"{name}_total" if kind == "counter" else name]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_is_whole(path):
    dashboard = json.loads(path.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_asks_whichever_prometheus_and_job_are_chosen(path):
    dashboard = json.loads(path.read_text())
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "model"]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", source["type"])
    assert source["isDefault"] is True  # which is what the variable begins with
    assert re.findall(r'"uid": "(?!carousel-)([^"]*)"', path.read_text()) == ["${datasource}"] * path.read_text().count(
        '"type": "prometheus"'
    )
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            metrics = re.findall(r"\b(?:carousel|process)_\w+(?:\{[^}]*})?", target["expr"])
            assert metrics
            assert all('{job=~"$job",instance=~"$instance"' in one for one in metrics), panel["title"]
    # All of a list, and not of everything: else others' process_ metrics would be shown, too.
    assert all("allValue" not in variables[name] and variables[name]["includeAll"] for name in ("job", "instance"))


def test_overview_has_panels_by_replica():
    panels = json.loads((DEPLOY / "grafana/dashboards/overview.json").read_text())["panels"]
    by_replica = [panel["title"] for panel in panels if "by replica" in panel["title"]]
    assert len(by_replica) >= 5
    assert all(
        target["legendFormat"] == "{{instance}}"
        for panel in panels
        if "by replica" in panel["title"]
        for target in panel["targets"]
    )


def test_no_alert_depends_on_what_the_job_is_called():
    """But as one way of several: whoever has another Prometheus calls it something else."""
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    named = [rule["alert"] for rule in rules if "job=" in rule["expr"]]
    assert named == ["CarouselDown"]
    assert "CarouselAbsent" in [rule["alert"] for rule in rules]


def test_dashboards_are_three_and_the_home_is_one():
    assert [path.stem for path in DASHBOARDS] == ["generation", "overview", "sessions"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name == "overview.json"
