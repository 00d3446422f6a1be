"""The table of what recording a step costs: its rows are those of the steps that were taken."""

from __future__ import annotations

import pytest

from carousel.benchmarks import recording


@pytest.mark.parametrize("model", ["tiny_bundle", "tiny_tracing_bundle"])
def test_table_has_a_line_for_each_number_of_rows(model, request, monkeypatch, capsys):
    monkeypatch.setattr(recording, "STEPS", 5)
    monkeypatch.setattr(recording, "ROWS", (1, 3))
    path = request.getfixturevalue(model)
    recording.main([str(path)])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[:2] for line in lines] == [[f"{path.parent.name} {path.name}", rows] for rows in ("1", "3")]
    for _, step, cost in recording.shares(path):
        assert step > 0
        assert cost > 0
