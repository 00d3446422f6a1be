"""CAROUSEL_PROVIDERS: models run on the device if they can, else on the CPU, with one reason in the log."""

from __future__ import annotations

import logging

import httpx
import pytest

from carousel.service.engine.device import Device
from carousel.service.engine.runner import OnnxEncoder
from carousel.service.engine.session import RunnerBroken
from carousel.service.engine.states.device_pool import RowMover
from carousel.service.observability.metrics import Metrics
from carousel.service.served.repository import Repository
from carousel.service.settings import Settings

HOST_MEMORY = Device("cpu", "CPUExecutionProvider")
IDLE = Device("cpu", "AzureExecutionProvider")
"""In the builds of onnxruntime for the CPU, with kernels for next to nothing."""


@pytest.fixture
def warnings_of(all_models, caplog):
    """What is logged while all models are opened."""

    def open_all(providers):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "carousel.repository"):
            repository = Repository(Settings(repository=all_models, max_rows=2, providers=providers), Metrics())
        assert {"tiny", "tutor", "scenes"} <= set(repository.models)
        open_all.serving = {name: model.serving for name, model in repository.models.items()}
        return [record.getMessage() for record in caplog.records]

    return open_all


def test_cpu_asks_for_no_device_and_logs_nothing(warnings_of):
    assert warnings_of("cpu") == []
    assert all(serving.provider == "cpu" and not serving.reasons for serving in warnings_of.serving.values())


def test_device_that_is_missing_is_told_once(warnings_of, monkeypatch):
    monkeypatch.setattr("carousel.service.served.opening.CUDA", Device("cuda", "NoExecutionProvider"))
    (message,) = warnings_of("cuda")
    reason = "the installed onnxruntime has no NoExecutionProvider; it has "
    assert message.startswith(f"CAROUSEL_PROVIDERS is cuda, but models run on the CPU: {reason}")
    for name, serving in warnings_of.serving.items():
        assert serving.provider == "cpu"
        parts = {"provider", "encoder_provider"} if serving.encoder != "none" else {"provider"}
        assert set(serving.reasons) == parts, name
        assert all(serving.reasons[part].startswith(reason) for part in parts)


@pytest.mark.skipif(IDLE.missing is not None, reason=str(IDLE.missing))
def test_graphs_that_the_device_has_no_kernels_for_run_on_the_cpu(warnings_of, monkeypatch, all_models):
    monkeypatch.setattr("carousel.service.served.opening.CUDA", IDLE)
    messages = warnings_of("cuda")
    assert len(messages) == sum(1 for _ in all_models.iterdir())  # and not one of encoders, which may use both
    assert all(
        "cannot run on AzureExecutionProvider and runs on the CPU: onnxruntime cannot load the" in message
        for message in messages
    )


def test_what_fails_on_the_device_alone_runs_on_the_cpu(warnings_of, monkeypatch):
    def refuse(self, device):
        raise RunnerBroken("no memory")

    monkeypatch.setattr("carousel.service.served.opening.CUDA", HOST_MEMORY)
    monkeypatch.setattr(RowMover, "__init__", refuse)
    messages = warnings_of("cuda")
    assert "the steps of tiny version 1 cannot run on CPUExecutionProvider and runs on the CPU: no memory" in messages
    assert warnings_of.serving["tiny"].reasons == {
        "provider": "the steps cannot run on CPUExecutionProvider: no memory"
    }


def test_encoder_that_fails_on_the_device_alone_runs_on_the_cpu(warnings_of, monkeypatch):
    class Encoder(OnnxEncoder):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            if given[-1] is not None:
                raise RunnerBroken("no convolutions")

    monkeypatch.setattr("carousel.service.served.opening.CUDA", HOST_MEMORY)
    monkeypatch.setattr("carousel.service.served.opening.OnnxEncoder", Encoder)
    expected = "the encoder of scenes version 1 cannot run on CPUExecutionProvider and runs on the CPU: no convolutions"
    assert expected in warnings_of("cuda")
    assert warnings_of.serving["scenes"].reasons == {
        "encoder_provider": "the encoder cannot run on CPUExecutionProvider: no convolutions"
    }


def test_server_answers_from_a_device_what_it_answers_from_the_host(run_server, monkeypatch, picture):
    moved = []
    move = RowMover.__call__
    monkeypatch.setattr(RowMover, "__call__", lambda *a: moved.append(1) or move(*a))
    monkeypatch.setattr("carousel.service.served.opening.CUDA", HOST_MEMORY)
    answers = []
    for providers in ("cpu", "cuda"):
        with run_server(providers=providers) as server, httpx.Client(base_url=server.url, timeout=20) as client:
            completion = {"model": "tiny", "prompt": "abcab" * 9, "max_tokens": 12, "seed": 3, "temperature": 1.5}
            attempts = [{"skill": place % 5, "correct": place % 2 == 0} for place in range(40)]
            trace = {"session": "ada", "attempts": attempts}
            replies = [
                *(client.post("/v1/completions", json=completion) for _ in range(2)),
                *(client.post("/v1/models/tutor/trace", json=trace) for _ in range(2)),
                client.post(
                    "/v1/models/scenes/captions", files={"image": picture(1)}, data={"beam_width": "3", "n": "2"}
                ),
            ]
            assert [reply.status_code for reply in replies] == [200] * 5, [reply.text for reply in replies]
            answers.append([{**reply.json(), "id": 0, "created": 0} for reply in replies])
        assert bool(moved) == (providers == "cuda")
    assert answers[0] == answers[1]
