"""Weights in the file that the manifest names: where they may lie, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models

from carousel.models.bundle import open_bundle, publish
from carousel.models.codec.text import TextCodecSpec
from carousel.models.errors import BundleError, DigestMismatch, GraphRejected
from carousel.models.graph import read_graph
from carousel.models.head import GenerateHead
from carousel.models.manifest import Manifest, StateSpec, StepSpec
from carousel.models.weights import WEIGHTS, WeightsFile

MakeGraph = Callable[[], onnx.ModelProto]
FILE = WeightsFile(WEIGHTS, 200)
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
OFFSET = 64


def shared(**entries: object) -> TensorProto:
    """VALUES, in bytes 64 to 88 of the file unless `entries` say otherwise; None leaves an entry out."""
    tensor = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=VALUES.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": WEIGHTS, "offset": OFFSET, "length": VALUES.nbytes, **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def with_weight(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    model.graph.initializer.append(tensor)
    return model.SerializeToString()


@pytest.fixture
def files(make_step_graph: MakeGraph) -> dict[str, bytes]:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3, "d": 4}, "<unk>"))
    return {
        "step.onnx": with_weight(make_step_graph(), shared()),
        "tokenizer.json": tokenizer.to_str().encode(),
        WEIGHTS: bytes(OFFSET) + VALUES.tobytes() + bytes(112),
    }


def manifest(weights: str | None = WEIGHTS) -> Manifest:
    states = tuple(StateSpec(before=f"state.{name}", after=f"next_state.{name}") for name in ("h0", "c0"))
    return Manifest(
        task="language",
        step=StepSpec(inputs=("token",), outputs=("logits",), states=states),
        codecs={"text": TextCodecSpec()},
        ports={"token": "text", "logits": "text"},
        head=GenerateHead(feeds="token", from_="logits"),
        weights=weights,
        files={},
    )


def test_a_bundle_says_where_its_weights_lie_and_copies_none(tmp_path: Path, files: dict[str, bytes]) -> None:
    bundle = open_bundle(publish(tmp_path, "m", manifest(), files))
    found = bundle.weights(bundle.step)
    assert found.keys() == {"table"}
    assert found["table"].dtype == np.float32
    np.testing.assert_array_equal(found["table"], VALUES)
    assert not found["table"].flags.writeable
    start = np.frombuffer(bundle.files[WEIGHTS], np.uint8).ctypes.data
    assert found["table"].ctypes.data == start + OFFSET
    assert "table" not in {spec.name for spec in bundle.step.inputs}


def test_a_bundle_without_the_file_has_no_such_weights(tmp_path: Path, make_step_graph: MakeGraph, files) -> None:
    files["step.onnx"] = make_step_graph().SerializeToString()
    del files[WEIGHTS]
    bundle = open_bundle(publish(tmp_path, "m", manifest(None), files))
    assert bundle.weights(bundle.step) == {}
    assert "weights" not in json.loads((bundle.path / "manifest.json").read_text())


def test_a_file_in_the_bundle_that_the_manifest_does_not_name_as_weights_is_none(tmp_path: Path, files) -> None:
    with pytest.raises(GraphRejected, match=r"^step\.onnx: tensor 'table' keeps its data in another file; a bundle's"):
        publish(tmp_path, "m", manifest(None), files)


@pytest.mark.parametrize("name", ["../weights.bin", "/etc/passwd", "a/b", ""])
def test_a_manifest_names_weights_of_its_own_directory_alone(tmp_path: Path, files, name: str) -> None:
    path = publish(tmp_path, "m", manifest(), files)
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**content, "weights": name}))
    with pytest.raises(BundleError, match=r"^manifest\.json: weights: String should match pattern"):
        open_bundle(path)


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    del files[WEIGHTS]
    with pytest.raises(BundleError, match=r"^manifest\.json: files lists no weights\.bin, which it names$"):
        publish(tmp_path, "m", manifest(), files)


def test_weights_that_are_missing_or_changed_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = publish(tmp_path, "m", manifest(), files) / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DigestMismatch, match=r"^weights\.bin: 199 bytes; the manifest recorded 200$"):
        open_bundle(path.parent)
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(DigestMismatch, match=r"^weights\.bin: sha256 is \w{64}; the manifest recorded \w{64}$"):
        open_bundle(path.parent)
    path.unlink()
    with pytest.raises(DigestMismatch, match=r"^weights\.bin: there is no such file"):
        open_bundle(path.parent)


def test_a_weight_may_leave_out_what_follows_from_its_shape(make_step_graph: MakeGraph) -> None:
    (spec,) = read_graph(
        with_weight(make_step_graph(), shared(offset=None, length=None)), "g", WeightsFile(WEIGHTS, 24)
    ).weights
    assert (spec.offset, spec.bytes, spec.shape, spec.dtype) == (0, 24, (2, 3), "float32")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "/etc/passwd"}, r"keeps its data in '/etc/passwd'; allowed is weights\.bin, which the manifest"),
        ({"location": "../1/weights.bin"}, r"keeps its data in '\.\./1/weights\.bin'; allowed"),
        ({"location": "step.onnx"}, r"keeps its data in 'step\.onnx'; allowed"),
        ({"location": None}, r"keeps its data in ''; allowed"),
        ({"length": 20}, r"float32\[2, 3\] takes 24 bytes; its data are said to be 20$"),
        ({"length": 28}, r"float32\[2, 3\] takes 24 bytes; its data are said to be 28$"),
        ({"length": ""}, r"length ''; allowed is a whole number of bytes$"),
        ({"length": "0x18"}, r"length '0x18'; allowed"),
        ({"offset": -4}, r"offset '-4'; allowed"),
        ({"offset": "9" * 30}, r"offset '9{30}'; allowed"),
        ({"offset": 2}, r"lies at byte 2 of weights\.bin; allowed are multiples of an entry's size$"),
        ({"offset": 180}, r"lies at bytes 180 to 204 of weights\.bin, which has 200$"),
        ({"offset": 10**17}, r"lies at bytes 100,000,000,000,000,000 to .* which has 200$"),
        ({"basepath": "/"}, r"says of its data: location, offset, length, basepath; allowed are location, offset"),
    ],
)
def test_a_weight_that_does_not_lie_in_the_file_is_refused(make_step_graph, entries, message: str) -> None:
    with pytest.raises(GraphRejected, match=rf"^step\.onnx: tensor 'table' .*{message}"):
        read_graph(with_weight(make_step_graph(), shared(**entries)), "step.onnx", FILE)


def test_a_weight_that_says_where_it_lies_twice_is_refused(make_step_graph: MakeGraph) -> None:
    tensor = shared()
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(GraphRejected, match=r"says of its data: location, offset, length, location; allowed"):
        read_graph(with_weight(make_step_graph(), tensor), "step.onnx", FILE)


@pytest.mark.parametrize("size", [0, -1])
def test_a_weight_without_entries_is_refused(make_step_graph: MakeGraph, size: int) -> None:
    tensor = shared(length=0)
    tensor.dims[1] = size
    with pytest.raises(GraphRejected, match=rf"'table' float32\[2, {size}\] has no entries; allowed are sizes of 1"):
        read_graph(with_weight(make_step_graph(), tensor), "step.onnx", FILE)


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.COMPLEX64, 77])
def test_a_weight_of_another_element_type_is_refused(make_step_graph: MakeGraph, kind: int) -> None:
    tensor = shared()
    tensor.data_type = kind
    with pytest.raises(GraphRejected, match=rf"^step\.onnx: 'table' has ONNX element type {kind}; allowed are float32"):
        read_graph(with_weight(make_step_graph(), tensor), "step.onnx", FILE)


def in_a_constant(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Constant", [], ["leaked"], value=shared()))


def in_a_subgraph(graph: onnx.GraphProto) -> None:
    inner = onnx.GraphProto(name="inner", initializer=[shared()])
    graph.node.append(helper.make_node("If", ["c"], ["leaked"], then_branch=inner, else_branch=inner))


def in_a_sparse_one(graph: onnx.GraphProto) -> None:
    graph.sparse_initializer.add().values.CopyFrom(shared())


def without_the_flag(graph: onnx.GraphProto) -> None:
    tensor = numpy_helper.from_array(VALUES, "table")
    tensor.external_data.add(key="location", value=WEIGHTS)
    graph.initializer.append(tensor)


@pytest.mark.parametrize("hide", [in_a_constant, in_a_subgraph, in_a_sparse_one, without_the_flag])
def test_only_the_graphs_own_initializers_may_lie_in_the_file(make_step_graph: MakeGraph, hide) -> None:
    model = make_step_graph()
    hide(model.graph)
    with pytest.raises(GraphRejected, match=r"keeps its data in another file; a bundle's graph must hold"):
        read_graph(model.SerializeToString(), "step.onnx", FILE)
