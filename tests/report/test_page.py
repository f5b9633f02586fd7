import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from made import heat, picture, report
from PIL import Image

from lib_dino.report.page import MAP_PX, PICTURE_PX, html_report
from lib_dino.report.records import TileReport, WorstPatch
from lib_dino.settings import Settings, knobs

SIZE = (300, 400)


class Reader(HTMLParser):
    """What a browser would find in a page: tags with their attributes, and the text outside of scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def page(name="photo.png", *, figures=None, heats=None, source=None, result=None):
    figures = figures or report(SIZE, WorstPatch((10, 10, 40, 40), 0.4))
    return html_report(
        name, source or picture(150, 200), result or picture(*SIZE), (heat(),) if heats is None else heats, figures
    )


def image_of(attributes):
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", attributes["src"]).groups()
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_page_is_well_formed_and_nothing_in_it_reaches_for_a_network():
    text = page()
    read = Reader(text)
    assert read.open == []
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link", re.sub(r"base64,[^\"]*", "", text))
    [policy] = read.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:")
    assert all(a["src"].startswith("data:image/") for a in read.all("img"))
    assert "{{" not in text and "}}" not in text


@pytest.mark.parametrize("name", ['<script>alert("x")</script>.png', "{{RESULT}}", "a & b.png", "größe ✓.png"])
def test_a_name_is_text_whatever_it_holds(name):
    text = page(name)
    assert name in Reader(text).text
    assert len(Reader(text).all("script")) == 1
    assert text.count("base64,") == page().count("base64,")


def test_the_pictures_are_the_source_the_result_and_the_map_in_place():
    images = Reader(page()).all("img")
    (_, source), (_, result), (kind, layer) = (image_of(a) for a in images[:3])
    assert source.size == (200, 150) and result.size == layer.size == (400, 300)
    assert kind == "png" and layer.mode == "RGBA"
    assert layer.getpixel((200, 150))[3] > 160 and layer.getpixel((5, 5))[3] == 0


def test_large_pictures_are_carried_smaller():
    large = picture(8, 2 * PICTURE_PX)
    figures = dataclasses.replace(report((8, 2 * PICTURE_PX)), tiles=())
    sizes = [image_of(a)[1].size for a in Reader(page(figures=figures, result=large, source=large)).all("img")[:3]]
    assert max(sizes[0]) == max(sizes[1]) == PICTURE_PX and max(sizes[2]) == MAP_PX




def test_every_tile_has_a_row_with_its_figures_and_a_box():
    tiles = (
        TileReport((0, 0, 300, 220), 1.5, drift=0.01, score=0.25, over_bound=0.5, alarm=True, tries=2, seed=9),
        TileReport((0, 180, 300, 400), 0.5),
    )
    read = Reader(page(figures=dataclasses.replace(report(SIZE), tiles=tiles)))
    assert [a["data-tile"] for a in read.all("tr") if "data-tile" in a] == ["1", "2"]
    boxes = [(a["x"], a["y"], a["width"], a["height"]) for a in read.all("rect")]
    assert boxes == [("0", "0", "220", "300"), ("180", "0", "220", "300")]
    heads, cells = len(read.all("th", scope="col")), len([a for a in read.all("td") if "data-v" in a])
    assert cells == 2 * heads
    assert [a["data-v"] for a in read.all("td", **{"class": "over"})] == ["0.25"]
    assert "0.250" in read.text and "50.0%" in read.text


def test_every_setting_is_named_in_the_words_of_the_panel():
    text = Reader(page()).text
    for field in dataclasses.fields(Settings):
        assert knobs()[field.name].label in text


def test_with_two_maps_there_is_a_choice_and_with_one_none():
    two = (dataclasses.replace(heat(), kind="edits", limit=0.7, top=1.0), heat())
    read = Reader(page(heats=two))
    assert [a["value"] for a in read.all("option")] == ["edits", "drift"]
    assert [a["data-kind"] for a in read.all("img", **{"class": "map"})] == ["edits", "drift"]
    assert not Reader(page()).all("select")


def test_what_was_not_measured_is_said():
    bare = dataclasses.replace(report(SIZE), tiles=(TileReport((0, 0, *SIZE), 1.0),), bound=None)
    read = Reader(page(figures=bare, heats=()))
    assert read.text.count("not measured") == 2
    assert not read.all("img", **{"class": "map"})


def test_a_clean_picture_says_that_nothing_drifts():
    assert "Nothing drifts" in Reader(page(figures=report(SIZE))).text


def test_notes_are_shown_as_text():
    noted = dataclasses.replace(report(SIZE), notes=("Stopped <early>.",))
    assert "Stopped <early>." in Reader(page(figures=noted)).text


@pytest.mark.parametrize("size", [(1, 1), (3, 500)])
def test_tiny_grey_and_transparent_pictures_have_a_page_too(size):
    result = dataclasses.replace(picture(*size), grey=True, alpha=torch.zeros(1, 1, *size))
    assert Reader(page(figures=report(size), result=result, source=picture(1, 1))).open == []
