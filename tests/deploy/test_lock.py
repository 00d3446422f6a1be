"""constraints.txt is a lock: whatever the service installs is in it, in one version, under a licence that says so."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


def shipped() -> dict[str, Distribution]:
    """What `pip install '.[otel]'` brings, found as pip finds it: by what each distribution says that it needs."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["otel"]]
    found: dict[str, Distribution] = {}
    while wanted:
        requirement = Requirement(wanted.pop())
        extras = [*requirement.extras, ""]
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found[name] = one = distribution(name)
        for line in one.requires or ():
            inner = Requirement(line)
            if canonicalize_name(inner.name) in found:
                continue
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                inner.marker = None
                wanted.append(str(inner))
    return found


SHIPPED = shipped()


def test_lock_names_versions_and_nothing_else():
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line  # no address, no option, no range
    assert len(PINS) == len(LINES)
    assert {"onnxruntime", "fastapi", "starlette", "opentelemetry-sdk"} <= set(SHIPPED)  # also what is needed by others


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_what_is_shipped_is_locked_in_the_version_that_is_tested(name):
    assert PINS.get(name) == SHIPPED[name].version


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_what_is_shipped_says_its_licence(name):
    metadata = SHIPPED[name].metadata
    classifiers = [one for one in metadata.get_all("Classifier") or () if one.startswith("License :: OSI Approved")]
    assert metadata.get("License-Expression") or metadata.get("License") or classifiers
