"""The map of the system: for each chapter a picture, a text and words that all say where the reader is."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import pytest

from dtq import lab
from dtq.lab import system_map
from dtq.lab.system_map import NUMBERS, PARTS

SVG = "{http://www.w3.org/2000/svg}"


def picture(chapter):
    (source,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', system_map.draw(chapter).html)
    return ElementTree.fromstring(base64.b64decode(source))


def lit(chapter):
    """The names that are lit in the picture."""
    boxes = [box for box in picture(chapter).iter(f"{SVG}g") if "lit" in box.get("class")]
    return {box.find(f"{SVG}text").text for box in boxes}


def test_every_chapter_has_a_place():
    assert sorted(PARTS) == [*range(13)]
    assert {name for names in system_map.ROWS for name in names} == {*NUMBERS, "you"} - {"tasks", "all of it"}


@pytest.mark.parametrize("chapter", range(1, 13))
def test_picture_text_and_words_light_the_part_of_the_chapter_and_no_other(chapter):
    name, told = PARTS[chapter]
    assert lit(chapter) == {"task" if name == "tasks" else name}
    page = system_map.draw(chapter)
    assert set(re.findall(r"\[(.+?)\]", repr(page))) == {name.upper()}
    assert repr(page).endswith(f"You are here: {told}.")
    assert f"You are here: {told} (chapter {chapter:02})." in re.search('alt="([^"]+)"', page.html)[1]


def test_the_tour_lights_all_of_it():
    assert lit(0) == {*(name for names in system_map.ROWS for name in names), "task"}


def test_what_is_lit_is_told_by_more_than_its_colour():
    style = picture(3).find(f"{SVG}style").text
    assert "stroke-width:4" in style
    assert "font-weight:bold" in style
    assert [text.text for text in picture(3).iter(f"{SVG}text")].count("you are here") == 1


def test_no_text_is_wider_than_its_box():
    """At 16 pixels a bold letter of these fonts is 11 wide at most, on average."""
    assert all(len(name) * 11 <= system_map.WIDE + 4 for names in system_map.ROWS for name in names)


def test_a_chapter_that_is_not_there_is_refused_before_anything_begins():
    with pytest.raises(ValueError, match="chapter is 13; allowed: a whole number from 0 to 12"):
        lab.start(13)
    with pytest.raises(RuntimeError, match="nothing is watched"):
        lab.assert_clean()


def test_a_chapter_begins_with_its_map_and_the_same_each_time(capsys):
    shown = []
    for _ in range(2):
        lab.start(4)
        shown.append(capsys.readouterr().out)
        lab.assert_clean()
        capsys.readouterr()
    assert shown[0] == shown[1]
    assert "[LOOP]" in shown[0]
    assert re.match(r"dtq [\d.]+, Python [\d.]+, SQLite [\d.]+, \d+ cores", shown[0])
