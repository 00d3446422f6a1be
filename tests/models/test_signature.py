"""Manifests of format 2: what ports, states, codecs and heads may be, and what is refused."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carousel.models.bundle import open_bundle
from carousel.models.codec.labels import LabelsCodec
from carousel.models.codec.numbers import NumbersCodec
from carousel.models.errors import BundleError
from tests.port_models import (
    DOUBLE,
    FLOAT,
    VITALS,
    VITALS_AFTER,
    VITALS_FILES,
    VITALS_OUT,
    WARDS,
    WARDS_FILES,
    changed,
    graph,
    node,
    npy,
    publish_vitals,
    vitals_graph,
)

ENCODER = {"graph": "encoder.onnx", "inputs": ["chart"], "gives": ["h"]}


def encoder_graph(gives: str = "h", size: int = 5) -> bytes:
    """h = chart A"""
    weights = {"A": np.ones((6, size), np.float32)}
    nodes = [node("MatMul", "chart A", gives)]
    return graph(nodes, {"chart": (FLOAT, [6])}, {gives: (FLOAT, [size])}, weights)


def test_bundle_of_many_ports_opens(tmp_path: Path) -> None:
    bundle = open_bundle(publish_vitals(tmp_path))
    assert [(spec.name, spec.dtype) for spec in bundle.states] == [("h", "float32"), ("taken", "int64")]
    assert bundle.initial.keys() == {"taken"}
    assert bundle.initial["taken"].tolist() == [7]
    assert isinstance(bundle.codecs["vitals"], NumbersCodec)
    assert isinstance(bundle.codecs["risks"], LabelsCodec)
    assert bundle.manifest.task == "vitals"


def test_published_manifest_says_what_was_given(tmp_path: Path) -> None:
    said = json.loads((publish_vitals(tmp_path) / "manifest.json").read_text())
    for part in ("format", "task", "ports", "codecs", "head"):
        for name, value in VITALS[part].items() if isinstance(VITALS[part], dict) else [("", VITALS[part])]:
            seen = said[part][name] if name else said[part]
            assert seen == value or seen == {**value, "scores": "logits"}
    assert said["step"]["states"] == VITALS["step"]["states"]
    assert said["files"].keys() == VITALS_FILES.keys()


def test_label_may_be_sampled_and_fed_back_as_a_one_hot_row(tmp_path: Path) -> None:
    assert open_bundle(publish_vitals(tmp_path, WARDS, WARDS_FILES)).manifest.head.fed_port == "ward"


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (lambda: changed(head={"kind": "mixture", "from": "risk"}), "a head is of kind 'mixture'; known are generate"),
        (
            lambda: changed(head={"kind": "tensors", "from": ["risk", "mood"]}),
            "from is 'mood'; a step's outputs are risk",
        ),
        (lambda: changed(head={"kind": "tensors", "from": []}), "head"),
        (lambda: changed(head={"kind": "read", "from": "total"}), "its port total has no codec; give it one in ports"),
        (lambda: changed(head={"kind": "read", "from": "absent"}), "from is 'absent'"),
        (
            lambda: changed(head={"kind": "generate", "feeds": "ward", "from": "risk"}),
            "it feeds ward alone, and a step has inputs vitals, ward, dose",
        ),
        (
            lambda: {**WARDS, "head": {**WARDS["head"], "feeds": "logits"}},
            "feeds is 'logits'; a step's inputs are ward",
        ),
        (lambda: {**WARDS, "head": {**WARDS["head"], "end": "attic"}}, "the vocabulary has no token 'attic'"),
        (lambda: {**WARDS, "head": {**WARDS["head"], "attends": "h1"}}, "attends is 'h1'; a step's outputs are logits"),
        (lambda: {**WARDS, "ports": {"logits": "wards"}}, "its port ward has no codec of ids; give it one in ports"),
        (lambda: {**WARDS, "ports": {"ward": "wards"}}, "its port logits has no codec of ids"),
        (lambda: changed(ports__ward="moods"), "port ward has codec 'moods'; codecs are vitals, wards, risks"),
        (lambda: changed(ports__mood="wards"), "ports names 'mood', which is no port; ports are vitals, ward, dose"),
        (
            lambda: changed(ports__dose="vitals"),
            r"vectors of 3 numbers; dose int32\[batch\] is not a row of so many floats",
        ),
        (lambda: changed(ports__vitals="wards"), r"4 labels; vitals float32\[batch, 3\] is not an id or a one-hot row"),
        (
            lambda: changed(step__inputs=["vitals", "ward"]),
            r"input dose int32\[batch\] is not declared; declared are vitals",
        ),
        (
            lambda: changed(step__inputs=["vitals", "ward", "dose", "mood"]),
            "input mood is missing, which manifest.json",
        ),
        (lambda: changed(step__inputs=["vitals", "ward", "dose", "dose"]), "'dose' is declared twice among its inputs"),
        (
            lambda: changed(step__outputs=["risk", "next", "mood"]),
            "output mood is missing, which manifest.json declares",
        ),
        (lambda: changed(step__context=["vitals"]), "'vitals' is declared twice"),
        (
            lambda: changed(step__states=[{"in": "h", "out": "taken1"}, {"in": "taken", "out": "h1"}]),
            r"state h float32\[batch, 5\] is taken1 int64\[batch, 1\] after a step; its sides must be alike",
        ),
        (lambda: changed(step__states=[{"in": "h", "out": "h1"}]), r"input taken int64\[batch, 1\] is not declared"),
        (
            lambda: changed(step__states=[{"in": "h", "out": "h1"}, {"in": "taken", "out": "h1"}]),
            "'h1' is declared twice among its outputs",
        ),
        (lambda: changed(step__states=[]), "step.states"),
        (
            lambda: changed(step__states=[{"in": "h", "out": "h1", "initial": "ones"}, VITALS["step"]["states"][1]]),
            "step.states.0.initial",
        ),
        (
            lambda: changed(step__states=[{"in": "h", "out": "h1", "initial": "encoder"}, VITALS["step"]["states"][1]]),
            "state h begins with what an encoder gives, and there is none",
        ),
        (lambda: changed(codecs__wards={"kind": "labels", "file": "gone.json"}), "files lists no gone.json"),
        (lambda: changed(codecs__wards={"kind": "smells"}), "a codec is of kind 'smells'; known are image, "),
        (lambda: changed(mood=1), "mood: Extra inputs are not permitted"),
        (lambda: changed(head=None), "head: Field required"),
        (lambda: changed(step=None), "a step, an encoder, or both, and this has neither"),
        (lambda: changed(task="a/b"), "task"),
    ],
)
def test_bad_manifest_is_refused(tmp_path: Path, manifest: Callable[[], dict[str, Any]], sentence: str) -> None:
    told = manifest()
    files = WARDS_FILES if told.get("task") == "wards" else VITALS_FILES
    path = write(tmp_path, told, files)
    with pytest.raises(BundleError, match=sentence) as error:
        open_bundle(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "taken.npy",
            npy(np.array([7, 8])),
            r"taken.npy: holds int64\[2\]; allowed is a row of taken int64\[batch, 1\]",
        ),
        ("taken.npy", npy(np.array([7.0])), r"holds float64\[1\]"),
        ("taken.npy", npy(np.array(7)), r"holds int64\[\]"),
        ("taken.npy", b"", "is no array in numpy's .npy format"),
        ("taken.npy", npy(np.array([7]))[:-3], "is no array in numpy's .npy format"),
        ("taken.npy", npy(np.array([{}], object)), "is no array in numpy's .npy format"),
        ("wards.json", b'["east", "east"]', "wards.json: label 1 is called 'east'"),
        ("wards.json", b'["east", "west"]', "wards.json: 2 labels; ward"),
        ("vitals.json", b'{"size": 2}', "vitals.json: vectors of 2 numbers; vitals"),
        ("vitals.json", b"\xff", "vitals.json"),
        ("step.onnx", vitals_graph(after={**VITALS_AFTER, "h1": (DOUBLE, [5])}), "its sides must be alike"),
        ("step.onnx", vitals_graph(after={**VITALS_AFTER, "h1": (FLOAT, [6])}), "its sides must be alike"),
        ("step.onnx", vitals_graph(outputs={**VITALS_OUT, "risk": (FLOAT, ["any"])}), "must have a fixed size"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = write(tmp_path, VITALS, {**VITALS_FILES, name: content})
    with pytest.raises(BundleError, match=sentence):
        open_bundle(path)


def test_encoder_gives_what_the_step_begins_with(tmp_path: Path) -> None:
    states = [{"in": "h", "out": "h1", "initial": "encoder"}, VITALS["step"]["states"][1]]
    manifest = {**changed(step__states=states), "encoder": ENCODER}
    bundle = open_bundle(write(tmp_path, manifest, {**VITALS_FILES, "encoder.onnx": encoder_graph()}))
    assert bundle.encoder is not None


@pytest.mark.parametrize(
    ("encoder", "content", "initial", "sentence"),
    [
        ({"gives": ["h", "mood"]}, encoder_graph(), "encoder", "gives mood, which no step takes; taken are h"),
        ({}, encoder_graph(), "zeros", "gives h, which no step takes; taken are none"),
        ({}, encoder_graph(size=6), "encoder", r"output h is h float32\[batch, 6\]; allowed is h float32\[batch, 5\]"),
        ({}, encoder_graph(gives="mood"), "encoder", r"output h is missing; allowed is h float32\[batch, 5\]"),
        ({"inputs": ["scan"]}, encoder_graph(), "encoder", "input scan is missing"),
        ({"lengths": "sizes"}, encoder_graph(), "encoder", "input sizes is missing"),
        ({"graph": "gone.onnx"}, encoder_graph(), "encoder", "files lists no gone.onnx"),
    ],
)
def test_bad_encoder_is_refused(
    tmp_path: Path, encoder: Mapping[str, Any], content: bytes, initial: str, sentence: str
) -> None:
    states = [{"in": "h", "out": "h1", "initial": initial}, VITALS["step"]["states"][1]]
    manifest = {**changed(step__states=states), "encoder": {**ENCODER, **encoder}}
    path = write(tmp_path, manifest, {**VITALS_FILES, "encoder.onnx": content})
    with pytest.raises(BundleError, match=sentence):
        open_bundle(path)


@pytest.mark.parametrize("number", [3, 0, "2", 2.5, None, True, [2]])
def test_other_formats_are_refused(tmp_path: Path, number: Any) -> None:
    path = write(tmp_path, {**VITALS, "format": number}, VITALS_FILES)
    with pytest.raises(BundleError, match=r"manifest.json: format: is .*; allowed are 1 and 2"):
        open_bundle(path)


def write(repository: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
    """A bundle as somebody else's tool would write it: nothing has looked at it."""
    path = repository / "vitals" / "1"
    path.mkdir(parents=True)
    entries = {name: {"sha256": sha256(part).hexdigest(), "bytes": len(part)} for name, part in files.items()}
    for name, part in files.items():
        (path / name).write_bytes(part)
    (path / "manifest.json").write_text(json.dumps({**manifest, "files": entries}))
    return path
