"""Tiny checkpoints without a host: equal seeds give equal files, and the straight paths lead through."""

import zipfile

import pytest
import torch
from checkpoints import families, text
from checkpoints.transformer import CHANNELS, HIGHPASS, LIFT, PATCH, patch_map
from checkpoints.vae import tiny_autoencoder
from make_checkpoint import save_pickled
from torch import nn


@pytest.fixture
def little_text(monkeypatch):
    """Text encoders that are made in no time."""
    monkeypatch.setattr(text, "TOKENS", 8)
    monkeypatch.setattr(text, "T5_TOKENS", 8)
    for name in ("CLIP_L", "CLIP_G"):
        monkeypatch.setattr(families, name, text.ClipSizes(64, 64))


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_equal_seeds_give_equal_bits_and_others_do_not(little_text, family):
    one, again, other = (families.checkpoint(seed, noise=0.1, family=family) for seed in (3, 3, 4))
    assert one.keys() == again.keys() == other.keys()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert sum(not torch.equal(one[name], other[name]) for name in one) > len(one) / 3
    assert all(tensor.isfinite().all() for tensor in one.values())


class Block(nn.Module):
    """A residual block of TAESD's format."""

    def __init__(self):
        super().__init__()
        parts = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2])

    def forward(self, x):
        return (self.conv(x) + x).relu()


class Clamp(nn.Module):
    """What TAESD does to latents first."""

    def forward(self, x):
        return torch.tanh(x / 3) * 3


def encoder(channels):
    def half():
        return [nn.Conv2d(64, 64, 3, 2, 1, bias=False), Block(), Block(), Block()]

    first, last = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, channels, 3, padding=1)
    return nn.Sequential(first, Block(), *half(), *half(), *half(), last)


def decoder(channels):
    def double():
        return [Block(), Block(), Block(), nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]

    first, last = nn.Conv2d(channels, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)
    return nn.Sequential(Clamp(), first, nn.ReLU(), *double(), *double(), *double(), Block(), last)


@pytest.mark.parametrize("family", sorted(families.LATENTS))
def test_tiny_autoencoders_give_the_means_of_blocks_and_paint_them(family):
    latents = families.LATENTS[family]
    pair = encoder(latents.channels), decoder(latents.channels)
    for network, tensors in zip(pair, tiny_autoencoder(0, latents), strict=True):
        network.load_state_dict(tensors)  # strict: the names and shapes of the hosts' own
    picture = 0.4 + 0.2 * torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    means = torch.nn.functional.avg_pool2d(picture, 8)
    with torch.no_grad():
        given = pair[0](picture)
        painted = pair[1](given)
    shown = torch.einsum("bchw,rc->brhw", given, latents.to_rgb())
    assert torch.allclose((shown + 1) / 2, means, atol=1e-4)
    assert torch.allclose(painted, nn.functional.interpolate(means, scale_factor=8), atol=0.02)  # TAESD's clamp


def test_pickled_files_are_equal_and_hold_what_every_host_opens(tmp_path):
    tensors = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.ones(2)}
    first, second = tmp_path / "one.pth", tmp_path / "two.pth"
    for path in (first, second):
        save_pickled(tensors, path)
    assert first.read_bytes() == second.read_bytes()
    read = torch.load(first, weights_only=True)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    names = {name.partition("/")[2] for name in zipfile.ZipFile(first).namelist()}
    assert names == {"data.pkl", "version", "data/0", "data/1"}


def test_a_patch_is_answered_by_its_detail_and_its_mean():
    cells = PATCH**2
    flat = torch.ones(CHANNELS, cells)
    detail = torch.tensor([1.0, -1.0, 2.0, -2.0]).expand(CHANNELS, cells)
    answer = (patch_map() @ (3 * flat + detail).reshape(-1)).view(CHANNELS, cells)
    assert torch.allclose(answer, HIGHPASS * detail - LIFT * 3 * flat, atol=1e-5)
