import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from lib_dino.sampling.sampler import noise_to_signal, sample, schedule


def test_noise_levels_are_sd15s():
    # The published ends of SD 1.5's schedule, as k-diffusion prints them.
    assert noise_to_signal(0) == pytest.approx(0.0292, abs=1e-4)
    assert noise_to_signal(999) == pytest.approx(14.6146, abs=1e-3)
    assert noise_to_signal(200.5) == pytest.approx(math.sqrt(noise_to_signal(200) * noise_to_signal(201)))


@pytest.mark.parametrize(
    ("denoise", "steps", "calls"), [(0.2, 20, 5), (0.5, 28, 15), (1.0, 20, 20), (0.01, 20, 1), (0, 20, 0)]
)
def test_calls_follow_the_hosts_count(denoise, steps, calls):
    assert len(schedule(denoise, steps)) - 1 == calls


def test_a_schedule_falls_from_the_asked_noise_to_zero():
    levels = schedule(0.37, 20)
    assert levels[0] == pytest.approx(noise_to_signal(0.37 * 999))
    assert levels[-1] == 0
    assert all(a > b for a, b in pairwise(levels))


def test_noise_grows_with_denoise_whatever_the_steps():
    starts = [schedule(d / 100, 7)[0] for d in range(1, 101)]
    assert starts == sorted(starts)
    assert len(set(starts)) == 100


def test_a_perfect_denoiser_ends_at_its_picture(generator):
    picture = torch.rand(1, 3, 8, 8, generator=generator)
    out = sample(torch.randn(1, 3, 8, 8, generator=generator), schedule(0.5, 20), lambda x, s: picture, lambda x, r: x)
    assert_close(out, picture)


def test_the_sampler_is_of_second_order(generator):
    # For data N(0, 0.25) the ideal denoiser is linear and the flow has a closed form.
    x = torch.randn(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    start, end = 2.0, 0.02

    def error(calls: int) -> float:
        ratio = (end / start) ** (1 / calls)
        sigmas = [start * ratio**i for i in range(calls + 1)]
        out = sample(x, sigmas, lambda x, s: x * 0.25 / (0.25 + s * s), lambda x, r: x)
        exact = x * math.sqrt((0.25 + end**2) / (0.25 + start**2))
        return float((out - exact).abs().max())

    assert error(80) < 0.3 * error(40) < 0.09 * error(20)


def test_corrections_see_the_noise_to_signal_ratio_and_take_effect():
    seen = []

    def correct(clean, ratio):
        seen.append(ratio)
        return clean * 0

    levels = schedule(0.3, 20)
    out = sample(torch.ones(1, 3, 4, 4), [r * 0.5 for r in levels], lambda x, s: x, correct)
    assert seen == pytest.approx(levels[:-1])
    assert out.abs().max() == 0
