import pytest
import torch
from PIL import Image, ImageDraw
from torch.testing import assert_close

from lib_dino.cli.parser import EXAMPLE
from lib_dino.errors import ModelError
from lib_dino.measure.quality import detail_energy, psnr
from lib_dino.networks import texture_net as texture
from lib_dino.networks.texture_net import (
    DIRECTIONS,
    Texture,
    TextureNet,
    bands,
    embedded_texture,
    energies,
    expected,
    load_texture,
    save_texture,
    split,
    unseen,
)
from lib_dino.pictures.picture import read_picture
from lib_dino.run.finish import match_texture
from lib_dino.tiling.chunks import windows
from lib_dino.tiling.resample import resize


@pytest.fixture(scope="module")
def sharp():
    """A photograph of 256 px."""
    return resize(read_picture(EXAMPLE).pixels, (256, 256)).clamp(0, 1)


@pytest.fixture(scope="module")
def drawn():
    """A drawing of 256 px: hard edges on flat ground."""
    image = Image.new("RGB", (512, 512), (250, 240, 220))
    draw = ImageDraw.Draw(image)
    for i in range(8):
        draw.ellipse((60 * i, 40 * i, 60 * i + 90, 40 * i + 70), fill=(30 * i, 90, 200), outline=(10, 10, 10), width=4)
        draw.line((500 - 50 * i, 10, 40 + 20 * i, 500), fill=(20, 20, 20), width=3)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 512, 512, 3).permute(0, 3, 1, 2)
    return resize(pixels / 255, (256, 256)).clamp(0, 1)


def small(image, factor):
    return resize(image, (image.shape[-2] // factor, image.shape[-1] // factor)).clamp(0, 1)


def matched(image, source, factor, strength=1.0):
    size = (source.shape[-2], source.shape[-1])
    return match_texture(image, expected(embedded_texture(), source, factor), size, factor, strength=strength)


@pytest.mark.parametrize("factor", [1.3, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("size", [(32, 48), (31, 17), (1, 5)])
def test_bands_sum_to_the_picture(generator, size, factor):
    image = torch.rand(1, 3, *size, generator=generator)
    parts = split(image, factor)
    assert len(parts) == len(bands(size, factor)) == DIRECTIONS * texture.octaves(factor)
    assert_close(parts.sum(0, keepdim=True), image, atol=1e-5, rtol=0)


def test_directions_and_octaves_are_told_apart():
    across = torch.arange(64.0)
    fine, coarse = (torch.sin(torch.pi * share * across).expand(1, 3, 64, 64) for share in (0.75, 0.375))
    for image, octave in ((coarse, 0), (fine, 1)):
        for turned, direction in ((image, 0), (image.transpose(-1, -2), 2)):
            found = energies(split(turned, 4.0), 6.0).mean((1, 2, 3)).view(2, DIRECTIONS)
            assert int(found.argmax()) == DIRECTIONS * octave + direction
            assert float(found[octave, direction]) > 0.8 * float(found.sum())


def test_each_direction_is_scaled_to_its_own_expectation(generator):
    noise = unseen(torch.rand(1, 3, 64, 64, generator=generator), (32, 32)) / 4
    image, logs = 0.5 + noise, torch.full((DIRECTIONS, 1, 16, 16), -20.0)
    logs[1] = energies(split(noise, 2.0), 3.0)[1].mean().log()
    out = match_texture(image, Texture(logs, torch.zeros_like(logs)), (32, 32), 2.0, strength=1.0)
    before, after = (energies(split(unseen(x, (32, 32)), 2.0), 3.0).mean((1, 2, 3)) for x in (image, out))
    # Neighbouring directions overlap, so that some of the kept one goes with the others, and comes back in them.
    kept = after / before
    assert float(kept[1]) > 0.4 and float(kept[3]) < 0.04
    assert max(float(kept[0]), float(kept[2])) < 0.25 * float(kept[1])


def test_nothing_is_made_stronger_however_much_is_expected(generator):
    image = 0.5 + unseen(torch.rand(1, 3, 64, 64, generator=generator), (32, 32)) / 4
    logs = torch.full((DIRECTIONS, 1, 16, 16), 20.0)
    out = match_texture(image, Texture(logs, torch.zeros_like(logs)), (32, 32), 2.0, strength=1.0)
    assert_close(out, image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [2, 4])
def test_what_the_source_can_tell_is_not_touched(sharp, generator, factor):
    source = small(sharp, factor)
    noisy = (sharp + 0.05 * torch.randn(sharp.shape, generator=generator)).clamp(0, 1)
    out = matched(noisy, source, factor)
    assert psnr(small(out, factor), small(noisy, factor)) > 45
    assert psnr(out, noisy) < 40


# Lines of a third of a source pixel, as the drawing has at 4x, are more than can be expected of any source.
@pytest.mark.parametrize(("kind", "factor", "least"), [("sharp", 2, 0.95), ("sharp", 4, 0.95), ("drawn", 2, 0.95),
                                                       ("drawn", 4, 0.75)])  # fmt: skip
def test_a_faithful_sharp_picture_keeps_its_sharpness(request, kind, factor, least):
    truth = request.getfixturevalue(kind)
    out = matched(truth, small(truth, factor), float(factor))
    assert (detail_energy(out) / detail_energy(truth)) ** 0.5 >= least


@pytest.mark.parametrize("factor", [2, 4])
def test_what_was_made_up_in_a_flat_place_goes(generator, factor):
    flat = torch.full((1, 3, 128, 128), 0.5)
    made_up = unseen(flat + 0.04 * torch.randn(flat.shape, generator=generator), (128 // factor, 128 // factor))
    out = matched(flat + made_up, small(flat, factor), float(factor))
    assert float((out - flat).square().mean()) < 0.1 * float(made_up.square().mean())


def test_strength_nought_is_the_picture_itself_and_more_takes_more(sharp, generator):
    source = small(sharp, 2)
    noisy = (sharp + 0.05 * torch.randn(sharp.shape, generator=generator)).clamp(0, 1)
    assert matched(noisy, source, 2.0, strength=0.0) is noisy
    assert matched(noisy, source, 1.1) is noisy
    gains = [psnr(matched(noisy, source, 2.0, strength=s), sharp) for s in (0.25, 0.5, 0.75, 1.0)]
    assert psnr(noisy, sharp) < gains[0] < gains[1] < gains[2] < gains[3]


def test_windows_leave_no_trace(sharp, generator, monkeypatch):
    image = (sharp + 0.05 * torch.randn(sharp.shape, generator=generator)).clamp(0, 1)[..., :250, :190]
    source = resize(image, (125, 95)).clamp(0, 1)
    whole = matched(image, source, 2.0)
    monkeypatch.setattr(texture, "WINDOW_PX", 64)
    assert_close(matched(image, source, 2.0), whole, atol=4e-3, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4), (33, 20)])
@pytest.mark.parametrize("factor", [2.0, 3.0, 8.0])
def test_any_size_and_factor_will_do(generator, size, factor):
    source = torch.rand(1, 3, *size, generator=generator)
    image = torch.rand(1, 3, *(round(side * factor) for side in size), generator=generator)
    out = matched(image, source, factor)
    assert out.shape == image.shape and bool(out.isfinite().all())


def test_windows_cover_a_picture_once_and_know_their_surroundings():
    seen = torch.zeros(70, 33)
    for window in windows((70, 33), side=32, margin=10):
        seen[window.rows, window.cols] += 1
        around = torch.arange(70)[window.seen_rows]
        assert torch.equal(around[window.inner_rows], torch.arange(70)[window.rows])
        assert around[0] == max(0, window.rows.start - 10) and around[-1] == min(70, window.rows.stop + 10) - 1
    assert bool((seen == 1).all())


def test_files_are_read_back_and_damaged_ones_refused(tmp_path, generator):
    net = TextureNet(width=8).eval()
    path = tmp_path / "model.safetensors"
    save_texture(net, path)
    source = torch.rand(1, 3, 16, 16, generator=generator)
    assert_close(expected(load_texture(path), source, 2.0).log, expected(net, source, 2.0).log, atol=0.02, rtol=0.01)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="expected textures"):
        load_texture(path)
