"""The prefill half of the contract, on graphs made by hand beside the step graph of conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models

from carousel.models.bundle import open_bundle, publish
from carousel.models.errors import GraphRejected
from carousel.models.graph import GraphSpec, TensorSpec, read_graph
from carousel.models.head import TensorsHead
from carousel.models.manifest import Manifest, StateSpec, StepSpec
from carousel.models.signature import check_prefill
from tests.manifests import manifest_of

MakeGraph = Callable[[], onnx.ModelProto]
IDS: dict[str, tuple[str, ...]] = {"language": ("token",), "tracing": ("skill", "correct"), "captioning": ("token",)}


def prefill_graph(task: str = "language") -> onnx.ModelProto:
    """States of 3 and 4 units go through unchanged; what a graph computes is not the contract's to check."""
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "steps"]) for name in IDS[task]]
    sizes = {"h0": 3, "c0": 4}
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"state.{name}"], [f"next_state.{name}"]) for name in sizes],
        "prefill",
        [
            *ids,
            *(helper.make_tensor_value_info(f"state.{n}", TensorProto.FLOAT, ["batch", s]) for n, s in sizes.items()),
        ],
        [helper.make_tensor_value_info(f"next_state.{n}", TensorProto.FLOAT, ["batch", s]) for n, s in sizes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def read(model: onnx.ModelProto) -> GraphSpec:
    return read_graph(model.SerializeToString(), "prefill.onnx")


STATES = (TensorSpec("state.h0", "float32", (None, 3)), TensorSpec("state.c0", "float32", (None, 4)))


def check(graphs: list[GraphSpec], task: str = "language", *, initial: str = "zeros") -> None:
    """Against a step of these inputs and states."""
    step = GraphSpec(
        (*(TensorSpec(name, "int64", (None,)) for name in IDS[task]), *STATES),
        (TensorSpec("logits", "float32", (None, 3)),),
    )
    names = ("prefill.onnx", "prefill2.onnx")[: len(graphs)]
    states = tuple(StateSpec(before=s.name, after=f"next_{s.name}", initial=initial) for s in STATES)
    declared = StepSpec(inputs=IDS[task], outputs=("logits",), states=states)
    manifest = Manifest(task=task, step=declared, prefill=names, head=TensorsHead(from_=("logits",)), files={})
    check_prefill(graphs, manifest, step)


@pytest.mark.parametrize("task", ["language", "tracing"])
def test_check_prefill_takes_ids_with_an_axis_of_steps(task: str) -> None:
    check([read(prefill_graph(task))], task)


def test_check_prefill_takes_what_each_step_says() -> None:
    model = prefill_graph()
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "steps", 3]))
    check([read(model)])
    add("output", "extra")(model)
    with pytest.raises(
        GraphRejected, match=r"output extra .*; allowed are next_state\.h0, next_state\.c0, logits alone$"
    ):
        check([read(model)])


def value(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(spec for spec in [*model.graph.input, *model.graph.output] if spec.name == name)


def drop(name: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        for side in (model.graph.input, model.graph.output):
            for spec in [spec for spec in side if spec.name == name]:
                side.remove(spec)

    return change


def fix(name: str, axis: int, size: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        value(model, name).type.tensor_type.shape.dim[axis].dim_value = size

    return change


def free(name: str, axis: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        value(model, name).type.tensor_type.shape.dim[axis].dim_param = "any"

    return change


def retype(name: str, element: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        value(model, name).type.tensor_type.elem_type = element

    return change


def add(side: str, name: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        getattr(model.graph, side).append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]))

    return change


def flatten(model: onnx.ModelProto) -> None:
    del value(model, "token").type.tensor_type.shape.dim[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("token"), r"input token is missing; allowed is token int64\[batch, \?\]$"),
        (flatten, r"input token is token int64\[batch\]; allowed is token int64\[batch, \?\]$"),
        (fix("token", 1, 64), r"input token is token int64\[batch, 64\]; allowed"),
        (fix("token", 0, 1), r"input token is token int64\[1, \?\]; allowed"),
        (retype("token", TensorProto.INT32), r"input token is token int32\[batch, \?\]; allowed"),
        (drop("state.c0"), r"input state\.c0 is missing; allowed is state\.c0 float32\[batch, 4\]$"),
        (fix("state.h0", 1, 5), r"input state\.h0.* float32\[batch, 5\]; allowed is state\.h0 float32\[batch, 3\]$"),
        (fix("state.h0", 0, 1), r"input state\.h0 is state\.h0 float32\[1, 3\]; allowed"),
        (free("state.h0", 1), r"input state\.h0 is state\.h0 float32\[batch, \?\]; allowed"),
        (retype("state.h0", TensorProto.FLOAT16), r"input state\.h0 is state\.h0 float16\[batch, 3\]; allowed"),
        (drop("next_state.h0"), r"output next_state\.h0 is missing; allowed is next_state\.h0 float32\[batch, 3\]$"),
        (fix("next_state.c0", 1, 3), r"output next_state\.c0 is next_state\.c0 float32\[batch, 3\]; allowed"),
        (add("input", "state.h1"), r"input state\.h1 .*; allowed are token, state\.h0, state\.c0 alone$"),
        (add("input", "memory.a"), r"input memory\.a float32\[batch, 3\]; allowed are token, state\.h0"),
        (add("output", "logits"), r"output logits is logits float32\[batch, 3\]; allowed .*\[batch, \?, 3\]$"),
        (add("output", "extra"), r"output extra .*; allowed are next_state\.h0, next_state\.c0 alone$"),
    ],
)  # fmt: skip
def test_check_prefill_refuses(change: Callable[[onnx.ModelProto], object], message: str) -> None:
    model = prefill_graph()
    change(model)
    with pytest.raises(GraphRejected, match=r"^prefill\.onnx: " + message):
        check([read(model)])


def test_check_prefill_refuses_half_an_attempt() -> None:
    model = prefill_graph("tracing")
    drop("correct")(model)
    with pytest.raises(GraphRejected, match=r"input correct is missing; allowed is correct int64\[batch, \?\]"):
        check([read(model)], "tracing")


def test_check_prefill_refuses_what_begins_with_an_encoder() -> None:
    with pytest.raises(GraphRejected, match=r"^prefill\.onnx: is for sequences that begin by themselves"):
        check([read(prefill_graph())], initial="encoder")


def chain() -> list[onnx.ModelProto]:
    """Two graphs: h0 is the lower one's, c0 the upper one's; 7 numbers an id are handed up."""
    lower, upper = prefill_graph(), prefill_graph()
    for model, others in ((lower, "c0"), (upper, "h0")):
        drop(f"state.{others}")(model)
        drop(f"next_state.{others}")(model)
    drop("token")(upper)
    handed = [helper.make_tensor_value_info(n, TensorProto.UINT8, ["batch", "steps", 7]) for n in ("above", "below")]
    lower.graph.output.append(handed[0])
    upper.graph.input.append(handed[1])
    return [lower, upper]


def specs(models: list[onnx.ModelProto]) -> list[GraphSpec]:
    """As read from graphs that say what the models' interfaces say."""
    return [
        read_graph(
            helper.make_model(helper.make_graph([], "g", m.graph.input, m.graph.output)).SerializeToString(), "g"
        )
        for m in models
    ]


def test_check_prefill_takes_a_graph_for_each_layer() -> None:
    check(specs(chain()))


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, drop("above"), r"prefill\.onnx: output above is missing; allowed is above\[batch, steps, \.\.\.\], both"),
        (0, fix("above", 1, 16), r"prefill\.onnx: output above is above uint8\[batch, 16, 7\]; allowed"),
        (0, drop("next_state.h0"), r"prefill\.onnx: output next_state\.h0 is missing; allowed is"),
        (0, drop("state.h0"), r"prefill\.onnx: output next_state\.h0 .*; allowed are above alone$"),
        (0, add("input", "state.c0"), r"prefill\.onnx: input state\.c0 is.*; allowed is state\.c0 float32\[batch, 4\]"),
        (1, drop("below"), r"prefill2\.onnx: input below is missing; allowed is below uint8\[batch, \?, 7\]$"),
        (1, fix("below", 2, 8), r"prefill2\.onnx: input below is below uint8\[batch, \?, 8\]; allowed is below uint8"),
        (1, retype("below", TensorProto.INT8), r"prefill2\.onnx: input below is below int8.*; allowed is below uint8"),
        (1, drop("state.c0"), r"prefill2\.onnx: input state\.c0 is missing; allowed is state\.c0 float32\[batch, 4\]$"),
        (1, add("input", "state.h0"), r"prefill2\.onnx: input state\.h0 .*; allowed are below, state\.c0 alone$"),
        (1, add("input", "token"), r"prefill2\.onnx: input token .*; allowed are below, state\.c0 alone$"),
        (1, add("output", "above"), r"prefill2\.onnx: output above .*; allowed are next_state\.c0 alone$"),
    ],
)  # fmt: skip
def test_check_prefill_refuses_a_chain(place: int, change: Callable[[onnx.ModelProto], object], message: str) -> None:
    models = chain()
    change(models[place])
    with pytest.raises(GraphRejected, match=f"^{message}"):
        check(specs(models))


@pytest.fixture
def files(make_step_graph: MakeGraph) -> dict[str, bytes]:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "c": 3, "d": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>")).to_str().encode()
    return {"step.onnx": make_step_graph().SerializeToString(), "tokenizer.json": tokenizer}


def test_bundle_opens_with_a_prefill_graph_and_without(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert not open_bundle(publish(tmp_path, "m", manifest_of("language", files), files)).prefill
    files["prefill.onnx"] = prefill_graph().SerializeToString()
    (opened,) = open_bundle(publish(tmp_path, "m", manifest_of("language", files), files)).prefill
    assert opened.input("token") == TensorSpec("token", "int64", (None, None))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"pickle", r"^prefill\.onnx: the content is not an ONNX model$"),
        (prefill_graph("tracing").SerializeToString(), r"^prefill\.onnx: input token is missing"),
    ],
)
def test_bundle_with_a_bad_prefill_graph_is_refused(
    tmp_path: Path, files: dict[str, bytes], content: bytes, message: str
) -> None:
    files["prefill.onnx"] = content
    with pytest.raises(GraphRejected, match=message):
        publish(tmp_path, "m", manifest_of("language", files), files)
