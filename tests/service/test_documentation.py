"""What a user can set, be told and measure is written down: a setting, error code or metric nobody documented fails."""

from pathlib import Path
from typing import get_args

import pytest

from carousel.service.errors import ERRORS, ErrorCode
from carousel.service.observability.metrics import Metrics
from carousel.service.settings import Settings

ROOT = Path(__file__).parents[2]
METRICS = sorted(
    metric.name + ("_total" if metric.type == "counter" else "") for metric in Metrics().registry.collect()
)


@pytest.fixture(scope="module")
def documented() -> str:
    pages = [path for path in (ROOT / "README.md", ROOT / "service" / "README.md") if path.exists()]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def test_table_of_settings_is_what_they_are(documented):
    """Names, defaults and descriptions, both ways, and in the same order."""
    expected = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        expected.append((f"`CAROUSEL_{name.upper()}`", default, field.description))
    table = documented[documented.index("| variable | default | meaning |") :]
    rows = table[: table.index("\n\n")].splitlines()[2:]
    assert [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows] == expected


def test_table_of_errors_is_what_clients_can_get(documented):
    """Codes, statuses, whether to try again and meanings, both ways, and in the same order."""
    expected = [
        (f"`{code}`", str(status), "yes" if retryable else "no", meaning)
        for code, (status, retryable, meaning) in ERRORS.items()
    ]
    table = documented[documented.index("| code | status | retryable | meaning |") :]
    rows = table[: table.index("\n\n")].splitlines()[2:]
    assert [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows] == expected
    assert list(ERRORS) == list(get_args(ErrorCode))


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_documented(documented, name):
    assert f"`{name}`" in documented


def test_table_of_metrics_is_the_registry(documented):
    """Names, types, labels and meanings, both ways."""
    registry = Metrics().registry
    collectors = {name: collector for collector, names in registry._collector_to_names.items() for name in names}
    expected = {}
    for metric in registry.collect():
        if not metric.name.startswith("process_"):
            collector = collectors[metric.name]
            labels = collector._labelnames
            name = metric.name + ("_total" if metric.type == "counter" else "")
            expected[name] = (metric.type, ", ".join(f"`{label}`" for label in labels), metric.documentation)
    rows = [line for line in documented.splitlines() if line.startswith("| `carousel_")]
    told = {}
    for row in rows:
        name, kind, labels, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        told[name.strip("`")] = (kind, labels, meaning)
    assert len(told) == len(rows)
    assert told == expected


def test_metrics_are_all_seen():
    assert "carousel_requests_total" in METRICS
    assert "carousel_step_seconds" in METRICS
    assert all(name.startswith(("carousel_", "process_")) for name in METRICS)
