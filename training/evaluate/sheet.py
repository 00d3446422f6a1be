"""A page of pictures with what was said of them, to be looked at by a person. One file, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from carousel.training.corpus.album import Album

LARGEST_SIDE = 320
"""Pixels of a picture on the page; larger ones are brought down to it."""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ margin: 2rem; font: 15px/1.4 system-ui, sans-serif; color: #1c1c1c; background: #f4f4f2 }}
  h1 {{ margin: 0; font-size: 1.3rem }}
  header p {{ margin: .3rem 0 0; color: #555 }}
  main {{ margin-top: 1.5rem; display: grid; gap: 1.2rem;
    grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)) }}
  figure {{ margin: 0; background: #fff; border-radius: 8px; overflow: hidden; box-shadow: 0 1px 4px #0003 }}
  img {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #e2e2de }}
  img.small {{ image-rendering: pixelated }}
  figcaption {{ padding: .7rem .9rem .9rem }}
  .said {{ margin: 0; font-weight: 600 }}
  .said.false {{ color: #b3261e }}
  .said.false::after {{ content: " not true"; font-size: 12px; font-weight: 400 }}
  ul {{ margin: .5rem 0 0; padding: 0; list-style: none; font-size: 13px; color: #666 }}
  li {{ padding: .1rem 0 }}
</style>
<header>
<h1>{title}</h1>
<p>{remark}</p>
<p>In bold what was generated, below it the references.</p>
</header>
<main>
{figures}
</main>
</html>
"""


def picture_sheet(title: str, remark: str, album: Album, captions: Sequence[str], count: int) -> str:
    """The page as HTML.

    Args:
        title: what was captioned, by whom.
        remark: the figures, in a line.
        album: the pictures.
        captions: what was generated, for each of its pictures.
        count: how many pictures are shown; taken at even distances from the whole album, so none is picked.

    Raises:
        CorpusError: a picture cannot be read.
    """
    assert album.open_picture is not None, "the caller has looked"
    shown = min(count, len(album.pictures))
    figures = []
    for position in range(shown):
        index = position * len(album.pictures) // shown
        picture, caption = album.pictures[index], captions[index]
        false = album.is_true is not None and not album.is_true(picture.name, caption)
        references = "".join(f"<li>{escape(reference)}</li>" for reference in picture.captions)
        figures.append(
            f"<figure>{_image(album.open_picture(picture.name), picture.name)}<figcaption>"
            f'<p class="said{" false" if false else ""}">{escape(caption)}</p><ul>{references}</ul>'
            "</figcaption></figure>"
        )
    return _PAGE.format(title=escape(title), remark=escape(remark), figures="\n".join(figures))


def _image(image: Image.Image, name: str) -> str:
    small = max(image.size) <= LARGEST_SIDE // 3
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    content = io.BytesIO()
    image.save(content, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    data = base64.b64encode(content.getvalue()).decode()
    style = ' class="small"' if small else ""
    return f'<img{style} src="data:image/{kind};base64,{data}" alt="{escape(name)}">'
