import json
from typing import Any

import numpy as np
import pytest

from carousel.models.codec.labels import LabelsCodec, LabelsCodecSpec
from carousel.models.codec.spec import CODECS, IdCodec, Vocabulary, codec_spec
from carousel.models.codec.tags import TagsCodec
from carousel.models.errors import UnknownLabel
from carousel.models.graph import TensorSpec

NAMES = ["negative", "neutral", "positive"]
CODEC = LabelsCodec(NAMES)
TAGS = TagsCodec(["NOUN", "VERB", "DET", "ADJ"])


def test_label_has_its_position_for_an_id() -> None:
    assert [CODEC.encode(name) for name in NAMES] == [0, 1, 2] == [CODEC.encode(place) for place in range(3)]


@pytest.mark.parametrize("label", ["Neutral", "", -1, 3, True, None, 1.0, 10**300, "x" * 1000])
def test_unknown_label_is_refused(label: Any) -> None:
    with pytest.raises(
        UnknownLabel, match=r"there is no label .*; this model knows 3, ids 0 to 2: 'negative'"
    ) as error:
        CODEC.encode(label)
    assert len(str(error.value)) < 250


def test_logits_become_probabilities() -> None:
    logits = np.array([[1000.0, 1000.0, -np.inf], [0.0, np.log(2.0), np.log(5.0)]], np.float32)
    np.testing.assert_allclose(CODEC.probabilities(logits), [[0.5, 0.5, 0.0], [0.125, 0.25, 0.625]], rtol=1e-6)


def test_probabilities_stay_what_they_are() -> None:
    row = np.array([0.2, 0.5, 0.3], np.float32)
    codec = LabelsCodec(NAMES, "probabilities")
    np.testing.assert_array_equal(codec.probabilities(row), row.astype(np.float64))


@pytest.mark.parametrize("kind", ["int8", "int32", "int64", "uint16"])
def test_ids_enter_ports_of_integers(kind: str) -> None:
    port = np.zeros((2, 2), kind)
    CODEC.enter(np.array([[0, 2], [1, 1]]), {"label": port})
    assert port.tolist() == [[0, 2], [1, 1]]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_ids_enter_ports_of_floats_as_one_hot_rows(kind: str) -> None:
    port = np.full((2, 3), 7, kind)
    CODEC.enter(np.array([2, 0]), {"label": port})
    assert port.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_ports_hold_every_label() -> None:
    many = LabelsCodec([f"class {place}" for place in range(200)])
    many.require(TensorSpec("y", "uint8", (None,)), fed=True)
    many.require(TensorSpec("y", "float32", (None, 200)), fed=True)
    many.require(TensorSpec("y", "float32", (None, 200)), fed=False)
    with pytest.raises(ValueError, match=r"200 labels; y int8\[batch\] is not an id or a one-hot row of them"):
        many.require(TensorSpec("y", "int8", (None,)), fed=True)
    with pytest.raises(ValueError, match="not a row of floats"):
        many.require(TensorSpec("y", "int64", (None,)), fed=False)
    with pytest.raises(ValueError, match="not a row of floats"):
        many.require(TensorSpec("y", "float32", (None, 199)), fed=False)
    with pytest.raises(ValueError, match="not an id"):
        many.require(TensorSpec("y", "bool", (None,)), fed=True)


def test_labels_and_tags_have_ids_with_names() -> None:
    for codec in (CODEC, TAGS):
        assert isinstance(codec, IdCodec)
        assert isinstance(codec, Vocabulary)
    assert CODEC.id_of("positive") == 2
    assert CODEC.id_of("none") is None


def test_spec_opens_its_file() -> None:
    spec = codec_spec({"kind": "labels", "file": "moods.json", "scores": "probabilities"})
    assert isinstance(spec, LabelsCodecSpec)
    opened = spec.open({"moods.json": CODEC.to_json().encode()})
    assert isinstance(opened, LabelsCodec)
    assert (list(opened.labels), opened.scores) == (NAMES, "probabilities")
    tags = codec_spec({"kind": "tags"})
    assert tags.files == ("tags.json",)
    assert isinstance(tags.open({"tags.json": TAGS.to_json().encode()}), TagsCodec)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not JSON"),
        ("{}", "holds a JSON dict"),
        ("[]", "the list of labels is empty"),
        ('["a", "b", "a"]', "label 2 is called 'a', as label 0 is; names are unique"),
        ('["a", 3]', "label 1 is 3; allowed is a name"),
        ('["\\ud800"]', "half of a surrogate pair"),
        (json.dumps(["x" * 501]), "has 501 characters"),
    ],
)
@pytest.mark.parametrize("codec", [LabelsCodec, TagsCodec])
def test_what_is_no_list_of_labels_is_refused(codec: type[LabelsCodec], content: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        codec.from_json(content)


def test_scores_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ValueError, match="scores"):
        codec_spec({"kind": "labels", "scores": "odds"})


def test_unknown_kind_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=f"of kind 'audio9'; known are {', '.join(CODECS)}"):
        codec_spec({"kind": "audio9"})


def test_tags_of_a_whole_input_have_an_axis_of_steps() -> None:
    whole = TensorSpec("tags", "float32", (None, None, 4))
    TAGS.require(whole, fed=False)
    TAGS.require(TensorSpec("tags", "float32", (None, 4)), fed=False)
    TAGS.require(TensorSpec("tags", "int64", (None, None)), fed=True)
    with pytest.raises(ValueError, match="3 labels"):
        CODEC.require(whole, fed=False)
    with pytest.raises(ValueError, match="4 labels"):
        TAGS.require(TensorSpec("tags", "float32", (None, 7, 4)), fed=False)
