import dataclasses

import pytest
import torch
from PIL import ImageFont
from torch.testing import assert_close

from lib_dino.errors import ImageError
from lib_dino.pictures.picture import Picture
from lib_dino.report.side_by_side import MAX_WIDTH_PX, most_detailed, side_by_side


def flat(size, *levels):
    """Labelled pictures of one red each, which no grey letter can be mistaken for; 1 is white."""
    colours = [(level, level, level) if level == 1 else (level, 0, 0) for level in levels]
    pixels = [torch.tensor(colour).float().view(1, 3, 1, 1).expand(1, 3, *size) for colour in colours]
    return [(f"arm {index}", Picture(each)) for index, each in enumerate(pixels)]


def boxes(sheet, level):
    """(top, left, height, width) of the area of one red."""
    red, green = sheet.pixels[0, :2]
    rows, cols = ((red - level).abs().lt(1 / 255) & green.eq(0)).nonzero(as_tuple=True)
    return int(rows.min()), int(cols.min()), int(rows.max() - rows.min()) + 1, int(cols.max() - cols.min()) + 1


def test_small_pictures_stand_in_one_row_at_full_size():
    levels = [51 / 255, 102 / 255, 153 / 255, 204 / 255]
    found = [boxes(side_by_side(flat((60, 400), *levels)), level) for level in levels]
    assert [box[2:] for box in found] == [(60, 400)] * 4
    assert len({box[0] for box in found}) == 1
    assert [box[1] for box in found] == sorted(box[1] for box in found)


@pytest.mark.parametrize("old", [False, True])
def test_long_labels_are_wrapped_to_their_picture_with_old_and_new_pillow(old, monkeypatch):
    bitmap = getattr(ImageFont, "load_default_imagefont", None)
    if old and bitmap is None:
        pytest.skip("this Pillow has no bitmap font to go back to")
    if old:  # before 10.1 it takes no size
        monkeypatch.setattr(ImageFont, "load_default", lambda *, imagefont=bitmap: imagefont())
    pictures = [picture for _, picture in flat((60, 200), 0.4, 0.8)]
    short, long = (side_by_side([(label, p) for p in pictures]) for label in ("arm", "one arm of several " * 3))
    assert long.size[1] == short.size[1]
    assert long.size[0] > short.size[0] + 10
    ink = long.pixels[0, 1, : long.size[0] - 68, 208:216]  # the gap between the labels
    assert (ink == 1).all()


def test_pictures_too_wide_for_a_row_stand_in_two_columns():
    levels = [51 / 255, 102 / 255, 153 / 255, 204 / 255]
    sheet = side_by_side(flat((300, 1024), *levels))
    found = [boxes(sheet, level) for level in levels]
    assert [box[2:] for box in found] == [(300, 1024)] * 4
    assert found[0][0] == found[1][0] < found[2][0] == found[3][0]
    assert found[0][1] == found[2][1] < found[1][1] == found[3][1]


@pytest.mark.parametrize("size", [(1, 1), (40, 48), (300, 600), (1060, 1100), (1, 5000), (5000, 1)])
def test_the_sheet_is_never_wider_than_its_limit_nor_empty(size):
    sheet = side_by_side(flat(size, 0.2, 0.4, 0.6, 0.8))
    assert sheet.size[1] <= MAX_WIDTH_PX
    assert boxes(sheet, 0.4)[2] >= min(size[0], 1000)


def test_large_pictures_are_cut_at_full_size_where_the_last_has_most_detail(generator):
    busy = torch.full((1, 3, 1200, 2400), 0.5)
    busy[..., 100:1100, 1300:2300] = torch.rand(1, 1, 1000, 1000, generator=generator)
    marked = torch.zeros(1, 3, 1200, 2400)
    marked[:, 0, 100:1100, 1300:2300] = 0.8
    sheet = side_by_side([("marked", Picture(marked)), ("busy", Picture(busy))])
    assert boxes(sheet, 0.8)[2:] == pytest.approx((1000, 1000), abs=8)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (70, 0), (30, 111), (72, 136)])
def test_the_most_detailed_part_is_found_to_within_a_few_pixels(top, left, generator):
    pixels = torch.zeros(1, 3, 100, 200)
    pixels[..., top : top + 28, left : left + 64] = torch.rand(1, 3, 28, 64, generator=generator)
    rows, cols = most_detailed(Picture(pixels), (28, 64))
    assert (rows.stop - rows.start, cols.stop - cols.start) == (28, 64)
    assert abs(rows.start - top) <= 2
    assert abs(cols.start - left) <= 2
    assert rows.stop <= 100
    assert cols.stop <= 200


def test_every_label_is_drawn_above_its_picture():
    sheet = side_by_side(flat((80, 300), 1.0, 1.0))
    with_labels, without = sheet.pixels, side_by_side([("", p) for _, p in flat((80, 300), 1.0, 1.0)]).pixels
    half = with_labels.shape[3] // 2
    ink = with_labels[0, 0] < 0.5
    assert ink[:, :half].any()
    assert ink[:, half:].any()
    assert without.min() > 0.99


def test_a_long_label_is_wrapped_instead_of_running_into_its_neighbour():
    pictures = flat((50, 210), 1.0, 1.0)
    long = [(" ".join(["consistency"] * 12), pictures[0][1]), ("", pictures[1][1])]
    ink = side_by_side(long).pixels[0, 0] < 0.5
    assert ink[:, :218].any()
    assert not ink[:, 222:].any()


def test_transparent_parts_show_checks_and_opaque_ones_their_colour():
    pixels = torch.zeros(1, 3, 64, 300)
    alpha = torch.zeros(1, 1, 64, 300)
    alpha[..., 150:] = 1
    sheet = side_by_side([("", Picture(pixels, alpha))]).pixels[0, 0]
    area = sheet[-72:-8, 8:308]
    assert_close(area[:, 150:], torch.zeros(64, 150))
    assert len(area[:, :150].unique()) == 2
    assert area[:, :150].min() > 0.7


def test_grey_pictures_make_a_grey_sheet_in_their_profile():
    pictures = [(label, dataclasses.replace(p, grey=True, icc_profile=b"p")) for label, p in flat((9, 9), 0.1, 0.2)]
    sheet = side_by_side(pictures)
    assert (sheet.grey, sheet.icc_profile) == (True, b"p")


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(ImageError, match=r"9x8.*9x7"):
        side_by_side([*flat((8, 9), 0.5), *flat((7, 9), 0.5)])
    with pytest.raises(ValueError, match="at least one"):
        side_by_side([])
