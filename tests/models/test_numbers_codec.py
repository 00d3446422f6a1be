import json
from typing import Any

import numpy as np
import pytest

from carousel.models.codec.numbers import NumbersCodec, NumbersCodecSpec
from carousel.models.codec.spec import codec_spec
from carousel.models.errors import ValueRejected
from carousel.models.graph import TensorSpec

CODEC = NumbersCodec(3, ["pulse", "temperature", "lead II"], [70.0, 37.0, 0.0], [10.0, 0.5, 2.0])


def test_vector_enters_a_port_as_training_scaled_it() -> None:
    port = np.full(3, 9.0, np.float32)
    CODEC.encode([80, 36.5, -1.0], port)
    np.testing.assert_array_equal(port, np.array([1.0, -1.0, -0.5], np.float32))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_vector_comes_back_from_a_port_of_any_float(kind: str) -> None:
    port = np.zeros(3, kind)
    CODEC.encode([75, 37.25, 1.5], port)
    assert CODEC.decode(port).dtype == np.float64
    assert CODEC.told(port) == {"pulse": 75.0, "temperature": 37.25, "lead II": 1.5}


def test_numbers_by_name_come_in_any_order() -> None:
    by_name, in_order = np.zeros((2, 3), np.float32)
    CODEC.encode({"lead II": 4, "pulse": 90, "temperature": 38}, by_name)
    CODEC.encode([90, 38, 4], in_order)
    np.testing.assert_array_equal(by_name, in_order)


def test_many_rows_are_decoded_at_once() -> None:
    rows = np.array([[[0.0, 1.0, -1.0]] * 4] * 2, np.float32)  # [2, 4, 3]
    assert CODEC.decode(rows).shape == (2, 4, 3)
    np.testing.assert_array_equal(CODEC.decode(rows)[1, 3], [70.0, 37.5, -2.0])


def test_numbers_without_names_are_told_in_order() -> None:
    codec = NumbersCodec(2, mean=[1.0, 2.0], deviation=[2.0, 4.0])
    port = np.zeros(2, np.float32)
    codec.encode([5, 6], port)
    assert port.tolist() == [2.0, 1.0]
    assert codec.told(port) == [5.0, 6.0]


@pytest.mark.parametrize("port", [np.zeros((), np.float32), np.zeros(1, np.float32)])
@pytest.mark.parametrize("message", [7, [7], {"load": 7}])
def test_one_number_is_a_vector_too(port: np.ndarray, message: Any) -> None:
    codec = NumbersCodec(1, ["load"], [3.0], [2.0])
    codec.encode(message, port)
    assert float(port.reshape(())) == 2.0
    assert codec.told(port) == {"load": 7.0}


def test_series_of_one_number_is_decoded_with_or_without_an_axis_for_it() -> None:
    codec = NumbersCodec(1, mean=[3.0], deviation=[2.0])
    series = np.array([0.0, 1.0, 2.0], np.float32)
    assert codec.decode(series).tolist() == [3.0, 5.0, 7.0]
    assert codec.decode(series[:, None]).tolist() == [[3.0], [5.0], [7.0]]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ([1, 2], "has 2 entries; allowed are 3 numbers, 'pulse', 'temperature', 'lead II'"),
        ([1, 2, 3, 4], "has 4 entries"),
        ([], "has 0 entries"),
        ("1,2,3", "is '1,2,3'"),
        (b"123", "allowed are 3 numbers"),
        (None, "is None"),
        (5, "the vector is 5"),
        ([1, "2", 3], "number 'temperature' is '2'; allowed is a finite number"),
        ([1, True, 3], "number 'temperature' is True"),
        ([1, None, 3], "number 'temperature' is None"),
        ([1, [2], 3], r"number 'temperature' is \[2\]"),
        ([1, float("nan"), 3], "number 'temperature' is nan"),
        ([1, 2, float("-inf")], "number 'lead II' is -inf"),
        ([10**400, 2, 3], "number 'pulse' is an integer of 1,329 bits"),
        ([1, 1e39, 3], "number 'temperature' is 1e\\+39, too large for float32 when scaled by mean 37"),
        ({"pulse": 1, "lead II": 2}, "number 'temperature' is missing"),
        ({"pulse": 1, "lead II": 2, "temperature": 3, "x": 4}, "there is no number 'x'"),
    ],
)
def test_what_is_no_vector_is_refused(message: Any, sentence: str) -> None:
    port = np.full(3, 9.0, np.float32)
    with pytest.raises(ValueRejected, match=sentence):
        CODEC.encode(message, port)
    assert port.tolist() == [9.0] * 3, "and nothing is written"


def test_object_is_refused_where_numbers_have_no_names() -> None:
    with pytest.raises(ValueRejected, match="its numbers have no names; allowed are 2 numbers"):
        NumbersCodec(2).encode({"0": 1, "1": 2}, np.zeros(2, np.float32))


def test_overflow_of_the_scaling_itself_is_refused() -> None:
    with pytest.raises(ValueRejected, match="too large for float64"):
        NumbersCodec(1, mean=[-1e308]).encode([1.7e308], np.zeros(1))


@pytest.mark.parametrize("shape", [(None, 3), (None, 2, 3)])
@pytest.mark.parametrize("fed", [True, False])
def test_ports_are_rows_of_as_many_floats(shape: tuple[int | None, ...], fed: bool) -> None:
    port = TensorSpec("x", "float32", shape)
    if shape == (None, 3):
        CODEC.require(port, fed=fed)
        with pytest.raises(ValueError, match="not a row of so many floats"):
            CODEC.require(TensorSpec("x", "int64", shape), fed=fed)
    else:
        with pytest.raises(ValueError, match=r"vectors of 3 numbers; x float32\[batch, 2, 3\]"):
            CODEC.require(port, fed=fed)


def test_a_number_a_row_is_a_port_of_one() -> None:
    NumbersCodec(1).require(TensorSpec("x", "float64", (None,)), fed=True)
    with pytest.raises(ValueError, match="not a row"):
        CODEC.require(TensorSpec("x", "float64", (None,)), fed=True)


def test_file_keeps_every_bit() -> None:
    codec = NumbersCodec(2, ["é", "b"], [0.1, 1 / 3], [2 / 3, 1e-9])
    again = NumbersCodec.from_json(codec.to_json())
    assert (again.size, again.names) == (2, ("é", "b"))
    assert (again.mean.tobytes(), again.deviation.tobytes()) == (codec.mean.tobytes(), codec.deviation.tobytes())


def test_spec_opens_its_file() -> None:
    spec = codec_spec({"kind": "numbers", "file": "vitals.json"})
    assert isinstance(spec, NumbersCodecSpec)
    assert spec.files == ("vitals.json",)
    opened = spec.open({"vitals.json": CODEC.to_json().encode()})
    assert isinstance(opened, NumbersCodec)
    assert opened.names == CODEC.names


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ([], "content"),
        ({}, "says no size"),
        ({"size": 0}, "size: Input should be greater"),
        ({"size": 10**9}, "size: Input should be less"),
        ({"size": 2, "names": ["a"]}, "names has 1 entries; size is 2"),
        ({"names": ["a", "b"], "mean": [1.0]}, "mean has 1 entries; size is 2"),
        ({"names": ["a", "a"]}, "number 1 is called 'a', as number 0 is; names are unique"),
        ({"names": []}, "allowed are 1 to"),
        ({"names": [""]}, "has 0 characters"),
        ({"size": 2, "deviation": [1.0, 0.0]}, "deviation of number 1 is 0.0; allowed are numbers above 0"),
        ({"size": 1, "deviation": [-1.0]}, "deviation of number 0 is -1.0"),
        ({"size": 1, "scale": [1.0]}, "scale: Extra inputs"),
        ({"size": 1, "mean": ["x"]}, "mean.0"),
    ],
)
def test_what_is_no_file_of_numbers_is_refused(said: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NumbersCodec.from_json(json.dumps(said))


@pytest.mark.parametrize("content", ["", "{", '{"size": 1, "mean": [NaN]}', '{"size": 1, "mean": [1e999]}'])
def test_what_is_no_json_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r"content|mean"):
        NumbersCodec.from_json(content)
