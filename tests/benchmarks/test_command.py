import json

from benchmarks.__main__ import main


def test_command_measures_both_sides_and_writes_every_run(tiny_bundle, tmp_path, capsys):
    output = tmp_path / "runs.json"
    shape = ["--streams", "2", "--seconds", "0.5", "--warmup", "0.1", "--rounds", "1", "--max-tokens", "9"]
    assert main(["--bundle", str(tiny_bundle), *shape, "--open", "20", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    runs = {run["side"]: run for run in content["closed"]}
    assert runs.keys() == {"carousel", "naive"}
    for run in (*runs.values(), *content["open"]):
        assert run["result"]["tokens"] > 0
        assert run["result"]["errors"] == {}
    steps = runs["carousel"]["steps"]
    assert steps["steps"] > 0
    assert 0 < steps["overhead_seconds"] < steps["step_seconds"]
    assert [run["rows"] for run in content["bare"]] == [2]
    assert "ratio" in capsys.readouterr().out


def test_command_says_in_one_sentence_that_there_is_no_bundle(tmp_path, capsys):
    assert main(["--bundle", str(tmp_path / "nothing" / "1")]) == 1
    assert capsys.readouterr().err == f"benchmarks: manifest.json: there is no such file in {tmp_path}/nothing/1\n"
