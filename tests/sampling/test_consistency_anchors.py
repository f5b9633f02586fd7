"""Every way to hold an estimate to its source: faithful sharp pictures keep their sharpness, foreign things go.

The autoencoder is a mixed block cosine transform: like a trained one it codes blur in all of its channels, and the
mean colour of a cell is linear in them.
"""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from lib_dino.measure.quality import detail_energy, psnr
from lib_dino.sampling.consistency import COLOR_THRESHOLD, Autoencoder, AutoencoderConsistency, color_step
from lib_dino.sampling.latent_codec import LatentCodec
from lib_dino.tiling.resample import resize, tile_operators
from lib_dino.webui.model.family import ASSUMED
from lib_dino.webui.model.latent_rgb import color_map

SIDE, CELL, CHANNELS = 128, 8, 16


def _cosines():
    """(16, 3, 8, 8): the mean of each colour and fine cosines of grey, orthonormal."""
    k, x = torch.arange(CELL).float(), torch.arange(CELL).float()
    line = torch.cos(math.pi * k[:, None] * (x[None] + 0.5) / CELL) * math.sqrt(2 / CELL)
    line[0] /= math.sqrt(2)
    fine = [(u, v) for v in range(7, 2, -1) for u in range(3, 6)]  # the weave below among them
    grey = torch.tensor([1.0, 1.0, 1.0]) / math.sqrt(3)
    bases = [torch.einsum("c,y,x->cyx", colour, line[0], line[0]) for colour in torch.eye(3)]
    bases += [torch.einsum("c,y,x->cyx", grey, line[u], line[v]) for u, v in fine[: CHANNELS - 3]]
    return torch.stack(bases)


class BlockAutoencoder:
    """Pictures (1, 3, H, W) in [0, 1] to latents (1, 16, H / 8, W / 8) and back."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator))[0]
        self.kernel = torch.einsum("kc,cxyz->kxyz", self.mix, _cosines())

    def encode(self, image):
        return F.conv2d(2 * image - 1, self.kernel, stride=CELL) / CELL

    def decode(self, latent):
        return (F.conv_transpose2d(CELL * latent, self.kernel, stride=CELL) + 1) / 2

    @property
    def table(self):
        """(17, 3): the mean colour of a cell, in [-1, 1]."""
        return torch.cat([self.mix[:, :3], torch.zeros(1, 3)])


@pytest.fixture(scope="module")
def scene():
    """Smooth colours, edges and a fine weave; and another one."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    made = []
    for _ in range(2):
        coarse = F.interpolate(torch.rand(1, 3, 5, 5, generator=generator), size=(SIDE, SIDE), mode="bicubic")
        shapes = F.interpolate(torch.rand(1, 3, 9, 9, generator=generator), size=(SIDE, SIDE), mode="nearest")
        # Finer than a source of half the size can show, and the same in every cell.
        weave = 0.08 * torch.cos(math.tau * 3 * (x + 0.5) / CELL) * torch.cos(math.tau * 2 * (y + 0.5) / CELL)
        made.append((0.6 * coarse + 0.3 * shapes + weave).clamp(0.05, 0.95))
    return made


def naive(clean, reference, auto):
    """The latents' low frequencies swapped for the source's: what must not be done."""
    return F.avg_pool2d(F.pad(reference - clean, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def by_colour(clean, reference, auto):
    return color_step(clean, reference, auto.table)


ANCHORS = {"naive": naive, "by colour": by_colour}


def judged(name, scale, scene):
    """(share of sharpness kept on a faithful picture, decibels won inside a pasted object)."""
    truth, other = scene
    auto = BlockAutoencoder()
    source = resize(truth, (SIDE // scale, SIDE // scale)).clamp(0, 1)
    reference = auto.encode(resize(source, (SIDE, SIDE)).clamp(0, 1))
    box = (slice(None), slice(None), slice(32, 88), slice(40, 96))
    pasted = truth.clone()
    pasted[box] = (1.2 * other - 0.6 * truth + 0.3).clamp(0, 1)[box]

    if name == "tiny autoencoder":
        operators = tile_operators((SIDE // scale, SIDE // scale), (SIDE, SIDE), slice(0, SIDE), slice(0, SIDE))

        def pull(picture):
            return operators.up(source - operators.down(picture))

        def held(latent):
            return AutoencoderConsistency(Autoencoder(auto.encode, auto.decode), (1.0,), pull, 1.0, None)(latent, 0.5)
    else:

        def held(latent):
            return latent + ANCHORS[name](latent, reference, auto)

    sharp = auto.decode(auto.encode(truth))
    kept = (detail_energy(auto.decode(held(auto.encode(truth)))) / detail_energy(sharp)) ** 0.5
    cells = F.avg_pool2d(truth, CELL)[..., 4:11, 5:12]
    before, after = (
        F.avg_pool2d(auto.decode(z), CELL)[..., 4:11, 5:12]
        for z in (auto.encode(pasted), held(auto.encode(pasted)))
    )
    return kept, psnr(after, cells) - psnr(before, cells)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["by colour", "tiny autoencoder"])
def test_faithful_sharpness_stays_and_a_pasted_object_goes(name, scale, scene):
    kept, won = judged(name, scale, scene)
    assert kept >= 0.95
    assert won > 8


@pytest.mark.parametrize("scale", [2, 4])
def test_swapping_low_frequencies_of_latents_fails_that_very_test(scale, scene):
    kept, _ = judged("naive", scale, scene)
    assert kept < 0.95


def test_colours_that_agree_but_for_the_maps_own_error_are_left_alone():
    auto = BlockAutoencoder()
    reference = torch.zeros(1, CHANNELS, 6, 6)
    nearly = torch.einsum("c,kc->k", torch.full((3,), 0.9 * COLOR_THRESHOLD), auto.mix[:, :3]).view(1, -1, 1, 1)
    assert torch.equal(color_step(reference + nearly, reference, auto.table), torch.zeros_like(reference))


def test_the_pull_moves_what_carries_no_colour_least():
    generator = torch.Generator().manual_seed(1)
    auto = BlockAutoencoder()
    reference, estimate = torch.randn(2, 1, CHANNELS, 8, 8, generator=generator)
    moved = color_step(estimate, reference, auto.table)
    colour = torch.einsum("bchw,cr->brhw", moved, auto.mix[:, :3])
    assert float(colour.square().mean()) > 0.5 * float(moved.square().sum(1).mean()) / 3


def held_by_color(latents, number, clean, strength):
    colors = color_map(dataclasses.replace(ASSUMED, channels=latents.shape[1]))
    return LatentCodec(colors, 8, latents).consistency(number, lambda picture: picture, strength)(clean, 0.5)


def test_half_the_strength_goes_half_the_way_and_unknown_latents_stay():
    generator = torch.Generator().manual_seed(2)
    clean, reference = torch.randn(2, 1, 4, 6, 6, generator=generator)
    whole, half = (held_by_color(reference, 0, clean, s) - clean for s in (1.0, 0.5))
    assert float(whole.abs().max()) > 0.01
    torch.testing.assert_close(half, whole / 2)
    strange = torch.randn(1, 7, 6, 6, generator=generator)
    assert held_by_color(torch.zeros_like(strange), 0, strange, 1.0) is strange


def test_each_tile_of_a_batch_is_held_to_its_own_source():
    generator = torch.Generator().manual_seed(4)
    clean, *tiles = torch.randn(3, 1, 4, 6, 6, generator=generator)
    for number, tile in enumerate(tiles):
        alone = held_by_color(tile, 0, clean, 1.0)
        assert torch.equal(held_by_color(torch.cat(tiles), number, clean, 1.0), alone)
