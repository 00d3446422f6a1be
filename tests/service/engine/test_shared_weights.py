"""Weights that graphs share: onnxruntime uses them where they lie, and nothing that it was given is kept twice."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models

from carousel.export.onnx_graph import export_step
from carousel.export.passes.recipe import int8_step, prefill_graphs
from carousel.export.shared_weights import share_weights
from carousel.models.bundle import open_bundle, publish
from carousel.models.nn.language import LanguageModel, LanguageModelConfig
from carousel.models.weights import WEIGHTS
from carousel.service.engine.prefill.runner import OnnxPrefillRunner
from carousel.service.engine.runner import OnnxRunner, Runner, StepArrays
from carousel.service.engine.session import RunnerBroken, open_session
from carousel.service.served.heap import give_back_freed
from carousel.service.served.opening import open_core, open_prefill, open_runner
from carousel.service.served.ports import prefill_feed
from tests.manifests import manifest_of

UNITS, WORDS = 80, 301


def int8_of(step):
    return int8_step(export_step(step))[0]


def graph() -> bytes:
    """found = table[ids], the table in another file."""
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[5, 3], data_location=TensorProto.EXTERNAL)
    table.external_data.add(key="location", value=WEIGHTS)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["found"])],
        "g",
        [value("ids", TensorProto.INT64, ["batch"])],
        [value("found", TensorProto.FLOAT, ["batch", 3])],
        [table],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def found(session) -> np.ndarray:
    return session.run(None, {"ids": np.arange(5)})[0]


def test_sessions_read_weights_where_they_lie() -> None:
    table = np.random.default_rng(0).random((5, 3), np.float32)
    sessions = [open_session(graph(), name, 1, weights={"table": table}) for name in ("one", "other")]
    for value in (table.copy(), table + 1):
        table[:] = value  # nobody does; it shows whose memory is read
        for session in sessions:
            np.testing.assert_array_equal(found(session), value)


def test_a_session_holds_the_weights_that_it_reads() -> None:
    table = np.arange(15, dtype=np.float32).reshape(5, 3)
    expected, gone = table.copy(), weakref.ref(table)
    session = open_session(graph(), "g", 1, weights={"table": table})
    del table
    gc.collect()
    give_back_freed()
    assert gone() is not None
    np.testing.assert_array_equal(found(session), expected)
    del session
    gc.collect()
    assert gone() is None


class Noted(bytes):
    """Bytes of which one can tell whether they are still held; no weak reference can be made to any."""

    gone = False

    def __del__(self) -> None:
        Noted.gone = True


def test_a_session_lets_go_of_its_graphs_bytes() -> None:
    content = Noted(graph())
    session = open_session(content, "g", 1, weights={"table": np.zeros((5, 3), np.float32)})
    assert not Noted.gone
    del content
    gc.collect()
    assert Noted.gone
    assert found(session).shape == (5, 3)


def test_a_graph_without_its_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / WEIGHTS).write_bytes(bytes(60))
    monkeypatch.chdir(tmp_path / "..")
    with pytest.raises(RunnerBroken, match="onnxruntime cannot load the g graph"):
        open_session(graph(), "g", 1)


@pytest.fixture(scope="module", params=["lstm", "gru"])
def graphs(request) -> dict[str, bytes]:
    torch.manual_seed(0)
    config = LanguageModelConfig(
        vocabulary_size=WORDS, cell=request.param, embedding_size=96, hidden_size=UNITS, layers=2
    )
    step = LanguageModel(config).eval().step_module()
    graph = int8_of(step)
    lower, upper = prefill_graphs(graph)
    return {"step.onnx": graph, "prefill.onnx": lower, "prefill2.onnx": upper}


def test_a_bundle_of_shared_weights_gives_the_bits_of_whole_graphs(graphs: dict[str, bytes], tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{f"w{index}": index for index in range(1, WORDS)}}, "<unk>"))
    files = share_weights(graphs) | {"tokenizer.json": tokenizer.to_str().encode()}
    manifest = manifest_of("language", files, precision="int8", weights=WEIGHTS)
    bundle = open_bundle(publish(tmp_path, "m", manifest, files))
    assert bundle.step.weights
    runner, prefill = open_runner(bundle, 1), open_prefill(bundle)
    assert prefill is not None
    whole = OnnxRunner(graphs["step.onnx"], runner.ports, 1)
    apart = OnnxPrefillRunner(
        [graphs["prefill.onnx"], graphs["prefill2.onnx"]], prefill_feed(bundle), runner.ports.after
    )
    random = np.random.default_rng(0)
    ids = random.integers(0, WORDS, (64, 70))
    states = {name: np.tanh(random.standard_normal((64, UNITS))).astype(np.float32) for name in runner.ports.states}

    def stepped(of: Runner, rows: slice) -> list[bytes]:
        token = np.ascontiguousarray(ids[rows, 0])
        before = {name: np.ascontiguousarray(state[rows]) for name, state in states.items()}
        arrays = replace(StepArrays.of(runner.ports, len(token)), inputs={"token": token}, before=before)
        of.bind(arrays)()
        return [
            part.tobytes()
            for row in range(len(token))
            for part in (arrays.outputs["logits"][row], *(np.asarray(each)[row] for each in arrays.after.values()))
        ]

    together = stepped(runner, slice(None))
    assert together == stepped(whole, slice(None))
    assert together == [part for row in range(64) for part in stepped(runner, slice(row, row + 1))]
    seen, expected = prefill({"token": ids}, states), apart({"token": ids}, states)
    assert {name: np.asarray(part).tobytes() for name, part in seen.items()} == {
        name: np.asarray(part).tobytes() for name, part in expected.items()
    }
    open_core(bundle, 1, 8)  # which holds steps and prefill against one another


def test_memory_that_is_given_back_stays_usable() -> None:
    kept = [np.full(1 << 16, index, np.int64) for index in range(64)]
    del kept[::2]
    give_back_freed()
    assert [int(part.sum()) for part in kept] == [index << 16 for index in range(1, 64, 2)]
