"""A captioning bundle opened by the repository: the engine's captions against the offline decoder's, word for word."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from carousel.export.publish import export_checkpoint
from carousel.models.codec.caption import caption_codec
from carousel.service.engine.parameters import BeamParameters, SamplingParameters
from carousel.service.engine.port import Request, Told
from carousel.service.observability.metrics import Metrics
from carousel.service.served.repository import Repository
from carousel.service.settings import Settings
from carousel.service.work.generation import admit, run_to_end

MAX_TOKENS = 8
IMAGES = 40


@pytest.fixture(scope="module", params=["fp32", "int8"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(make_captioning_checkpoint, tmp_path_factory):
    import torch

    from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
    from carousel.models.nn.validation import CaptioningValidationData, write_validation

    path = make_captioning_checkpoint(tmp_path_factory.mktemp("checkpoint") / "captions.safetensors")
    read = read_checkpoint(path)
    header = {**read.header, "validation": None}
    write_checkpoint(path, Checkpoint(read.tensors, header))
    images, ids = (
        torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(6)),
        torch.tensor([1, 4, 5]).expand(3, 1, 3),
    )
    targets = torch.tensor([4, 5, 2]).expand(3, 1, 3)
    data = CaptioningValidationData(header["provenance"]["corpus_sha256"], images, ids, targets, [["dog child"]] * 3)
    write_validation(path.parent / "validation.safetensors", data)
    return path


@pytest.fixture(scope="module")
def repository_path(checkpoint, precision, tmp_path_factory):
    path = tmp_path_factory.mktemp("repository")
    export_checkpoint(checkpoint, path, "captions", precision=precision, max_worsening=100)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(9).random((IMAGES, 3, 16, 24)).astype(np.float32)


@pytest.fixture
def model(checkpoint, precision, repository_path):
    """What decodes offline: the torch model, or the int8 graphs."""
    from carousel.export.forward import GraphCaptioner
    from carousel.models.nn.checkpoint import read_checkpoint
    from tests.trained import load_captioning_model

    model = load_captioning_model(read_checkpoint(checkpoint))[0].eval()
    graphs = ((repository_path / "captions" / "1" / name).read_bytes() for name in ("step.onnx", "encoder.onnx"))
    return model if precision == "fp32" else GraphCaptioner(model, *graphs)


@pytest.mark.parametrize("width", [0, 1, 3, 5])
async def test_captions_of_a_served_bundle_are_those_of_the_offline_decoder(repository_path, model, images, width):
    import torch

    from carousel.models.nn.beam import beam_search, greedy

    metrics = Metrics()
    repository = Repository(Settings(repository=repository_path, max_rows=16, intra_op_threads=1), metrics)
    served = repository.get("captions")
    codec = caption_codec(served.bundle)

    async def caption(image):
        with admit(served, max(width, 1)) as place:
            encoding = await served.encoder.encode(lambda: image)
            sequence = Request(
                np.array([codec.begin_id]),
                BeamParameters(width, MAX_TOKENS, codec.end_id, 0.7, best=width)
                if width
                else SamplingParameters(MAX_TOKENS, temperature=0.0),
                end=codec.end_id,
                snapshot=encoding.snapshot,
                context=encoding.context,
                attention=True,
            )
            if width:
                return (await run_to_end(served, place, sequence)).result.hypotheses
            stream, tokens = place.start(sequence), []
            while isinstance(event := await stream.get(), Told):
                tokens.append(event.token)
                assert event.attention.sum() == pytest.approx(1, abs=1e-5)
            return tokens

    repository.start()
    try:
        async with asyncio.timeout(60):
            told = await asyncio.gather(*map(caption, images))
        assert served.failure is None
    finally:
        await repository.close()
    assert served.failure == "the server is shutting down"

    given = (model, torch.from_numpy(images), codec.begin_id, codec.end_id, MAX_TOKENS)
    if width:
        for hypotheses, expected in zip(told, beam_search(*given, width=width, length_penalty=0.7), strict=True):
            assert [h.tokens for h in hypotheses] == [
                tuple(token for token in each.ids if token != codec.end_id) for each in expected
            ]
            assert [h.reason.value for h in hypotheses] == [each.finish_reason for each in expected]
            assert [h.logprob for h in hypotheses] == pytest.approx([e.log_probability for e in expected], abs=1e-4)
            assert [h.score for h in hypotheses] == pytest.approx([e.score for e in expected], abs=1e-4)
    else:
        assert [tuple(tokens) for tokens in told] == [each.ids for each in greedy(*given)]
    labels = {"model": "captions", "version": "1"}
    assert metrics.registry.get_sample_value("carousel_encoder_images_sum", labels) == IMAGES
    batches = metrics.registry.get_sample_value("carousel_encoder_images_count", labels)
    assert batches == metrics.registry.get_sample_value("carousel_encoder_seconds_count", labels)
