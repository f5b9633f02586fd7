import json
import shutil
import time

import pytest
import torch
from torch.testing import assert_close

from lib_dino.errors import ModelError
from lib_dino.networks import denoiser as module
from lib_dino.networks.denoiser import EMBEDDED, FILES, Denoiser, load_denoiser, multiple_px, predict_clean
from lib_dino.tiling.padding import pad_symmetric


@pytest.fixture(scope="module")
def tiny():
    """A network of the embedded one's kind with random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    config = json.loads((EMBEDDED / FILES[0]).read_text(encoding="utf-8"))
    config |= {"block_out_channels": (8, 8, 16), "attention_head_dim": 1, "cross_attention_dim": 8}
    return Denoiser(UNet2DConditionModel.from_config(config))


@pytest.fixture(scope="module")
def embedded():
    return load_denoiser()


def waves(height, width):
    """A smooth coloured picture in [-1, 1], (1, 3, height, width)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.sin(x / 9), torch.cos(y / 7), torch.sin((x + y) / 11)])[None] * 0.7


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 3), (8, 16), (33, 41)])
def test_any_size_comes_back_as_it_went_in(tiny, size, generator):
    x = torch.randn(2, 3, *size, generator=generator)
    assert tiny(x, 0.3).shape == x.shape
    assert not tiny(x, 0.3).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_callers_dtype_comes_back(tiny, dtype):
    assert tiny(torch.zeros(1, 3, 8, 8, dtype=dtype), 0.3).dtype == dtype


def test_sizes_that_need_no_padding_are_the_plain_network(tiny, generator):
    side = 2 * multiple_px(tiny.unet)
    x = torch.randn(1, 3, side, side, generator=generator)
    assert_close(tiny(x, 0.3), predict_clean(tiny.unet, x, torch.tensor([0.3])))


def test_each_picture_of_a_batch_has_its_own_sigma(tiny, generator):
    x = torch.randn(2, 3, 16, 16, generator=generator)
    both = tiny(x, torch.tensor([0.1, 2.0]))
    assert_close(both, torch.cat([tiny(x[:1], 0.1), tiny(x[1:], 2.0)]))


def test_no_noise_leaves_the_picture_alone(tiny, generator):
    x = torch.rand(1, 3, 16, 16, generator=generator)
    assert_close(tiny(x, 0.0), x, atol=0.02, rtol=0)


def test_gradients_reach_the_picture_through_the_open_function(tiny, generator):
    x = torch.randn(1, 3, 8, 8, generator=generator, requires_grad=True)
    predict_clean(tiny.unet, x, torch.tensor([0.5])).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not tiny(x, 0.5).requires_grad


@pytest.mark.parametrize(("side", "more"), [(1, 5), (3, 9), (8, 3)])
def test_mirroring_repeats_the_border_pixel_first(side, more):
    row = torch.arange(float(side))[None, None, None]
    out = pad_symmetric(row, 0, more)[0, 0, 0]
    assert out.shape == (side + more,)
    assert out[side] == side - 1
    assert (out.diff().abs() <= 1).all()


def test_embedded_network_takes_noise_away(embedded, generator):
    clean = waves(64, 64)
    for sigma in (0.1, 0.3, 1.0):
        noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
        left = (embedded(noisy, sigma) - clean).square().mean().sqrt()
        assert left < 0.35 * sigma, sigma


def test_embedded_network_has_cross_attention_and_fits_the_repository(embedded):
    names = [name for name, _ in embedded.unet.named_modules() if name.endswith("attn2")]
    assert len(names) >= 2
    assert sum(p.numel() for p in embedded.unet.parameters()) <= 5_000_000
    assert (EMBEDDED / FILES[1]).stat().st_size <= 10_000_000


def test_a_tile_agrees_with_the_same_place_in_a_larger_tile(embedded, generator):
    x = waves(160, 160) + 0.3 * torch.randn(1, 3, 160, 160, generator=generator)
    inside = slice(32, 128)
    whole = embedded(x, 0.3)[..., inside, inside]
    alone = embedded(x[..., inside, inside], 0.3)
    assert (whole - alone)[..., 32:-32, 32:-32].square().mean().sqrt() < 0.01


def test_loading_is_quick(embedded):
    started = time.perf_counter()
    load_denoiser()
    assert time.perf_counter() - started < 5


def test_a_missing_file_is_named(tmp_path):
    shutil.copy(EMBEDDED / FILES[0], tmp_path)
    with pytest.raises(ModelError, match=FILES[1]):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json"])
def test_a_config_of_no_network_is_refused(tmp_path, content):
    (tmp_path / FILES[0]).write_text(content)
    (tmp_path / FILES[1]).touch()
    with pytest.raises(ModelError, match=r"config\.json"):
        load_denoiser(tmp_path)


def test_a_latent_space_network_is_refused(tmp_path):
    (tmp_path / FILES[0]).write_text(json.dumps({"_class_name": "UNet2DConditionModel", "in_channels": 4}))
    (tmp_path / FILES[1]).touch()
    with pytest.raises(ModelError, match="4"):
        load_denoiser(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    shutil.copy(EMBEDDED / FILES[0], tmp_path)
    (tmp_path / FILES[1]).write_bytes((EMBEDDED / FILES[1]).read_bytes()[:100_000])
    with pytest.raises(ModelError, match=FILES[1]):
        load_denoiser(tmp_path)


def test_noise_below_the_least_level_is_taken_as_it(tiny, generator):
    x = torch.rand(1, 3, 8, 8, generator=generator)
    assert_close(tiny(x, 0.0), tiny(x, module.SIGMA_MIN))
