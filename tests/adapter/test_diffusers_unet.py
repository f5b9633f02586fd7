"""The adapter that ships, on the denoiser that ships and a piece of a real photograph."""

from pathlib import Path

import pytest
import torch

from lib_dino import Settings, upscale
from lib_dino.adapter.diffusers_unet import check_fits, shapes
from lib_dino.adapter.load import EMBEDDED, load_adapter
from lib_dino.errors import AdapterError
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.pictures.picture import Picture, read_picture
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.tiling.resample import resize

PHOTO = Path(__file__).parents[2] / "examples" / "astronaut.png"


@pytest.fixture(scope="module")
def model():
    return PixelTileModel()


@pytest.fixture(scope="module")
def dino():
    return load_dinov2()


@pytest.fixture(scope="module")
def source():
    """Hair, 40 px square."""
    return Picture(resize(read_picture(PHOTO).pixels[..., 60:140, 170:250], (40, 40)).clamp(0, 1))


def run(source, model, dino, **settings):
    settings = {"seed": 1, "dino_enabled": False, "denoise": 0.2, "steps": 10, **settings}
    return upscale(source, Settings(**settings), model=model, dino=dino).picture.pixels


def test_it_fits_the_networks_that_ship_and_the_repository(model, dino):
    adapter = load_adapter(None, dino)
    check_fits(adapter, shapes(model.unet), base="embedded", model="the denoiser")
    assert sum(path.stat().st_size for path in EMBEDDED.parent.parent.rglob("*.safetensors")) < 25_000_000


def test_it_acts_by_its_strength_and_nought_is_bitwise_off(source, model, dino):
    off = run(source, model, dino)
    before = dict(model.unet.attn_processors)
    weak, full = (run(source, model, dino, adapter_strength=s) for s in (0.3, 1.0))
    assert 1e-4 < (weak - off).abs().mean() < (full - off).abs().mean()
    assert model.unet.attn_processors == before
    assert torch.equal(run(source, model, dino), off)
    assert torch.equal(run(source, model, dino, adapter_strength=0.0), off)


def test_each_tile_of_a_batch_is_shown_its_own_region(source, model, dino):
    tiled = {"tile_size": 64, "overlap": 16, "adapter_strength": 1.0, "steps": 5}
    one, three = (run(source, model, dino, tile_batch_size=n, **tiled) for n in (1, 3))
    assert (one - three).abs().max() < 1e-3
    assert (one - run(source, model, dino, **{**tiled, "adapter_strength": 0.0})).abs().max() > 0.005


def test_another_feature_network_is_refused(source, model):
    other = load_dinov2()
    other.norm.weight.data += 0.1
    with pytest.raises(AdapterError, match="trained with the features of"):
        run(source, model, other, adapter_strength=1.0)
