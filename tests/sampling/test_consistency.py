import torch
from torch.testing import assert_close

from lib_dino.measure.quality import detail_energy, psnr
from lib_dino.sampling.consistency import back_project, soft_threshold, tile_pull
from lib_dino.tiling.resample import resize, tile_operators


def scene(generator, height=96, width=128):
    """Smooth shapes with sharp edges and some texture, (1, 3, height, width)."""
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, size=(height, width), mode="nearest")
    return (0.8 * picture + 0.1 + 0.1 * torch.rand(1, 3, height, width, generator=generator)).clamp(0, 1)


def test_at_zero_nothing_is_touched(generator):
    image = scene(generator)
    assert back_project(image, resize(image, (48, 64)), strength=0.0) is image


def test_made_small_again_the_result_is_the_source(generator):
    truth = scene(generator)
    source = resize(truth, (48, 64)).clamp(0, 1)
    drifted = (resize(source, (96, 128)) + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    before = psnr(resize(drifted, (48, 64)), source)
    after = psnr(resize(back_project(drifted, source, strength=1.0), (48, 64)), source)
    assert after > before + 15


def test_more_strength_is_more_consistent(generator):
    truth = scene(generator)
    source = resize(truth, (48, 64)).clamp(0, 1)
    drifted = (truth + 0.2 * scene(generator) - 0.1).clamp(0, 1)
    figures = [
        psnr(resize(back_project(drifted, source, strength=s), (48, 64)), source) for s in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert figures == sorted(figures)


def test_a_faithful_sharp_picture_keeps_its_sharpness(generator):
    truth = scene(generator)
    source = resize(truth, (48, 64))
    out = back_project(truth, source, strength=1.0)
    assert detail_energy(out) > 0.97 * detail_energy(truth)
    assert psnr(out, truth) > 40


def test_a_pasted_object_goes_and_the_rest_stays(generator):
    truth = scene(generator)
    source = resize(truth, (48, 64)).clamp(0, 1)
    pasted = truth.clone()
    pasted[..., 32:64, 48:80] = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    out = back_project(pasted, source, strength=1.0)
    inside = (..., slice(34, 62), slice(50, 78))
    assert (out - truth)[inside].abs().mean() < 0.25 * (pasted - truth)[inside].abs().mean()
    assert psnr(out[..., :24, :], truth[..., :24, :]) > 35


def test_a_tiles_pull_is_the_whole_pictures(generator):
    source = torch.rand(1, 3, 48, 64, generator=generator)
    image = torch.rand(1, 3, 96, 128, generator=generator)
    whole = resize(source - resize(image, (48, 64)), (96, 128))
    operators = tile_operators((48, 64), (96, 128), slice(16, 80), slice(32, 96))
    pull = tile_pull(image[..., 16:80, 32:96], source, operators, threshold=0.0)
    assert_close(pull[..., 10:-10, 10:-10], whole[..., 26:70, 42:86], atol=1e-5, rtol=0)


def test_the_threshold_lets_small_differences_stand():
    residual = torch.tensor([-0.3, -0.01, 0.0, 0.02, 0.5])
    assert_close(soft_threshold(residual, 0.05), torch.tensor([-0.25, 0.0, 0.0, 0.0, 0.45]))
    assert soft_threshold(residual, 0.0) is residual
