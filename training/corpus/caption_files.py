"""Files of captions: Flickr8k's two layouts, COCO's JSON, and a CSV of file and caption."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from carousel.training.corpus.captions import CaptionedImage, group_captions
from carousel.training.corpus.files import lines_of, read_text
from carousel.training.corpus.tables import table
from carousel.training.errors import CorpusError

CaptionKind = Literal["tsv", "flickr8k", "coco", "csv"]

_NUMBERED_NAME = re.compile(r"(.+)#\d+")


def read_captions(
    path: Path,
    kind: CaptionKind,
    key: str,
    *,
    listed_in: Path | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
) -> tuple[list[CaptionedImage], str]:
    """The captioned pictures of a file, and the sha256 of the file's unpacked bytes.

    Args:
        path: plain or .gz.
        kind: `tsv`: name, number and caption, apart by tabs. `flickr8k`: as published, `name.jpg#0`, tab, caption.
            `coco`: JSON with `images` and `annotations`. `csv`: with a header.
        key: of the recipe, for the errors' sentences.
        listed_in: a file with a picture's name on each line; only those are kept, in its order.
        image_column: csv: the header of the picture's name.
        caption_column: csv: the header of the caption.

    Raises:
        CorpusError: naming file and line.
    """
    text, digest = read_text(path, key)
    file = str(path)
    match kind:
        case "tsv":
            images = read_tsv(text, file)
        case "flickr8k":
            images = read_flickr8k(text, file)
        case "coco":
            images = read_coco(text, file)
        case "csv":
            images = read_csv(text, file, image_column, caption_column)
    if listed_in is not None:
        images = _listed(images, file, listed_in, key)
    return images, digest


def read_tsv(text: str, file: str) -> list[CaptionedImage]:
    """Lines of a picture's name, the caption's number and the caption, apart by tabs."""

    def lines() -> Iterator[tuple[str, str]]:
        for where, line in _lines(text, file):
            cells = line.split("\t")
            if len(cells) != 3 or not cells[0] or not cells[1].isdecimal():
                raise CorpusError(
                    f"{where}: is {_shown(line)}; allowed are a name, a number and a caption with a tab between"
                )
            yield cells[0], cells[2]

    return group_captions(lines(), file)


def read_flickr8k(text: str, file: str) -> list[CaptionedImage]:
    """Flickr8k.token.txt (Hodosh et al. 2013): lines of `name.jpg#0`, a tab and the caption; Flickr30k's alike."""

    def lines() -> Iterator[tuple[str, str]]:
        for where, line in _lines(text, file):
            name, tab, caption = line.partition("\t")
            numbered = _NUMBERED_NAME.fullmatch(name)
            if not tab or not numbered:
                raise CorpusError(
                    f"{where}: is {_shown(line)}; allowed is a name, # and a number, a tab, and a caption"
                )
            yield numbered[1], caption

    return group_captions(lines(), file)


def read_csv(text: str, file: str, image_column: str, caption_column: str) -> list[CaptionedImage]:
    """Rows with a picture's name and a caption among their columns; a picture may have several rows."""

    def lines() -> Iterator[tuple[str, str]]:
        for where, row in table(file, text, [image_column, caption_column]):
            name = row[image_column].strip()
            if not name:
                raise CorpusError(f"{where}: {image_column} is empty; allowed is a picture's name")
            yield name, row[caption_column]

    return group_captions(lines(), file)


def read_coco(text: str, file: str) -> list[CaptionedImage]:
    """COCO's captions (Chen et al. 2015): `images`, `id` and `file_name` each, `annotations`, `image_id` and `caption`.

    Pictures are in the order of their first annotation; one without any is left out.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{file}, line {error.lineno}: is not JSON ({error.msg})") from None
    names: dict[int, str] = {}
    for where, image in _entries(content, "images", file):
        id_, name = _number(image, "id", where), _text(image, "file_name", where)
        if names.setdefault(id_, name) != name:
            raise CorpusError(f"{where}: id {id_} is of {name!r} and of {names[id_]!r}; allowed is one picture an id")

    def lines() -> Iterator[tuple[str, str]]:
        for where, annotation in _entries(content, "annotations", file):
            id_ = _number(annotation, "image_id", where)
            if id_ not in names:
                raise CorpusError(f"{where}: image_id is {id_}; no entry of images has that id")
            yield names[id_], _text(annotation, "caption", where)

    return group_captions(lines(), file)


def _entries(content: Any, key: str, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise CorpusError(f"{file}: has no list {key!r}; allowed is COCO's object with images and annotations")
    for index, entry in enumerate(entries):
        where = f"{file}: {key}[{index}]"
        if not isinstance(entry, dict):
            raise CorpusError(f"{where} is {_shown(entry)}; allowed is an object")
        yield where, entry


def _number(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int):
        raise CorpusError(f"{where}: {key} is {_shown(value)}; allowed is a whole number")
    return value


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise CorpusError(f"{where}: {key} is {_shown(value)}; allowed is a text")
    return value


def _listed(images: Sequence[CaptionedImage], file: str, path: Path, key: str) -> list[CaptionedImage]:
    by_name = {image.name: image for image in images}
    listed: dict[str, CaptionedImage] = {}
    text, _ = read_text(path, key)
    for where, line in _lines(text, str(path)):
        name = line.strip()
        if name in listed:
            raise CorpusError(f"{where}: names {name!r} a second time; a picture is listed once")
        if name not in by_name:
            raise CorpusError(f"{where}: names {name!r}, of which {file} has no caption")
        listed[name] = by_name[name]
    return list(listed.values())


def _lines(text: str, file: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with where it stands."""
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            yield f"{file}, line {number}", line


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
