"""The tracing half of the contract, on a step graph made by hand: 3 skills, states of 4 and 2 units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from carousel.models.bundle import open_bundle, publish
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.errors import BundleError
from carousel.models.figures import TracingValidation
from carousel.models.manifest import Manifest
from tests.manifests import manifest_of

SKILLS = b'["addition", "fractions", "area"]'
VALIDATION = TracingValidation(attempts=7, auc=0.75, accuracy=0.5, log_loss=0.6)


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


def told() -> Manifest:
    return manifest_of("tracing", files_of(), validation=VALIDATION.model_dump())


def test_tracing_bundle_opens(tmp_path: Path) -> None:
    opened = open_bundle(publish(tmp_path, "by-hand", told(), files_of()))
    assert opened.manifest.task == "tracing"
    assert opened.manifest.figures.served == VALIDATION.model_dump()
    assert opened.codec(InteractionCodec).skills == ("addition", "fractions", "area")
    assert opened.output_size == 3
    assert [state.name for state in opened.states] == ["state.h0", "state.n0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct": TensorProto.BOOL}, r"skills\.json: 3 skills; correct bool\[batch\] is not an int64 id"),
        ({"output": "logits"}, r"step\.onnx: output probability is missing, which manifest\.json declares$"),
        ({"extra": "token"}, r"step\.onnx: input token int64\[batch\] is not declared; declared are skill, correct"),
    ],
)
def test_tracing_bundle_refuses_another_graph(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match="^" + message):
        publish(tmp_path, "m", told(), files_of(**changes))


@pytest.mark.parametrize(
    ("skills", "message"),
    [
        (b'["addition", "area"]', r"2 skills; probability float32\[batch, 3\] is not a float32 row of them$"),
        (b'["a", "b", "c", "d"]', r"4 skills; probability float32\[batch, 3\] is not a float32 row of them$"),
        (b'["a", "b", "a"]', r"skill 2 is called 'a', as skill 0 is"),
        (b"\xff", r"'utf-8' codec"),
    ],
)
def test_tracing_bundle_refuses_skills_that_are_not_the_graphs(tmp_path: Path, skills: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=r"^skills\.json: " + message):
        publish(tmp_path, "m", told(), files_of(skills))
