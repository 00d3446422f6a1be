from carousel.benchmarks.bodies import BODIES, main


def test_command_measures_a_stream_beside_every_body(capsys):
    assert main(["--seconds", "0.2"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == [body.name for body in BODIES]
    statuses = {row[0].strip(): row[3].strip() for row in rows}
    for name, status in statuses.items():
        expected = "-" if name == "no body" else "422" if "no skill" in name else "413" if "too long" in name else "200"
        assert status == expected, name
    assert all(float(row[-1].strip().removesuffix(" ms")) > 0 for row in rows)
