"""A frozen feature extractor: somebody's ONNX file, cut down to what makes features of an image.

Axes: B batch rows, P positions of a feature map, D features of a position.

What comes out is used twice: it computes the features that training reads, and it becomes the front of the bundle's
encoder. So whatever is done to the file is done here, once, and the two cannot drift.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, version_converter

from carousel.export.passes.graph import reads
from carousel.export.runtime import open_session
from carousel.export.stored_weights import spell_out_weights
from carousel.models.codec.image import Preprocessing
from carousel.models.errors import CarouselError
from carousel.models.features import FEATURES, FrozenEncoder
from carousel.models.graph import GraphSpec, TensorSpec, read_graph
from carousel.models.step import IMAGE

OPSET = 20
"""Of every graph that is exported: torch's exporter writes it, and an older extractor is brought up to it."""

_PREFIX = "extractor/"
"""Before every name inside, so that none meets a name of the decoder's."""


class ExtractorError(CarouselError):
    """An ONNX file that cannot be used as a feature extractor, or is not the one that a checkpoint was trained on."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """`image` <float32>[B, *preprocessing.shape] -> `features` <float32>[B, P, D], or [B, D] where there is no map."""

    model: onnx.ModelProto
    encoder: FrozenEncoder

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's features: (P, D) or (D,)."""
        grid = self.encoder.grid
        return (grid[0] * grid[1], self.encoder.size) if grid else (self.encoder.size,)


def open_extractor(
    path: Path, preprocessing: Preprocessing, *, input_name: str | None = None, feature: str | None = None
) -> Extractor:
    """Read an ONNX file and keep what leads from its image to its features.

    Args:
        path: the file. Of its inputs one is the image, [batch, 3, H, W] or [batch, H, W, 3] as `preprocessing` lays it
            out; a batch or size that it fixes is freed, or set to that of `preprocessing`.
        preprocessing: how its image is made.
        input_name: the image; the only input where None.
        feature: any tensor of the graph, in the image's layout if it is a map; where None the output called
            `features`, or the only output.

    Raises:
        ExtractorError: the file cannot be used so.
        GraphRejected: it is not ONNX, or keeps its weights in another file.
    """
    content = path.read_bytes()
    spec = read_graph(content, path.name)
    model = onnx.load_from_string(content)
    image = _image_input(path.name, spec, preprocessing, input_name)
    tensor = _feature_tensor(path.name, spec, model.graph, feature)
    spell_out_weights(model.graph)
    _cut(model, image.name, tensor, preprocessing.shape)
    model = _upgraded(path.name, model)
    shape = _feature_shape(path.name, model, tensor, preprocessing)
    grid, size = _grid_and_size(path.name, tensor, shape, preprocessing)
    _flatten(model, tensor, grid, size, preprocessing)
    digest = hashlib.sha256(content).hexdigest()
    frozen = FrozenEncoder(
        sha256=digest, preprocessing=preprocessing, input=image.name, feature=tensor, grid=grid, size=size
    )
    return Extractor(model, frozen)


def reopen_extractor(path: Path, encoder: FrozenEncoder) -> Extractor:
    """The extractor that a checkpoint was trained on.

    Raises:
        ExtractorError: the file at `path` is another one.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != encoder.sha256:
        raise ExtractorError(
            f"{path}: is not the encoder of this checkpoint: its sha256 is {digest[:12]}..., "
            f"the features that trained it came from {encoder.sha256[:12]}..."
        )
    again = open_extractor(path, encoder.preprocessing, input_name=encoder.input, feature=encoder.feature)
    if again.encoder != encoder:
        raise ExtractorError(
            f"{path}: gives a map of {again.encoder.grid}; the checkpoint was trained on {encoder.grid}"
        )
    return again


def _image_input(file: str, spec: GraphSpec, preprocessing: Preprocessing, name: str | None) -> TensorSpec:
    names = [value.name for value in spec.inputs]
    if name is None and len(names) != 1:
        raise ExtractorError(f"{file}: has {len(names)} inputs ({', '.join(names)}); name the image with --input")
    image = spec.input(name) if name is not None else spec.inputs[0]
    if image is None:
        raise ExtractorError(f"{file}: has no input {name!r}; its inputs are {', '.join(names)}")
    wanted = preprocessing.shape
    sizes = zip(image.shape[1:], wanted, strict=False)
    fits = len(image.shape) == 4 and all(seen in (None, size) for seen, size in sizes)
    if image.dtype != "float32" or not fits:
        raise ExtractorError(
            f"{file}: input {image}; the preprocessing gives {TensorSpec(IMAGE, 'float32', (None, *wanted))}"
        )
    return image


def _feature_tensor(file: str, spec: GraphSpec, graph: onnx.GraphProto, name: str | None) -> str:
    outputs = [value.name for value in spec.outputs]
    if name is None:
        name = FEATURES if FEATURES in outputs else outputs[0]
        if name != FEATURES and len(outputs) != 1:
            raise ExtractorError(f"{file}: has {len(outputs)} outputs ({', '.join(outputs)}); choose with --feature")
    if not any(name in node.output for node in graph.node):
        raise ExtractorError(f"{file}: computes no tensor {name!r}; its outputs are {', '.join(outputs)}")
    return name


def _cut(model: onnx.ModelProto, image: str, feature: str, image_shape: tuple[int, int, int]) -> None:
    """Leave `image` -> `feature` and nothing that is not on the way, every name prefixed but those two's."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    needed: set[str] = set()
    waiting = [feature]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += reads(makers[name]) if name in makers else []
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    shape = ["batch", *image_shape]
    cut = helper.make_graph(
        nodes,
        "extractor",
        [helper.make_tensor_value_info(image, onnx.TensorProto.FLOAT, shape)],  # no weight among the inputs: constants
        [helper.make_tensor_value_info(feature, onnx.TensorProto.FLOAT, None)],
        weights,
    )
    cut.sparse_initializer.extend(tensor for tensor in graph.sparse_initializer if tensor.values.name in needed)
    graph.CopyFrom(cut)
    model.ir_version = max(model.ir_version, 4)  # before it, every weight had to be an input


def _upgraded(file: str, model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises bare RuntimeErrors, and others
        reason = " ".join(str(error).split())[:200]
        raise ExtractorError(f"{file}: cannot be brought to ONNX opset {OPSET} ({reason}); export it anew") from None


def _feature_shape(file: str, model: onnx.ModelProto, feature: str, preprocessing: Preprocessing) -> tuple[int, ...]:
    """Of one image's features, found by running two: what a graph says of its shapes is often incomplete."""
    images: npt.NDArray[np.float32] = np.zeros((2, *preprocessing.shape), np.float32)
    try:
        session = open_session(model.SerializeToString())
        (seen,) = session.run([feature], {session.get_inputs()[0].name: images})
    except Exception as error:  # onnxruntime has an exception class for each of its codes
        reason = " ".join(str(error).split())[:200]
        raise ExtractorError(
            f"{file}: does not run on two images at once ({reason}); export it with a free batch, or name a tensor "
            "before that with --feature"
        ) from None
    if seen.shape[:1] != (2,) or seen.dtype != np.float32:
        raise ExtractorError(
            f"{file}: {feature} of 2 images is {seen.dtype}{list(seen.shape)}; allowed is float32 with the batch first"
        )
    return tuple(seen.shape[1:])


def _grid_and_size(
    file: str, feature: str, shape: tuple[int, ...], preprocessing: Preprocessing
) -> tuple[tuple[int, int] | None, int]:
    if len(shape) == 1:
        return None, shape[0]
    if len(shape) != 3:
        raise ExtractorError(f"{file}: {feature} of an image has shape {list(shape)}; allowed are a map and a vector")
    size, rows, columns = shape if preprocessing.layout == "chw" else (shape[2], *shape[:2])
    return (None if rows * columns == 1 else (rows, columns)), size


def _flatten(
    model: onnx.ModelProto, feature: str, grid: tuple[int, int] | None, size: int, preprocessing: Preprocessing
) -> None:
    """Put the features in training's shape, and call image and features by the names they have in all rooms."""
    graph = model.graph
    positions = grid[0] * grid[1] if grid else 1
    last = preprocessing.layout == "hwc" or grid is None
    sizes = [0] + ([positions, size] if grid and last else [size, positions] if grid else [size])
    # The weights are named here, since add_prefix_graph looks into branches before it learns of them.
    renamed = {tensor.name: _PREFIX + tensor.name for tensor in graph.initializer} | {graph.input[0].name: IMAGE}
    onnx.compose.add_prefix_graph(graph, _PREFIX, rename_inputs=False, inplace=True, name_map=renamed)
    reshape = numpy_helper.from_array(np.array(sizes, np.int64), f"{_PREFIX}flat_shape")
    graph.initializer.append(reshape)
    flat = FEATURES if last else f"{_PREFIX}flat"
    graph.node.append(helper.make_node("Reshape", [_PREFIX + feature, reshape.name], [flat], f"{_PREFIX}flatten"))
    if not last:
        graph.node.append(helper.make_node("Transpose", [flat], [FEATURES], f"{_PREFIX}transpose", perm=[0, 2, 1]))
    shape = ["batch", *([positions] if grid else []), size]
    graph.ClearField("value_info")
    graph.ClearField("output")
    graph.output.append(helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, shape))
