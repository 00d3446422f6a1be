"""The peer of captioning says what the service must say, and the command refuses what it cannot measure."""

import pytest
from fastapi.testclient import TestClient

from carousel.benchmarks.captions import BOUNDARY, draw_images, form, main
from carousel.benchmarks.naive_captions import create_app
from carousel.models.bundle import open_bundle
from tests.service.tiny_captioner import TinyCaptioner, text_of


@pytest.fixture(scope="module")
def captioner():
    return TinyCaptioner()


def test_peer_says_the_oracles_greedy_captions(captioner, tmp_path):
    client = TestClient(create_app(open_bundle(captioner.publish(tmp_path, "captions"))))
    assert client.get("/readyz").status_code == 200
    for image in draw_images()[:10]:
        answer = client.post("/v1/models/captions/captions", content=form(image), headers={"content-type": BOUNDARY})
        assert answer.status_code == 200
        assert answer.json()["images"][0]["captions"][0]["text"] == text_of(captioner.greedy(image)[0])


def test_images_differ():
    assert len(set(draw_images())) == 64


def test_command_refuses_what_it_cannot_measure(tiny_bundle, captioner, tmp_path, capsys):
    assert main(["--bundle", str(tiny_bundle)]) == 1
    assert "no captioning bundle" in capsys.readouterr().err
    bundle = captioner.publish(tmp_path / "repository", "captions")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["--bundle", str(bundle), "--images", str(empty)]) == 1
    assert "holds no file" in capsys.readouterr().err
