import json

import pytest

from carousel.benchmarks.__main__ import main
from carousel.benchmarks.server import left_out
from carousel.service.engine.device import CUDA
from carousel.service.engine.session import reason_against

SHAPE = ["--streams", "2", "--seconds", "0.5", "--warmup", "0.1", "--rounds", "1", "--max-tokens", "9"]


def test_command_measures_both_sides_and_writes_every_run(tiny_bundle, tmp_path, capsys):
    output = tmp_path / "runs.json"
    assert main(["--bundle", str(tiny_bundle), *SHAPE, "--open", "0.2", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    runs = {run["side"]: run for run in content["closed"]}
    assert runs.keys() == {"carousel", "naive"}
    for run in (*runs.values(), *content["open"]):
        assert run["result"]["tokens"] > 0
        assert run["result"]["errors"] == {}
    steps = runs["carousel"]["steps"]
    assert steps["steps"] > 0
    assert 0 < steps["overhead_seconds"] < steps["step_seconds"]
    assert min(min(run["resident_bytes"]) for run in runs.values()) > 10e6  # no Python process is smaller
    assert [(run["precision"], run["rows"]) for run in content["bare"]] == [("fp32", 2)]
    (opened,) = content["open"]
    assert opened["load"] == 0.2
    assert opened["arrivals"] >= opened["result"]["generations"] > 0
    assert opened["rate"] == pytest.approx(0.2 * content["capacity_tokens_per_second"] / 9)
    assert content["capacity_tokens_per_second"] > 0
    told = capsys.readouterr().out
    assert "times naive fp32" in told
    assert "(fp32) on cpu" in told


def test_command_says_in_one_sentence_that_there_is_no_bundle(tmp_path, capsys):
    assert main(["--bundle", str(tmp_path / "nothing" / "1")]) == 1
    assert capsys.readouterr().err == f"benchmarks: manifest.json: there is no such file in {tmp_path}/nothing/1\n"


def test_command_measures_on_cuda_or_says_why_not_and_never_on_the_cpu_instead(tiny_bundle, capsys, monkeypatch):
    monkeypatch.setenv("CAROUSEL_PROVIDERS", "cpu")
    reason = reason_against(CUDA)
    status = main(["--bundle", str(tiny_bundle), *SHAPE, "--providers", "cuda"])
    told = capsys.readouterr()
    if reason is None:
        assert status == 0
        assert "(fp32) on cuda" in told.out
    else:
        assert (status, told.out) == (1, "")
        assert told.err == f"benchmarks: cannot measure on cuda: {reason}\n"


@pytest.mark.parametrize("side", ["litserve", "bentoml"])
def test_command_measures_a_peer_or_says_why_not(side, tiny_bundle, tmp_path, capsys):
    output = tmp_path / "runs.json"
    assert main(["--bundle", str(tiny_bundle), *SHAPE, "--peers", side, "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    if reason := left_out(side):
        assert content["remarks"] == [reason]
        assert reason in capsys.readouterr().out
        pytest.skip(reason)
    result = next(run["result"] for run in content["closed"] if run["side"] == side)
    assert result["errors"] == {}
    assert result["generations"] > 0
    assert result["inter_token"]["count"] >= 8 * (result["generations"] - 2)
