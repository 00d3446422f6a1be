import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

from carousel.export.__main__ import main
from carousel.export.checks.captioning import measure_captioning_parity
from carousel.export.checks.parity import ParityError
from carousel.export.extractor import ExtractorError, open_extractor
from carousel.export.publish import export_checkpoint
from carousel.models.bundle import Bundle, open_bundle, versions
from carousel.models.codec.caption import caption_codec
from carousel.models.codec.image import ImageCodec, Preprocessing
from carousel.models.errors import CheckpointError
from carousel.models.graph import next_name
from carousel.models.manifest import DecodingDefaults, Limits
from carousel.models.nn.captioning import CaptioningModel
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tests.trained import load_captioning_model

# As SqueezeNet is fed: blue first, less the mean colour.
BGR = Preprocessing(width=12, height=8, mean=(104, 117, 123), deviation=(1, 1, 1), channels="bgr")


@pytest.fixture(scope="module")
def extractor(make_extractor: Callable[..., Path]) -> Path:
    return make_extractor(compact=True)


def model_of(checkpoint: Path) -> CaptioningModel:
    return load_captioning_model(read_checkpoint(checkpoint))[0]


def session_of(bundle: Bundle, file: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(bundle.files[file], providers=["CPUExecutionProvider"])


def pictures(count: int) -> list[bytes]:
    files = []
    for pixels in np.random.default_rng(3).integers(0, 256, (count, 5, 7, 3), np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).resize((35, 25)).save(file, "PNG")
        files.append(file.getvalue())
    return files


@torch.inference_mode()
def torch_greedy(model: CaptioningModel, features: np.ndarray, begin: int, steps: int) -> np.ndarray:
    """Logits along a greedy caption. <float32>[N, steps, V]"""
    state, context = model.encode(torch.from_numpy(features))
    token = torch.full((len(features),), begin)
    said = []
    for _ in range(steps):
        logits, state, _ = model.step(token, state, context)
        token = logits.argmax(1)
        said.append(logits.numpy())
    return np.stack(said, 1)


def bundle_greedy(bundle: Bundle, images: np.ndarray, steps: int) -> np.ndarray:
    """The same from the bundle's graphs, as the service decodes. <float32>[N, steps, V]"""
    encoder, step = session_of(bundle, "encoder.onnx"), session_of(bundle, "step.onnx")
    names = [spec.name for spec in (*bundle.states, *bundle.context)]
    fed = dict(zip(names, encoder.run(names, {"image": images}), strict=True))
    states = [spec.name for spec in bundle.states]
    token = np.full(len(images), caption_codec(bundle).begin_id)
    said = []
    for _ in range(steps):
        logits, *after = step.run(["logits", *map(next_name, states)], {"token": token, **fed})
        fed |= dict(zip(states, after, strict=True))
        token = logits.argmax(1)
        said.append(logits)
    return np.stack(said, 1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("attention", ["none", "soft"])
def test_bundle_over_a_frozen_encoder_says_what_the_model_says(
    cell: str, attention: str, extractor: Path, make_captioning_checkpoint, tmp_path: Path
) -> None:
    frozen = open_extractor(extractor, BGR).encoder
    checkpoint = make_captioning_checkpoint(
        tmp_path / "best.safetensors", encoder=frozen, cell=cell, attention=attention
    )
    done = export_checkpoint(checkpoint, tmp_path / "r", "captions", encoder=extractor)
    assert (done.parity.steps, done.parity.rows, done.parity.row_independent) == (512, 4, True)
    assert 0 < done.parity.max_abs_error < 1e-4
    bundle = open_bundle(done.bundle)
    images = np.stack([caption_codec(bundle).preprocess(file) for file in pictures(6)])
    assert np.abs(images).max() > 50  # not scaled to 1
    whole = onnxruntime.InferenceSession(extractor, providers=["CPUExecutionProvider"])
    (maps,) = whole.run(["features"], {"data": images})  # [N, D, 2, 3]: the user's own file, untouched
    features = np.ascontiguousarray(maps.transpose(0, 2, 3, 1).reshape(6, 6, 5))
    expected = torch_greedy(model_of(checkpoint), features, caption_codec(bundle).begin_id, 8)
    assert np.abs(bundle_greedy(bundle, images, 8) - expected).max() < 1e-4
    assert np.ptp(expected, axis=0).max() > 0.01  # the image matters
    context = {spec.name: spec.shape for spec in bundle.context}
    looks = bundle.step.output("attention")
    if attention == "soft":
        assert context == {"context.values": (None, 6, 6), "context.keys": (None, 6, 9)}
        assert looks.shape == (None, 2, 3)
    else:
        assert (context, looks) == ({}, None)


@pytest.mark.parametrize(("cell", "attention"), [("lstm", "soft"), ("gru", "none")])
def test_bundle_with_an_encoder_of_its_own_says_what_the_model_says(
    cell: str, attention: str, make_captioning_checkpoint, tmp_path: Path
) -> None:
    checkpoint = make_captioning_checkpoint(tmp_path / "best.safetensors", cell=cell, attention=attention)
    done = export_checkpoint(checkpoint, tmp_path / "r", "captions")
    assert 0 < done.parity.max_abs_error < 1e-4
    bundle = open_bundle(done.bundle)
    images = np.stack([caption_codec(bundle).preprocess(file) for file in pictures(6)])
    expected = torch_greedy(model_of(checkpoint), images, caption_codec(bundle).begin_id, 8)
    assert np.abs(bundle_greedy(bundle, images, 8) - expected).max() < 1e-4
    assert np.ptp(expected, axis=0).max() > 0.01  # the image matters
    if attention == "soft":
        assert bundle.step.output("attention").shape == (None, 4, 6)


@pytest.fixture(scope="module")
def checkpoint(extractor: Path, make_captioning_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    frozen = open_extractor(extractor, BGR).encoder
    return make_captioning_checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors", encoder=frozen)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, extractor: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    repository = tmp_path_factory.mktemp("repository")
    return open_bundle(export_checkpoint(checkpoint, repository, "captions", encoder=extractor).bundle)


def test_manifest_says_what_training_said(bundle: Bundle, checkpoint: Path) -> None:
    header = read_checkpoint(checkpoint).header
    manifest = bundle.manifest
    assert bundle.codec(ImageCodec).preprocessing == BGR
    assert (manifest.head.begin, manifest.head.end) == ("<s>", "</s>")
    assert manifest.limits == Limits(max_new_tokens=8)
    assert manifest.decoding == DecodingDefaults(temperature=0.0, beam_width=3, length_penalty=0.7)
    assert manifest.figures.served == header["validation"]
    assert manifest.provenance.model_dump() == header["provenance"]


def test_encoder_keeps_the_weights_of_the_frozen_one_as_they_were_stored(bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.files["encoder.onnx"])
    kernels = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [5, 3, 4, 4]]
    assert [tensor.data_type for tensor in kernels] == [onnx.TensorProto.UINT8]
    assert not any(700 in tensor.dims for tensor in model.graph.initializer)  # the head is gone


def test_export_without_attention_over_pooled_features(
    make_extractor, make_captioning_checkpoint, tmp_path: Path
) -> None:
    path = make_extractor(pool=True, layout="chw")
    frozen = open_extractor(path, BGR).encoder
    checkpoint = make_captioning_checkpoint(tmp_path / "best.safetensors", encoder=frozen, attention="none")
    done = export_checkpoint(
        checkpoint, tmp_path / "r", "captions", encoder=path, decoding=DecodingDefaults(beam_width=1)
    )
    manifest = open_bundle(done.bundle).manifest
    assert manifest.decoding == DecodingDefaults(temperature=0.0, beam_width=1, length_penalty=0.7)


def test_export_refuses_another_encoder_and_one_too_many_or_too_few(
    checkpoint: Path, extractor: Path, make_extractor, make_checkpoint, make_captioning_checkpoint, tmp_path: Path
) -> None:
    repository = tmp_path / "r"
    with pytest.raises(ExtractorError, match=r"tiny\.onnx: is not the encoder of this checkpoint: its sha256 is "):
        export_checkpoint(checkpoint, repository, "captions", encoder=make_extractor(seed=1))
    with pytest.raises(
        ExtractorError, match=r"was trained on features of an ONNX file .*; name that file with --encoder$"
    ):
        export_checkpoint(checkpoint, repository, "captions")
    own = make_captioning_checkpoint(tmp_path / "own.safetensors")
    with pytest.raises(ExtractorError, match=r"own\.safetensors: the model has an encoder of its own; leave out --enc"):
        export_checkpoint(own, repository, "captions", encoder=extractor)
    text = make_checkpoint(tmp_path / "text.safetensors")
    with pytest.raises(ExtractorError, match=r"is of task 'language', which reads no images; leave out --encoder$"):
        export_checkpoint(text, repository, "captions", encoder=extractor)
    assert versions(repository, "captions") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, r"header limits\.max_new_tokens: Input should be greater than or equal to 1$"),
        ({"decoding": {"beam_width": 0}}, r"header decoding\.beam_width: Input should be greater than or equal to 1$"),
        ({"end": "<stop>"}, r"does not hold a whole captioning model: the vocabulary has no token '<stop>'"),
        ({"encoder": {"sha256": "?"}}, r"does not hold a whole captioning model: "),
    ],
)
def test_export_refuses_a_checkpoint_whose_header_is_wrong(
    checkpoint: Path, extractor: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    read = read_checkpoint(checkpoint)
    path = tmp_path / "wrong.safetensors"
    write_checkpoint(path, Checkpoint(read.tensors, {**read.header, **changes}))
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(path, tmp_path / "r", "captions", encoder=extractor)


def test_cli_names_both_graphs(checkpoint: Path, extractor: Path, tmp_path: Path, capsys) -> None:
    flags = (
        f"{checkpoint} --encoder {extractor} --repository {tmp_path} --name captions --beam-width 5 --length-penalty 1"
    )
    assert main(flags.split()) == 0
    assert f"{checkpoint}: step.onnx of 0.0 MB and encoder.onnx of 0.0 MB\n" in capsys.readouterr().out
    decoding = open_bundle(tmp_path / "captions" / "1").manifest.decoding
    assert decoding == DecodingDefaults(temperature=0.0, beam_width=5, length_penalty=1.0)


def edited(content: bytes, change: Callable[[onnx.GraphProto], None]) -> bytes:
    model = onnx.load_from_string(content)
    change(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def renamed(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Call what a node makes otherwise, so that another can make what it made."""
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]


def swap_states(graph: onnx.GraphProto) -> None:
    for old, new in (("state.h0", "kept"), ("state.c0", "state.h0"), ("kept", "state.c0")):
        renamed(graph, old, new)


def swap_features(graph: onnx.GraphProto) -> None:
    """Another order of the positions: the memory's shape is the same."""
    renamed(graph, "features", "straight")
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 4, 1, 3, 5]), "columns_first"))
    node = helper.make_node("Gather", ["straight", "columns_first"], ["features"], axis=1)
    for index, maker in enumerate(graph.node):
        if "straight" in maker.output:
            graph.node.insert(index + 1, node)
            break
    for maker in graph.node:
        if maker.op_type != "Gather":
            maker.input[:] = ["features" if name == "straight" else name for name in maker.input]


def reduce_over(output: str, scale: float) -> Callable[[onnx.GraphProto], None]:
    """output + scale * its sum over the batch: neighbours leak in."""

    def change(graph: onnx.GraphProto) -> None:
        renamed(graph, output, "own")
        graph.initializer.append(numpy_helper.from_array(np.float32(scale), "scale"))
        graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
        graph.node.extend([
            helper.make_node("ReduceSum", ["own", "batch_axis"], ["all"], keepdims=1),
            helper.make_node("Mul", ["all", "scale"], ["leak"]),
            helper.make_node("Add", ["own", "leak"], [output]),
        ])  # fmt: skip

    return change


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("encoder.onnx", swap_states, r"^state\.h0 of the exported graphs: an entry is off by"),
        (
            "encoder.onnx",
            swap_features,
            r"^context\.\w+ of the exported graphs: an entry is off by|^state\.h0 .* off by",
        ),
        ("step.onnx", reduce_over("attention", 0.1), r"^attention of the exported graphs: an entry is off by"),
        (
            "step.onnx",
            reduce_over("attention", 1e-6),
            r"^attention of row 0 in a batch of 2 .* \(neighbours' state like",
        ),
        (
            "step.onnx",
            reduce_over("logits", 0.0),
            r"^logits of row 1 in a batch of 2 .* \(neighbours' state nan, 1 thr",
        ),
        (
            "encoder.onnx",
            reduce_over("context.keys", 1e-7),
            r"^context\.keys of row 0 in .* \(neighbours' image like its",
        ),
        (
            "encoder.onnx",
            reduce_over("state.c0", 0.0),
            r"^state\.c0 of row 1 in .* \(neighbours' image nan, 1 threads\)",
        ),
    ],
)
def test_parity_refuses_graphs_that_are_not_the_model(
    bundle: Bundle, checkpoint: Path, extractor: Path, file: str, change, message: str
) -> None:
    graphs = {name: bundle.files[name] for name in ("step.onnx", "encoder.onnx")}
    graphs[file] = edited(graphs[file], change)
    with pytest.raises(ParityError, match=message):
        measure_captioning_parity(model_of(checkpoint), *graphs.values(), BGR, open_extractor(extractor, BGR), steps=16)


def test_attention_of_the_graph_is_where_the_model_looks(bundle: Bundle, checkpoint: Path) -> None:
    random = np.random.default_rng(5)
    model = model_of(checkpoint)
    context = {
        name: random.normal(0, 1, (3, 6, size)).astype(np.float32) for name, size in [("values", 6), ("keys", 9)]
    }
    state = {name: random.normal(0, 1, (3, 7)).astype(np.float32) for name in ("h0", "c0")}
    token = np.array([3, 4, 5])
    fed = {f"context.{name}": part for name, part in context.items()} | {
        f"state.{n}": part for n, part in state.items()
    }
    (seen,) = session_of(bundle, "step.onnx").run(["attention"], {"token": token, **fed})
    with torch.inference_mode():
        tensors = [{name: torch.from_numpy(part) for name, part in parts.items()} for parts in (state, context)]
        _, _, expected = model.step(torch.from_numpy(token), *tensors)
    assert seen.shape == (3, 2, 3)
    assert np.allclose(seen, expected.numpy(), atol=1e-6)
    assert np.allclose(seen.sum((1, 2)), 1)
