"""What a manifest says of a codec, and what an opened one can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny

from carousel.models.graph import TensorSpec
from carousel.models.part import by_kind
from carousel.models.registry import Registry

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[np.generic]


class Codec(Protocol):
    """Between what people send and the arrays of a port."""

    def require(self, port: TensorSpec, *, fed: bool) -> None:
        """Hold that a port of a step or an encoder is this codec's.

        Args:
            port: its type and shape, batch first.
            fed: whether it is an input.

        Raises:
            ValueError: it is not; what the codec knows, and what the port is.
        """
        ...


@runtime_checkable
class IdCodec(Codec, Protocol):
    """A codec of things that have a number each: tokens, attempts."""

    id_ports: ClassVar[int]
    """How many ports an id is fed to."""

    @property
    def id_count(self) -> int:
        """An id is below it."""
        ...

    def join(self, columns: Sequence[Ids]) -> Ids:
        """Ids of what whole numbers say in each port: of one port they are it themselves.

        Args:
            columns: in the manifest's order of the ports. <int64>[...] each

        Raises:
            ValueError: a number is out of range; what was seen, and what is allowed.
        """
        ...

    def enter(self, ids: Ids, ports: Mapping[str, Array]) -> None:
        """Write ids into the ports that they are fed to.

        Args:
            ids: <int64>[...]
            ports: in the manifest's order, to be written to. [..., *row] each
        """
        ...


@runtime_checkable
class Vocabulary(IdCodec, Protocol):
    """An IdCodec whose ids have names that a manifest may use."""

    def id_of(self, token: str) -> int | None:
        """The id of a token; None where there is none."""
        ...


class CodecSpec(BaseModel, ABC):
    """What a manifest says of a codec; a subclass a kind, whose name it is registered by in CODECS."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def files(self) -> tuple[str, ...]:
        """The bundle's files that the codec is read from."""
        return ()

    @abstractmethod
    def open(self, files: Mapping[str, bytes]) -> Codec:
        """The codec.

        Args:
            files: the bundle's, verified, those of `files` among them.

        Raises:
            ValueError: a file is not what it should be. UnicodeDecodeError is one.
        """


class FileCodecSpec(CodecSpec):
    """One whose codec is read from one file of the bundle."""

    file: str

    @property
    def files(self) -> tuple[str, ...]:
        """It."""
        return (self.file,)


CODECS: Registry[type[CodecSpec]] = Registry("carousel.models.codec")
"""Every kind of codec. One more is a file beside this one."""


def codec_spec(value: object) -> CodecSpec:
    """What a manifest says of a codec, read by its kind.

    Raises:
        ValueError: there is no such kind, or it is said otherwise.
    """
    return by_kind(value, CODECS.choices, "a codec")


AnyCodecSpec = Annotated[SerializeAsAny[CodecSpec], BeforeValidator(codec_spec)]
"""A field of a manifest."""


def text_of(files: Mapping[str, bytes], name: str) -> str:
    """A file of UTF-8, with or without a byte order mark."""
    return files[name].decode("utf-8-sig")
