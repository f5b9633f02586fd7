import json

import pytest
import torch

from lib_dino.measure.calibration import Thresholds
from lib_dino.measure.drift import TileDrift
from lib_dino.report.maps import bound_kind, heats, tile_figures, worst_patches

SOURCE, RESULT = (100, 140), (200, 420)


PLAIN = Thresholds(bound=0.2)


def found(patches, rows=slice(0, 80), cols=slice(20, 120), *, suspicion=None, size=(0, 0), thresholds=PLAIN):
    patches = torch.as_tensor(patches)
    return TileDrift(
        patches, torch.ones_like(patches), 0.1, 0.4, 0.05, thresholds, rows, cols, edit_map=suspicion, size=size
    )


def test_patches_lie_where_they_are_in_the_result():
    patches = torch.zeros(4, 5)
    patches[2, 3] = 0.6
    [patch] = worst_patches(found(patches), SOURCE, RESULT)
    # rows 0 to 80 in 4 patches of 20 px, columns 20 to 120 in 5 of 20 px; enlarged 2 and 3 times
    assert patch.box == (80, 240, 120, 300)
    assert patch.drift == pytest.approx(0.6)


def test_one_object_is_one_place_and_the_worst_comes_first():
    patches = torch.zeros(6, 6)
    patches[1, 1], patches[1, 3], patches[5, 5] = 0.9, 0.8, 0.3
    assert [p.drift for p in worst_patches(found(patches), SOURCE, RESULT)] == pytest.approx([0.9, 0.3])


def test_a_faithful_tile_has_no_worst_patch():
    assert worst_patches(found(torch.zeros(3, 3)), SOURCE, RESULT) == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 3)])
def test_boxes_stay_inside_and_are_never_empty(shape, generator):
    patches = torch.rand(shape, generator=generator)
    for patch in worst_patches(found(patches, slice(0, 100), slice(0, 140)), SOURCE, RESULT):
        y0, x0, y1, x1 = patch.box
        assert 0 <= y0 < y1 <= RESULT[0] and 0 <= x0 < x1 <= RESULT[1]


def test_figures_are_plain_and_those_of_the_measure():
    patches = torch.tensor([[0.0, 0.1], [0.3, 0.0]])
    figures = tile_figures(found(patches), SOURCE, RESULT, bound=0.2)
    assert figures["drift"] == 0.1 and figures["drift_enlarged"] == 0.05
    assert figures["drift_above"] == pytest.approx(0.1)
    assert figures["over_bound"] == pytest.approx(0.25)
    assert tile_figures(found(patches), SOURCE, RESULT, bound=0.05)["over_bound"] == pytest.approx(0.5)
    assert figures["drift_peak"] == pytest.approx(0.3)
    assert figures["edit_probability"] is None and figures["alarm"] is True
    json.dumps({**figures, "worst_patches": None})


def test_the_users_own_bound_goes_before_the_networks():
    assert bound_kind(Thresholds(measured=True), 0.3) == "asked"
    assert bound_kind(Thresholds(measured=True), 0.0) == "fitted"
    assert bound_kind(Thresholds(), 0.0) == "default"


ALARMING = Thresholds(bound=0.2, invented=0.6, alarm=0.7, measured=True)


def suspicious(row, column, *, rows=slice(0, 40), cols=slice(0, 60)):
    """A tile of 80 x 120 px of the result, 6 x 9 patches of 14 px, with one suspicious place."""
    suspicion = torch.full((6, 9), 0.1)
    suspicion[row, column] = 0.9
    patches = torch.zeros(3, 5)
    patches[0, 0] = 0.4
    return found(patches, rows, cols, suspicion=suspicion, size=(80, 120), thresholds=ALARMING)


def test_with_a_head_the_worst_places_are_the_suspicious_ones():
    first, *_ = worst_patches(suspicious(2, 5), (40, 60), (80, 120))
    assert first.box == (28, 70, 42, 84)
    assert first.edit_probability == pytest.approx(0.9)
    assert first.weight == first.edit_probability


def test_without_a_head_there_is_one_map_and_with_one_two():
    [drift] = heats([found(torch.zeros(3, 3))], SOURCE, RESULT, bound=0.3)
    assert (drift.kind, drift.limit, drift.top) == ("drift", 0.3, 0.6)
    assert tuple(drift.values.shape) == (1, 1, *SOURCE)
    suspicion, drift = heats([suspicious(0, 0)], (40, 60), (80, 120), bound=0.2)
    assert (suspicion.kind, suspicion.limit, suspicion.top) == ("edits", 0.7, 1.0)
    assert heats([], SOURCE, RESULT, bound=0.2) == ()


def test_suspicion_lies_where_it_is_and_overlaps_keep_the_larger():
    left = suspicious(4, 8)
    right = suspicious(0, 0, cols=slice(40, 100))
    values = heats([left, right], (40, 100), (80, 200), bound=0.2)[0].values
    assert tuple(values.shape) == (1, 1, 80, 200)
    assert values[..., 56:70, 112:120].max() > 0.7  # the corner of the left tile, though the right one covers it
    assert values[..., 0:14, 80:94].max() > 0.8
    assert values[..., 40:60, 150:200].max() < 0.2


def test_a_map_of_a_very_large_picture_is_coarser():
    values = heats([suspicious(0, 0)], (40, 60), (80 * 100, 120 * 100), bound=0.2)[0].values
    assert max(values.shape) == 4096
