from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from lib_dino.measure.drift import drift, make_target, mean_feature, patch_drift, spread
from lib_dino.sampling.guidance import MAX_STEP, guide
from lib_dino.tiling.resample import resize


@pytest.fixture
def extract(generator):
    """A small random network of patches, smooth in its input, as DINOv2 is."""
    first = torch.randn(24, 3, 4, 4, generator=generator) / 4
    second = torch.randn(16, 24, 1, 1, generator=generator) / 4

    def run(image):
        return torch.conv2d(torch.tanh(torch.conv2d(image - 0.5, first.to(image), stride=4)), second.to(image))

    return run


@pytest.fixture
def source(generator):
    return torch.rand(1, 3, 32, 48, generator=generator)


def view(clean):
    return resize((clean + 1) / 2, (32, 48))


def target_of(extract, source):
    grid = extract(source)
    return make_target(grid, mean_feature(grid), spread=spread(grid))


def drifted(source, generator, amount=0.5):
    clean = 2 * resize(source, (64, 96)) - 1
    return clean + amount * torch.randn(clean.shape, generator=generator)


def test_at_zero_the_very_same_tensor_comes_back_and_nothing_is_computed(source, generator):
    def forbidden(image):
        raise AssertionError("features were computed at strength 0")

    clean = drifted(source, generator)
    assert guide(clean, 1.0, target=None, view=view, extract=forbidden, strength=0.0) is clean


def test_the_source_itself_has_no_drift_and_is_not_moved(extract, source):
    target = target_of(extract, source)
    assert float(drift(extract(source), target)) == pytest.approx(0, abs=1e-6)
    clean = 2 * source - 1
    moved = guide(clean, 1.0, target=target, view=lambda x: (x + 1) / 2, extract=extract, strength=1.0)
    assert (moved - clean).abs().max() < 1e-3


def test_a_step_lowers_the_drift_and_more_strength_lowers_it_more(extract, source, generator):
    target = target_of(extract, source)
    clean = drifted(source, generator)
    figures = []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        out = guide(clean, 2.0, target=target, view=view, extract=extract, strength=strength)
        figures.append(float(drift(extract(view(out)), target)))
    assert all(a > b for a, b in pairwise(figures))


def test_shuffled_features_lose_the_effect(extract, source, generator):
    target = target_of(extract, source)
    order = torch.randperm(target.features[0, 0].numel(), generator=generator)
    mixed = target.features.flatten(2)[..., order].view_as(target.features)
    wrong = make_target(mixed + target.mean, target.mean, spread=1.0)
    clean = drifted(source, generator)

    def after(t):
        out = clean
        for _ in range(5):
            out = guide(out, 2.0, target=t, view=view, extract=extract, strength=1.0)
        return float(drift(extract(view(out)), target))

    before = float(drift(extract(view(clean)), target))
    assert before - after(wrong) < 0.33 * (before - after(target))


def test_the_step_stays_in_its_trust_region_and_shrinks_with_the_noise(extract, source, generator):
    target = target_of(extract, source)
    clean = drifted(source, generator, amount=2.0)
    sizes = []
    for ratio in (0.01, 0.1, 1.0, 10.0):
        out = guide(clean, ratio, target=target, view=view, extract=extract, strength=1.0, sigma_data=0.5)
        size = float((out - clean).square().mean().sqrt())
        assert size <= 0.5 * MAX_STEP * ratio / (1 + ratio**2) ** 0.5 * 1.001
        sizes.append(size)
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_works_in_the_hosts_torch_modes_and_keeps_the_dtype(extract, source, generator, mode, dtype):
    target = target_of(extract, source)
    with mode():
        clean = drifted(source, generator).to(dtype)
        out = guide(clean, 1.0, target=target, view=view, extract=extract, strength=1.0)
        assert out.dtype == dtype
        assert float(drift(extract(view(out.float())), target)) < float(drift(extract(view(clean.float())), target))


def test_pictures_of_a_batch_do_not_touch_each_other(extract, source, generator):
    target = target_of(extract, source)
    a, b = drifted(source, generator), drifted(source, generator)
    both = guide(torch.cat([a, b]), 1.0, target=target, view=view, extract=extract, strength=1.0)
    alone = guide(b, 1.0, target=target, view=view, extract=extract, strength=1.0)
    assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)


def test_what_downscaling_cannot_see_is_no_drift(extract, source):
    target = target_of(extract, source)
    clean = 2 * resize(source, (64, 96)) - 1
    checks = torch.ones(64, 96)
    checks[::2, ::2] = checks[1::2, 1::2] = -1
    plain, textured = drift(extract(view(clean)), target), drift(extract(view(clean + 0.3 * checks)), target)
    assert float(textured) == pytest.approx(float(plain), abs=2e-3)


def test_a_featureless_patch_weighs_nothing(generator):
    grid = torch.randn(1, 8, 4, 4, generator=generator)
    grid[..., 0, 0] = 0
    grid = grid - mean_feature(grid)
    grid[..., 0, 0] = 0
    target = make_target(grid, torch.zeros(1, 8, 1, 1), spread=spread(grid))
    assert float(target.weight[0, 0, 0]) == 0
    assert float(target.weight.max()) > 0.7
    assert patch_drift(-grid, target)[0, 1, 1] == pytest.approx(2)
