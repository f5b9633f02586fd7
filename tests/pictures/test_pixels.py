import numpy as np
import pytest
import torch
from PIL import Image

from lib_dino.pictures.pixels import to_image, to_pixels


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_every_level_of_every_mode_survives_the_round_trip(mode):
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).permuted(np.tile(np.arange(256, dtype=np.uint8), (channels, 1)), axis=1)
    image = Image.fromarray(values.T.reshape(16, 16, channels).squeeze())
    pixels = to_pixels(image, mode)
    assert pixels.shape == (1, channels, 16, 16) and pixels.dtype == torch.float32
    assert to_image(pixels[0]).mode == mode
    assert np.array_equal(np.asarray(to_image(pixels[0])), np.asarray(image))


def test_values_are_rounded_to_the_nearest_level_and_cut_to_the_range():
    pixels = torch.tensor([-0.5, 0.49 / 255, 0.51 / 255, 1.7]).view(1, 2, 2)
    assert np.asarray(to_image(pixels)).tolist() == [[0, 0], [1, 255]]
