import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
from tokenizers import Tokenizer, models

from carousel.models import bundle as bundle_module
from carousel.models.bundle import open_bundle, publish, versions
from carousel.models.codec.text import TextCodec
from carousel.models.errors import BundleError, BundleNotFound, DigestMismatch, GraphRejected
from carousel.models.figures import Figures
from carousel.models.listing import list_repository
from carousel.models.manifest import Manifest
from tests.manifests import manifest_of

MakeGraph = Callable[[], onnx.ModelProto]


def tokenizer(size: int) -> bytes:
    vocabulary = {"<unk>": 0, **{chr(ord("a") + index): index + 1 for index in range(size - 1)}}
    return Tokenizer(models.WordLevel(vocabulary, "<unk>")).to_str().encode()


@pytest.fixture
def files(make_step_graph: MakeGraph) -> dict[str, bytes]:
    return {"step.onnx": make_step_graph().SerializeToString(), "tokenizer.json": tokenizer(5)}


@pytest.fixture
def manifest(files: dict[str, bytes]) -> Manifest:
    return manifest_of("language", files)


@pytest.fixture
def path(tmp_path: Path, manifest: Manifest, files: dict[str, bytes]) -> Path:
    """A good bundle, published."""
    return publish(tmp_path, "hand.made-1", manifest, files)


def test_published_bundle_opens(path: Path, files: dict[str, bytes]) -> None:
    opened = open_bundle(path)
    assert (opened.model, opened.version) == ("hand.made-1", 1)
    assert dict(opened.files) == files
    assert opened.codec(TextCodec).vocabulary_size == 5
    assert [state.name for state in opened.states] == ["state.h0", "state.c0"]
    assert len(opened.digest) == 64


def test_bundle_opens_by_relative_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path)
    opened = open_bundle(Path())
    assert (opened.model, opened.version) == ("hand.made-1", 1)


def test_bundle_behind_a_linked_version_keeps_the_links_number(path: Path) -> None:
    (path.parent / "7").symlink_to("1")
    assert open_bundle(path.parent / "7").version == 7


def test_bundle_by_hand_may_begin_its_files_with_a_byte_order_mark(
    tmp_path: Path, manifest: Manifest, files: dict[str, bytes]
) -> None:
    files["tokenizer.json"] = b"\xef\xbb\xbf" + files["tokenizer.json"]
    path = publish(tmp_path, "marked", manifest, files)
    (path / "manifest.json").write_bytes(b"\xef\xbb\xbf" + (path / "manifest.json").read_bytes())
    assert open_bundle(path).codec(TextCodec).vocabulary_size == 5


def test_digest_changes_with_any_file(tmp_path: Path, path: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    files["tokenizer.json"] = files["tokenizer.json"] + b" "
    other = publish(tmp_path, "hand.made-1", manifest, files)
    assert open_bundle(other).digest != open_bundle(path).digest


@pytest.mark.parametrize("name", ["step.onnx", "tokenizer.json"])
def test_bundle_with_any_byte_changed_is_refused(path: Path, name: str) -> None:
    content = (path / name).read_bytes()
    for position in {0, 1, len(content) // 2, len(content) - 1}:
        changed = bytearray(content)
        changed[position] ^= 1
        (path / name).write_bytes(changed)
        with pytest.raises(DigestMismatch, match=rf"^{name}: sha256 is \w{{64}}; the manifest recorded \w{{64}}$"):
            open_bundle(path)


@pytest.mark.parametrize("name", ["step.onnx", "tokenizer.json"])
def test_bundle_with_a_truncated_file_is_refused(path: Path, name: str) -> None:
    content = (path / name).read_bytes()
    for length in (0, 1, len(content) - 1):
        (path / name).write_bytes(content[:length])
        with pytest.raises(
            DigestMismatch, match=rf"^{name}: {length:,} bytes; the manifest recorded {len(content):,}$"
        ):
            open_bundle(path)


@pytest.mark.parametrize("name", ["step.onnx", "tokenizer.json"])
def test_bundle_with_a_longer_file_is_refused(path: Path, name: str) -> None:
    with (path / name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DigestMismatch, match=rf"^{name}: longer than the [\d,]+ bytes allowed$"):
        open_bundle(path)


@pytest.mark.parametrize(
    ("name", "error"),
    [("step.onnx", DigestMismatch), ("tokenizer.json", DigestMismatch), ("manifest.json", BundleNotFound)],
)
def test_bundle_without_a_file_is_refused(path: Path, name: str, error: type[BundleError]) -> None:
    (path / name).unlink()
    with pytest.raises(error, match=rf"^{name}: there is no such file in "):
        open_bundle(path)


@pytest.mark.parametrize("name", ["step.onnx", "tokenizer.json", "manifest.json"])
def test_bundle_with_a_symbolic_link_is_refused(path: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    with pytest.raises(BundleError, match=rf"^{name}: is a symbolic link; a bundle's files lie in the bundle$"):
        open_bundle(path)


@pytest.mark.parametrize("name", ["step.onnx", "manifest.json"])
def test_bundle_with_a_pipe_is_refused_without_waiting(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(BundleError, match=rf"^{name}: is not a regular file$"):
        open_bundle(path)


@pytest.mark.parametrize("version", ["0", "01", "v1", "-1", "1234567890", ".staging"])
def test_bundle_in_a_directory_that_is_no_version_is_refused(path: Path, version: str) -> None:
    path = path.rename(path.parent / version)
    with pytest.raises(BundleError, match="is not a version; a bundle's directory is called by a positive integer"):
        open_bundle(path)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(colour="red"), r"colour: Extra inputs are not permitted"),
        (lambda m: m["codecs"]["text"].update(path="x"), r"codecs\.text\.path: Extra inputs are not permitted"),
        (
            lambda m: m["codecs"]["text"].update(kind="sound"),
            r"codecs\.text: a codec is of kind 'sound'; known are image",
        ),
        (lambda m: m.update(format=3), r"format: is 3; allowed are 1 and 2$"),
        (lambda m: m.update(format=True), r"format: is True; allowed are 1 and 2$"),
        (lambda m: m.update(task="../x"), r"task: String should match"),
        (lambda m: m.pop("task"), r"task: Field required"),
        (lambda m: m.pop("step"), r"content: a bundle has a step, an encoder, or both, and this has neither"),
        (lambda m: m.pop("head"), r"head: Field required"),
        (lambda m: m.pop("files"), r"files: an object of files is required"),
        (lambda m: m["files"].pop("step.onnx"), r"files lists no step\.onnx, which it names"),
        (lambda m: m["files"].pop("tokenizer.json"), r"files lists no tokenizer\.json"),
        (lambda m: m["limits"].update(max_prompt_tokens=0), r"limits\.max_prompt_tokens: Input should be greater"),
        (lambda m: m["decoding"].update(temperature=-1), r"decoding\.temperature: Input should be greater"),
        (lambda m: m["decoding"].update(temperature=1e300), r"decoding\.temperature: Input should be less than"),
        (lambda m: m["decoding"].update(length_penalty=1e300), r"decoding\.length_penalty: Input should be less than"),
        (lambda m: m["decoding"].update(top_p=0), r"decoding\.top_p: Input should be greater"),
        (lambda m: m["files"]["step.onnx"].update(sha256="abc"), r"files\.step\.onnx\.sha256: String should match"),
        (lambda m: m["files"]["step.onnx"].update(bytes=-1), r"files\.step\.onnx\.bytes: Input should be greater"),
        (lambda m: m.update(precision="int4"), r"precision: Input should be 'fp32' or 'int8'"),
        (lambda m: m.update(figures={"served": {"auc": "high"}}), r"figures\.served\.auc\."),
        (
            lambda m: m["head"].update(kind="sing"),
            r"head: a head is of kind 'sing'; known are generate, read, tensors$",
        ),
        (
            lambda m: m["head"].update(feeds="word"),
            r"the head does not fit: feeds is 'word'; a step's inputs are token$",
        ),
        (
            lambda m: m["head"].update({"from": "scores"}),
            r"the head does not fit: from is 'scores'; .* outputs are logits$",
        ),
        (lambda m: m["head"].update(end="</s>"), r"the head does not fit: the vocabulary has no token '</s>'"),
        (lambda m: m["ports"].pop("logits"), r"the head does not fit: its port logits has no codec of ids"),
        (lambda m: m["ports"].update(sound="text"), r"ports names 'sound', which is no port; ports are token, logits$"),
        (lambda m: m["ports"].update(logits="words"), r"port logits has codec 'words'; codecs are text$"),
        (lambda m: m["step"].update(states=[]), r"step\.states: Tuple should have at least 1 item"),
        (
            lambda m: m["step"]["states"][0].update(initial="encoder"),
            r"state state\.h0 begins with what an encoder gives",
        ),
        (lambda m: m["step"]["states"][0].update(initial="ones"), r"step\.states\.0\.initial\."),
        (lambda m: m["step"]["states"][0].update(initial={"file": "h.npy"}), r"files lists no h\.npy, which it names"),
        *(
            (lambda m, name=name: m["files"].update({name: m["files"]["step.onnx"]}), r"files\..*: String should match")
            for name in ("../x", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "", "a\n", "x" * 101)
        ),
    ],
)
def test_bundle_with_a_bad_manifest_is_refused(path: Path, change: Callable[[dict], object], message: str) -> None:
    edit(path, change)
    with pytest.raises(BundleError, match=r"(?s)^manifest\.json: " + message):
        open_bundle(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b"\x80\x04."],
    ids=["empty", "cut", "list", "null", "not utf-8", "nan", "deep", "pickle"],
)
def test_bundle_whose_manifest_is_not_json_of_the_right_form_is_refused(path: Path, content: bytes) -> None:
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"^manifest\.json: "):
        open_bundle(path)


def test_bundle_with_a_huge_manifest_is_refused_unread(path: Path) -> None:
    with (path / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file: reading it would not end well
    with pytest.raises(DigestMismatch, match=r"^manifest\.json: longer than the 1,048,576 bytes allowed$"):
        open_bundle(path)


@pytest.mark.parametrize("size", [10**15, 10**30])
def test_bundle_that_claims_a_huge_file_is_refused_without_the_memory(path: Path, size: int) -> None:
    edit(path, lambda m: m["files"]["step.onnx"].update(bytes=size))
    with pytest.raises(BundleError, match=r"step\.onnx"):
        open_bundle(path)


def test_publish_counts_versions_up(tmp_path: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    assert [publish(tmp_path, "m", manifest, files).name for _ in range(3)] == ["1", "2", "3"]
    assert versions(tmp_path, "m") == [1, 2, 3]


def test_publish_goes_on_from_the_highest_version(tmp_path: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    publish(tmp_path, "m", manifest, files).rename(tmp_path / "m" / "41")
    assert publish(tmp_path, "m", manifest, files).name == "42"


def test_publishers_at_the_same_time_each_get_a_version(
    tmp_path: Path, manifest: Manifest, files: dict[str, bytes]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        published = [pool.submit(publish, tmp_path, "m", manifest, files) for _ in range(24)]
        names = {int(future.result().name) for future in published}
    assert names == set(range(1, 25))
    assert sorted(entry.name for entry in (tmp_path / "m").iterdir()) == sorted(map(str, names))


@pytest.mark.parametrize("name", ["../m", "/m", "a/b", "", ".m", "..", "m\n", "é"])
def test_publish_refuses_a_name_that_is_no_directory_of_the_repository(
    tmp_path: Path, manifest: Manifest, files: dict[str, bytes], name: str
) -> None:
    repository = tmp_path / "repository"
    with pytest.raises(BundleError, match="is not a model name; allowed are"):
        publish(repository, name, manifest, files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../../x", "/x", "a/b", "manifest.json"])
def test_publish_refuses_a_file_name_before_it_writes(
    tmp_path: Path, manifest: Manifest, files: dict[str, bytes], name: str
) -> None:
    with pytest.raises(BundleError, match="is not a file name; allowed are"):
        publish(tmp_path, "m", manifest, {**files, name: b"x"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("step.onnx", b"pickle", GraphRejected, r"step\.onnx: the content "),
        ("tokenizer.json", b"{}", BundleError, r"tokenizer\.json: not a tokenizer of the tokenizers library \("),
        ("tokenizer.json", b"\xff", BundleError, r"tokenizer\.json: "),
        (
            "tokenizer.json",
            tokenizer(4),
            BundleError,
            r"tokenizer\.json: 4 tokens; logits float32\[batch, 5\] is not a float32 row",
        ),
        (
            "tokenizer.json",
            tokenizer(6),
            BundleError,
            r"tokenizer\.json: 6 tokens; logits float32\[batch, 5\] is not a float32 row",
        ),
    ],
)
def test_publish_of_what_does_not_open_leaves_no_version(
    tmp_path: Path,
    manifest: Manifest,
    files: dict[str, bytes],
    name: str,
    content: bytes,
    error: type[BundleError],
    message: str,
) -> None:
    files[name] = content
    with pytest.raises(error, match="^" + message):
        publish(tmp_path, "m", manifest, files)
    assert versions(tmp_path, "m") == []
    assert list((tmp_path / "m").iterdir()) == []


def test_publish_refuses_a_vocabulary_with_ids_beyond_the_logits(
    tmp_path: Path, manifest: Manifest, files: dict[str, bytes]
) -> None:
    gap = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3, "d": 9}, "<unk>"))  # five tokens, ids to 9
    files["tokenizer.json"] = gap.to_str().encode()
    with pytest.raises(BundleError, match=r"10 tokens; logits float32\[batch, 5\] is not a float32 row"):
        publish(tmp_path, "m", manifest, files)


def test_publish_on_a_full_disk_leaves_no_version(
    tmp_path: Path, manifest: Manifest, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "_write", fail)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path, "m", manifest, files)
    assert list((tmp_path / "m").iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from carousel.models import bundle
from tests.manifests import manifest_of

def die(*_):
    os._exit(9)

setattr(bundle.os if sys.argv[2] == "rename" else bundle, sys.argv[2], die)
files = {path.name: path.read_bytes() for path in Path(sys.argv[3]).iterdir() if path.name != "manifest.json"}
manifest = manifest_of("language", files)
bundle.publish(Path(sys.argv[1]), "hand.made-1", manifest, files)
"""


@pytest.mark.parametrize("moment", ["_write", "open_bundle", "rename"])
def test_publish_that_is_killed_leaves_no_version(
    tmp_path: Path, path: Path, manifest: Manifest, files: dict[str, bytes], moment: str
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path, moment, path], check=False)
    assert killed.returncode == 9
    assert versions(tmp_path, "hand.made-1") == [1]
    assert list(list_repository(tmp_path).versions) == ["hand.made-1"]
    assert publish(tmp_path, "hand.made-1", manifest, files).name == "2"  # what the dead one left is in nobody's way


def test_manifest_takes_no_infinite_figure() -> None:
    with pytest.raises(ValueError, match="finite number"):
        Figures(served={"auc": float("inf")})


def test_listing_has_the_models_with_a_version(tmp_path: Path, path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "README.md").write_text("not a model")
    assert list(list_repository(tmp_path).versions) == ["hand.made-1"]
    assert versions(tmp_path, "absent") == []


def test_listing_goes_on_past_a_directory_that_cannot_be_listed(tmp_path: Path, path: Path) -> None:
    loop, dangling = tmp_path / "loop", tmp_path / "dangling"
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nowhere")
    listing = list_repository(tmp_path)
    assert listing.versions == {"hand.made-1": [1]}
    assert list(listing.unreadable) == ["loop"]
    with pytest.raises(BundleError, match=r"the directory .*loop cannot be listed \("):
        versions(tmp_path, "loop")
    with pytest.raises(BundleError, match=r"loop cannot be listed \(.*; a model repository holds"):
        list_repository(loop)


def test_listing_no_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match="is not a directory; a model repository holds"):
        list_repository(tmp_path / "absent")


def test_contract_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, carousel.models.bundle; print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
