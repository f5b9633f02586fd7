import pytest
import torch
from torch.testing import assert_close

from benchmarks.references import View, by_network, second_view
from lib_dino import arrays
from lib_dino.cli.parser import EXAMPLE
from lib_dino.measure.quality import psnr
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.pictures.picture import read_picture
from lib_dino.references.lending import borrow
from lib_dino.sampling.consistency import back_project
from lib_dino.tiling.resample import resize

SIDE = 224


@pytest.fixture(scope="module")
def features():
    """DINO's, with references looked at in the two sizes that these views need; all seven are for test_matching."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib_dino.references.matching.SIZES", (1.0, 2**0.5))
        yield by_network(load_dinov2())


@pytest.fixture(scope="module")
def photo():
    return read_picture(EXAMPLE).pixels


@pytest.fixture(scope="module")
def truth(photo):
    top = (photo.shape[-2] - SIDE) // 2
    return photo[..., top : top + SIDE, top : top + SIDE]


@pytest.fixture(scope="module")
def source(truth):
    return resize(truth, (SIDE // 4, SIDE // 4)).clamp(0, 1)


@pytest.fixture(scope="module")
def plain(source):
    return resize(source, (SIDE, SIDE)).clamp(0, 1)


@pytest.fixture(scope="module")
def loans(photo, source, features):
    return borrow(source, [second_view(photo, SIDE, View(15, 1.2))], (SIDE, SIDE), features)


def share_of(loans):
    return sum(loan.share for each in loans.by_reference() for loan in each)


def consistent(image, source):
    return back_project(image, source, strength=1.0)


def test_a_second_view_brings_the_picture_much_nearer_to_the_original(loans, plain, source, truth):
    made = consistent(loans.lend(plain, 1.0), source)
    assert psnr(made, truth) > psnr(consistent(plain, source), truth) + 3


def test_more_strength_lends_more(loans, plain, source, truth):
    found = [psnr(consistent(loans.lend(plain, s), source), truth) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == sorted(found) and found[-1] > found[0] + 3


def test_what_downscaling_sees_stays(loans, plain, source):
    moved = resize(loans.lend(plain, 1.0), source.shape[-2:]) - resize(plain, source.shape[-2:])
    # Clamped at black and white, or nothing would change at all.
    assert float(moved.abs().median()) < 1 / 255


def test_nothing_changes_where_nothing_is_lent(photo, source, plain, features):
    reference = second_view(photo, SIDE, View(0, 1.0))
    loans = borrow(source, [reference[..., : reference.shape[-1] // 2]], (SIDE, SIDE), features)
    share = share_of(loans)[0, 0].repeat_interleave(4, 0).repeat_interleave(4, 1)
    away = torch.nn.functional.max_pool2d(share[None, None], 17, 1, 8)[0, 0] == 0
    assert 0.05 < float(away.float().mean()) < 0.9
    assert torch.equal(loans.lend(plain, 1.0)[..., away], plain[..., away])


def test_a_reference_that_does_not_match_lends_nothing(source, plain, features, generator):
    other = torch.rand(1, 3, 300, 300, generator=generator)
    loans = borrow(source, [other], (SIDE, SIDE), features)
    assert loans.by_reference() == [[]] and loans.lend(plain, 1.0) is plain
    assert loans.in_box(slice(0, SIDE), slice(0, SIDE)) == (0,)


def test_a_changed_place_lends_nothing(photo, source, plain, features):
    changed = second_view(photo, SIDE, View(0, 1.0)).clone()
    middle = changed.shape[-1] // 2
    changed[..., middle - 30 : middle + 30, middle - 30 : middle + 30] = torch.rand(1, 3, 60, 60)
    share = share_of(borrow(source, [changed], (SIDE, SIDE), features))
    assert float(share[..., 24:32, 24:32].max()) < 0.05
    assert float(share.mean()) > 0.3


def test_a_reference_as_small_as_the_source_has_nothing_to_lend(source, features):
    assert borrow(source, [source], (SIDE, SIDE), features).by_reference() == [[]]


def test_of_several_each_place_has_one_lender(photo, source, plain, truth, features):
    left, right = second_view(photo, SIDE, View(0, 1.0)), second_view(photo, SIDE, View(10, 1.0))
    cut = left.shape[-1] // 2
    left, right = left[..., : cut + 20], right[..., cut - 60 :]
    both = borrow(source, [left, right], (SIDE, SIDE), features)
    shares = [sum(loan.share for loan in loans) for loans in both.by_reference()]
    assert float(sum(shares).max()) <= 1 + 1e-5 and all(float(share.mean()) > 0.1 for share in shares)
    alone = [psnr(borrow(source, [one], (SIDE, SIDE), features).lend(plain, 1.0), truth) for one in (left, right)]
    assert psnr(both.lend(plain, 1.0), truth) > max(alone) + 0.5


def test_windows_give_what_the_whole_gives(loans, plain, monkeypatch):
    whole = loans.lend(plain, 1.0)
    monkeypatch.setattr("lib_dino.references.lending.WINDOW_PX", 96)
    assert_close(loans.lend(plain, 1.0), whole, atol=2e-3, rtol=0)
    monkeypatch.setattr(arrays, "LARGE_BYTES", 2**16)
    assert_close(loans.lend(plain, 1.0), whole, atol=2e-3, rtol=0)


def test_shares_of_boxes_average_to_the_whole(loans):
    half = SIDE // 2
    boxes = [(slice(y, y + half), slice(x, x + half)) for y in (0, half) for x in (0, half)]
    parts = [loans.in_box(*box)[0] for box in boxes]
    assert sum(parts) / 4 == pytest.approx(loans.in_box(slice(0, SIDE), slice(0, SIDE))[0], abs=1e-4)
