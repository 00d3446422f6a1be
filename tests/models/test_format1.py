"""Bundles of format 1 are served as they were: the same model, the same digest."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from carousel.models.bundle import open_bundle
from carousel.models.errors import BundleError, GraphRejected
from carousel.models.figures import LanguageValidation
from tests.manifests import format_1, write_format_1
from tests.models.test_bundle import edit, tokenizer
from tests.models.test_tracing_bundle import files_of

BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.fixture
def files(make_step_graph: Callable[[], onnx.ModelProto]) -> dict[str, bytes]:
    return {"step.onnx": make_step_graph().SerializeToString(), "tokenizer.json": tokenizer(5)}


@pytest.mark.parametrize(
    ("bundle", "digest"),
    [
        ("scenes/1", "da8e4106"),
        ("scenes/2", "3f19a95b"),
        ("shakespeare/2", "3f000ad6"),
        ("tutor/2", "3e7c3928"),
    ],
)
def test_digest_is_that_of_the_manifests_bytes(bundle: str, digest: str) -> None:
    opened = open_bundle(BUNDLES / bundle)
    assert opened.digest == hashlib.sha256((BUNDLES / bundle / "manifest.json").read_bytes()).hexdigest()
    assert opened.digest.startswith(digest)  # sessions and state tokens are stamped with it
    assert opened.manifest.format == 2


def test_language_bundle_says_what_it_said(tmp_path: Path, files: dict[str, bytes]) -> None:
    figures = LanguageValidation(tokens=1, nats_per_token=1.0, perplexity=2.0, bits_per_character=3.0).model_dump()
    quantization = {"fp32": figures, "measure": "relative perplexity", "worsening": 0.1, "allowed": 0.2}
    path = write_format_1(tmp_path / "m" / "1", "language", files, validation=figures, quantization=quantization)
    manifest = open_bundle(path).manifest
    assert manifest.step.inputs == ("token",)
    assert [(state.before, state.after, state.initial) for state in manifest.step.states] == [
        ("state.h0", "next_state.h0", "zeros"),
        ("state.c0", "next_state.c0", "zeros"),
    ]
    assert manifest.figures is not None
    assert (manifest.figures.served, manifest.figures.fp32) == (figures, figures)
    assert (manifest.figures.worsening, manifest.figures.allowed_worsening) == (0.1, 0.2)


def test_captioning_bundle_begins_with_its_encoder() -> None:
    manifest = open_bundle(BUNDLES / "scenes" / "2").manifest
    assert {state.initial for state in manifest.step.states} == {"encoder"}
    assert manifest.step.context == ("memory.values", "memory.keys")
    assert manifest.head.attends_port == "attention"


def test_bundle_without_a_format_or_a_codec_kind_is_of_text(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = write_format_1(tmp_path / "m" / "1", "language", files)
    edit(path, lambda m: (m.pop("format"), m["codec"].pop("kind")))
    assert list(open_bundle(path).manifest.codecs) == ["text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(colour="red"), r"colour: Extra inputs are not permitted"),
        (lambda m: m["codec"].update(path="x"), r"codecs\.text\.path: Extra inputs are not permitted"),
        (lambda m: m["codec"].update(tokenizer="../x"), r"files lists no \.\./x"),
        (lambda m: m.update(task="translation"), r"task: is 'translation'; allowed are language, tracing, captioning"),
        (lambda m: m.pop("task"), r"task: is None"),
        (lambda m: m.pop("files"), r"files: an object of files is required"),
        (lambda m: m["files"].pop("step.onnx"), r"files lists no step\.onnx, which a language bundle must have"),
        (lambda m: m["files"].pop("tokenizer.json"), r"files lists no tokenizer\.json"),
        (lambda m: m.update(task="tracing"), r"codec is of kind 'text', which is not that of task 'tracing'"),
        (lambda m: m.update(codec=[]), r"codec: Field required"),
        (lambda m: m.update(limits={"max_prompt_tokens": 0}), r"limits\.max_prompt_tokens: Input should be greater"),
        (lambda m: m.update(quantization=3), r"quantization: an object is required"),
        (lambda m: m.update(quantization={"fp64": {}}), r"figures\.fp64: Extra inputs"),
    ],
)
def test_bad_manifest_is_refused(
    tmp_path: Path, files: dict[str, bytes], change: Callable[[dict], object], message: str
) -> None:
    path = write_format_1(tmp_path / "m" / "1", "language", files)
    edit(path, change)
    with pytest.raises(BundleError, match=r"^manifest\.json: " + message):
        open_bundle(path)


def test_tracing_bundle_does_not_open_as_a_language_model(tmp_path: Path) -> None:
    files = files_of()
    path = write_format_1(tmp_path / "m" / "1", "language", files, codec={"tokenizer": "skills.json"})
    with pytest.raises(BundleError, match=r"^(skills\.json: not a tokenizer|step\.onnx: input token is missing)"):
        open_bundle(path)


def test_graph_without_a_state_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    model = onnx.load_model_from_string(files["step.onnx"])
    for value in [value for value in model.graph.input if value.name.startswith("state.")]:
        model.graph.input.remove(value)
    path = write_format_1(tmp_path / "m" / "1", "language", {**files, "step.onnx": model.SerializeToString()})
    with pytest.raises((BundleError, GraphRejected), match=r"step\.states: Tuple should have at least 1 item"):
        open_bundle(path)


def test_helper_writes_what_format_1_was(files: dict[str, bytes]) -> None:
    assert format_1("language", files).keys() == {"format", "task", "codec", "files"}
