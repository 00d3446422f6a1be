"""A picture of what a learner knew and when: skills down, attempts across, colour for P(correct).

Pure: arrays in, SVG text out. Nothing here knows of a server, so it draws a notebook's arrays as well.

Axes: T attempts, S skills, R rows of the picture.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

MAX_ROWS = 40
"""Skills shown; of more, those with the most attempts."""

LEVELS = 41
"""Colours told apart, odd so that 0.5 has one of its own."""

LOW, MIDDLE, HIGH = (200, 80, 20), (247, 246, 242), (24, 96, 160)
"""Orange, paper, blue: told apart by eyes that confuse red and green."""

ROW_HEIGHT = 24
PLOT_WIDTH = 880
LABEL_WIDTH = 250
LABEL_CHARACTERS = 36
TITLE_CHARACTER_WIDTH = 10.5
"""Pixels, on average and generously."""

MARGIN = 20
HEADER = 92
FOOTER = 48
VALUE_WIDTH = 56


def mastery_svg(
    skills: Sequence[str],
    ids: npt.NDArray[np.int64],
    after: npt.NDArray[np.float32],
    *,
    title: str,
    first_attempt: int = 1,
) -> str:
    """Draw the skills that were attempted, in the order of their first attempt.

    Args:
        skills: names, by id.
        ids: the attempts, `2 * skill + correct` each. <int64>[T]. T may be 0: a store may have lost them
        after: P(correct) at every skill after each attempt. <float32>[T, S]
        title: what the picture says it shows.
        first_attempt: the number of the first attempt shown.

    Returns:
        An SVG document: no scripts, no links, any text in it escaped.
    """
    count = len(ids)
    rows, left_out = _choose(ids >> 1)
    cell = min(28.0, PLOT_WIDTH / max(1, count))
    left, top = MARGIN + LABEL_WIDTH, MARGIN + HEADER
    plot_width, plot_height = cell * count, ROW_HEIGHT * len(rows)
    width = left + max(plot_width, 380) + VALUE_WIDTH + MARGIN
    height = top + plot_height + FOOTER + MARGIN
    short = _cut(title, int((width - 2 * MARGIN) / TITLE_CHARACTER_WIDTH))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="13" fill="#222">',
        f"<title>{_text(title)}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 16}" font-size="18" font-weight="600">{_text(short)}</text>',
        *_legend(left, MARGIN + 34),
        *_labels(skills, rows, after[-1:], left, top, plot_width),
        *_cells(after[:, rows], left, top, cell),
        f'<rect x="{left}" y="{top}" width="{plot_width:.1f}" height="{plot_height}" fill="none" stroke="#888"/>',
        *_marks(ids, rows, left, top, cell),
        *_ticks(count, first_attempt, left, top + plot_height, cell),
    ]
    if left_out:
        parts.append(
            f'<text x="{MARGIN}" y="{height - MARGIN:.0f}" fill="#666">and {left_out:,} more skills, '
            "attempted less often</text>"
        )
    return "\n".join([*parts, "</svg>\n"])


def _choose(attempted: npt.NDArray[np.int64]) -> tuple[list[int], int]:
    """The skills to show, and how many are left out."""
    found, first, counts = np.unique(attempted, return_index=True, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MAX_ROWS]
    shown = most[np.argsort(first[most])]
    return found[shown].tolist(), len(found) - len(shown)


def _labels(
    skills: Sequence[str], rows: list[int], last: npt.NDArray[np.float32], left: float, top: float, plot_width: float
) -> list[str]:
    parts = [
        f'<text x="{left + plot_width + 8:.1f}" y="{top - 8}" fill="#666">now</text>',
    ]
    for row, skill in enumerate(rows):
        y = top + row * ROW_HEIGHT + ROW_HEIGHT / 2 + 4.5
        name = skills[skill]
        short = _cut(name, LABEL_CHARACTERS)
        parts += [
            f'<text x="{left - 10}" y="{y:.1f}" text-anchor="end"><title>{_text(name)}</title>{_text(short)}</text>',
            f'<text x="{left + plot_width + 8:.1f}" y="{y:.1f}" font-weight="600">{last[0, skill]:.2f}</text>',
        ]
    return parts


def _cells(values: npt.NDArray[np.float32], left: float, top: float, cell: float) -> list[str]:
    """The colours, [T, R] values: one path per colour, neighbours of one colour drawn in one go."""
    levels = np.rint(np.clip(values, 0, 1) * (LEVELS - 1)).astype(int)
    paths: dict[int, list[str]] = {}
    for row, along in enumerate(levels.T):
        starts = np.flatnonzero(np.diff(along, prepend=-1))
        ends = np.append(starts[1:], len(along))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            paths.setdefault(int(along[start]), []).append(
                f"M{left + start * cell:.2f} {top + row * ROW_HEIGHT}h{(end - start) * cell:.2f}v{ROW_HEIGHT}"
                f"h-{(end - start) * cell:.2f}z"
            )
    return [
        f'<path shape-rendering="crispEdges" fill="{_colour(level / (LEVELS - 1))}" d="{"".join(steps)}"/>'
        for level, steps in sorted(paths.items())
    ]


def _marks(ids: npt.NDArray[np.int64], rows: list[int], left: float, top: float, cell: float) -> list[str]:
    place = {skill: row for row, skill in enumerate(rows)}
    size = max(1.4, min(cell, ROW_HEIGHT) * 0.24)
    parts = []
    for column, attempt in enumerate(ids.tolist()):
        row = place.get(attempt >> 1)
        if row is not None:
            x, y = left + (column + 0.5) * cell, top + (row + 0.5) * ROW_HEIGHT
            parts.append(_right(x, y, size) if attempt & 1 else _wrong(x, y, size))
    return parts


def _right(x: float, y: float, size: float) -> str:
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{size:.2f}" fill="#111" stroke="#fff" stroke-width="{size / 3:.2f}"/>'


def _wrong(x: float, y: float, size: float) -> str:
    cross = (
        f"M{x - size:.2f} {y - size:.2f}l{2 * size:.2f} {2 * size:.2f}m0 -{2 * size:.2f}l-{2 * size:.2f} {2 * size:.2f}"
    )
    return (
        f'<path d="{cross}" fill="none" stroke="#fff" stroke-width="{size * 1.1:.2f}" stroke-linecap="round"/>'
        f'<path d="{cross}" fill="none" stroke="#111" stroke-width="{size * 0.55:.2f}" stroke-linecap="round"/>'
    )


def _ticks(count: int, first_attempt: int, left: float, bottom: float, cell: float) -> list[str]:
    """Attempt numbers, far enough apart to be read."""
    widest = max(36, 8 * len(f"{first_attempt + count:,}"))
    apart = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, 10**9) if step * cell >= widest)
    numbers = [number for number in range(first_attempt, first_attempt + count) if number % apart == 0]
    if count and first_attempt not in numbers and (not numbers or (numbers[0] - first_attempt) * cell >= widest - 6):
        numbers.insert(0, first_attempt)
    parts = []
    for number in numbers:
        x = left + (number - first_attempt + 0.5) * cell
        parts.append(
            f'<path d="M{x:.2f} {bottom}v5" stroke="#888"/>'
            f'<text x="{x:.2f}" y="{bottom + 19}" text-anchor="middle" font-size="12" fill="#444">{number:,}</text>'
        )
    parts.append(f'<text x="{left}" y="{bottom + 40}" fill="#666">attempt</text>')
    return parts


def _legend(left: float, y: float) -> list[str]:
    stops = "".join(
        f'<stop offset="{offset:.0%}" stop-color="{_colour(offset)}"/>' for offset in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    return [
        f'<defs><linearGradient id="p">{stops}</linearGradient></defs>',
        f'<text x="{left}" y="{y + 11}" fill="#666">P(correct) of the next attempt</text>',
        f'<rect x="{left}" y="{y + 18}" width="160" height="10" fill="url(#p)" stroke="#888" stroke-width="0.5"/>',
        *(
            f'<text x="{left + 160 * value}" y="{y + 42}" font-size="12" text-anchor="{anchor}" fill="#444">'
            f"{value:g}</text>"
            for value, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
        ),
        _right(left + 230, y + 23, 5),
        f'<text x="{left + 242}" y="{y + 27.5}">right</text>',
        _wrong(left + 300, y + 23, 5),
        f'<text x="{left + 312}" y="{y + 27.5}">wrong</text>',
    ]


def _colour(value: float) -> str:
    """Of a probability."""
    start, end, along = (LOW, MIDDLE, value * 2) if value < 0.5 else (MIDDLE, HIGH, value * 2 - 1)
    return "#" + "".join(f"{round(a + (b - a) * along):02x}" for a, b in zip(start, end, strict=True))


def _cut(content: str, most: int) -> str:
    """As much of a text as has room in so many letters, of which Chinese, Japanese and Korean ones take two each."""
    room = most
    for place, char in enumerate(content):
        room -= 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if room < 0 or (room == 0 and place < len(content) - 1):
            return content[:place] + "\u2026"
    return content


def _text(content: str) -> str:
    """Escaped, and without characters that XML cannot hold."""
    return escape("".join(char if char.isprintable() else "\ufffd" for char in content))
