"""Steps of strangers' networks: found by running, equal to the file run its own way."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from carousel.export.adopt.network import adopt_step
from carousel.export.adopt.said import Said
from carousel.export.adopt.trial import Trial
from tests.export.adopt.strangers import CLASSES, FEATURES, UNITS, Stranger, sequence_network, step_network


def adopted(content, **said):
    lines: list[str] = []
    return adopt_step(content, Said(**said), lines.append), lines


def shapes(values):
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("states", [True, False])
def test_sequence_network_becomes_one_step(operator, states):
    found, lines = adopted(sequence_network(operator, states=states), times={"x": 1})
    graph = found.built.model.graph
    count = 2 if operator == "LSTM" else 1
    assert shapes(graph.input)["x"] == ["batch", FEATURES]
    assert shapes(graph.output)["scores"] == ["batch", CLASSES]
    assert [shapes(graph.input)[before][-1] for before, _ in found.built.states] == [UNITS] * count
    assert found.compared.steps == 200
    assert found.compared.largest <= (1e-6 if operator == "RNN" else 0)
    assert [line for line in lines if line.startswith("state")]


def test_steps_of_the_graph_are_the_sequence_of_the_file():
    """The check of adoption itself, done by hand."""
    content = sequence_network("GRU", states=False)
    found, _ = adopted(content, times={"x": 1})
    x = np.random.default_rng(9).standard_normal((2, 11, FEATURES)).astype(np.float32)
    whole = Trial(onnx.load_model_from_string(content))({"x": x})["scores"]
    step, ((before, after),) = Trial(found.built.model), found.built.states
    state = np.zeros((2, UNITS), np.float32)
    for place in range(11):
        told = step({"x": x[:, place], before: state})
        state = told[after]
        np.testing.assert_array_equal(told["scores"], whole[:, place])


@pytest.mark.parametrize(("operator", "alike"), [("LSTM", True), ("GRU", True), ("RNN", False)])
def test_graph_of_many_steps_is_there_where_it_gives_the_same_bits(operator, alike):
    """The RNN operator does not at a batch of one: there the step is written as products."""
    found, lines = adopted(sequence_network(operator, states=True), times={"x": 1})
    assert (found.many is not None) is alike
    assert [line for line in lines if line.startswith("many")]
    if found.many is not None:
        assert shapes(found.many.model.graph.input)["x"] == ["batch", "steps", FEATURES]
        assert shapes(found.many.model.graph.output)["scores"] == ["batch", "steps", CLASSES]


def test_network_of_one_step_has_no_graph_of_many():
    found, lines = adopted(step_network())
    assert found.many is None
    assert not [line for line in lines if line.startswith("many")]


def test_free_time_axis_tells_states_of_one_shape_apart():
    """An LSTM's h and c have one shape, and here names that say the wrong thing."""
    content = sequence_network("LSTM", states=True, names=("c", "h"))
    model = onnx.load_model_from_string(content)
    for node in model.graph.node:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                field[place] = {"c0": "h", "h": "c_out", "cn": "h_out"}.get(name, name)
    for value in (*model.graph.input, *model.graph.output):
        value.name = {"c0": "h", "h": "c_out", "cn": "h_out"}.get(value.name, value.name)
    found, _ = adopted(model.SerializeToString(), times={"x": 1})
    assert {(pair.before, pair.after) for pair in found.pairs} == {("c", "c_out"), ("h", "h_out")}
    assert all("4 steps" in pair.why for pair in found.pairs)


def test_fixed_batch_of_one_is_freed():
    found, _ = adopted(sequence_network("LSTM", states=True, batch=1), times={"x": 1})
    assert shapes(found.built.model.graph.input)["x"] == ["batch", FEATURES]


def test_fixed_batch_in_a_reshape_is_freed():
    net = Stranger()
    net.takes("frame", [1, FEATURES])
    net.takes("h_in", [1, UNITS])
    net.node("Reshape", ["frame", net.constant("shape", np.array([1, FEATURES]))], ["flat"])
    net.node("MatMul", ["flat", net.weight("W", FEATURES, UNITS)], ["wx"])
    net.node("MatMul", ["h_in", net.weight("R", UNITS, UNITS)], ["rh"])
    net.node("Add", ["wx", "rh"], ["sum"])
    net.node("Tanh", ["sum"], ["h_out"])
    net.gives("h_out", [1, UNITS])
    found, lines = adopted(net.content())
    assert shapes(found.built.model.graph.output) == {"h_out": ["batch", UNITS], "next_state.h_in": ["batch", UNITS]}
    assert any("Reshape 'reshape0'" in line for line in lines)


def test_names_pair_where_nothing_else_can():
    found, _ = adopted(step_network(states=(("state_in_0", "state_out_0"), ("state_in_1", "state_out_1"))))
    assert [(pair.before, pair.after, pair.why) for pair in found.pairs] == [
        ("state_in_0", "state_out_0", "their names"),
        ("state_in_1", "state_out_1", "their names"),
    ]


def test_what_nothing_proves_is_asked():
    content = step_network(states=(("left", "one"), ("right", "two")))
    with pytest.raises(Exception, match="--state left=one; --state left=two; --state right=one; --state right=two"):
        adopted(content)
    found, _ = adopted(content, states={"left": "one", "right": "two"})
    assert found.built.states == [("state.left", "next_state.left"), ("state.right", "next_state.right")]


def test_wrong_pair_is_found_out():
    """A pair of unequal sides, and one that is not there."""
    content = sequence_network("LSTM", states=True)
    with pytest.raises(
        Exception, match=r"--state h0=scores: the input is float32\[1, 1, 7\], the output float32\[1, 1, 3\]"
    ):
        adopted(content, times={"x": 1}, states={"h0": "scores"})
    with pytest.raises(Exception, match="there is no output 'nothing'"):
        adopted(content, times={"x": 1}, states={"h0": "nothing"})


def test_carry_goes_in_front_of_the_next_step():
    """A filter over the last 2 values of the step before and 4 of this one."""
    net = Stranger()
    net.takes("audio", ["batch", 6])
    net.takes("h", ["batch", UNITS])
    net.node("MatMul", ["audio", net.weight("W", 6, UNITS)], ["wx"])
    net.node("MatMul", ["h", net.weight("R", UNITS, UNITS)], ["rh"])
    net.node("Add", ["wx", "rh"], ["sum"])
    net.node("Tanh", ["sum"], ["h_next"])
    net.gives("h_next", ["batch", UNITS])
    net.node("ReduceMax", ["wx"], ["level"], axes=[1], keepdims=1)
    net.gives("level", ["batch", 1])
    content = net.content()
    found, _ = adopted(content, carries={"audio": 2})
    assert shapes(found.built.model.graph.input) == {
        "audio": ["batch", 4], "state.audio_before": ["batch", 2], "state.h": ["batch", UNITS],
    }  # fmt: skip
    step, file = Trial(found.built.model), Trial(onnx.load_model_from_string(content))
    samples = np.random.default_rng(3).standard_normal((1, 12)).astype(np.float32)
    state = {"state.audio_before": np.zeros((1, 2), np.float32), "state.h": np.zeros((1, UNITS), np.float32)}
    h, padded = np.zeros((1, UNITS), np.float32), np.concatenate([np.zeros((1, 2), np.float32), samples], axis=1)
    for start in range(0, 12, 4):
        told = step({"audio": samples[:, start : start + 4], **state})
        theirs = file({"audio": padded[:, start : start + 6], "h": h})
        h = theirs["h_next"]
        np.testing.assert_array_equal(told["level"], theirs["level"])
        state = {before: told[after] for before, after in found.built.states}


def learned_network():
    """The file, and the row that its state begins with."""
    net = Stranger()
    net.takes("x", ["time", "batch", FEATURES])
    net.node("Shape", ["x"], ["shape"])
    net.node("Gather", ["shape", net.constant("one", np.int64(1))], ["rows"])
    net.node("Unsqueeze", ["rows", net.constant("zero", np.array([0]))], ["rows1"])
    ones = net.constant("sides", np.array([1]))
    net.node("Concat", [ones, "rows1", ones], ["tiles"], axis=0)
    net.node("Tile", [net.weight("learned", 1, 1, UNITS), "tiles"], ["h_begin"])
    net.recurrent("GRU", "x", "h_begin")
    net.gives("h_after", [1, "batch", UNITS])
    net.gives("y", ["time", 1, "batch", UNITS])
    learned = next(numpy_helper.to_array(each) for each in net.held if each.name == "learned")
    return net.content(), learned[0, 0]


def test_learned_initial_state_is_kept():
    content, learned = learned_network()
    found, _ = adopted(content, times={"x": 0})
    np.testing.assert_array_equal(found.built.initial["state.layer0_h"], learned)


def speaker_network() -> bytes:
    net = Stranger()
    x = net.takes("x", ["batch", "time", FEATURES])
    who = net.takes("speaker", ["batch", FEATURES])
    net.node("Unsqueeze", [who, net.constant("one", np.array([1]))], ["who"])
    net.node("Add", [x, "who"], ["both"])
    net.node("Transpose", ["both"], ["x_t"], perm=[1, 0, 2])
    net.recurrent("GRU", "x_t", net.takes("h", [1, "batch", UNITS]))
    net.node("Squeeze", ["y", net.constant("axis", np.array([1]))], ["told"])
    net.gives("told", ["time", "batch", UNITS])
    net.gives("h_after", [1, "batch", UNITS])
    return net.content()


def test_input_that_steps_share_is_context():
    found, _ = adopted(speaker_network(), times={"x": 1})
    assert found.built.context == ["context.speaker"]
    assert "state.h" in dict(found.built.states)


def test_control_is_fixed_and_its_branch_written_out():
    net = Stranger()
    net.takes("frame", ["batch", FEATURES])
    net.takes("h", ["batch", UNITS])
    net.takes("rate", [], TensorProto.INT64)
    net.node("Equal", ["rate", net.constant("sixteen", np.int64(16000))], ["wide"])
    for side in ("wide", "narrow"):
        net.weight(f"W_{side}", FEATURES, UNITS)

    def branch(side: str) -> onnx.GraphProto:
        product = helper.make_node("MatMul", ["frame", f"W_{side}"], [f"wx_{side}"])
        return helper.make_graph(
            [product], side, [], [helper.make_tensor_value_info(f"wx_{side}", TensorProto.FLOAT, None)]
        )

    net.node("If", ["wide"], ["wx"], then_branch=branch("wide"), else_branch=branch("narrow"))
    net.node("MatMul", ["h", net.weight("R", UNITS, UNITS)], ["rh"])
    net.node("Add", ["wx", "rh"], ["sum"])
    net.node("Tanh", ["sum"], ["h_out"])
    net.gives("h_out", ["batch", UNITS])
    content = net.content()
    with pytest.raises(Exception, match="input 'rate' is one number for a whole call; say what it is"):
        adopted(content)
    for rate, other in ((16000, "narrow"), (8000, "wide")):
        found, lines = adopted(content, fixed={"rate": rate})
        assert not any(node.op_type == "If" for node in found.built.model.graph.node)
        assert f"net.W_{other}" not in {tensor.name for tensor in found.built.model.graph.initializer}
        assert any("1 that always go one way" in line for line in lines)


def test_mean_over_a_middle_axis_is_written_as_a_product():
    net = Stranger()
    net.takes("frame", ["batch", 24, 16])
    net.takes("h", ["batch", 16])
    net.node("ReduceMean", ["frame"], ["mean"], axes=[1], keepdims=0)
    net.node("MatMul", ["h", net.weight("R", 16, 16)], ["turned"])
    net.node("Mul", ["turned", net.constant("less", np.float32(0.3))], ["rh"])  # lest it be chaotic
    net.node("Add", ["mean", "rh"], ["sum"])
    net.node("Tanh", ["sum"], ["h_out"])
    net.gives("h_out", ["batch", 16])
    found, lines = adopted(net.content())
    assert found.compared.largest < 1e-6
    assert not any(node.op_type == "ReduceMean" for node in found.built.model.graph.node) or not any(
        line.startswith("rows") for line in lines
    )


def quantized_lstm() -> bytes:
    random = np.random.default_rng(4)
    net = Stranger()
    net.takes("x", ["time", "batch", FEATURES])
    net.takes("h0", [1, "batch", UNITS])
    net.takes("c0", [1, "batch", UNITS])
    # Of seven bits: processors that add pairs of products in 16 bits saturate at more.
    w = net.constant("W", random.integers(-60, 60, (1, FEATURES, 4 * UNITS)).astype(np.int8))
    r = net.constant("R", random.integers(-60, 60, (1, UNITS, 4 * UNITS)).astype(np.int8))
    b = net.weight("B", 1, 8 * UNITS)
    scale, zero = net.constant("s", np.array([0.01], np.float32)), net.constant("z", np.array([0], np.int8))
    net.nodes.append(
        helper.make_node(
            "DynamicQuantizeLSTM", ["x", w, r, b, "", "h0", "c0", "", scale, zero, scale, zero], ["y", "hn", "cn"],
            name="quantized", domain="com.microsoft", hidden_size=UNITS,
        )
    )  # fmt: skip
    net.gives("y", ["time", 1, "batch", UNITS])
    net.gives("hn", [1, "batch", UNITS])
    net.gives("cn", [1, "batch", UNITS])
    model = onnx.load_model_from_string(net.content())
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return bytes(model.SerializeToString())


def test_scale_over_the_batch_is_refused_and_float_weights_are_not():
    with pytest.raises(Exception, match=r"'quantized' mixes the rows .*--dequantize"):
        adopted(quantized_lstm(), times={"x": 0})
    found, _ = adopted(quantized_lstm(), times={"x": 0}, dequantize=True)
    assert 0 < found.compared.largest < 0.05


def reverse() -> bytes:
    net = Stranger()
    net.takes("x", ["time", "batch", FEATURES])
    net.recurrent("LSTM", "x", direction="bidirectional")
    net.gives("y", ["time", 2, "batch", UNITS])
    return net.content()


def stateless() -> bytes:
    net = Stranger()
    net.takes("x", ["batch", FEATURES])
    net.node("MatMul", ["x", net.weight("W", FEATURES, CLASSES)], ["y"])
    net.gives("y", ["batch", CLASSES])
    return net.content()


def mixing() -> bytes:
    """What every row is told depends on all of them."""
    net = Stranger()
    net.takes("x", ["batch", UNITS])
    net.takes("h", ["batch", UNITS])
    net.node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1)
    net.node("Sub", ["x", "mean"], ["apart"])
    net.node("Add", ["apart", "h"], ["sum"])
    net.node("Tanh", ["sum"], ["h_out"])
    net.gives("h_out", ["batch", UNITS])
    return net.content()


def external() -> bytes:
    model = onnx.load_model_from_string(stateless())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return bytes(model.SerializeToString())


def foreign_domain() -> bytes:
    net = Stranger()
    net.takes("x", ["batch", FEATURES])
    net.nodes.append(helper.make_node("Magic", ["x"], ["y"], domain="org.example"))
    net.gives("y", ["batch", FEATURES])
    model = onnx.load_model_from_string(net.content())
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    return bytes(model.SerializeToString())


def counting() -> bytes:
    """A state of integers, whose output is a state and nothing else."""
    net = Stranger()
    net.takes("x", ["batch", 3])
    net.takes("h", ["batch", 3])
    net.takes("count", ["batch", 1], TensorProto.INT64)
    net.node("Cast", ["count"], ["turns"], to=TensorProto.FLOAT)
    net.node("Sum", ["x", "h", "turns"], ["sum"])
    net.node("Tanh", ["sum"], ["h_next"])
    net.node("Add", ["count", net.constant("one", np.int64(1))], ["count_next"])
    net.gives("h_next", ["batch", 3])
    net.gives("count_next", ["batch", 1], TensorProto.INT64)
    return net.content()


def test_states_may_be_integers_and_all_that_a_network_says():
    found, _ = adopted(counting())
    assert found.built.states == [("state.h", "next_state.h"), ("state.count", "next_state.count")]
    assert shapes(found.built.model.graph.output) == {
        "h_next": ["batch", 3], "count_next": ["batch", 1], "next_state.h": ["batch", 3],
        "next_state.count": ["batch", 1],
    }  # fmt: skip


def looping() -> bytes:
    """A step that refines its state three times, by a Loop."""
    value = helper.make_tensor_value_info
    inputs = [
        value("turn", TensorProto.INT64, []),
        value("on", TensorProto.BOOL, []),
        value("s", TensorProto.FLOAT, None),
    ]
    nodes = [
        helper.make_node("Identity", ["on"], ["goes_on"]),
        helper.make_node("MatMul", ["s", "R"], ["turned"]),
        helper.make_node("Tanh", ["turned"], ["refined"]),
    ]
    results = [value("goes_on", TensorProto.BOOL, []), value("refined", TensorProto.FLOAT, None)]
    net = Stranger()
    net.takes("x", ["batch", UNITS])
    net.takes("h", ["batch", UNITS])
    net.weight("R", UNITS, UNITS)
    net.node("Add", ["x", "h"], ["sum"])
    first = [net.constant("three", np.int64(3)), net.constant("yes", np.bool_(True)), "sum"]
    net.node("Loop", first, ["h_out"], body=helper.make_graph(nodes, "body", inputs, results))
    net.gives("h_out", ["batch", UNITS])
    return net.content()


def test_loop_that_is_not_over_steps_stays():
    found, lines = adopted(looping())
    assert "loops      1 stay: they are not over the steps of a call" in lines
    assert [node.op_type for node in found.built.model.graph.node].count("Loop") == 1
    assert found.compared.largest == 0


def convolving() -> bytes:
    """Looks at the steps around each, before a recurrent layer."""
    net = Stranger()
    net.takes("x", ["batch", "time", FEATURES])
    net.node("Transpose", ["x"], ["x_c"], perm=[0, 2, 1])
    net.node("Conv", ["x_c", net.weight("w", FEATURES, FEATURES, 3)], ["c"], kernel_shape=[3], pads=[1, 1])
    net.node("Transpose", ["c"], ["x_t"], perm=[2, 0, 1])
    net.recurrent("GRU", "x_t")
    net.gives("y", ["time", 1, "batch", UNITS])
    return net.content()


def projected() -> bytes:
    """R is not as wide as there are units, as torch 2.13's dynamo exporter writes a projection."""
    net = Stranger()
    net.takes("x", ["time", "batch", FEATURES])
    weights = [net.weight("W", 1, 4 * UNITS, FEATURES), net.weight("R", 1, 4 * UNITS, 2)]
    net.node("LSTM", ["x", *weights], ["y"], hidden_size=UNITS)
    net.gives("y", ["time", 1, "batch", UNITS])
    return net.content()


def without_kernel() -> bytes:
    """An operator of ONNX that onnxruntime lacks."""
    net = Stranger()
    net.takes("file", ["bytes"], TensorProto.UINT8)
    net.node("ImageDecoder", ["file"], ["image"])
    net.gives("image", [None, None, None], TensorProto.UINT8)
    return net.content(opset=20)


def branching() -> bytes:
    """Goes one way for loud input and another for quiet."""
    value = helper.make_tensor_value_info
    sides = [
        helper.make_graph([helper.make_node(kind, ["sum"], [kind])], kind, [], [value(kind, TensorProto.FLOAT, None)])
        for kind in ("Tanh", "Sigmoid")
    ]
    net = Stranger()
    net.takes("x", ["batch", UNITS])
    net.takes("h", ["batch", UNITS])
    net.node("Add", ["x", "h"], ["sum"])
    net.node("ReduceSum", ["sum"], ["level"], keepdims=0)
    net.node("Greater", ["level", net.constant("loud", np.float32(0))], ["is_loud"])
    net.node("If", ["is_loud"], ["h_out"], then_branch=sides[0], else_branch=sides[1])
    net.gives("h_out", ["batch", UNITS])
    return net.content()


def of_two_rows() -> bytes:
    """A batch of two that it depends on, in a constant that is added."""
    net = Stranger()
    net.takes("x", [2, UNITS])
    net.takes("h", [2, UNITS])
    net.node("Sum", ["x", "h", net.weight("b", 2, UNITS)], ["sum"])
    net.node("Tanh", ["sum"], ["h_out"])
    net.gives("h_out", [2, UNITS])
    return net.content()


@pytest.mark.parametrize(
    ("content", "said", "sentence"),
    [
        (convolving(), {"times": {"x": 1}}, "Conv 'conv1' has a kernel of 3: over time it needs the steps before"),
        (projected(), {"times": {"x": 0}}, "LSTM 'lstm0' has 7 units and a state of 2: a projection, .*proj_size"),
        (without_kernel(), {}, "onnxruntime does not open the file: .*ImageDecoder"),
        (branching(), {}, "'if3' goes either way, by its condition 'is_loud'"),
        (of_two_rows(), {}, "batch"),
        (stateless()[:-20], {}, "not an ONNX model"),
        (
            step_network(),
            {"fixed": {"rate": 1}},
            "--fix rate=...: there is no input 'rate'; inputs are frame",
        ),
        (b"no graph", {}, "not an ONNX model"),
        (b"", {}, "not an ONNX model"),
        (external(), {}, "keeps weights in another file"),
        (foreign_domain(), {}, "domain 'org.example'"),
        (reverse(), {"times": {"x": 0}}, "'lstm0' reads its input from the end: .*--encoder-only"),
        (stateless(), {}, "no input is a state"),
        (mixing(), {}, "rows together are not what each is alone"),
        (sequence_network("GRU", states=True), {}, "free axis .*--time"),
        (sequence_network("GRU", states=True), {"times": {"y": 1}}, "there is no input 'y'; inputs are x, h0"),
        (sequence_network("GRU", states=True), {"times": {"x": 3}}, "axes 0 to 2"),
        (step_network(), {"shapes": {"frame": (4,)}}, "the file says"),
        (step_network(), {"shapes": {"frame": (5, 5)}}, "a row has 1 axes"),
    ],
)
def test_what_cannot_be_adopted_is_refused_with_what_to_do(content, said, sentence):
    with pytest.raises(Exception, match=sentence):
        adopted(content, **said)
