"""The tracing half of the contract, on a step graph made by hand: 3 skills, states of 4 and 2 units."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from carousel.models.bundle import open_bundle, publish
from carousel.models.errors import BundleError, GraphRejected
from carousel.models.manifest import (
    InteractionCodecSpec,
    LanguageValidation,
    Manifest,
    TextCodecSpec,
    TracingValidation,
)

SKILLS = b'["addition", "fractions", "area"]'
VALIDATION = TracingValidation(attempts=7, auc=0.75, accuracy=0.5, log_loss=0.6)
MANIFEST = Manifest(task="tracing", codec=InteractionCodecSpec(), validation=VALIDATION, files={})


def graph(
    *, skills: int = 3, correct: int = TensorProto.INT64, output: str = "probability", extra: str = ""
) -> onnx.ModelProto:
    """h0' = tanh(embedding[2 skill + correct] + h0),  n0' = n0 + 1,  probability = sigmoid(h0' W)"""
    random = np.random.default_rng(0)
    initializers = [
        numpy_helper.from_array(random.standard_normal((2 * skills, 4)).astype(np.float32), "embedding"),
        numpy_helper.from_array(random.standard_normal((4, skills)).astype(np.float32), "projection"),
        numpy_helper.from_array(np.int64(2), "two"),
        numpy_helper.from_array(np.float32(1), "one"),
    ]
    nodes = [
        helper.make_node("Cast", ["correct"], ["correct_64"], to=TensorProto.INT64),
        helper.make_node("Mul", ["skill", "two"], ["even"]),
        helper.make_node("Add", ["even", "correct_64"], ["attempt"]),
        helper.make_node("Gather", ["embedding", "attempt"], ["x"]),
        helper.make_node("Add", ["x", "state.h0"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["next_state.h0"]),
        helper.make_node("Add", ["state.n0", "one"], ["next_state.n0"]),
        helper.make_node("MatMul", ["next_state.h0", "projection"], ["scores"]),
        helper.make_node("Sigmoid", ["scores"], [output]),
    ]
    inputs = [
        helper.make_tensor_value_info("skill", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("correct", correct, ["batch"]),
        helper.make_tensor_value_info("state.h0", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("state.n0", TensorProto.FLOAT, ["batch", 2]),
    ]
    if extra:
        inputs.append(helper.make_tensor_value_info(extra, TensorProto.INT64, ["batch"]))
    outputs = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", skills]),
        helper.make_tensor_value_info("next_state.h0", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("next_state.n0", TensorProto.FLOAT, ["batch", 2]),
    ]
    made = helper.make_graph(nodes, "step", inputs, outputs, initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def files_of(skills: bytes = SKILLS, **changes: object) -> dict[str, bytes]:
    return {"step.onnx": graph(**changes).SerializeToString(), "skills.json": skills}


def test_tracing_bundle_opens(tmp_path: Path) -> None:
    opened = open_bundle(publish(tmp_path, "by-hand", MANIFEST, files_of()))
    assert opened.manifest.task == "tracing"
    assert opened.manifest.validation == VALIDATION
    assert opened.interaction_codec.skills == ("addition", "fractions", "area")
    assert opened.output_size == 3
    assert [state.name for state in opened.step.states] == ["state.h0", "state.n0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct": TensorProto.BOOL}, r"input correct is correct bool\[batch\]; allowed is correct int64\[batch\]$"),
        ({"output": "logits"}, r"output probability is missing; allowed is probability float32\[batch, S\], S fixed$"),
        ({"extra": "token"}, r"input token int64\[batch\] is neither skill, correct nor state\.<name>$"),
    ],
)
def test_tracing_bundle_refuses_another_graph(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(GraphRejected, match=r"^step\.onnx: " + message):
        publish(tmp_path, "m", MANIFEST, files_of(**changes))


@pytest.mark.parametrize(
    ("skills", "message"),
    [
        (b'["addition", "area"]', r"2 skills; step\.onnx gives probabilities for 3$"),
        (b'["a", "b", "c", "d"]', r"4 skills; step\.onnx gives probabilities for 3$"),
        (b'["a", "b", "a"]', r"skill 2 is called 'a', as skill 0 is"),
        (b"\xff", r"'utf-8' codec"),
    ],
)
def test_tracing_bundle_refuses_skills_that_are_not_the_graphs(tmp_path: Path, skills: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=r"^skills\.json: " + message):
        publish(tmp_path, "m", MANIFEST, files_of(skills))


def test_tracing_bundle_does_not_open_as_a_language_model(tmp_path: Path) -> None:
    files = files_of()
    manifest = Manifest(task="language", codec=TextCodecSpec(tokenizer="skills.json"), files={})
    with pytest.raises(GraphRejected, match="input token is missing"):
        publish(tmp_path, "m", manifest, files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(task="language"), "codec is of kind 'interaction', which is not that of task 'language'"),
        (lambda m: m.update(codec={"kind": "text"}), "codec is of kind 'text', which is not that of task 'tracing'"),
        (lambda m: m["codec"].pop("kind"), r"codec\.text\.skills: Extra inputs"),
        (lambda m: m["codec"].update(kind="sound"), r"codec: Input tag 'sound' found"),
        (lambda m: m["codec"].update(skills="../x"), r"codec\.interaction\.skills: String should match"),
        (lambda m: m["files"].pop("skills.json"), r"files lists no skills\.json, which a tracing bundle must have"),
        (lambda m: m.update(codec=[]), r"codec: "),
        (
            lambda m: m.update(
                validation=LanguageValidation(
                    tokens=1, nats_per_token=1.0, perplexity=2.0, bits_per_character=3.0
                ).model_dump()
            ),
            "validation holds figures that are not those of task 'tracing'",
        ),
    ],
)
def test_tracing_bundle_with_a_bad_manifest_is_refused(
    tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    path = publish(tmp_path, "m", MANIFEST, files_of())
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"(?s)^manifest\.json: .*" + message):
        open_bundle(path)


def test_language_manifest_without_a_codec_kind_is_of_text() -> None:
    manifest = Manifest.model_validate({"task": "language", "codec": {}, "files": {}})
    assert manifest.codec == TextCodecSpec()
