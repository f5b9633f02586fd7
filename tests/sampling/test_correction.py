"""Corrections through all calls of a tile: when the exact pull is done, and what stands in for it between."""

import pytest
import torch
from torch.testing import assert_close

from lib_dino.sampling.consistency import Autoencoder, AutoencoderConsistency
from lib_dino.sampling.correction import BatchCorrector, PixelCodec, TileCorrections
from lib_dino.sampling.sampler import schedule
from lib_dino.tiling.resample import resize, tile_operators

SIDE = 32


class Costly(PixelCodec):
    """Pixels, as dear as an autoencoder."""

    def __init__(self, levels, *, available=True, silent=False):
        self.levels, self.able, self.silent, self.ratios, self.colors = levels, available, silent, [], 0

    def encode(self, image):
        self.ratios.append(self.now)
        return torch.full_like(image, torch.nan) if self.silent else 2 * image - 1

    def color(self, clean, _):
        self.colors += 1
        return clean

    def consistency(self, number, pull, strength):
        if not self.levels:
            return super().consistency(number, pull, strength)
        auto = Autoencoder(self.encode, self.decode, lambda: self.able)
        return AutoencoderConsistency(auto, self.levels, pull, strength, self.color)


def correction(source):
    whole = slice(0, SIDE)
    operators = tile_operators((SIDE // 2, SIDE // 2), (SIDE, SIDE), whole, whole)
    return BatchCorrector([TileCorrections(source, operators, consistency=1.0, threshold=0.0)])


@pytest.fixture
def source(generator):
    return torch.rand(1, 3, SIDE // 2, SIDE // 2, generator=generator)


def run(codec, source, ratios, estimate):
    """A model that takes over all that corrections have put into the noisy data: its last estimate, corrected."""
    correct, put = correction(source), torch.zeros_like(estimate)
    for ratio, after in zip(ratios, [*ratios[1:], 0.0], strict=True):
        codec.now = ratio
        clean = correct(estimate + put, ratio, codec)
        put = after / ratio * put + (1 - after / ratio) * (clean - estimate)
    return clean


@pytest.mark.parametrize(("denoise", "pulls"), [(0.1, 1), (0.2, 1), (0.35, 2), (0.5, 3), (1.0, 3)])
@pytest.mark.parametrize("steps", [20, 40, 80])
def test_exact_pulls_go_by_noise_and_not_by_steps(denoise, pulls, steps, source, generator):
    codec = Costly((1.0, 0.6, 0.4))
    run(codec, source, schedule(denoise, steps)[:-1], torch.randn(1, 3, SIDE, SIDE, generator=generator))
    # Each exact step encodes twice.
    assert len(codec.ratios) == 2 * pulls
    assert all(ratio <= level for ratio, level in zip(codec.ratios[::-2], (0.4, 0.6, 1.0), strict=False))


def test_one_call_alone_has_its_pull(source):
    codec = Costly((1.0, 0.4))
    run(codec, source, [0.2], torch.zeros(1, 3, SIDE, SIDE))
    assert codec.ratios == [0.2, 0.2]


@pytest.mark.parametrize("count", [4, 8, 40])
def test_one_pull_takes_full_effect_however_many_calls_follow(count, source, generator):
    start, codec = torch.randn(1, 3, SIDE, SIDE, generator=generator), Costly((0.6,))
    done = run(codec, source, [0.8 * (1 - i / count) for i in range(count)], start)
    assert len(codec.ratios) == 2
    assert_close(done, run(Costly(()), source, [0.6], start), atol=1e-4, rtol=1e-4)
    off, left = (resize((x + 1) / 2, (SIDE // 2, SIDE // 2)) - source for x in (start, done))
    assert float(left.norm()) < 0.4 * float(off.norm())


def test_colours_are_held_at_every_other_call(source, generator):
    codec = Costly((0.6,))
    run(codec, source, [0.8, 0.6, 0.4, 0.2], torch.randn(1, 3, SIDE, SIDE, generator=generator))
    assert codec.ratios == [0.6, 0.6] and codec.colors == 3


def test_without_an_autoencoder_and_where_it_gives_nothing_there_are_colours_alone(source):
    clean = torch.zeros(1, 3, SIDE, SIDE)
    for codec in (Costly((0.5,), silent=True), Costly((0.5,), available=False)):
        correct = correction(source)
        for ratio in (0.9, 0.4, 0.2):
            codec.now = ratio
            assert torch.equal(correct(clean, ratio, codec), clean)
        assert codec.colors == 3 and len(codec.ratios) == (2 if codec.silent else 0)


def test_a_shift_is_held_in_proportion_to_the_noise_that_is_left(source):
    clean, codec, correct = torch.zeros(1, 3, SIDE, SIDE), Costly((0.5,)), correction(source)
    codec.now = 0.4
    shifted = correct(clean, 0.4, codec)
    assert_close(correct(clean, 0.1, codec), shifted / 4)
    assert_close(correct(clean, 0.45, codec), shifted)  # a sampler that goes back up
