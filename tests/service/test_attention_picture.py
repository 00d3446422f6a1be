"""The picture as a person sees it: drawn from plain values, read back pixel by pixel."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from carousel.models.codec.image import Preprocessing
from carousel.service.pictures.attention import DARK_FOG, DENSITY, LIGHT_FOG, PANEL, attention_svg

SVG = "{http://www.w3.org/2000/svg}"
STRETCH = Preprocessing(width=12, height=12)
MAPS = np.array([[[0.7, 0.1, 0.2], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]]], np.float32)  # 2 words, 2 rows, 3 columns


def _image(href: str) -> Image.Image:
    kind, _, content = href.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def _draw(image=None, preprocessing=STRETCH, words=("a", "dog"), maps=MAPS, title="model 1"):
    image = image or Image.new("RGB", (300, 200), (200, 60, 30))
    root = ElementTree.fromstring(attention_svg(image, preprocessing, words, maps, title=title))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    photograph, *lights = (_image(element.attrib["href"]) for element in root.iter(f"{SVG}image"))
    return root, texts, photograph, lights


def test_picture_has_a_panel_for_the_image_and_for_each_word():
    root, texts, photograph, lights = _draw()
    assert texts[0] == "a dog"
    assert texts[1].startswith("model 1")
    assert texts[2:] == ["a", "dog"]
    assert len(list(root.iter(f"{SVG}use"))) == 3
    assert len(lights) == 2
    assert photograph.size == (300, 200)
    assert np.abs(np.asarray(photograph.convert("RGB"), int) - (200, 60, 30)).max() < 6


def test_image_is_clear_where_the_map_says():
    for shares, light in zip(MAPS, _draw()[3], strict=True):
        assert light.mode == "LA"
        grey, fog = (np.asarray(band, float) for band in light.split())
        assert (grey == LIGHT_FOG).all()
        rows, columns = shares.shape
        means = fog.reshape(rows, fog.shape[0] // rows, columns, -1).mean(axis=(1, 3))
        assert means.argmin() == shares.argmax()
        assert means.min() < 0.2 * 255 * DENSITY
        assert means[1, 0] > 0.8 * 255 * DENSITY  # nothing there
        assert fog.max() <= round(255 * DENSITY)


def test_fog_is_dark_on_a_light_image():
    for level, fog in ((0, LIGHT_FOG), (127, LIGHT_FOG), (128, DARK_FOG), (255, DARK_FOG)):
        light = _draw(Image.new("RGB", (90, 60), (level, level, level)))[3][0]
        assert np.asarray(light.split()[0]).max() == fog


def test_long_caption_takes_several_lines():
    words = ["wonderful"] * 23
    root, texts, *_ = _draw(words=words, maps=np.zeros((23, 2, 3), np.float32))
    assert 1 < texts.index("model 1 \u00b7 clear is where the model looked before it said the word") <= 4
    assert " ".join(texts[:2]).startswith("wonderful wonderful")
    first = next(root.iter(f"{SVG}g")).attrib["transform"]
    assert int(first[10:-1].split()[1]) > 120


def test_even_map_is_all_clear():
    (light,) = _draw(words=["a"], maps=np.full((1, 7, 7), 1 / 49, np.float32))[3]
    assert np.asarray(light.split()[1]).max() <= 1


def test_map_of_nothing_is_all_fog():
    (light,) = _draw(words=["a"], maps=np.zeros((1, 2, 2), np.float32))[3]
    assert np.asarray(light.split()[1]).min() == round(255 * DENSITY)


def test_picture_keeps_the_shape_of_what_the_model_saw():
    wide = Image.new("RGB", (400, 100), (0, 0, 0))
    wide.paste((255, 255, 255), (150, 0, 250, 100))
    panel = next(_draw(wide)[0].iter(f"{SVG}image"))
    assert (panel.attrib["width"], panel.attrib["height"]) == (str(PANEL), str(PANEL // 4))
    root, _, photograph, _ = _draw(wide, Preprocessing(width=12, height=12, fit="crop"))
    panel = next(root.iter(f"{SVG}image"))
    assert panel.attrib["width"] == panel.attrib["height"] == str(PANEL)
    assert np.asarray(photograph).min() > 250  # the middle


def test_large_image_is_made_smaller():
    assert _draw(Image.new("RGB", (3_000, 2_000)))[2].size == (2 * PANEL, 2 * PANEL * 2 // 3)


def test_caption_without_words_has_one_panel():
    root, texts, _, lights = _draw(words=[], maps=np.zeros((0, 1, 1), np.float32))
    assert texts[0] == "(an empty caption)"
    assert len(list(root.iter(f"{SVG}use"))) == 1
    assert not lights


def test_panels_stay_within_the_picture():
    words = [f"word{number}" for number in range(23)]
    root, *_ = _draw(words=words, maps=np.random.default_rng(0).random((23, 2, 3), np.float32))
    width, height = (int(side) for side in root.attrib["viewBox"].split()[2:])
    places = [group.attrib["transform"][10:-1].split() for group in root.iter(f"{SVG}g")]
    assert len({tuple(place) for place in places}) == 24
    for x, y in places:
        assert int(x) + PANEL <= width
        assert int(y) + PANEL * 2 / 3 + 20 <= height


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\"&'", "\0\x1b", "\ud800", "模型"])
def test_text_is_text(text):
    document = attention_svg(Image.new("RGB", (9, 9)), STRETCH, [text], MAPS[:1], title=text)
    ElementTree.fromstring(document.encode())
    assert "<script" not in document


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 900), (900, 1), (2, 70_000), (70_000, 2), (1, 2_000_000), (65_536, 700), (700, 65_536)]
)
def test_image_of_any_shape_is_drawn_and_small(size):
    for fit in ("stretch", "crop"):
        image = Image.new("RGB", size, "red")
        _draw(image, Preprocessing(width=5, height=3, fit=fit))
        assert len(attention_svg(image, STRETCH, [], np.zeros((0, 1, 1), np.float32), title="t")) < 20_000
