"""What becomes of a model's outputs, as a manifest says it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny
from typing_extensions import override  # of Python 3.12

from carousel.models.codec.spec import Codec, IdCodec, Vocabulary
from carousel.models.graph import TensorSpec
from carousel.models.part import by_kind

Ports = Mapping[str, TensorSpec]


class HeadSpec(BaseModel, ABC):
    """What a manifest says of a head; a subclass a kind, in HEADS."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @property
    def fed_port(self) -> str | None:
        """The input that gets what comes of an output; None where nothing is fed back."""
        return None

    @property
    def read_port(self) -> str | None:
        """The output that is sampled, searched or read; None where outputs are given as they are."""
        return None

    @property
    def attends_port(self) -> str | None:
        """The output that says where a step looked; None where there is none."""
        return None

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Those that it reads, the first the one that is sampled, searched or read."""

    @abstractmethod
    def require(self, inputs: Ports, outputs: Ports, codecs: Mapping[str, Codec]) -> None:
        """Hold that the ports are what the head needs.

        Args:
            inputs: of a step.
            outputs: likewise.
            codecs: by port.

        Raises:
            ValueError: they are not.
        """


class GenerateHead(HeadSpec):
    """Sample an id from a row of logits, or search a beam, and feed it back; what is given is scored likewise."""

    kind: Literal["generate"] = "generate"
    feeds: str
    from_: Annotated[str, Field(alias="from")]
    begin: str | None = None
    """The token that a sequence's first step is fed, where it is not the client's to say."""
    end: str | None = None
    """The token that ends a sequence."""
    attends: str | None = None

    @property
    def fed_port(self) -> str:
        """Where ids go."""
        return self.feeds

    @property
    def read_port(self) -> str:
        """The logits."""
        return self.from_

    @property
    def attends_port(self) -> str | None:
        """The map."""
        return self.attends

    @property
    def outputs(self) -> tuple[str, ...]:
        """The logits, and where a step looked."""
        return (self.from_,) if self.attends is None else (self.from_, self.attends)

    def require(self, inputs: Ports, outputs: Ports, codecs: Mapping[str, Codec]) -> None:
        """One port fed, a row of logits read, both with a codec; a map of where it looked."""
        _require_there(self.feeds, inputs, "feeds", "input")
        _require_there(self.from_, outputs, "from", "output")
        if len(inputs) != 1:
            raise ValueError(f"it feeds {self.feeds} alone, and a step has inputs {', '.join(inputs)}")
        logits = outputs[self.from_]
        if logits.dtype != "float32" or len(logits.shape) != 2:
            raise ValueError(f"it reads logits, float32[batch, V]; the output is {logits}")
        for port in (self.feeds, self.from_):
            if not isinstance(codecs.get(port), IdCodec):
                raise ValueError(f"its port {port} has no codec of ids; give it one in ports")
        tokens = codecs[self.feeds]
        for token in (self.begin, self.end):
            if token is not None and (not isinstance(tokens, Vocabulary) or tokens.id_of(token) is None):
                raise ValueError(f"the vocabulary has no token {token!r}, which begins or ends a sequence")
        if self.attends is not None:
            _require_there(self.attends, outputs, "attends", "output")
            looked = outputs[self.attends]
            if looked.dtype != "float32" or len(looked.shape) != 3:
                raise ValueError(f"it attends by a map, float32[batch, rows, columns]; the output is {looked}")


class ReadHead(HeadSpec):
    """Outputs after each step, or after the last, through their codec."""

    kind: Literal["read"] = "read"
    from_: Annotated[str, Field(alias="from")]

    @property
    def read_port(self) -> str:
        """What is read."""
        return self.from_

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is read."""
        return (self.from_,)

    @override
    def require(self, inputs: Ports, outputs: Ports, codecs: Mapping[str, Codec]) -> None:
        """A row of numbers that has a codec."""
        _require_there(self.from_, outputs, "from", "output")
        if self.from_ not in codecs:
            raise ValueError(f"its port {self.from_} has no codec; give it one in ports")
        row = outputs[self.from_]
        if row.dtype != "float32" or len(row.shape) != 2:
            raise ValueError(f"it reads float32[batch, size]; the output is {row}")


class TensorsHead(HeadSpec):
    """Named outputs as they are."""

    kind: Literal["tensors"] = "tensors"
    from_: Annotated[tuple[str, ...], Field(alias="from", min_length=1)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """All that it names."""
        return self.from_

    @override
    def require(self, inputs: Ports, outputs: Ports, codecs: Mapping[str, Codec]) -> None:
        """They are there."""
        for name in self.from_:
            _require_there(name, outputs, "from", "output")


HEADS: Mapping[str, type[HeadSpec]] = {
    head.model_fields["kind"].default: head for head in (GenerateHead, ReadHead, TensorsHead)
}


def head_spec(value: object) -> HeadSpec:
    """What a manifest says of a head, read by its kind.

    Raises:
        ValueError: there is no such kind, or it is said otherwise.
    """
    return by_kind(value, HEADS, "a head")


AnyHeadSpec = Annotated[SerializeAsAny[HeadSpec], BeforeValidator(head_spec)]
"""A field of a manifest."""


def _require_there(name: str, ports: Ports, field: str, side: str) -> None:
    if name not in ports:
        raise ValueError(f"{field} is {name!r}; a step's {side}s are {', '.join(ports) or 'none'}")
