"""What can be wrong with a model on disk.

    CarouselError
    ├── BundleError          a bundle that must not be served
    │   ├── BundleNotFound   there is nothing at that path
    │   ├── DigestMismatch   a file is not the one that was published
    │   └── GraphRejected    the ONNX graph breaks the contract
    ├── CheckpointError      a training checkpoint that cannot be read
    ├── UnencodableText      a text that a model's tokens cannot express
    ├── ImageRejected        bytes that are no image that can be captioned
    │   └── ImageTooLarge    an image with more pixels than are decoded
    ├── UnknownSkill         a skill that a model does not have
    ├── UnknownLabel         a class that a model does not have
    ├── ValueRejected        a value that a port of a model cannot take
    └── ShapeMismatch        a tensor's shape differs from what the model takes

Every message is one sentence: what was seen, what was allowed.
"""


class CarouselError(Exception):
    """Root of every error that Carousel raises on purpose."""


class BundleError(CarouselError):
    """A bundle that must not be served."""


class BundleNotFound(BundleError):
    """There is no bundle at that path."""


class DigestMismatch(BundleError):
    """A file's content is not what the manifest recorded at publication."""


class GraphRejected(BundleError):
    """The ONNX graph breaks the bundle contract."""


class CheckpointError(CarouselError):
    """A training checkpoint that cannot be read."""


class UnencodableText(CarouselError):
    """A text that a model's tokens cannot express."""


class TextTooLong(CarouselError):
    """A text has more tokens than were allowed.

    Args:
        count: how many it has.
    """

    def __init__(self, count: int) -> None:
        super().__init__(f"the text has {count:,} tokens")
        self.count = count


class ImageRejected(CarouselError):
    """Bytes that are no image that can be captioned."""


class ImageTooLarge(ImageRejected):
    """An image with more pixels than are decoded."""


class UnknownSkill(CarouselError):
    """A model has no such skill.

    Args:
        seen: what was asked for.
        known: what there is.
    """

    def __init__(self, seen: str, known: str) -> None:
        super().__init__(f"{seen}; {known}")
        self.seen, self.known = seen, known


class UnknownLabel(CarouselError):
    """A model has no such class."""


class ValueRejected(CarouselError):
    """A value that a port of a model cannot take."""


class ShapeMismatch(CarouselError):
    """A tensor's shape differs from what the model takes."""
