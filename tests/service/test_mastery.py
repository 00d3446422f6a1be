"""The picture of a history."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from carousel.service.pictures.mastery import LEVELS, MAX_ROWS, mastery_svg

SVG = "{http://www.w3.org/2000/svg}"
SKILLS = ["counting", "addition", '<script>alert("1")</script> & more', "nul \0 and \ud800 half", "x" * 300]


def draw(ids, skills=SKILLS, **fields):
    after = np.random.default_rng(len(ids)).random((len(ids), len(skills))).astype(np.float32)
    svg = mastery_svg(skills, np.array(ids), after, **({"title": "ada <1>"} | fields))
    return ElementTree.fromstring(svg.encode()), after


def texts(root):
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def cells(root):
    """Colour by (row, column) of the picture, for cells of 24 by 28."""
    found = {}
    for path in root.iter(f"{SVG}path"):
        if path.get("shape-rendering") is None:
            continue
        for x, y, width in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v24", path.get("d")):
            for column in range(round(float(width) / 28)):
                place = (round((float(y) - 112) / 24), round((float(x) - 270) / 28) + column)
                assert place not in found
                found[place] = path.get("fill")
    return found


def test_picture_has_a_row_per_attempted_skill_in_order_and_a_mark_per_attempt():
    root, after = draw([3, 0, 3, 2, 9, 1])
    labels = [text for text in texts(root) if text.startswith(("counting", "addition", "x"))]
    assert [label[:8] for label in labels] == ["addition", "counting", "xxxxxxxx"]
    rights = root.findall(f"{SVG}circle")
    wrongs = [path for path in root.iter(f"{SVG}path") if path.get("stroke") == "#111"]
    assert (len(rights), len(wrongs)) == (4 + 1, 2 + 1)  # and one of each in the legend
    x, y = (float(rights[1].get(name)) for name in ("cx", "cy"))
    assert ((x - 270) / 28, (y - 112) / 24) == pytest.approx((0.5, 0.5))  # the first attempt, right, in the first row
    assert {"0.00", f"{after[-1, 1]:.2f}"} & set(texts(root))


def test_picture_colours_every_cell_by_its_probability():
    ids = [1, 3, 5, 7, 9]
    after = np.linspace(0, 1, 25).reshape(5, 5).astype(np.float32)
    root = ElementTree.fromstring(mastery_svg(SKILLS, np.array(ids), after, title="t"))
    found = cells(root)
    assert set(found) == {(row, column) for row in range(5) for column in range(5)}
    assert found[0, 0] == "#c85014"
    assert found[4, 4] == "#1860a0"
    assert found[2, 2] == "#f7f6f2"
    assert len(set(found.values())) == 25 < LEVELS


def test_picture_escapes_what_skills_and_titles_hold():
    root, _ = draw([4, 6, 8], title='"><svg onload="alert(1)"> & \x07')
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "rect", "text", "path", "circle", "defs", "linearGradient", "stop",
    }  # fmt: skip
    assert any(text.endswith("…") for text in texts(root))


def test_picture_of_many_skills_shows_those_with_the_most_attempts():
    skills = [f"skill {number}" for number in range(60)]
    ids = [2 * skill for skill in range(60)] + [2 * skill for skill in range(20, 60)]
    root, _ = draw(ids, skills)
    shown = [text for text in texts(root) if re.match(r"skill \d+", text)]
    assert len(shown) == MAX_ROWS
    assert shown[0].startswith("skill 20")
    assert any("20 more skills" in text for text in texts(root))


def test_picture_numbers_attempts_from_the_first_shown():
    root, _ = draw([1] * 100, first_attempt=901)
    numbers = [int(text.replace(",", "")) for text in texts(root) if re.fullmatch(r"[\d,]+", text) and len(text) > 2]
    assert numbers[0] == 901
    assert numbers[-1] == 1000


def test_picture_without_attempts_is_drawn():
    root = ElementTree.fromstring(
        mastery_svg(SKILLS, np.zeros(0, np.int64), np.zeros((0, 5), np.float32), title="t", first_attempt=8)
    )
    assert not cells(root)
    assert "t" in texts(root)


@pytest.mark.parametrize("first", [1, 999_900, 10**9 + 1, 10**15])
@pytest.mark.parametrize("count", [1, 30, 256])
def test_numbers_of_attempts_do_not_overlap(first, count):
    root, _ = draw([1] * count, first_attempt=first)
    ticks = [element for element in root.iter(f"{SVG}text") if element.get("font-size") == "12"]
    placed = [(float(tick.get("x")), tick.text) for tick in ticks if re.fullmatch(r"[\d,]+", tick.text)][2:]
    for (x, text), (after, _) in itertools.pairwise(placed):
        assert after - x >= 6.5 * len(text)


def test_long_titles_and_wide_names_are_cut_and_whole_on_hover():
    title, wide = "session " + "a" * 128 + " model " + "b" * 100, "\u6f22" * 40
    root, _ = draw([1, 3], [wide, "x" * 36], title=title)
    heading = next(text for text in texts(root) if text.startswith("session"))
    assert len(heading) * 9 < float(root.get("width"))
    assert heading.endswith("\u2026")
    assert next(root.iter(f"{SVG}title")).text == title
    labels = [element for element in root.iter(f"{SVG}text") if element.get("text-anchor") == "end"]
    shown = {label[0].text: label[0].tail for label in labels if len(label)}
    assert shown == {wide: "\u6f22" * 17 + "\u2026", "x" * 36: "x" * 36}


@pytest.mark.parametrize("count", [1, 2, 255, 256])
def test_picture_is_small_and_whole_at_any_length(count):
    ids = np.random.default_rng(1).integers(0, 2 * 40, count)
    root, _ = draw(ids.tolist(), [f"skill {number}" for number in range(40)])
    width = float(root.get("width"))
    assert width < 1300
    assert len(ElementTree.tostring(root)) < 500_000
