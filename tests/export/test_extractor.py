import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from carousel.export.extractor import ExtractorError, open_extractor, reopen_extractor
from carousel.models.codec.image import Preprocessing
from carousel.models.errors import GraphRejected

MakeExtractor = Callable[..., Path]

SIZE = {"width": 12, "height": 8}
CHW = Preprocessing(**SIZE)
HWC = Preprocessing(**SIZE, layout="hwc")


def run(content: bytes, outputs: list[str], image: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(outputs, {session.get_inputs()[0].name: image})


def images(preprocessing: Preprocessing, count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, *preprocessing.shape)).astype(np.float32)


@pytest.mark.parametrize("preprocessing", [CHW, HWC])
def test_extractor_gives_the_map_row_by_row(make_extractor: MakeExtractor, preprocessing: Preprocessing) -> None:
    path = make_extractor(layout=preprocessing.layout)
    extractor = open_extractor(path, preprocessing)
    assert (extractor.encoder.grid, extractor.encoder.size, extractor.shape) == ((2, 3), 5, (6, 5))
    fed = images(preprocessing)
    (whole,) = run(path.read_bytes(), ["features"], fed)
    rows = whole if preprocessing.layout == "hwc" else whole.transpose(0, 2, 3, 1)  # [N, 2, 3, D]
    (seen,) = run(extractor.model.SerializeToString(), ["features"], fed)
    assert np.array_equal(seen, rows.reshape(4, 6, 5))


def test_extractor_of_one_position_gives_a_vector(make_extractor: MakeExtractor) -> None:
    path = make_extractor(pool=True)
    extractor = open_extractor(path, CHW)
    assert (extractor.encoder.grid, extractor.shape) == (None, (5,))
    (whole,) = run(path.read_bytes(), ["features"], images(CHW))
    (seen,) = run(extractor.model.SerializeToString(), ["features"], images(CHW))
    assert np.array_equal(seen, whole[:, :, 0, 0])


@pytest.mark.parametrize(("feature", "shape"), [("vector", (5,)), ("convolved", (6, 5)), ("logits", (700,))])
def test_any_tensor_of_the_graph_can_be_the_feature(
    make_extractor: MakeExtractor, feature: str, shape: tuple[int, ...]
) -> None:
    extractor = open_extractor(make_extractor(), CHW, input_name="data", feature=feature)
    assert extractor.shape == shape
    assert extractor.encoder.feature == feature


def test_extractor_keeps_only_what_leads_to_the_features_and_as_it_was_stored(make_extractor: MakeExtractor) -> None:
    path = make_extractor(compact=True)
    model = open_extractor(path, CHW).model
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert sorted(name for name in stored if "flat" not in name) == [
        "extractor/bias", "extractor/kernel_q", "extractor/kernel_scale", "extractor/kernel_zero",
    ]  # fmt: skip
    assert stored["extractor/kernel_q"].dtype == np.uint8
    assert [value.name for value in model.graph.output] == ["features"]
    (whole,) = run(path.read_bytes(), ["features"], images(CHW))
    (seen,) = run(model.SerializeToString(), ["features"], images(CHW))
    assert np.allclose(seen, whole.transpose(0, 2, 3, 1).reshape(4, 6, 5), atol=1e-5)  # by other kernels


def test_extractor_of_an_old_file_is_freed_of_its_batch_and_its_weights_of_being_inputs(
    make_extractor: MakeExtractor,
) -> None:
    path = make_extractor(legacy=True, batch=1, size=(8, 12))
    model = open_extractor(path, CHW).model
    assert [value.name for value in model.graph.input] == ["image"]
    (seen,) = run(model.SerializeToString(), ["features"], images(CHW))
    single = [run(path.read_bytes(), ["features"], image[None])[0] for image in images(CHW)]
    assert np.allclose(seen, np.concatenate(single).transpose(0, 2, 3, 1).reshape(4, 6, 5), atol=1e-6)


def test_extractor_is_identified_by_its_file(make_extractor: MakeExtractor) -> None:
    path = make_extractor()
    encoder = open_extractor(path, CHW).encoder
    assert encoder.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reopen_extractor(path, encoder).encoder == encoder
    with pytest.raises(
        ExtractorError, match=r"is not the encoder of this checkpoint: its sha256 is [0-9a-f]{12}\.\.\.,"
    ):
        reopen_extractor(make_extractor(seed=7), encoder)


@pytest.mark.parametrize(
    ("choices", "preprocessing", "names", "message"),
    [
        ({}, CHW, {"input_name": "pixels"}, r"has no input 'pixels'; its inputs are data$"),
        ({}, CHW, {"feature": "pool5"}, r"computes no tensor 'pool5'; its outputs are features, logits$"),
        ({}, CHW, {"feature": "head"}, r"computes no tensor 'head'; its outputs are features, logits$"),
        ({"size": (8, 8)}, CHW, {}, r"input data float32\[batch, 3, 8, 8\]; .* image float32\[batch, 3, 8, 12\]$"),
        ({"layout": "hwc"}, CHW, {}, r"input data float32\[batch, \?, \?, 3\]; the preprocessing gives image .*$"),
        (
            {},
            Preprocessing(width=2, height=2),
            {},
            r"does not run on two images at once \(.*\); export it with a free batch, .*$",
        ),
    ],
)
def test_open_extractor_refuses_what_it_cannot_use(
    make_extractor: MakeExtractor, choices: dict, preprocessing: Preprocessing, names: dict, message: str
) -> None:
    with pytest.raises(ExtractorError, match=r"^tiny\.onnx: " + message):
        open_extractor(make_extractor(**choices), preprocessing, **names)


def edited(path: Path, tmp_path: Path, nodes: list[onnx.NodeProto], outputs: list[str], **tensors: np.ndarray) -> Path:
    model = onnx.load(path)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    model.graph.ClearField("output")
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs)
    (tmp_path / "edited.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "edited.onnx"


def test_open_extractor_refuses_a_graph_that_is_made_for_one_image(
    make_extractor: MakeExtractor, tmp_path: Path
) -> None:
    reshape = helper.make_node("Reshape", ["map", "shape"], ["fixed"])
    path = edited(make_extractor(), tmp_path, [reshape], ["fixed"], shape=np.array([1, 5, 2, 3]))
    with pytest.raises(ExtractorError, match=r"^edited\.onnx: does not run on two images at once \([^\n]*\);"):
        open_extractor(path, CHW)


def test_extractor_keeps_what_a_branch_reads(make_extractor: MakeExtractor, tmp_path: Path) -> None:
    def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
        return helper.make_graph(nodes, "branch", [], [out])

    mean = helper.make_node("GlobalAveragePool", ["data"], ["colour"])
    choice = helper.make_node(
        "If",
        ["yes"],
        ["chosen"],
        then_branch=branch(
            helper.make_node("ReduceSum", ["colour", "axes"], ["light"], keepdims=1),
            helper.make_node("Add", ["map", "light"], ["lit"]),
        ),
        else_branch=branch(helper.make_node("Identity", ["map"], ["plain"])),
    )
    path = edited(
        make_extractor(),
        tmp_path,
        [mean, choice],
        ["chosen"],
        yes=np.array(True),
        axes=np.array([1]),
        unused=np.ones(9),
    )
    fed = images(CHW)
    (whole,) = run(path.read_bytes(), ["chosen"], fed)
    (plain,) = run(make_extractor().read_bytes(), ["features"], fed)
    model = open_extractor(path, CHW).model
    (seen,) = run(model.SerializeToString(), ["features"], fed)
    assert np.array_equal(seen, whole.transpose(0, 2, 3, 1).reshape(4, 6, 5))
    assert np.abs(whole - plain).max() > 0.1
    assert not any("unused" in tensor.name for tensor in model.graph.initializer)


def test_open_extractor_refuses_features_that_are_neither_map_nor_vector(
    make_extractor: MakeExtractor, tmp_path: Path
) -> None:
    reshape = helper.make_node("Reshape", ["map", "shape"], ["flat"])
    path = edited(make_extractor(), tmp_path, [reshape], ["flat"], shape=np.array([0, 5, 6]))
    with pytest.raises(ExtractorError, match=r"flat of an image has shape \[5, 6\]; allowed are a map and a vector$"):
        open_extractor(path, CHW)


def test_open_extractor_asks_which_of_two_outputs_it_should_take(make_extractor: MakeExtractor, tmp_path: Path) -> None:
    path = edited(make_extractor(), tmp_path, [], ["mean", "logits"])
    with pytest.raises(ExtractorError, match=r"has 2 outputs \(mean, logits\); choose with --feature$"):
        open_extractor(path, CHW)


def test_open_extractor_refuses_weights_in_another_file(make_extractor: MakeExtractor, tmp_path: Path) -> None:
    onnx.save(
        onnx.load(make_extractor()), tmp_path / "split.onnx", save_as_external_data=True, size_threshold=0, location="w"
    )
    with pytest.raises(GraphRejected, match=r"^split\.onnx: tensor '\w+' keeps its data in another file"):
        open_extractor(tmp_path / "split.onnx", CHW)
    (tmp_path / "text.onnx").write_text("not ONNX")
    with pytest.raises(GraphRejected, match=r"^text\.onnx: "):
        open_extractor(tmp_path / "text.onnx", CHW)
