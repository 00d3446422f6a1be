"""A memory as bytes, exactly: the same floats come back bit for bit.

Little-endian, nothing padded, nothing after the end:

    magic "CRM" and format number                               4 bytes
    version u32, steps u64, created_at f64, updated_at f64     28 bytes
    digest                                                     32 bytes
    model                                                      text
    states: count, then each: name text, type u8, rank u8, rank sizes u32, the row's bytes
    pending: u32 count, then int64 each
    context: u32 count, then int64 each

where text is a u16 length and that many bytes of UTF-8, and a type is ONNX's number for it (models.graph). The count is
a u8 in format 2; format 3 has a u32, and is written where there are more states than a u8 can count. Whoever changes
the layout changes the format number. Bytes come from a network, so a reader believes no length before it has seen that
so many bytes are there: it allocates no more than a small multiple of what it was given. How many bytes are too many, a
store and a signer say.
"""

from __future__ import annotations

import math
import struct
from typing import NoReturn

import numpy as np

from carousel.models.graph import ELEMENT_TYPES
from carousel.service.engine.parameters import Array, Ids
from carousel.service.engine.port import Snapshot
from carousel.service.sessions.errors import InvalidMemory
from carousel.service.sessions.memory import Memory

MAX_RANK = 8

_MAGIC = b"CRM\x02"
_MAGIC_MANY = b"CRM\x03"
"""Of what has more than _MAX_FEW states."""
_MAX_FEW = 255
_HEAD = struct.Struct("<IQdd32s")
_U8, _U16, _U32 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I")
_TYPES = {number: np.dtype(name).newbyteorder("<") for number, name in ELEMENT_TYPES.items()}
_TYPE_NUMBERS = {dtype: number for number, little in _TYPES.items() for dtype in (little, little.newbyteorder(">"))}


def encode(memory: Memory) -> bytes:
    """The bytes of a memory."""
    state = memory.snapshot.state
    few = len(state) <= _MAX_FEW
    parts = [
        _MAGIC if few else _MAGIC_MANY,
        _HEAD.pack(memory.version, memory.steps, memory.created_at, memory.updated_at, bytes.fromhex(memory.digest)),
        _text(memory.model.encode()),
        (_U8 if few else _U32).pack(len(state)),
    ]
    for name, row in state.items():
        number = _TYPE_NUMBERS[row.dtype]
        parts += [
            _text(name.encode()),
            bytes((number, row.ndim)),
            struct.pack(f"<{row.ndim}I", *row.shape),
            row.astype(_TYPES[number], copy=False).tobytes(),
        ]
    for ids in (memory.snapshot.pending, memory.context):
        parts += [_U32.pack(len(ids)), ids.astype("<i8", copy=False).tobytes()]
    return b"".join(parts)


def decode(content: bytes) -> Memory:
    """The memory that `encode` made these bytes of. Its arrays are its own and can be written to.

    Raises:
        InvalidMemory: they are the bytes of no memory, or of another format.
    """
    reader = _Reader(content)
    magic = reader.take(len(_MAGIC))
    if magic not in (_MAGIC, _MAGIC_MANY):
        reader.refuse("no memory, or one in another format")
    version, steps, created_at, updated_at, digest = _HEAD.unpack(reader.take(_HEAD.size))
    if not (math.isfinite(created_at) and math.isfinite(updated_at)):
        reader.refuse("holds a time that is no number")
    model = reader.text()
    state: dict[str, Array] = {}
    for _ in range(reader.number(_U8 if magic == _MAGIC else _U32)):
        name = reader.text()
        if name in state:
            reader.refuse("holds a state twice")
        state[name] = reader.row()
    pending, context = reader.ids(), reader.ids()
    if reader.left:
        reader.refuse(f"{reader.left:,} bytes follow its end")
    snapshot = Snapshot(state, pending)
    return Memory(model, version, digest.hex(), snapshot, steps, created_at, updated_at, context)


def _text(content: bytes) -> bytes:
    return _U16.pack(len(content)) + content


class _Reader:
    """Takes values off the front of untrusted bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self.left = len(content)

    def refuse(self, reason: str) -> NoReturn:
        raise InvalidMemory(f"a memory of {len(self._content):,} bytes: {reason}")

    def take(self, size: int) -> memoryview:
        if size > self.left:
            self.refuse("cut short")
        start = len(self._content) - self.left
        self.left -= size
        return self._content[start : start + size]

    def number(self, kind: struct.Struct) -> int:
        return int(kind.unpack(self.take(kind.size))[0])

    def text(self) -> str:
        try:
            return str(self.take(self.number(_U16)), "utf-8")
        except UnicodeDecodeError:
            self.refuse("holds a text that is no UTF-8")

    def row(self) -> Array:
        """One row of a state."""
        kind, rank = self.take(2)
        dtype = _TYPES.get(kind)
        if dtype is None or rank > MAX_RANK:
            self.refuse("holds a state of unknown type or rank")
        shape = struct.unpack(f"<{rank}I", self.take(4 * rank))
        if 0 in shape:
            self.refuse("holds an empty state")
        content = self.take(math.prod(shape) * dtype.itemsize)  # Python's integers: the product cannot wrap
        if dtype == np.bool_ and not set(content) <= {0, 1}:
            self.refuse("holds a truth value that is neither 0 nor 1")
        return np.frombuffer(content, dtype).astype(dtype.newbyteorder("=")).reshape(shape)

    def ids(self) -> Ids:
        count = self.number(_U32)
        ids = np.frombuffer(self.take(8 * count), "<i8").astype(np.int64)
        if count and ids.min() < 0:
            self.refuse("holds a negative id")
        return ids
