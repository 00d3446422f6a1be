import json
from pathlib import Path

import pytest
import torch

from carousel.export import making as making_module
from carousel.export import publish as publish_module
from carousel.export.__main__ import main
from carousel.export.checks.parity import ParityError
from carousel.export.publish import export_checkpoint
from carousel.models.bundle import open_bundle, versions
from carousel.models.codec.text import TextCodec
from carousel.models.errors import CheckpointError
from carousel.models.manifest import DecodingDefaults, Limits
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tests.trained import load_language_model


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors", cell="gru", layers=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny_graph: bytes) -> None:
    """Where the export itself is not the subject: its result, ready made."""
    monkeypatch.setattr(making_module, "export_step", lambda module: tiny_graph)


@pytest.fixture(scope="module")
def tiny_graph(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    bundle = export_checkpoint(checkpoint, tmp_path_factory.mktemp("repository"), "gru").bundle
    return (bundle / "step.onnx").read_bytes()


def header_edited(checkpoint: Path, path: Path, **changes: object) -> Path:
    read = read_checkpoint(checkpoint)
    write_checkpoint(path, Checkpoint(read.tensors, {**read.header, **changes}))
    return path


def test_exported_bundle_opens_with_all_that_training_said(checkpoint: Path, tmp_path: Path, quick: None) -> None:
    done = export_checkpoint(
        checkpoint, tmp_path, "gru", limits=Limits(max_prompt_tokens=99), decoding=DecodingDefaults(top_k=3)
    )
    assert done.bundle == tmp_path / "gru" / "1"
    opened = open_bundle(done.bundle)
    header = read_checkpoint(checkpoint).header
    assert opened.manifest.figures.served == header["validation"]
    assert opened.manifest.provenance.model_dump() == header["provenance"]
    assert opened.manifest.parity == done.parity
    assert opened.manifest.limits.max_prompt_tokens == 99
    assert opened.manifest.decoding.top_k == 3
    assert opened.codec(TextCodec).encode("ba\n") == [3, 2, 1]
    assert sorted(path.name for path in done.bundle.iterdir()) == ["manifest.json", "step.onnx", "tokenizer.json"]


def test_second_export_becomes_the_second_version(checkpoint: Path, tmp_path: Path, quick: None) -> None:
    assert [export_checkpoint(checkpoint, tmp_path, "gru").bundle.name for _ in range(2)] == ["1", "2"]


def test_run_directory_exports_its_best_checkpoint(checkpoint: Path, tmp_path: Path, quick: None) -> None:
    assert export_checkpoint(checkpoint.parent, tmp_path, "gru").checkpoint == checkpoint


def test_checkpoint_without_figures_exports(checkpoint: Path, tmp_path: Path, quick: None) -> None:
    path = header_edited(checkpoint, tmp_path / "bare.safetensors", validation=None, provenance=None)
    manifest = open_bundle(export_checkpoint(path, tmp_path / "r", "gru").bundle).manifest
    assert manifest.figures is None
    assert manifest.provenance is None


def test_export_that_fails_parity_publishes_nothing(
    checkpoint: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ParityError("off by 1")

    monkeypatch.setattr(making_module, "measure_parity", fail)
    with pytest.raises(ParityError):
        export_checkpoint(checkpoint, tmp_path / "r", "gru")
    assert not (tmp_path / "r").exists()


def test_export_of_a_graph_with_other_weights_publishes_nothing(make_checkpoint, tmp_path: Path, quick: None) -> None:
    other = make_checkpoint(tmp_path / "other.safetensors", cell="gru", layers=1, seed=9)
    with pytest.raises(ParityError, match="is off by"):
        export_checkpoint(other, tmp_path / "r", "gru")
    assert versions(tmp_path / "r", "gru") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "painting"}, r"task 'painting'; allowed are language, tracing, captioning$"),
        ({"task": "captioning"}, r"does not hold a whole captioning model: its header has no 'encoder'$"),
        ({"model": {"vocabulary_size": 13, "depth": 2}}, r"model configuration: model\.depth is not a key$"),
        (
            {"model": {"vocabulary_size": 13, "layers": 0}},
            r"model\.layers is 0; it should be greater than or eq",
        ),
        ({"model": {"vocabulary_size": 13}}, r"does not hold a whole language model: Error\(s\) in loading [^\n]*$"),
        ({"model": {"vocabulary_size": 13.5}}, r"model\.vocabulary_size is 13\.5; it should be a valid integer[^\n]*$"),
        ({"model": None}, r"model configuration: model is None; it should be an object$"),
        ({"tokenizer": "{}"}, r"does not hold a whole language model: not a tokenizer [^\n]*$"),
        ({"validation": {"tokens": 1}}, r"header validation\.nats_per_token: Field required$"),
        ({"provenance": {"author": "me"}}, r"header provenance\.recipe: Field required$"),
    ],
)
def test_export_refuses_a_checkpoint_whose_header_is_wrong(
    checkpoint: Path, tmp_path: Path, quick: None, changes: dict, message: str
) -> None:
    path = header_edited(checkpoint, tmp_path / "wrong.safetensors", **changes)
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(path, tmp_path / "r", "gru")
    assert not (tmp_path / "r").exists()


def test_export_refuses_a_tokenizer_of_another_size(
    make_checkpoint, checkpoint: Path, tmp_path: Path, quick: None
) -> None:
    other = make_checkpoint(tmp_path / "other.safetensors", vocabulary=12)
    path = header_edited(
        checkpoint, tmp_path / "mixed.safetensors", tokenizer=read_checkpoint(other).header["tokenizer"]
    )
    with pytest.raises(CheckpointError, match=r"whole language model: 12 tokens; logits float32\[batch, 13\] is not"):
        export_checkpoint(path, tmp_path / "r", "gru")


def test_export_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors: there is no such checkpoint file$"):
        export_checkpoint(tmp_path, tmp_path / "r", "gru")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickled.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a safetensors file"):
        export_checkpoint(tmp_path / "pickled.safetensors", tmp_path / "r", "gru")
    write_checkpoint(tmp_path / "listed.safetensors", Checkpoint({}, []))
    with pytest.raises(CheckpointError, match=r"without Carousel's JSON header$"):
        export_checkpoint(tmp_path / "listed.safetensors", tmp_path / "r", "gru")


def test_cli_publishes_and_says_what_it_did(
    checkpoint: Path, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        [
            str(checkpoint.parent),
            "--repository",
            str(tmp_path),
            "--name",
            "gru",
            "--temperature",
            "0.5",
            "--max-prompt-tokens",
            "7",
        ]
    )
    said = capsys.readouterr()
    stages = ["building the graphs, and comparing them with the model", "publishing"]
    assert (status, said.err.splitlines()) == (0, [f"export: {stage}" for stage in stages])
    assert [line.split()[0] for line in said.out.splitlines()] == ["exported", "parity", "rows", "published"]
    assert said.out.endswith(f"published  {tmp_path / 'gru' / '1'}\n")
    manifest = json.loads((tmp_path / "gru" / "1" / "manifest.json").read_text())
    assert manifest["decoding"] == DecodingDefaults(temperature=0.5).model_dump()
    assert manifest["limits"]["max_prompt_tokens"] == 7


def test_cli_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no"), "--repository", str(tmp_path), "--name", "x"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"export: {tmp_path / 'no'}: there is no such checkpoint file\n"


def test_cli_refuses_a_repository_that_is_a_file_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publish_module, "read_checkpoint", lambda _: pytest.fail("read the checkpoint"))
    (tmp_path / "r").write_text("mine")
    assert main([str(checkpoint), "--repository", str(tmp_path / "r"), "--name", "m"]) == 1
    assert capsys.readouterr().err.startswith(f"export: {tmp_path / 'r'}: is no directory; give one,")


def test_cli_refuses_a_bad_name(
    checkpoint: Path, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), "--repository", str(tmp_path / "r"), "--name", "../x"]) == 1
    assert capsys.readouterr().err.startswith("export: '../x' is not a model name; allowed are ")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "0"), ("--max-prompt-tokens", "0")],
)
def test_cli_refuses_a_flag_out_of_range(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(checkpoint), "--repository", str(tmp_path), "--name", "x", flag, value])
    assert exit_.value.code == 2
    assert f"argument {flag}: Input should be " in capsys.readouterr().err


def test_exported_shapes_load_back(make_checkpoint, tmp_path: Path) -> None:
    path = make_checkpoint(
        tmp_path / "m.safetensors", cell="lstm", vocabulary=9, embedding=4, hidden=6, layers=3, tied=True
    )
    model, codec = load_language_model(read_checkpoint(path))
    assert model.stack.state_shapes == {"h0": (6,), "c0": (6,), "h1": (6,), "c1": (6,), "h2": (4,), "c2": (4,)}
    assert codec.vocabulary_size == 9
