import dataclasses
import types

import pytest
import torch
from torch.testing import assert_close

from lib_dino.sampling.consistency import Autoencoder
from lib_dino.sampling.latent_codec import AutoencoderCodec, LatentCodec, noise_to_signal
from lib_dino.tiling.plan import Tile
from lib_dino.webui.model.cfg_callbacks import clean_from_noise, noise_from_clean
from lib_dino.webui.model.family import Model
from lib_dino.webui.model.latent_rgb import color_map
from lib_dino.webui.model.noise import TileNoise, later_noise

SD1 = color_map(Model("sd1", 4, 512, 8, False))


@pytest.mark.parametrize("a", [0.999, 0.5, 0.01])
def test_noise_to_clean_and_back_is_the_identity(a, generator):
    clean, noise = torch.randn(2, 2, 4, 6, 6, generator=generator)
    x = a**0.5 * clean + (1 - a) ** 0.5 * noise
    assert_close(clean_from_noise(noise, x, a), clean, atol=1e-4, rtol=1e-4)
    assert_close(noise_from_clean(clean_from_noise(noise, x, a), x, a), noise, atol=1e-4, rtol=1e-4)


def test_noise_to_signal_of_flow_models_is_that_of_their_mixture():
    assert noise_to_signal(0.5, flow=True) == 1
    assert noise_to_signal(3.0, flow=False) == 3
    assert noise_to_signal(1.0, flow=True) == pytest.approx(1e4)


@pytest.mark.parametrize(("family", "channels"), [("sd1", 4), ("sdxl", 4), ("sd3", 16), ("flux", 16), ("sd1", 32)])
def test_the_map_to_colour_is_linear_differentiable_and_eight_times_larger(family, channels, generator):
    codec = LatentCodec(color_map(Model(family, channels, 512, 8, False)), 8)
    a, b = torch.randn(2, 1, channels, 5, 7, generator=generator)
    zero = codec.decode(torch.zeros_like(a))
    assert codec.decode(a).shape == (1, 3, 40, 56)
    assert_close(codec.decode(a + b) - zero, codec.decode(a) + codec.decode(b) - 2 * zero, atol=1e-5, rtol=1e-5)
    leaf = a.clone().requires_grad_()
    codec.decode(leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0


def test_grey_latents_look_grey_in_sd1():
    # The SD 1.5 table's own least-squares answer for white is brighter than for black.
    codec = LatentCodec(SD1, 8)
    white = torch.linalg.lstsq(torch.tensor([[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350],
                                             [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]]).T,
                               torch.ones(3, 1)).solution.view(1, 4, 1, 1)  # fmt: skip
    assert_close(codec.decode(white), torch.ones(1, 3, 8, 8), atol=1e-4, rtol=0)


def test_references_are_handed_out_tile_by_tile(generator):
    latents = torch.randn(3, 4, 2, 2, generator=generator)
    assert_close(torch.cat([LatentCodec(SD1, 8, latents).source_latents(i) for i in range(3)]), latents)
    assert LatentCodec(SD1, 8).source_latents(1) is None


def test_no_change_of_the_picture_is_no_change_of_the_latents(generator):
    auto = Autoencoder(torch.nn.AvgPool2d(8), torch.nn.Upsample(scale_factor=8))
    clean = torch.randn(1, 4, 3, 3, generator=generator)
    still = AutoencoderCodec(auto, SD1, 8).consistency(0, torch.zeros_like, 1.0)
    assert torch.equal(still(clean, 0.3), clean)
    moved = AutoencoderCodec(auto, SD1, 8).consistency(0, lambda picture: torch.full_like(picture, 0.25), 1.0)
    assert_close(moved(clean, 0.3), clean + 0.25)


def test_later_noise_is_unit_normal_and_new_for_every_key(generator):
    first = torch.randn(1, 4, 64, 64, generator=generator)
    draws = [first, *(later_noise(first, key) for key in (1, 2, 3, 2**31))]
    for i, draw in enumerate(draws):
        assert abs(float(draw.mean())) < 0.03 and abs(float(draw.std()) - 1) < 0.03
        assert abs(float((draw[:, :, :, 1:] * draw[:, :, :, :-1]).mean())) < 0.03
        assert abs(float((draw[:, 0] * draw[:, 1]).mean())) < 0.06
        for other in draws[:i]:
            assert abs(float((draw * other).mean())) < 0.03
    assert torch.equal(later_noise(first, 2), later_noise(first, 2))


def test_tiles_share_later_noise_where_they_share_the_first(generator):
    canvas = torch.randn(1, 4, 20, 30, generator=generator)
    whole = later_noise(canvas, 7)
    tile = Tile(4, 9, 16, 25)
    assert torch.equal(later_noise(canvas[..., tile.rows, tile.cols], 7), whole[..., tile.rows, tile.cols])


def test_a_tiles_generator_gives_its_piece_first_and_then_something_new(generator):
    first = torch.randn(2, 4, 3, 3, generator=generator)
    noise = TileNoise(first, "cpu")
    drawn = noise.next()
    drawn *= 2  # hosts scale in place
    assert torch.equal(drawn, 2 * first)
    second, third = noise.next(), noise.next()
    assert not torch.equal(second, third)
    between = noise.between(torch.tensor(3.0), torch.tensor(2.0))
    assert torch.equal(between, noise.between(3.0, 2.0))
    assert not torch.equal(between, noise.between(2.0, 1.0))


def packed(channels, factors, **more):
    """A host's description of latents, as Forge Neo and ComfyUI have them."""
    return types.SimpleNamespace(latent_channels=channels, latent_rgb_factors=factors, **more)


def quarters(t):
    """(B, 4 C, h, w) to (B, C, 2 h, 2 w), in the way FLUX.2's latents are unpacked."""
    batch, channels, h, w = t.shape
    split = t.reshape(batch, channels // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(batch, channels // 4, 2 * h, 2 * w)


def test_the_hosts_own_colours_come_before_ours(generator):
    factors = torch.randn(4, 3, generator=generator).tolist()
    told = dataclasses.replace(Model("sd1", 4, 512, 8, False), latent_format=packed(4, factors))
    assert_close(color_map(told).table, torch.tensor([*factors, [0.0, 0.0, 0.0]]))
    assert not torch.equal(color_map(told).table, SD1.table)


@pytest.mark.parametrize("family", ["wan", "qwenimage", "unknown"])
def test_sixteen_channels_are_not_taken_for_fluxs(family):
    assert color_map(Model("zimage", 16, 1024, 16, True)).known
    unknown = color_map(Model(family, 16, 1024, 16, True))
    assert not unknown.known
    reference = torch.zeros(1, 16, 4, 4)
    still = LatentCodec(unknown, 8, reference).consistency(0, torch.zeros_like, 1.0)
    assert still(reference + 1, 0.5) is not reference and torch.equal(still(reference + 1, 0.5), reference + 1)


def test_packed_latents_of_sixteen_pixels_are_shown_and_held_as_what_they_stand_for(generator):
    factors = torch.randn(8, 3, generator=generator).tolist()
    flat = dataclasses.replace(Model("a", 8, 512, 8, True), latent_format=packed(8, factors))
    folded = packed(32, factors, latent_rgb_factors_reshape=quarters, latent_rgb_factors_bias=[0.1, 0.0, -0.1])
    model = dataclasses.replace(Model("flux2", 32, 1024, 16, True, factor=16), latent_format=folded)
    colors = color_map(model)
    clean, reference = torch.randn(2, 2, 32, 3, 5, generator=generator)
    assert_close(colors.pack(colors.unpack(clean), clean), clean, atol=0, rtol=0)
    codec = LatentCodec(colors, 16, reference[:1])
    assert codec.decode(clean).shape == (2, 3, 48, 80)
    plain = LatentCodec(color_map(flat), 8, quarters(reference[:1]))
    held = plain.consistency(0, torch.zeros_like, 1.0)(quarters(clean[:1]), 0.5)
    assert float((held - quarters(clean[:1])).abs().max()) > 0.01
    assert_close(quarters(codec.consistency(0, torch.zeros_like, 1.0)(clean[:1], 0.5)), held, atol=0, rtol=0)


def test_a_tiles_noise_has_a_frame_axis_where_the_host_wants_one(generator):
    first = torch.randn(1, 4, 3, 3, generator=generator)
    plain, framed = TileNoise(first, "cpu"), TileNoise(first, "cpu", frames=True)
    for _ in range(2):
        assert torch.equal(framed.next(), plain.next().unsqueeze(2))
    assert torch.equal(framed.between(3.0, 2.0), plain.between(3.0, 2.0).unsqueeze(2))
