"""Variables that are no settings are named, and said to be without effect."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from carousel.service.settings import Settings, unknown_variables


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["CAROUSEL_PROT"], "CAROUSEL_PROT (is CAROUSEL_PORT meant?)"),
        (["carousel_max_row", "PATH"], "carousel_max_row (is CAROUSEL_MAX_ROWS meant?)"),
        (["CAROUSEL_REDIS", "CAROUSEL_ZZZ"], "CAROUSEL_REDIS (is CAROUSEL_REDIS_URL meant?), CAROUSEL_ZZZ"),
        (["CAROUSEL_"], "CAROUSEL_"),
    ],
)
def test_variable_that_is_no_setting_is_named(names, told):
    assert unknown_variables(names) == f"no settings, and without effect: {told}"


def test_settings_and_other_variables_are_not_named():
    names = [f"CAROUSEL_{field}" for field in Settings.model_fields]
    assert unknown_variables([*names, *map(str.upper, names), "CAROUSELS", "PORT", "OTEL_SERVICE_NAME"]) == ""


@pytest.mark.parametrize("command", [(), ("trace", "--model", "tiny", "--input", "none.csv", "--output", "x")])
def test_command_warns_of_a_variable_that_is_no_setting_and_does_not_tell_its_value(all_models, command, tmp_path):
    settings = {"CAROUSEL_PROT": "8104", "CAROUSEL_LOG_FORMAT": "json", "CAROUSEL_API_KEYS_FILE": str(tmp_path / "no")}
    environment = os.environ | settings | {"CAROUSEL_REPOSITORY": str(all_models)}
    done = subprocess.run(
        [sys.executable, "-m", "service", *command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "no settings, and without effect: CAROUSEL_PROT (is CAROUSEL_PORT meant?)" in done.stderr
    assert "8104" not in done.stderr


@pytest.mark.parametrize("host", ["", " "])
def test_host_that_is_empty_is_no_address(host):
    """Asyncio would listen on every address of the machine, where no Host header is looked at."""
    with pytest.raises(ValueError, match=r"is empty; give an address, such as 127\.0\.0\.1, or 0\.0\.0\.0 for all"):
        Settings(host=host)
