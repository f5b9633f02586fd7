import numpy as np
import pytest
import torch

from lib_dino.tiling.padding import pad_reflect, pad_symmetric


@pytest.mark.parametrize("more", [(0, 0), (1, 0), (2, 7), (9, 4)])
def test_symmetric_padding_is_numpys(more):
    image = torch.arange(12.0).view(1, 1, 3, 4)
    wanted = np.pad(image[0, 0].numpy(), ((0, more[0]), (0, more[1])), mode="symmetric")
    assert np.array_equal(pad_symmetric(image, *more)[0, 0].numpy(), wanted)


@pytest.mark.parametrize("margin", [0, 1, 2, 11])
def test_reflecting_padding_is_numpys(margin):
    image = torch.arange(12.0).view(1, 1, 3, 4)
    assert np.array_equal(pad_reflect(image, margin)[0, 0].numpy(), np.pad(image[0, 0].numpy(), margin, mode="reflect"))


def test_a_single_pixel_is_continued_by_itself():
    pixel = torch.full((1, 3, 1, 1), 0.4)
    assert pad_reflect(pixel, 2).shape == pad_symmetric(pixel, 4, 4).shape == (1, 3, 5, 5)
    assert (pad_reflect(pixel, 2) == 0.4).all()
