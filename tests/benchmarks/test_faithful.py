"""The shipped captioner, served and offline."""

from __future__ import annotations

from carousel.benchmarks import faithful
from carousel.benchmarks.faithful import main


def test_service_says_what_the_bundle_says_offline(capsys):
    assert main(["--count", "5"]) == 0
    printed = capsys.readouterr().out
    for how in ("greedy", "beam of 3"):
        assert f"{how}: the service says what the bundle says offline of 5 of 5 images" in printed
        assert f"{how}: " in printed.split("offline", 1)[1]


def test_one_word_that_differs_is_told(capsys, monkeypatch, tmp_path):
    offline = faithful.offline

    def mishear(bundle, files, width):
        first, *others = offline(bundle, files, width)
        return [first + " indeed", *others]

    monkeypatch.setattr(faithful, "offline", mishear)
    for place, scene in enumerate(faithful.make_scenes(1, 3)):
        (tmp_path / f"{place}.png").write_bytes(faithful.encode_scene(scene))
    assert main(["--images", str(tmp_path), "--beam-width", "2"]) == 1
    printed = capsys.readouterr().out
    assert "beam of 2: the service says what the bundle says offline of 2 of 3 images" in printed
    assert "true" not in printed, "nobody knows what is true of a file"


def test_bundle_that_captions_nothing_is_refused(capsys):
    assert main(["--bundle", "bundles/shakespeare/2"]) == 1
    assert "is no captioning bundle" in capsys.readouterr().err
