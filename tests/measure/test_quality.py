import math

import pytest
import torch

from lib_dino.measure.quality import detail_energy, detail_ratio, psnr, seam_ratios


def test_psnr_of_known_errors():
    image = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(image, image) == math.inf
    assert psnr(image + 0.1, image) == pytest.approx(20, abs=1e-4)


def test_detail_is_scale_free_of_brightness_and_grows_with_contrast(generator):
    image = torch.rand(1, 3, 32, 32, generator=generator)
    assert detail_energy(torch.full_like(image, 0.7)) == pytest.approx(0, abs=1e-10)
    assert detail_energy(0.5 * image) == pytest.approx(0.25 * detail_energy(image), rel=1e-4)
    assert detail_ratio(image, 0.5 * image) == pytest.approx(4, rel=1e-3)


def test_flat_pictures_have_a_ratio_too():
    flat = torch.zeros(1, 3, 8, 8)
    assert detail_ratio(flat, flat) == 1
    assert detail_ratio(torch.rand(1, 3, 8, 8), flat) == math.inf


def test_blurring_takes_detail_away(generator):
    image = torch.rand(1, 3, 32, 32, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert detail_ratio(blurred, image) < 0.3


def test_a_step_between_tiles_is_a_seam_and_texture_is_none(generator):
    image = torch.rand(1, 3, 64, 64, generator=generator)
    even = seam_ratios(image, [32])[0]
    assert even == pytest.approx(1, abs=0.1)
    image[..., 32:, :] += 0.5
    assert seam_ratios(image, [32])[0] > 1.3 * even
    smooth = torch.linspace(0, 1, 64).view(1, 1, 64, 1).expand(1, 3, 64, 64).clone()
    assert seam_ratios(smooth, [32]) == pytest.approx([1], abs=1e-4)
    smooth[..., 32:, :] += 2 / 255
    assert seam_ratios(smooth, [32])[0] > 1.4
    assert seam_ratios(smooth, [3, 60]) == []
