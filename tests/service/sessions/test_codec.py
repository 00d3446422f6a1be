"""A memory as bytes: exact, and closed to whatever else a network may bring."""

import contextlib
import dataclasses
import math
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from carousel.models.graph import ELEMENT_TYPES
from carousel.service.engine.port import Snapshot
from carousel.service.sessions.codec import decode, encode
from carousel.service.sessions.errors import InvalidMemory
from carousel.service.sessions.memory import Memory

HEAD = 4 + 28 + 32
NAN_WITH_PAYLOAD = np.array([0x7FC12345], np.uint32).view(np.float32)
IDS = st.lists(st.integers(0, 2**63 - 1), max_size=9).map(lambda ids: np.array(ids, np.int64))


@st.composite
def rows(draw):
    dtype = np.dtype(draw(st.sampled_from(sorted(ELEMENT_TYPES.values()))))
    return draw(arrays(dtype, draw(array_shapes(min_dims=0, max_dims=4, max_side=5))))


MEMORIES = st.builds(
    Memory,
    model=st.text(max_size=20),
    version=st.integers(1, 10**9 - 1),
    digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
    snapshot=st.builds(Snapshot, st.dictionaries(st.text(max_size=12), rows(), max_size=4), IDS),
    steps=st.integers(0, 2**64 - 1),
    created_at=st.floats(0, 1e12),
    updated_at=st.floats(0, 1e12),
    context=IDS,
)


def assert_same(left: Memory, right: Memory) -> None:
    for field in dataclasses.fields(Memory):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name == "snapshot":
            assert list(a.state) == list(b.state)
            for name in a.state:
                assert (a.state[name].dtype, a.state[name].shape) == (b.state[name].dtype, b.state[name].shape)
                assert a.state[name].tobytes() == b.state[name].tobytes()
            np.testing.assert_array_equal(a.pending, b.pending)
        elif field.name == "context":
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


@given(MEMORIES)
def test_memory_comes_back_bit_for_bit(memory):
    assert_same(decode(encode(memory)), memory)


def test_memory_keeps_the_bits_of_what_is_no_number(make_memory):
    memory = make_memory()
    memory.snapshot.state["state.h"][0, :2] = [NAN_WITH_PAYLOAD[0], -0.0]
    assert_same(decode(encode(memory)), memory)


def test_decoded_memory_can_be_written_to(make_memory):
    memory = decode(encode(make_memory()))
    memory.snapshot.state["state.c"][1, 2] = 9
    memory.snapshot.pending[0] = 3


def test_memory_of_a_big_endian_or_strided_row_comes_back_in_value(make_memory):
    memory = make_memory()
    row = np.arange(12, dtype=">f4").reshape(2, 6)[:, ::2]
    state = {**memory.snapshot.state, "state.h": row}
    back = decode(encode(dataclasses.replace(memory, snapshot=Snapshot(state, memory.snapshot.pending))))
    np.testing.assert_array_equal(back.snapshot.state["state.h"], row)
    assert back.snapshot.state["state.h"].dtype == np.float32


@given(st.binary(max_size=400))
def test_decoder_refuses_noise(content):
    with pytest.raises(InvalidMemory):
        decode(content)
    for number in (b"\x02", b"\x03"):
        with pytest.raises(InvalidMemory):
            decode(b"CRM" + number + content[:50])


def test_decoder_refuses_every_truncation_and_extension(make_memory):
    content = encode(make_memory())
    for size in range(len(content)):
        with pytest.raises(InvalidMemory):
            decode(content[:size])
    with pytest.raises(InvalidMemory, match="1 bytes follow its end"):
        decode(content + b"\0")


def test_decoder_of_any_flipped_byte_refuses_or_reads_a_memory_that_can_be_written(make_memory):
    content = encode(make_memory())
    refused = 0
    for place in range(len(content)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            altered = bytearray(content)
            altered[place] ^= flip
            try:
                memory = decode(bytes(altered))
            except InvalidMemory:
                refused += 1
            else:
                assert encode(memory) == altered
    assert refused > len(content) // 2


@given(MEMORIES, st.data())
def test_decoder_of_spliced_memories_raises_one_error_at_most(memory, data):
    content = encode(memory)
    place = data.draw(st.integers(0, len(content)))
    inserted = data.draw(st.binary(max_size=12))
    removed = data.draw(st.integers(0, 12))
    with contextlib.suppress(InvalidMemory):
        assert isinstance(decode(content[:place] + inserted + content[place + removed :]), Memory)


@pytest.mark.parametrize(
    "tail",
    [
        b"\x00\x00" + b"\x01" + b"\x01\x00h" + bytes([1, 8]) + b"\xff" * 32,  # a row of 2 ** 256 floats
        b"\x00\x00" + b"\x01" + b"\x01\x00h" + bytes([1, 1]) + b"\xff" * 4,  # a row of 16 GiB
        b"\x00\x00" + b"\x01" + b"\x01\x00h" + bytes([1, 2]) + b"\x00" * 4 + b"\xff" * 4,  # a row of 0 x 2 ** 32
        b"\x00\x00" + b"\x01" + b"\x01\x00h" + bytes([1, 65]) + b"\x01\x00\x00\x00" * 66,  # more axes than numpy has
        b"\x00\x00" + b"\x00" + b"\xff" * 4,  # 2 ** 32 pending ids
        b"\x00\x00" + b"\xff" * 4,  # 255 states
    ],
)
def test_decoder_believes_no_length_that_is_not_there(make_memory, tail):
    content = encode(make_memory())[:HEAD] + tail
    if tail.endswith(b"\xff" * 4) and len(tail) == 6:  # 2 ** 32 states
        content = b"CRM\x03" + content[4:]
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMemory):
            decode(content)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_decoder_refuses_times_that_are_no_numbers(make_memory):
    content = bytearray(encode(make_memory()))
    content[16:24] = struct.pack("<d", float("nan"))
    with pytest.raises(InvalidMemory, match="a time"):
        decode(bytes(content))


def test_decoder_refuses_negative_ids(make_memory):
    memory = make_memory()
    memory.snapshot.pending[1] = -1
    with pytest.raises(InvalidMemory, match="negative"):
        decode(encode(memory))


@pytest.mark.parametrize("dtype", sorted(ELEMENT_TYPES.values()))
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 4), (1, 2, 1, 2, 1, 2, 1, 2)])
def test_row_of_any_type_and_shape_comes_back(make_memory, dtype, shape):
    row = np.frombuffer(np.random.default_rng(0).bytes(4096), "u1")[: np.dtype(dtype).itemsize * math.prod(shape)]
    row = (row & 1).astype(bool).reshape(shape) if dtype == "bool" else row.view(dtype).reshape(shape)
    memory = make_memory()
    memory.snapshot.state["state.h"] = row
    assert_same(decode(encode(memory)), memory)


def test_memory_of_megabytes_comes_back(make_memory):
    memory = make_memory()
    memory.snapshot.state["state.h"] = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)
    assert_same(decode(encode(memory)), memory)


@pytest.mark.parametrize(("count", "number"), [(0, 2), (255, 2), (256, 3), (1000, 3)])
def test_memory_of_any_number_of_states_comes_back(make_memory, count, number):
    memory = make_memory()
    state = {f"state.{place}": np.full((1, 2), place, np.float16) for place in range(count)}
    memory = dataclasses.replace(memory, snapshot=Snapshot(state, memory.snapshot.pending))
    content = encode(memory)
    assert content[:4] == b"CRM" + bytes([number])  # what is kept of older releases goes on being read
    assert_same(decode(content), memory)


def test_memory_size_does_not_depend_on_how_much_was_eaten(make_memory):
    assert len(encode(make_memory(steps=10))) == len(encode(make_memory(steps=10**9)))
