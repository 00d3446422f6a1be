"""What a user can set, be told and measure is written down: a setting, error code or metric nobody documented fails."""

from pathlib import Path

import pytest

from service.errors import ErrorCode
from service.observability.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parents[2]
METRICS = sorted(
    metric.name + ("_total" if metric.type == "counter" else "") for metric in Metrics().registry.collect()
)


@pytest.fixture(scope="module")
def documented() -> str:
    pages = [path for path in (ROOT / "README.md", ROOT / "service" / "README.md") if path.exists()]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("field", Settings.model_fields)
def test_setting_is_documented(documented, field):
    assert f"`CAROUSEL_{field.upper()}`" in documented


@pytest.mark.parametrize("code", ErrorCode.TABLE)
def test_error_code_is_documented(documented, code):
    assert f"`{code}`" in documented


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_documented(documented, name):
    assert f"`{name}`" in documented


def test_metrics_are_all_seen():
    assert "carousel_requests_total" in METRICS
    assert "carousel_step_seconds" in METRICS
    assert all(name.startswith(("carousel_", "process_")) for name in METRICS)
