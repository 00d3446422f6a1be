"""A picture of where a captioning model looked: the image once for each word, clear where the model's attention was.

Pure: an image, words and arrays in, SVG text out. Nothing here knows of a server: it draws a notebook's maps as well.

Axes: T tokens, R x C parts of the image.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from textwrap import wrap

import numpy as np
import numpy.typing as npt
from PIL import Image

from carousel.models.codec.image import Preprocessing

PANEL = 216
"""Longest side of the image in the picture; in the file it has twice as many pixels, if it had them."""

PANELS_PER_LINE = 5
GAP = 14
LABEL_HEIGHT = 30
MARGIN = 24
HEADER = 74
DARK_FOG, LIGHT_FOG = 24, 244
"""The grey that lies where nothing was looked at: the light one on images that are rather dark."""

DENSITY = 0.84
"""How much of it lies there."""

SMOOTH = 8
"""Pixels of the fog per part of the image."""

LINE_HEIGHT = 27
MAX_LINES = 4
CHARACTER_WIDTH = 12.5
"""Pixels of the caption's letters, on average and generously."""


def attention_svg(
    image: Image.Image,
    preprocessing: Preprocessing,
    words: Sequence[str],
    maps: npt.NDArray[np.float32],
    *,
    title: str,
) -> str:
    """Draw the image, and for each word the image under its map.

    The fog is relative: none where a word's map has its maximum. So an even map has no fog at all, and says nothing.

    Args:
        image: upright and in RGB, as models.codec.image.read_image gives it.
        preprocessing: what part of the image the model saw.
        words: the caption's tokens.
        maps: shares of attention, not negative. <float32>[T, R, C]
        title: what the picture says of itself under the caption.

    Returns:
        An SVG document that holds all it shows: no scripts, no links, any text in it escaped.
    """
    seen = preprocessing.seen(image)
    scale = PANEL / max(seen.size)
    panel_width, panel_height = (max(1, round(side * scale)) for side in seen.size)
    columns = min(PANELS_PER_LINE, len(words) + 1)
    lines = math.ceil((len(words) + 1) / PANELS_PER_LINE)
    width = max(2 * MARGIN + columns * (panel_width + GAP) - GAP, 620)
    sentence = " ".join(words) or "(an empty caption)"
    caption = wrap(sentence, int((width - 2 * MARGIN) / CHARACTER_WIDTH), max_lines=MAX_LINES, placeholder=" \u2026")
    top = MARGIN + HEADER + (len(caption) - 1) * LINE_HEIGHT
    height = top + lines * (panel_height + LABEL_HEIGHT + GAP) - GAP + MARGIN
    grey = LIGHT_FOG if np.asarray(seen.convert("L")).mean() < 128 else DARK_FOG
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="15" fill="#222">',
        f"<title>{_text(sentence)}</title>",
        f'<defs><image id="p" width="{panel_width}" height="{panel_height}" preserveAspectRatio="none" '
        f'href="{_photograph(seen, panel_width, panel_height)}"/></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(
            f'<text x="{MARGIN}" y="{MARGIN + 18 + place * LINE_HEIGHT}" font-size="20" font-weight="600">'
            f"{_text(line)}</text>"
            for place, line in enumerate(caption)
        ),
        f'<text x="{MARGIN}" y="{top - 30}" fill="#666">{_text(title)} \u00b7 clear is where the model looked '
        "before it said the word</text>",
    ]
    for number in range(len(words) + 1):
        line, column = divmod(number, PANELS_PER_LINE)
        x = MARGIN + column * (panel_width + GAP)
        y = top + line * (panel_height + LABEL_HEIGHT + GAP)
        parts.append(f'<g transform="translate({x} {y})"><use href="#p"/>')
        if number:
            word, fog = words[number - 1], _fog(maps[number - 1], grey)
            parts.append(
                f'<image width="{panel_width}" height="{panel_height}" preserveAspectRatio="none" href="{fog}"/>'
                f'<text x="{panel_width / 2:g}" y="{panel_height + 20}" text-anchor="middle">{_text(word)}</text>'
            )
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _photograph(image: Image.Image, width: int, height: int) -> str:
    # Each side by itself: of a line of 2 x 70,000 pixels a JPEG could not hold the longer one.
    size = min(image.width, 2 * width), min(image.height, 2 * height)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _fog(shares: npt.NDArray[np.float32], grey: int) -> str:
    """Fog, which is clear where attention <float32>[R, C] is at its maximum."""
    rows, columns = shares.shape
    size = (columns * SMOOTH, rows * SMOOTH)
    smooth = np.asarray(Image.fromarray(shares.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    clear = np.clip(smooth / max(float(shares.max()), 1e-30), 0.0, 1.0)
    fog = np.round(255 * DENSITY * (1.0 - clear)).astype(np.uint8)
    layers = np.stack([np.full_like(fog, grey), fog], axis=2)  # [R * SMOOTH, C * SMOOTH, 2]: grey and alpha
    buffer = io.BytesIO()
    Image.fromarray(layers, "LA").save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(content: str) -> str:
    """Escaped, and without characters that XML cannot hold."""
    return escape("".join(char if char.isprintable() else "\ufffd" for char in content))
