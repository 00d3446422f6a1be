"""A trained network from its checkpoint, whichever the header names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from carousel.models.codec.caption import CaptionCodec
from carousel.models.codec.image import ImageCodec
from carousel.models.codec.spec import Codec, CodecSpec, codec_spec
from carousel.models.codec.text import TextCodec
from carousel.models.errors import CheckpointError
from carousel.models.features import FrozenEncoder
from carousel.models.graph import TensorSpec
from carousel.models.head import GenerateHead, HeadSpec, head_spec
from carousel.models.manifest import DecodingDefaults, Limits, Provenance
from carousel.models.nn.checkpoint import Checkpoint
from carousel.models.nn.header import current
from carousel.models.nn.network import NETWORKS, Network, StepModule
from carousel.models.part import first_mistake
from carousel.models.registry import UnknownName
from carousel.models.step import ATTENTION

Part = TypeVar("Part", bound=BaseModel)
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Trained:
    """A network, and what a bundle of it will say; the fields are called as a manifest's are."""

    task: str
    network: Network
    """In evaluation mode, folded."""
    codecs: Mapping[str, CodecSpec]
    ports: Mapping[str, str]
    head: HeadSpec
    files: Mapping[str, bytes]
    """Of the codecs."""
    opened: Mapping[str, Codec]
    """The codecs by name."""
    encoder: FrozenEncoder | None
    """Whose features the network reads; None where it reads what codecs give."""
    limits: Limits
    decoding: DecodingDefaults
    validation: Mapping[str, float] | None
    provenance: Provenance | None

    def codec(self, kind: type[C]) -> C:
        """The codec of a class, of which the caller knows that there is one."""
        return next(codec for codec in self.opened.values() if isinstance(codec, kind))


def load(checkpoint: Checkpoint) -> Trained:
    """The network that a checkpoint's tensors are of.

    Raises:
        CheckpointError: the header names no network that there is, or tensors or parts are missing or do not fit.
    """
    header = current(checkpoint.header)
    task = header.get("task")
    try:
        kind, config = header["network"]["kind"], header["network"]["config"]
        try:
            network_type = NETWORKS[kind]
        except UnknownName as error:
            raise CheckpointError(f"checkpoint's network is {kind!r}; {error}") from None
        network = network_type(network_type.Config.from_json(config))
        files = {name: content.encode() for name, content in header["files"].items()}
        codecs = {name: codec_spec(value) for name, value in header["codecs"].items()}
        opened = {name: spec.open(files) for name, spec in codecs.items()}
        head, ports = head_spec(header["head"]), header["ports"]
        encoder = FrozenEncoder.model_validate(header["encoder"]) if header.get("encoder") else None
        network.load_state_dict(checkpoint.group("model"))
        network.fold()
        network.eval()
        _require_fit(network.step_module(), {port: opened[name] for port, name in ports.items()}, head)
    except KeyError as error:
        raise CheckpointError(f"checkpoint does not hold a whole {task} model: its header has no {error}") from None
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())  # torch writes one line per tensor
        raise CheckpointError(f"checkpoint does not hold a whole {task} model: {reason}") from None
    return Trained(
        task=str(task),
        network=network,
        codecs=codecs,
        ports=ports,
        head=head,
        files=files,
        opened=opened,
        encoder=encoder,
        limits=_part(header, "limits", Limits) or Limits(),
        decoding=_part(header, "decoding", DecodingDefaults) or DecodingDefaults(),
        validation=header.get("validation"),
        provenance=_part(header, "provenance", Provenance),
    )


def caption_codec(trained: Trained) -> CaptionCodec:
    """The codec of a network that says words of an image: its two codecs, and what its head begins and ends with."""
    head = trained.head
    assert isinstance(head, GenerateHead)
    preprocessing = trained.codec(ImageCodec).preprocessing
    return CaptionCodec(trained.codec(TextCodec), preprocessing, head.begin or "", head.end or "")


def _require_fit(step: StepModule, codecs: Mapping[str, Codec], head: HeadSpec) -> None:
    """See that codecs and head are of what a step of the network reads and puts out.

    Raises:
        ValueError: they are of something else.
    """
    inputs = step.inputs
    outputs = {step.output: TensorSpec(step.output, "float32", (None, step.projection.out_features))}
    if step.grid:
        outputs[ATTENTION] = TensorSpec(ATTENTION, "float32", (None, *step.grid))
    for port in (*inputs.values(), *outputs.values()):
        if port.name in codecs:
            codecs[port.name].require(port, fed=port.name in inputs)
    head.require(inputs, outputs, codecs)


def _part(header: Mapping[str, Any], key: str, part: type[Part]) -> Part | None:
    """A part of the manifest that training wrote into the header; None where it wrote none."""
    if header.get(key) is None:
        return None
    try:
        return part.model_validate(header[key])
    except ValidationError as error:
        raise CheckpointError(f"checkpoint's header {first_mistake(error, key)}") from None
