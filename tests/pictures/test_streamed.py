"""Pictures written in strips: the same pixels and words as written at once, in every format; errors are said."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from lib_dino.errors import ImageError
from lib_dino.pictures import picture as pictures
from lib_dino.pictures import streamed
from lib_dino.pictures.picture import Picture, read_picture, read_settings_text, write_picture

pytest.importorskip("pyvips")

TEXT = "une forêt, 森\nSteps: 20, DINO scale: 2"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif() -> bytes:
    data = Image.Exif()
    data[271] = "A camera"
    return data.tobytes()


def picture(channels: int) -> Picture:
    noise = torch.rand(1, channels, 90, 121, generator=torch.Generator().manual_seed(channels))
    noise = (noise * 255).round() / 255
    alpha = noise[:, -1:].clone() if channels in (2, 4) else None
    return Picture(noise[:, :3].expand(1, 3, -1, -1) if channels > 2 else noise[:, :1].expand(1, 3, -1, -1).clone(),
                   alpha, channels < 3, ICC, exif())  # fmt: skip


@pytest.fixture
def in_strips(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE_PX", 100)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_picture_written_in_strips_is_read_as_one_written_at_once(monkeypatch, tmp_path, channels, suffix):
    given = picture(channels)
    if suffix == ".jpg" and given.alpha is not None:
        given = Picture(given.pixels, torch.ones_like(given.alpha), given.grey, ICC, exif())
    once = read_picture(write_picture(given, tmp_path / f"once{suffix}", text=TEXT))
    monkeypatch.setattr(pictures, "LARGE_PX", 100)
    strips = read_picture(write_picture(given, tmp_path / f"strips{suffix}", text=TEXT))
    assert (tmp_path / f"once{suffix}").read_bytes() != (tmp_path / f"strips{suffix}").read_bytes()
    assert strips.grey == once.grey == given.grey and (strips.alpha is None) == (once.alpha is None)
    # Two JPEG encoders round differently.
    off = (strips.pixels - once.pixels).abs().mean() * 255
    assert off == 0 if suffix != ".jpg" else off < 1.5
    if once.alpha is not None:
        assert torch.equal(strips.alpha, once.alpha)
    if suffix != ".tif" or channels > 2:  # libvips gives a grey picture no profile for colours
        assert strips.icc_profile == once.icc_profile == ICC
    assert read_settings_text(tmp_path / f"strips{suffix}") == TEXT
    if suffix != ".tif":
        assert strips.exif == once.exif and b"A camera" in strips.exif


def test_a_png_in_strips_has_the_text_where_the_webuis_look(in_strips, tmp_path):
    path = write_picture(picture(3), tmp_path / "a.png", text=TEXT)
    with Image.open(path) as image:
        assert image.info["parameters"] == TEXT
        image.load()
        assert np.asarray(image).shape == (90, 121, 3)


def test_a_tiff_beyond_the_classic_size_is_a_bigtiff(in_strips, monkeypatch, tmp_path):
    monkeypatch.setattr(streamed, "_CLASSIC_TIFF_BYTES", 1000)
    given = picture(3)
    path = write_picture(given, tmp_path / "a.tif", text=TEXT)
    assert path.read_bytes()[2] == 43
    assert torch.equal(read_picture(path).pixels, given.pixels)


def test_a_full_disk_is_said_and_leaves_nothing(in_strips, monkeypatch, tmp_path):
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    before = streamed._Spliced.__init__
    monkeypatch.setattr(streamed._Spliced, "__init__", lambda self, _, *rest: before(self, Full(), *rest))
    with pytest.raises(ImageError, match="No space left"):
        write_picture(picture(3), tmp_path / "a.png", text=TEXT)
    assert not list(tmp_path.iterdir())


def test_without_the_library_pictures_are_written_at_once(in_strips, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given = picture(3)
    assert torch.equal(read_picture(write_picture(given, tmp_path / "a.png", text=TEXT)).pixels, given.pixels)
