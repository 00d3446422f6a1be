import json
import shutil

from carousel.benchmarks.reloads import KEPT_ON_DISK, Publisher, main
from carousel.models.bundle import open_bundle


def test_reloads_under_load_fail_nothing(capsys):
    assert main(["--reloads", "3", "--settle", "1", "--streams", "1", "--baseline", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "failed requests: 0" in shown
    assert "ratio of resident memory" in shown


def test_publisher_makes_versions_that_differ_and_open(tiny_bundle, tmp_path):

    shutil.copytree(tiny_bundle.parent, tmp_path / "tiny")
    publisher = Publisher(tmp_path, "tiny")
    digests = [open_bundle(tmp_path / "tiny" / str(publisher.publish())).digest for _ in range(4)]
    assert digests[0] == digests[2] != digests[1] == digests[3]
    assert sorted(entry.name for entry in (tmp_path / "tiny").iterdir()) == ["3", "4", "5"]
    assert KEPT_ON_DISK == 3
    assert json.loads((tmp_path / "tiny" / "5" / "manifest.json").read_text())
