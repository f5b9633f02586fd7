import math

import pytest
import torch

from lib_dino.references.motion import LEAST_MATCHES, Motion, motions


def turned(places, degrees, scale, shift):
    angle = math.radians(degrees)
    matrix = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return places @ matrix.T + torch.tensor(shift)


def places(count, generator):
    return 30 * torch.rand(count, 2, generator=generator)


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (20, 0.7), (-75, 1.4), (170, 3.0)])
def test_a_motion_is_found_among_as_many_wrong_matches(generator, degrees, scale):
    a = places(120, generator)
    b = turned(a, degrees, scale, [4.0, -2.0])
    b[::2] = 30 * torch.rand(60, 2, generator=generator)
    found = next(motions(a, b))
    assert found.matches >= 60 and found.scale == pytest.approx(scale, rel=0.02)
    assert (found(a[1::2]) - b[1::2]).norm(dim=1).max() < 0.2


def test_two_planes_give_two_motions_and_noise_gives_none(generator):
    a = places(100, generator)
    b = torch.cat([turned(a[:60], 0, 1.0, [0.0, 0.0]), turned(a[60:], 0, 1.0, [9.0, 0.0])])
    near, far = motions(a, b)
    assert near.matches >= 60 and far.matches >= 40
    assert far.shift[0] - near.shift[0] == pytest.approx(9, abs=0.1)
    assert not list(motions(a, 30 * torch.rand(100, 2, generator=generator)))


def test_few_matches_are_no_motion(generator):
    a = places(LEAST_MATCHES - 1, generator)
    assert not list(motions(a, a))
    assert not list(motions(a[:0], a[:0]))


def test_the_same_matches_give_the_same_motion(generator):
    a = places(80, generator)
    b = turned(a, 10, 1.1, [1.0, 1.0]) + 0.3 * torch.randn(80, 2, generator=generator)
    first, second = next(motions(a, b)), next(motions(a, b))
    assert torch.equal(first.matrix, second.matrix) and torch.equal(first.shift, second.shift)


def test_units_change_with_the_pictures():
    motion = Motion(torch.eye(2), torch.tensor([1.0, 2.0]), 20)
    # A patch is 2 x 4 px of the source and 6 x 8 of the reference: (2, 4) px are (1, 1), which go to (2, 3).
    in_pixels = motion.between(torch.tensor([2.0, 4.0]), torch.tensor([6.0, 8.0]))
    assert torch.equal(in_pixels(torch.tensor([2.0, 4.0])), torch.tensor([12.0, 24.0]))
