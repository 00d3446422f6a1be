from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from carousel.models.errors import GraphRejected
from carousel.models.graph import GraphSpec, TensorSpec, next_name, read_graph
from carousel.models.manifest import StateSpec, StepSpec
from carousel.models.signature import check_step

MakeGraph = Callable[[], onnx.ModelProto]


def read(model: onnx.ModelProto) -> GraphSpec:
    return read_graph(model.SerializeToString(), "step.onnx")


STEP = StepSpec(
    inputs=("token",),
    outputs=("logits",),
    states=tuple(StateSpec(before=f"state.{name}", after=f"next_state.{name}") for name in ("h0", "c0")),
)


def test_read_graph_gives_names_types_and_shapes(make_step_graph: MakeGraph) -> None:
    graph = read(make_step_graph())
    assert graph.inputs == (
        TensorSpec("token", "int64", (None,)),
        TensorSpec("state.h0", "float32", (None, 3)),
        TensorSpec("state.c0", "float32", (None, 4)),
    )
    assert graph.output("logits") == TensorSpec("logits", "float32", (None, 5))
    check_step(graph, STEP)


def test_read_graph_does_not_take_an_initializer_for_an_input(make_step_graph: MakeGraph) -> None:
    model = make_step_graph()
    model.graph.input.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [5, 3]))
    assert [spec.name for spec in read(model).inputs] == ["token", "state.h0", "state.c0"]


def test_next_name_pairs_a_state_with_its_output() -> None:
    assert next_name("state.h0") == "next_state.h0"


def test_tensor_spec_reads_as_a_signature() -> None:
    assert str(TensorSpec("state.h0", "float32", (None, 3))) == "state.h0 float32[batch, 3]"
    assert str(TensorSpec("state.h0", "float32", (2, None))) == "state.h0 float32[2, ?]"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model",
        b"\x80\x02}q\x00.",
        b'{"graph": 1}',
        b"\x00" * 64,
        b"\x08\x0a",
        b"\x00\x00\x00\x00ORTM" + b"\x00" * 64,
    ],
    ids=["empty", "text", "pickle", "json", "zeros", "no graph", "onnxruntime format"],
)
def test_read_graph_refuses_what_is_not_onnx(content: bytes) -> None:
    with pytest.raises(GraphRejected, match=r"^step\.onnx: the content "):
        read_graph(content, "step.onnx")


def test_read_graph_refuses_any_truncation(make_step_graph: MakeGraph) -> None:
    content = make_step_graph().SerializeToString()
    survivors = []
    for length in range(len(content)):
        try:
            check_step(read_graph(content[:length], "step.onnx"), STEP)
            survivors.append(length)
        except GraphRejected:
            continue
    # Where the cut falls between two top-level fields, after the graph, what is left is whole; the digest sees it.
    assert len(survivors) <= 1


def external(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def in_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("leak"))


def in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["leaked"], value=external("leak")))


def in_attribute_list(model: onnx.ModelProto) -> None:
    attribute = onnx.AttributeProto(name="values", type=onnx.AttributeProto.TENSORS, tensors=[external("leak")])
    model.graph.node[0].attribute.append(attribute)


def in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=external("leak"))], "inner", [], [])
    outer = helper.make_graph([helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)], "o", [], [])
    model.graph.node.append(helper.make_node("If", ["a"], ["z"], then_branch=outer, else_branch=outer))


def in_subgraph_list(model: onnx.ModelProto) -> None:
    inner = onnx.GraphProto(name="inner", initializer=[external("leak")])
    attribute = onnx.AttributeProto(name="bodies", type=onnx.AttributeProto.GRAPHS, graphs=[inner])
    model.graph.node[0].attribute.append(attribute)


def in_sparse_initializer(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(external("leak"))


def in_sparse_attribute(model: onnx.ModelProto) -> None:
    sparse = onnx.SparseTensorProto(indices=external("leak"))
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="sparse_value", sparse_tensor=sparse))


def in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=external("leak"))
    model.functions.append(helper.make_function("own", "f", [], ["y"], [node], [helper.make_opsetid("", 20)]))


def in_function_default(model: onnx.ModelProto) -> None:
    function = helper.make_function("own", "f", [], [], [], [helper.make_opsetid("", 20)])
    function.attribute_proto.append(helper.make_attribute("value", external("leak")))
    model.functions.append(function)


@pytest.mark.parametrize(
    "hide",
    [
        in_initializer,
        in_attribute,
        in_attribute_list,
        in_subgraph,
        in_subgraph_list,
        in_sparse_initializer,
        in_sparse_attribute,
        in_function,
        in_function_default,
    ],
)
def test_read_graph_refuses_external_data(make_step_graph: MakeGraph, hide: Callable[[onnx.ModelProto], None]) -> None:
    model = make_step_graph()
    hide(model)
    with pytest.raises(GraphRejected, match=r"tensor 'leak' keeps its data in another file"):
        read(model)


def test_read_graph_refuses_external_entries_without_the_location_flag(make_step_graph: MakeGraph) -> None:
    model = make_step_graph()
    tensor = external("leak")
    tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(tensor)
    with pytest.raises(GraphRejected, match=r"tensor 'leak'"):
        read(model)


def test_read_graph_refuses_types_the_engine_has_no_arrays_for(make_step_graph: MakeGraph) -> None:
    model = make_step_graph()
    model.graph.input.append(helper.make_tensor_value_info("state.name", TensorProto.STRING, ["batch", 1]))
    with pytest.raises(GraphRejected, match=r"'state\.name' has ONNX element type 8; allowed are float32"):
        read(model)


def value(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(spec for spec in [*model.graph.input, *model.graph.output] if spec.name == name)


def drop(model: onnx.ModelProto, name: str) -> None:
    for side in (model.graph.input, model.graph.output):
        for spec in [spec for spec in side if spec.name == name]:
            side.remove(spec)


def fix_axis(name: str, axis: int, size: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        value(model, name).type.tensor_type.shape.dim[axis].dim_value = size

    return change


def free_axis(name: str, axis: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        value(model, name).type.tensor_type.shape.dim[axis].dim_param = "any"

    return change


def retype(name: str, element_type: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        value(model, name).type.tensor_type.elem_type = element_type

    return change


def rename(name: str, other: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        value(model, name).name = other

    return change


def without(*names: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for name in names:
            drop(model, name)

    return change


def add_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch"]))


def add_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("next_state.h1", TensorProto.FLOAT, ["batch", 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("token"), r"input token is missing, which manifest\.json declares$"),
        (fix_axis("token", 0, 1), r"token int64\[1\] has a fixed batch; axis 0 must be free$"),
        (without("logits"), r"output logits is missing, which manifest\.json declares$"),
        (free_axis("logits", 1), r"logits float32\[batch, \?\] must have a fixed size on every axis but the batch$"),
        (fix_axis("logits", 0, 1), r"logits float32\[1, 5\] has a fixed batch"),
        (add_input, r"input mask float32\[batch\] is not declared; declared are token, state\.h0, state\.c0$"),
        (without("state.h0"), r"input state\.h0 is missing, which manifest\.json declares$"),
        (
            free_axis("state.h0", 1),
            r"state\.h0 float32\[batch, \?\] must have a fixed size on every axis but the batch$",
        ),
        (fix_axis("state.h0", 1, 0), r"state\.h0 float32\[batch, 0\] must have a fixed size"),
        (fix_axis("state.h0", 1, -1), r"state\.h0 float32\[batch, -1\] must have a fixed size"),
        (fix_axis("state.h0", 0, 2), r"state\.h0 float32\[2, 3\] has a fixed batch; axis 0 must be free$"),
        (without("next_state.h0"), r"output next_state\.h0 is missing, which manifest\.json declares$"),
        (
            fix_axis("next_state.h0", 1, 4),
            r"state state\.h0 .* is next_state\.h0 float32\[batch, 4\] after a step; its sides",
        ),
        (fix_axis("next_state.h0", 0, 1), r"next_state\.h0 float32\[1, 3\] has a fixed batch"),
        (
            retype("next_state.c0", TensorProto.DOUBLE),
            r"state state\.c0 .* is next_state\.c0 float64\[batch, 4\] after a step",
        ),
    ],
)
def test_check_step_refuses(
    make_step_graph: MakeGraph, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = make_step_graph()
    change(model)
    with pytest.raises(GraphRejected, match=r"^step\.onnx: " + message):
        check_step(read(model), STEP)


def test_check_step_refuses_swapped_states(make_step_graph: MakeGraph) -> None:
    model = make_step_graph()
    h, c = value(model, "next_state.h0"), value(model, "next_state.c0")
    h.name, c.name = c.name, h.name
    with pytest.raises(GraphRejected, match=r"is next_state\.h0 float32\[batch, 4\] after a step"):
        check_step(read(model), STEP)
