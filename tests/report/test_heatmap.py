import dataclasses
import itertools

import numpy as np
import pytest
import torch
from made import heat, picture, report
from PIL import Image, ImageFont

from lib_dino.report.crops import CROP_PX, worst_crops, worst_sheet
from lib_dino.report.heatmap import MOST_PX, PLASMA, colour_of, figures_line, heatmap, overlay
from lib_dino.report.labels import text_mask
from lib_dino.report.records import WorstPatch


def lightness(colour):
    """CIE L* of an sRGB colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.asarray(colour) / 255]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_the_scale_grows_lighter_all_the_way_so_that_colours_are_not_needed_to_read_it():
    steps = [lightness(colour) for colour in colour_of(np.linspace(0, 1, 65))]
    assert all(b > a for a, b in itertools.pairwise(steps))
    assert steps[0] < 20 and steps[-1] > 90


def test_the_scale_has_its_ends_and_stays_there():
    assert tuple(colour_of(np.array(-1.0))) == PLASMA[0]
    assert tuple(colour_of(np.array(2.0))) == PLASMA[-1]


def test_what_is_faithful_shows_as_it_is_and_what_is_over_the_bound_is_outlined():
    layer = np.asarray(overlay(heat(), (300, 400)))
    assert layer.shape == (300, 400, 4)
    assert layer[20, 20, 3] == 0
    inside = layer[150, 200]
    assert inside[3] > 160 and tuple(inside[:3]) == tuple(colour_of(np.array(0.8)).astype(np.uint8))
    row = layer[150, 140:164]
    assert (row[:, :3] == 255).all(1).any()  # a white line, between black ones
    assert ((row[:, :3] == 0).all(1) & (row[:, 3] == 255)).sum() >= 2


def test_below_the_bound_there_is_no_outline_and_little_ink():
    layer = np.asarray(overlay(heat(value=0.03), (300, 400)))
    assert layer[..., 3].max() < 80
    assert not ((layer[..., :3] == 255).all(-1) & (layer[..., 3] == 255)).any()


def test_the_figures_stand_in_the_corner_of_a_large_picture_and_below_a_small_one():
    shown = heatmap(picture(600, 1000), heat(), report((600, 1000)))
    assert shown.size == (1000, 600)
    corner = np.asarray(shown)[-60:, :300]
    assert (corner > 240).all(-1).any() and (corner < 30).all(-1).mean() > 0.3
    assert heatmap(picture(40, 60), heat(), report((40, 60))).height > 40


def test_the_line_of_figures():
    assert figures_line(report((40, 60))) == "drift: mean 0.020   worst 0.40   over the bound 10.0 %"


def test_a_picture_that_was_not_measured_says_so_and_shows_no_colours():
    plain = picture(200, 600)
    shown = np.asarray(heatmap(plain, None, dataclasses.replace(report((200, 600)), tiles=())))
    assert (shown[:100] == np.asarray(plain.to_pil())[:100]).all()
    assert not (shown == np.asarray(plain.to_pil())).all() if shown.shape == (200, 600, 3) else shown.shape[0] > 200


@pytest.mark.parametrize("size", [(1, 1), (7, 333), (333, 7), (101, 97)])
@pytest.mark.parametrize("kind", ["grey", "alpha", "plain"])
def test_any_size_and_kind_of_picture_is_taken(size, kind):
    alpha = torch.full((1, 1, *size), 0.5) if kind == "alpha" else None
    given = picture(*size, alpha=alpha, grey=kind == "grey")
    patch = WorstPatch((0, 0, 1, 1), 0.4)
    shown = heatmap(given, heat(3, 5, spot=(slice(0, 1), slice(0, 2))), report(size, patch))
    assert shown.mode == "RGB" and shown.width >= size[1] and shown.height >= size[0]
    assert worst_sheet(picture(2, 2), given, report(size, patch)).mode == "RGB"


def test_very_large_pictures_are_shown_smaller():
    assert max(heatmap(picture(8, 2 * MOST_PX), heat(), report((8, 2 * MOST_PX))).size) <= MOST_PX


def test_the_worst_places_are_cut_at_100_percent_and_framed():
    result, patch = picture(600, 800), WorstPatch((500, 700, 530, 730), 0.4)
    [(found, before, after)] = worst_crops(picture(300, 400), result, report((600, 800), patch))
    assert found is patch
    assert before.size == after.size == (CROP_PX, CROP_PX)
    top, left = 600 - CROP_PX, 800 - CROP_PX  # moved to lie inside
    pixels, whole = np.asarray(after), np.asarray(result.to_pil())
    assert (pixels[:100, :100] == whole[top : top + 100, left : left + 100]).all()
    assert (pixels[500 - top - 1, 700 - left + 5] == 255).all() and (pixels[500 - top - 2, 700 - left + 5] == 0).all()
    assert (pixels[500 - top, 700 - left] == whole[500, 700]).all()  # the patch itself is not painted over


def test_the_sheet_has_a_row_for_each_and_words_where_there_is_none():
    places = [WorstPatch((200 * n, 200 * n, 200 * n + 30, 200 * n + 30), 0.4 / (n + 1)) for n in range(3)]
    three = worst_sheet(picture(300, 400), picture(600, 800), report((600, 800), *places))
    one = worst_sheet(picture(300, 400), picture(600, 800), report((600, 800), places[0]))
    assert three.width == one.width >= 2 * CROP_PX
    assert three.height > 2.5 * one.height
    none = worst_sheet(picture(300, 400), picture(600, 800), report((600, 800)))
    assert none.height < 60


@pytest.mark.parametrize("old", [False, True])
def test_words_are_legible_with_old_and_new_pillow(old, monkeypatch):
    bitmap = ImageFont.load_default_imagefont() if hasattr(ImageFont, "load_default_imagefont") else None
    if old and bitmap is None:
        pytest.skip("this Pillow has no bitmap font to go back to")

    def load_default(*args, **kwargs):
        if kwargs or args:
            raise TypeError("load_default() got an unexpected keyword argument 'size'")
        return bitmap

    if old:
        monkeypatch.setattr(ImageFont, "load_default", load_default)
    mask = text_mask("bound 0.1 → ü", 24)
    assert mask.mode == "L" and 15 <= mask.height <= 48
    ink = np.asarray(mask)
    assert 0.03 < (ink > 127).mean() < 0.6
    assert Image.fromarray(ink).getbbox() is not None
