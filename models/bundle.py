"""The contract between export and service: what a bundle is, how it is opened, verified and published.

A bundle is a directory `<repository>/<model>/<version>/` with `manifest.json`, graphs, and whatever files the manifest
lists. The graphs say types and shapes; the manifest says what they cannot (models/README.md).
"""

from __future__ import annotations

import codecs as encodings
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from carousel.models.codec.spec import Codec
from carousel.models.errors import BundleError, BundleNotFound, DigestMismatch
from carousel.models.format1 import in_format_2
from carousel.models.graph import GraphSpec, TensorSpec, read_graph
from carousel.models.manifest import MANIFEST, NAME_PATTERN, FileEntry, Manifest
from carousel.models.signature import check_encoder, check_ports, check_prefill, check_step, stored_rows
from carousel.models.weights import WeightsFile

STEP_GRAPH, ENCODER_GRAPH = "step.onnx", "encoder.onnx"
"""What export calls them."""

MAX_MANIFEST_BYTES = 1 << 20

Array = npt.NDArray[np.generic]
Weights = Mapping[str, Array]
"""Initializers of a graph by name."""

Kind = TypeVar("Kind", bound=Codec)


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. What is served are these verified bytes, not whatever the files become later."""

    path: Path
    manifest: Manifest
    digest: str
    """sha256 of manifest.json, which holds the sha256 of every other file: it identifies the model."""
    files: Mapping[str, bytes]
    step: GraphSpec
    """Of nothing, where the bundle is an encoder alone."""
    encoder: GraphSpec | None
    """What makes a sequence's first states and its context; None where a sequence begins by itself."""
    prefill: Sequence[GraphSpec]
    """What takes a row many steps forward in a call, from the lowest graph up; none where prompts are fed to `step`."""
    codecs: Mapping[str, Codec]
    """By the manifest's names."""
    initial: Mapping[str, Array] = field(default_factory=dict)
    """What states begin with that begin with a stored row. [...] each"""

    @property
    def model(self) -> str:
        """The model's name: the parent directory's."""
        return self.path.parent.name

    @property
    def version(self) -> int:
        """The version: the directory's name."""
        return int(self.path.name)

    @property
    def states(self) -> tuple[TensorSpec, ...]:
        """The recurrent states before a step, in the manifest's order."""
        return tuple(_input(self.step, state.before) for state in self.manifest.step.states)

    @property
    def context(self) -> tuple[TensorSpec, ...]:
        """What a step reads and does not rewrite."""
        return tuple(_input(self.step, name) for name in self.manifest.step.context)

    @property
    def output_size(self) -> int:
        """How many numbers a row of the output has that the head samples from, searches or reads."""
        spec = self.step.output(self.manifest.head.outputs[0])
        return 1 if spec is None or len(spec.shape) < 2 else spec.shape[-1] or 1

    def codec(self, kind: type[Kind]) -> Kind:
        """The codec of that class.

        Raises:
            BundleError: there is none.
        """
        for codec in self.codecs.values():
            if isinstance(codec, kind):
                return codec
        raise BundleError(f"{MANIFEST}: has no {kind.__name__}, which a {self.manifest.task} model has")

    def weights(self, graph: GraphSpec) -> Weights:
        """Those of a graph's weights that lie in the weights file, as they lie there: nothing is copied."""
        if self.manifest.weights is None:
            return {}
        content = memoryview(self.files[self.manifest.weights])
        return {
            spec.name: np.frombuffer(content[spec.offset : spec.offset + spec.bytes], spec.dtype).reshape(spec.shape)
            for spec in graph.weights
        }


def _input(graph: GraphSpec, name: str) -> TensorSpec:
    spec = graph.input(name)
    assert spec is not None  # open_bundle has seen to it
    return spec


def open_bundle(path: Path) -> Bundle:
    """Read and verify the bundle at `<repository>/<model>/<version>`.

    Raises:
        BundleNotFound: there is no manifest.json.
        DigestMismatch: a file is missing, truncated or changed.
        GraphRejected: an ONNX graph breaks the contract.
        BundleError: anything else that is wrong with the manifest.
    """
    path = path.absolute()  # not resolved: a version that is a link is served under the link's number
    if not re.fullmatch(r"[1-9][0-9]{0,8}", path.name):
        raise BundleError(f"{path.name!r} is not a version; a bundle's directory is called by a positive integer")
    content = _read(path / MANIFEST, MAX_MANIFEST_BYTES, missing=BundleNotFound)
    said = _json(content)
    entries = _entries(said)
    files = {name: _read_verified(path, name, entry) for name, entry in entries.items()}
    weights = said.get("weights")
    shared = WeightsFile(weights, len(files[weights])) if isinstance(weights, str) and weights in files else None

    @cache
    def graph(name: str) -> GraphSpec:
        return read_graph(files[name], name, shared)

    manifest = _manifest(said, graph)
    for required in manifest.needed_files:
        if required not in files:
            raise BundleError(f"{MANIFEST}: files lists no {required}, which it names")
    codecs = {}
    for name, spec in manifest.codecs.items():
        try:
            codecs[name] = spec.open(files)
        except ValueError as error:  # UnicodeDecodeError is one
            raise BundleError(f"{spec.files[0] if spec.files else name}: {error}") from None
    step = GraphSpec((), ())
    if manifest.step.graph:
        step = graph(manifest.step.graph)
        check_step(step, manifest.step)
    encoder = None
    if manifest.encoder is not None:
        encoder = graph(manifest.encoder.graph)
        check_encoder(encoder, manifest.encoder, manifest, step)
    elif begins := [state.before for state in manifest.step.states if state.initial == "encoder"]:
        raise BundleError(f"{MANIFEST}: state {begins[0]} begins with what an encoder gives, and there is none")
    prefill = [graph(name) for name in manifest.prefill]
    if prefill:
        check_prefill(prefill, manifest, step)
    check_ports(step, encoder, manifest, codecs)
    digest = hashlib.sha256(content).hexdigest()
    initial = stored_rows(manifest.step, step, files)
    return Bundle(path, manifest, digest, files, step, encoder, prefill, codecs, initial)


def _json(content: bytes) -> dict[str, Any]:
    try:
        said = json.loads(content.removeprefix(encodings.BOM_UTF8))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST}: content: Invalid JSON: {error}") from None
    if not isinstance(said, dict):
        raise BundleError(f"{MANIFEST}: content: a JSON object is required")
    return said


def _entries(said: Mapping[str, Any]) -> dict[str, FileEntry]:
    files = said.get("files")
    if not isinstance(files, dict):
        raise BundleError(f"{MANIFEST}: files: an object of files is required")
    entries = {}
    for name, entry in files.items():
        if not re.fullmatch(NAME_PATTERN, name):
            raise BundleError(f"{MANIFEST}: files.{name}: String should match pattern '{NAME_PATTERN}'")
        try:
            entries[name] = FileEntry.model_validate(entry)
        except ValidationError as error:
            raise BundleError(f"{MANIFEST}: {_first(error, f'files.{name}')}") from None
    return entries


def _manifest(said: Mapping[str, Any], graph: Callable[[str], GraphSpec]) -> Manifest:
    number = said.get("format", 1)
    if number not in (1, 2) or isinstance(number, bool):
        raise BundleError(f"{MANIFEST}: format: is {number!r}; allowed are 1 and 2")
    try:
        return Manifest.model_validate(in_format_2(said, graph) if number == 1 else dict(said))
    except ValidationError as error:
        raise BundleError(f"{MANIFEST}: {_first(error)}") from None
    except ValueError as error:
        raise BundleError(f"{MANIFEST}: {error}") from None


def _first(error: ValidationError, within: str = "") -> str:
    first = error.errors()[0]
    where = ".".join(filter(None, [within, *map(str, first["loc"])])) or "content"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


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
        absent = None if complete.step.graph else {"step"}
        told = complete.model_dump_json(indent=2, by_alias=True, exclude_none=True, exclude=absent)
        _write(staging / MANIFEST, (told + "\n").encode())
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
