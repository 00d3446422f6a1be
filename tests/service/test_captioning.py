"""Captions below the API: what is whole is what was streamed, whatever the tokenizer writes before a word."""

import pytest

from carousel.service.engine.parameters import BeamParameters, SamplingParameters
from carousel.service.observability.metrics import Metrics
from carousel.service.pictures.images import ImageReader
from carousel.service.served.repository import Repository
from carousel.service.settings import Settings
from carousel.service.tasks.captioning.captions import CaptionParameters, CaptionStream, find_captions
from carousel.service.work.generation import Finished, admit
from tests.service.tiny_captioner import END, text_of


@pytest.fixture(params=[False, True], ids=["plain", "blanks"])
async def model(request, captioner, tmp_path):
    captioner.publish(tmp_path, "captions", blanks=request.param)
    repository = Repository(Settings(repository=tmp_path, max_rows=4, intra_op_threads=1), Metrics())
    repository.start()
    yield repository.get("captions")
    await repository.close()


@pytest.fixture
def files(picture):
    return [picture(seed) for seed in range(10)]


@pytest.fixture
def images():
    reader = ImageReader()
    yield reader
    reader.close()


async def test_whole_caption_is_what_was_streamed(model, captioner, files, images):
    greedy = CaptionParameters(SamplingParameters(max_tokens=20, temperature=0.0))
    beam = CaptionParameters(BeamParameters(1, 20, END))
    for file in files:
        expected, logprob, _ = captioner.greedy(file)
        encoding = await images.encode(model, file)
        with admit(model) as place:
            stream = CaptionStream(model, place, encoding, greedy)
            *tokens, finished = [event async for event in stream.events()]
        assert isinstance(finished, Finished)
        assert finished.text == "".join(token.text for token in tokens) == text_of(expected)
        assert stream.logprob == pytest.approx(logprob, abs=1e-4)
        for parameters in (greedy, beam):  # a beam of one is greedy
            with admit(model) as place:
                (whole,) = await find_captions(model, place, encoding, parameters)
            assert (whole.text, list(whole.tokens), whole.reason) == (finished.text, expected, finished.reason)
            assert whole.logprob == pytest.approx(logprob, abs=1e-4)


async def test_place_serves_one_image_after_another(model, captioner, files, images):
    parameters = CaptionParameters(BeamParameters(3, 20, END, 0.7, best=2), 0.7)
    with admit(model, 3) as place:
        for file in files:
            found = await find_captions(model, place, await images.encode(model, file), parameters)
            assert [list(one.tokens) for one in found] == [tokens for tokens, *_ in captioner.beam(file, 3, 0.7)[:2]]
            assert [one.text for one in found] == [text_of(list(one.tokens)) for one in found]
