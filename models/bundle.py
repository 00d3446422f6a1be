"""The contract between export and service: what a bundle is, how it is opened, verified and published.

A bundle is a directory `<repository>/<model>/<version>/` with `manifest.json`, `step.onnx` and whatever files the
manifest lists. The graph says names, shapes and types; the manifest says what the graph cannot (models/README.md).
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from carousel.models.codec.image import ImageCodec
from carousel.models.codec.interaction import InteractionCodec
from carousel.models.codec.text import TextCodec
from carousel.models.encoder import ENCODER_GRAPH as ENCODER_GRAPH
from carousel.models.encoder import check_encoder
from carousel.models.errors import BundleError, BundleNotFound, DigestMismatch
from carousel.models.graph import GraphSpec, read_graph
from carousel.models.manifest import (
    MANIFEST,
    NAME_PATTERN,
    CodecSpec,
    FileEntry,
    ImageCodecSpec,
    InteractionCodecSpec,
    Manifest,
)
from carousel.models.prefill import check_prefill, prefill_names
from carousel.models.step import STEP_GRAPH as STEP_GRAPH
from carousel.models.step import check_step
from carousel.models.weights import WeightsFile

MAX_MANIFEST_BYTES = 1 << 20

Codec = TextCodec | InteractionCodec | ImageCodec

Weights = Mapping[str, npt.NDArray[np.generic]]
"""Initializers of a graph by name."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. What is served are these verified bytes, not whatever the files become later."""

    path: Path
    manifest: Manifest
    digest: str
    """sha256 of manifest.json, which holds the sha256 of every other file: it identifies the model."""
    files: Mapping[str, bytes]
    step: GraphSpec
    encoder: GraphSpec | None
    """What makes a sequence's first states and memories; None where a sequence begins with zeros."""
    prefill: Sequence[GraphSpec]
    """What takes a row many steps forward in a call, from the lowest graph up; none where prompts are fed to `step`."""
    output_size: int
    """How many logits (V) or probabilities (S) a step gives for a row."""
    codec: Codec

    @property
    def model(self) -> str:
        """The model's name: the parent directory's."""
        return self.path.parent.name

    @property
    def version(self) -> int:
        """The version: the directory's name."""
        return int(self.path.name)

    def weights(self, graph: GraphSpec) -> Weights:
        """Those of a graph's weights that lie in the weights file, as they lie there: nothing is copied."""
        if self.manifest.weights is None:
            return {}
        content = memoryview(self.files[self.manifest.weights])
        return {
            spec.name: np.frombuffer(content[spec.offset : spec.offset + spec.bytes], spec.dtype).reshape(spec.shape)
            for spec in graph.weights
        }

    @property
    def text_codec(self) -> TextCodec:
        """The codec of a bundle of task language, which the caller has made sure of."""
        assert isinstance(self.codec, TextCodec)
        return self.codec

    @property
    def interaction_codec(self) -> InteractionCodec:
        """The codec of a bundle of task tracing, which the caller has made sure of."""
        assert isinstance(self.codec, InteractionCodec)
        return self.codec

    @property
    def image_codec(self) -> ImageCodec:
        """The codec of a bundle of task captioning, which the caller has made sure of."""
        assert isinstance(self.codec, ImageCodec)
        return self.codec


def open_bundle(path: Path) -> Bundle:
    """Read and verify the bundle at `<repository>/<model>/<version>`.

    Raises:
        BundleNotFound: there is no manifest.json.
        DigestMismatch: a file is missing, truncated or changed.
        GraphRejected: the ONNX graph breaks the contract.
        BundleError: anything else that is wrong with the manifest.
    """
    path = path.absolute()  # not resolved: a version that is a link is served under the link's number
    if not re.fullmatch(r"[1-9][0-9]{0,8}", path.name):
        raise BundleError(f"{path.name!r} is not a version; a bundle's directory is called by a positive integer")
    content = _read(path / MANIFEST, MAX_MANIFEST_BYTES, missing=BundleNotFound)
    try:
        manifest = Manifest.model_validate_json(content.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise BundleError(f"{MANIFEST}: {where}: {first['msg']}") from None
    captioning = isinstance(manifest.codec, ImageCodecSpec)
    for required in (STEP_GRAPH, manifest.codec.file, *([ENCODER_GRAPH] if captioning else [])):
        if required not in manifest.files:
            raise BundleError(f"{MANIFEST}: files lists no {required}, which a {manifest.task} bundle must have")
    if manifest.weights is not None and manifest.weights not in manifest.files:
        raise BundleError(f"{MANIFEST}: files lists no {manifest.weights}, which weights names")
    files = {name: _read_verified(path, name, entry) for name, entry in manifest.files.items()}
    weights = None if manifest.weights is None else WeightsFile(manifest.weights, len(files[manifest.weights]))
    step = read_graph(files[STEP_GRAPH], STEP_GRAPH, weights)
    output_size = check_step(step, manifest.task)
    encoder = None
    if isinstance(manifest.codec, ImageCodecSpec):
        encoder = read_graph(files[ENCODER_GRAPH], ENCODER_GRAPH, weights)
        check_encoder(encoder, step, manifest.codec.preprocessing.shape)
    prefill = [read_graph(files[name], name, weights) for name in prefill_names(files)]
    if prefill:
        check_prefill(prefill, step, manifest.task)
    codec = _open_codec(manifest.codec, files)
    if isinstance(codec, InteractionCodec):
        known, unit, gives = codec.skill_count, "skills", "probabilities"
    else:
        text = codec.text if isinstance(codec, ImageCodec) else codec
        known, unit, gives = text.vocabulary_size, "tokens", "logits"
    if known != output_size:
        raise BundleError(f"{manifest.codec.file}: {known:,} {unit}; {STEP_GRAPH} gives {gives} for {output_size:,}")
    digest = hashlib.sha256(content).hexdigest()
    return Bundle(path, manifest, digest, files, step, encoder, prefill, output_size, codec)


def _open_codec(spec: CodecSpec, files: Mapping[str, bytes]) -> Codec:
    try:
        content = files[spec.file].decode("utf-8-sig")
        if isinstance(spec, InteractionCodecSpec):
            return InteractionCodec.from_json(content)
        text = TextCodec.from_json(content)
        return ImageCodec(text, spec.preprocessing, spec.begin, spec.end) if isinstance(spec, ImageCodecSpec) else text
    except ValueError as error:  # UnicodeDecodeError is one
        raise BundleError(f"{spec.file}: {error}") from None


def require_publishable(repository: Path, model: str) -> None:
    """See, before the work, that a model can be published under a name.

    Raises:
        BundleError: the name is not allowed, or the repository is no directory.
    """
    _require_name("model", model)
    if repository.exists() and not repository.is_dir():
        raise BundleError(f"{repository}: is no directory; give one, or a path where there is nothing yet")


def _require_name(kind: str, name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name) or name == MANIFEST:
        raise BundleError(
            f"{name!r} is not a {kind} name; allowed are at most 100 letters, digits, '.', '_' and '-', "
            f"the first a letter or digit, and not {MANIFEST}"
        )


def publish(repository: Path, model: str, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle as the model's next version and return its directory.

    The bundle is written and verified in a hidden directory of the repository and then renamed, so a reader sees the
    whole bundle or nothing. The manifest's `files` is filled in here.

    Raises:
        BundleError: a name is not allowed, or what was written does not open.
    """
    require_publishable(repository, model)
    for name in files:
        _require_name("file", name)
    home = repository / model
    home.mkdir(parents=True, exist_ok=True)
    staging = home / f".staging-{uuid.uuid4().hex}" / "1"
    staging.mkdir(parents=True)
    try:
        entries = {}
        for name, content in files.items():
            _write(staging / name, content)
            entries[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        complete = manifest.model_copy(update={"files": entries})
        # Without shared weights a manifest is, byte by byte, what it was before there were any: so is the digest.
        left_out = {"weights"} if complete.weights is None else None
        _write(staging / MANIFEST, (complete.model_dump_json(indent=2, exclude=left_out) + "\n").encode())
        open_bundle(staging)
        _sync_directory(staging)
        while True:
            target = home / str(max(versions(repository, model), default=0) + 1)
            try:
                os.rename(staging, target)  # fails where a concurrent publisher took the number
            except OSError:
                if target.exists():
                    continue
                raise
            _sync_directory(home)
            return target
    finally:
        shutil.rmtree(staging.parent, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a model repository holds, by model: one directory that cannot be read hides no other."""

    versions: Mapping[str, list[int]]
    """Of each model that has any, ascending; whether they can be served, only opening them says."""
    unreadable: Mapping[str, str]
    """Directories that have a model's name and cannot be listed, and why not."""


def list_repository(repository: Path) -> Listing:
    """The models of a repository, by name.

    Raises:
        BundleNotFound: the repository is no directory.
        BundleError: it cannot be listed.
    """
    holds = "a model repository holds <model>/<version>/ directories"
    try:
        names = sorted(name for name in os.listdir(repository) if re.fullmatch(NAME_PATTERN, name))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleNotFound(f"{repository} is not a directory; {holds}") from None
    except OSError as error:
        raise BundleError(f"{repository} cannot be listed ({error.strerror}); {holds}") from None
    found: dict[str, list[int]] = {}
    unreadable: dict[str, str] = {}
    for name in names:
        try:
            if of_model := versions(repository, name):
                found[name] = of_model
        except BundleError as error:
            unreadable[name] = str(error)
    return Listing(found, unreadable)


def versions(repository: Path, model: str) -> list[int]:
    """The published versions of `model`, ascending; empty where there is none.

    Raises:
        BundleError: the model's directory cannot be listed.
    """
    try:
        names = os.listdir(repository / model)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BundleError(f"the directory {repository / model} cannot be listed ({error.strerror})") from None
    return sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]{0,8}", name))


def _read_verified(directory: Path, name: str, entry: FileEntry) -> bytes:
    content = _read(directory / name, entry.bytes, missing=DigestMismatch)
    if len(content) != entry.bytes:
        raise DigestMismatch(f"{name}: {len(content):,} bytes; the manifest recorded {entry.bytes:,}")
    seen = hashlib.sha256(content).hexdigest()
    if seen != entry.sha256:
        raise DigestMismatch(f"{name}: sha256 is {seen}; the manifest recorded {entry.sha256}")
    return content


def _read(path: Path, max_bytes: int, missing: type[BundleError]) -> bytes:
    try:
        if path.is_symlink():
            raise BundleError(f"{path.name}: is a symbolic link; a bundle's files lie in the bundle")
        if path.exists() and not path.is_file():  # a pipe would be waited on for ever
            raise BundleError(f"{path.name}: is not a regular file")
        with path.open("rb") as file:
            # The size is looked at first: read(n) allocates n bytes, and n comes from the manifest.
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise DigestMismatch(f"{path.name}: longer than the {max_bytes:,} bytes allowed")
            return file.read()
    except FileNotFoundError:
        raise missing(f"{path.name}: there is no such file in {path.parent}") from None
    except OSError as error:
        raise BundleError(f"{path.name}: cannot be read ({error.strerror})") from None


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
