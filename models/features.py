"""What a file of features of a frozen encoder says of itself: export writes it, training reads it.

One safetensors file: the tensor `features` <float32>[N, P, D] (a map's P positions row by row) or [N, D] (pooled), and
in its metadata, under METADATA_KEY, a FeaturesHeader as JSON.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from carousel.models.codec.image import Preprocessing

FEATURES = "features"
"""The tensor's name."""

METADATA_KEY = "carousel"
"""Where in the safetensors metadata the header lies, as a checkpoint's does."""

Side = Annotated[int, Field(ge=1)]


class FrozenEncoder(BaseModel):
    """Which extractor, fed how, gives the features. A checkpoint's header carries it, so that no other is exported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the ONNX file."""
    preprocessing: Preprocessing
    input: str
    """The ONNX graph's input."""
    feature: str
    """The tensor of the graph that is the features; not necessarily one of its outputs."""
    grid: tuple[Side, Side] | None
    """Rows and columns of the map, P = rows * columns; None where the features are pooled."""
    size: Side
    """D: how many features a position, or the image, has."""


class FeaturesHeader(BaseModel):
    """What lies beside the tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: FrozenEncoder
    flipped: bool
    """Of the mirror images, left and right swapped."""
    images: tuple[str, ...]
    """N names: the path inside its directory or zip, in the order of axis 0."""
