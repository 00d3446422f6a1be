"""From a decoded image to what an encoder eats, and from ids to a caption."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from carousel.models.codec.caption import CaptionCodec
from carousel.models.codec.image import Preprocessing, read_image
from carousel.models.codec.text import TextCodec


def _picture() -> Image.Image:
    """Every pixel of another colour: <uint8>[5, 7, 3]"""
    rows, columns = np.mgrid[:5, :7]
    return Image.fromarray(np.stack([rows * 50, columns * 36, rows * 7 + columns * 11], axis=2).astype(np.uint8))


def _file(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _stretched(content: bytes, **fields: object) -> np.ndarray:
    return Preprocessing(width=3, height=2, **fields).apply(read_image(content))


def test_preprocessing_gives_each_layout_and_order_of_channels():
    pixels = np.asarray(_picture().resize((3, 2), Image.Resampling.BICUBIC), np.float32)
    content = _file(_picture())
    mean, deviation = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    hwc = (pixels - np.float32(mean)) / np.float32(deviation)
    bgr = (pixels[:, :, ::-1] - np.float32(mean)) / np.float32(deviation)
    fields = {"mean": mean, "deviation": deviation}
    assert np.array_equal(_stretched(content, **fields, layout="hwc"), hwc)
    assert np.array_equal(_stretched(content, **fields), hwc.transpose(2, 0, 1))
    assert np.array_equal(_stretched(content, **fields, channels="bgr"), bgr.transpose(2, 0, 1))
    for layout, shape in (("chw", (3, 2, 3)), ("hwc", (2, 3, 3))):
        made = _stretched(content, layout=layout)
        assert made.shape == Preprocessing(width=3, height=2, layout=layout).shape == shape
        assert made.dtype == np.float32
        assert made.flags.c_contiguous
        assert 0 <= made.min() <= made.max() <= 1  # unless told otherwise


def test_preprocessing_stretches_or_crops():
    wide = Image.new("RGB", (30, 10), (0, 0, 0))
    wide.paste((255, 255, 255), (10, 0, 20, 10))  # the middle third
    stretched = Preprocessing(width=6, height=6, fit="stretch").apply(wide)
    cropped = Preprocessing(width=6, height=6, fit="crop").apply(wide)
    assert stretched[0, 3].round().tolist() == [0, 0, 1, 1, 0, 0]
    assert cropped[0, 3].round().tolist() == [1] * 6


@pytest.mark.parametrize("size", [(1, 1), (1, 3_000), (3_000, 1)])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_preprocessing_takes_any_shape(size, fit):
    image = Image.new("RGB", size, (255, 0, 0))
    pixels = Preprocessing(width=4, height=3, fit=fit).apply(image)
    assert (pixels == np.array([1, 0, 0], np.float32)[:, None, None]).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 0}, {"height": 4_097}, {"deviation": (1.0, 0.0, 1.0)}, {"deviation": (1.0, float("inf"), 1.0)},
        {"mean": (float("nan"), 0.0, 0.0)}, {"mean": (0.0, 0.0)}, {"channels": "gray"}, {"layout": "nchw"},
        {"fit": "pad"}, {"resample": "bicubic"},
    ],
)  # fmt: skip
def test_preprocessing_refuses_what_it_does_not_know(fields):
    with pytest.raises(ValidationError):
        Preprocessing(**{"width": 4, "height": 3} | fields)


@pytest.fixture(scope="module")
def text_codec() -> TextCodec:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", "a", "red", "circle"]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextCodec(tokenizer)


def test_codec_reads_captions_up_to_the_end(text_codec):
    codec = CaptionCodec(text_codec, Preprocessing(width=4, height=3), "<s>", "</s>")
    assert (codec.begin_id, codec.end_id) == (1, 2)
    assert codec.caption([3, 4, 5]) == codec.caption([3, 4, 5, 2]) == codec.caption([3, 4, 5, 2, 4]) == "a red circle"
    assert codec.caption([]) == codec.caption([2]) == ""
    detokenizer = codec.detokenizer()
    assert "".join(map(detokenizer.push, [3, 4, 5])) == "a red circle"
    assert codec.preprocess(_file(_picture())).shape == (3, 3, 4)


@pytest.mark.parametrize("names", [("<begin>", "</s>"), ("<s>", "<end>")])
def test_codec_refuses_tokens_that_are_not_there(text_codec, names):
    with pytest.raises(ValueError, match="has no token"):
        CaptionCodec(text_codec, Preprocessing(width=4, height=3), *names)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize(
    ("size", "decoded"), [((64, 49), (64, 49)), ((64, 50), (32, 25)), ((130, 110), (33, 28)), ((900, 202), (113, 26))]
)
def test_jpeg_is_decoded_no_larger_than_need_be_and_looks_the_same(kind, size, decoded):
    content = io.BytesIO()
    colours = Image.fromarray(np.random.default_rng(3).integers(0, 256, (3, 4, 3), np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6  # a quarter turn clockwise
    colours.resize(size, Image.Resampling.BICUBIC).save(content, kind, quality=95, exif=rotated)
    preprocessing = Preprocessing(width=17, height=25)
    assert preprocessing.side == 25
    assert read_image(content.getvalue(), 25).size == decoded[::-1]
    whole = preprocessing.apply(read_image(content.getvalue()))
    assert np.abs(preprocessing.read(content.getvalue()) - whole).mean() < 5 / 255


def test_preprocessing_tells_what_part_is_seen():
    wide = Image.new("RGB", (30, 10))
    assert Preprocessing(width=4, height=4).seen(wide) is wide
    assert Preprocessing(width=4, height=4, fit="crop").seen(wide).size == (10, 10)
    assert Preprocessing(width=4, height=2, fit="crop").seen(wide).size == (20, 10)
    assert Preprocessing(width=400, height=1, fit="crop").seen(Image.new("RGB", (1, 1))).size == (1, 1)


def test_caption_begins_with_no_blank():
    from tokenizers import Tokenizer, decoders, models

    words = ["<s>", "</s>", "\u2581a", "\u2581dog"]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, "<s>"))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    codec = CaptionCodec(TextCodec(tokenizer), Preprocessing(width=4, height=3), "<s>", "</s>")
    assert codec.caption([2, 3, 1]) == "a dog"
