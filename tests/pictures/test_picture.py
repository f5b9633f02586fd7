import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch.testing import assert_close

from lib_dino.errors import ImageError
from lib_dino.pictures import picture as images
from lib_dino.pictures.picture import (
    Picture,
    picture_from_pil,
    read_picture,
    read_settings_text,
    write_picture,
)

RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def noise(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)


def colour_at(picture: Picture, row: int, col: int) -> tuple[float, ...]:
    return tuple(picture.pixels[0, :, row, col].tolist())


def png_16_bit(values: np.ndarray, colour_type: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_eight_bit_pictures_come_back_as_they_were(tmp_path, mode, channels):
    values = noise(5, 7, channels)
    values[..., -1] |= 1  # nowhere fully transparent
    Image.fromarray(values.squeeze(2) if channels == 1 else values).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    write_picture(picture, tmp_path / "out.png", text="x")
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image).reshape(values.shape), values)


def test_pixels_are_rgb_floats_from_zero_to_one_with_height_before_width():
    image = Image.new("RGB", (3, 2))
    image.putpixel((2, 0), (255, 0, 51))
    picture = picture_from_pil(image)
    assert (picture.size, picture.pixels.shape, picture.pixels.dtype) == ((2, 3), (1, 3, 2, 3), torch.float32)
    assert_close(picture.pixels[0, :, 0, 2], torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_the_thinnest_pictures_come_back_as_they_were(tmp_path, size):
    values = noise(*size, 4)
    values[..., 3] |= 1
    write_picture(picture_from_pil(Image.fromarray(values)), tmp_path / "thin.png", text="x")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "thin.png")), values)


def test_one_bit_pictures_are_grey_from_black_to_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    picture = picture_from_pil(image)
    assert picture.grey
    assert picture.pixels[0, :, 0].tolist() == [[0.0, 1.0]] * 3


def test_sixteen_bit_grey_keeps_steps_that_eight_bits_would_lose(tmp_path):
    values = np.array([[0, 1, 32768, 32769, 65535]])
    (tmp_path / "deep.png").write_bytes(png_16_bit(values[..., None], 0))
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        picture = read_picture(tmp_path / name)
        assert picture.grey
        assert_close(picture.pixels[0, 0], torch.from_numpy(values / 65535).float(), atol=1e-7, rtol=0)
        assert "16-bit" in picture.notes[0]


def test_sixteen_bit_colour_says_that_its_lower_bits_are_not_read(tmp_path):
    values = noise(4, 4, 3).astype(np.uint16) * 256 + 130
    (tmp_path / "deep.png").write_bytes(png_16_bit(values, 2))
    picture = read_picture(tmp_path / "deep.png")
    assert "upper 8 bits" in picture.notes[0]
    assert_close(picture.pixels[0].permute(1, 2, 0).numpy() * 65535, values.astype(np.float32), atol=257, rtol=0)


def test_eight_bit_pictures_carry_no_note(tmp_path):
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "plain.png")
    assert read_picture(tmp_path / "plain.png").notes == ()


def test_float_pictures_are_read_as_they_are_and_small_overshoot_is_cut_off(tmp_path):
    values = np.array([[0.0, 0.25, 1.0], [-0.1, 0.5, 1.1]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    picture = read_picture(tmp_path / "float.tif")
    assert_close(picture.pixels[0, 1], torch.from_numpy(values).clamp(0, 1))
    assert "cut off" in picture.notes[0]


@pytest.mark.parametrize("odd", [255.0, -3.0, float("nan"), float("inf")])
def test_float_pictures_of_another_scale_are_refused(odd):
    with pytest.raises(ImageError, match=r"0 \(black\) to 1 \(white\)"):
        picture_from_pil(Image.fromarray(np.array([[0.0, odd]], dtype=np.float32)))


def test_a_palette_with_a_transparent_entry_has_alpha(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=1)
    picture = read_picture(tmp_path / "palette.png")
    assert picture.alpha is not None
    assert picture.alpha[0, 0].tolist() == [[1.0, 0.0]]
    assert colour_at(picture, 0, 0) == RED


def test_a_palette_without_transparency_has_none():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    picture = picture_from_pil(image)
    assert picture.alpha is None
    assert colour_at(picture, 0, 1) == RED


def test_a_colour_declared_transparent_has_alpha(tmp_path):
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    image.save(tmp_path / "keyed.png", transparency=(0, 0, 255))
    assert read_picture(tmp_path / "keyed.png").alpha[0, 0].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used_and_said_so(tmp_path, kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / "moving"
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:], duration=50)
    picture = read_picture(path)
    assert colour_at(picture, 2, 3) == pytest.approx(RED, abs=0.02)
    assert "first of 3 frames" in picture.notes[0]


def cmyk_profile() -> bytes:
    """A profile in which one full ink of whichever colour prints mid-grey, two or more print black."""
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536, 0, 0, 0, 65536, 0, 0, 0, 65536))
    lightness = [(255, 136, 0, 0, 0)[inks.bit_count()] for inks in range(16)]
    table += ramp * 4 + b"".join(bytes([level, 128, 128]) for level in lightness) + ramp * 3
    text = b"text\0\0\0\0tiny\0\0\0\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    tags, data, at = b"", b"", 128 + 4 + 12 * 4
    for name, body in ((b"A2B0", table), (b"desc", text), (b"cprt", text), (b"wtpt", white)):
        tags += name + struct.pack(">II", at + len(data), len(body))
        data += body + b"\0" * (-len(body) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", 4) + tags + data


def test_cmyk_goes_to_srgb_through_its_profile(tmp_path):
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "ink.jpg", icc_profile=cmyk_profile())
    picture = read_picture(tmp_path / "ink.jpg")
    assert colour_at(picture, 1, 1) == pytest.approx((0.5, 0.5, 0.5), abs=0.03)  # not cyan
    assert picture.icc_profile is None
    assert "through its ICC profile" in picture.notes[0]


@pytest.mark.parametrize("profile", [None, b"no profile at all"])
def test_cmyk_without_a_usable_profile_is_converted_and_said_so(tmp_path, profile):
    image = Image.new("CMYK", (4, 4), (255, 0, 255, 0))
    image.save(tmp_path / "ink.tif", **({"icc_profile": profile} if profile else {}))
    picture = read_picture(tmp_path / "ink.tif")
    assert colour_at(picture, 1, 1) == pytest.approx(GREEN, abs=0.02)
    assert "colours may be off" in picture.notes[0]


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.webp", "turned.tif"])
def test_a_turned_picture_is_set_upright_and_its_other_exif_kept(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # stored lying on its side
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))  # its left half goes to the top
    image.save(tmp_path / name, exif=exif.tobytes())
    picture = read_picture(tmp_path / name)
    assert picture.size == (16, 8)
    assert picture.pixels[..., :7, :].max() < 0.1 < 0.9 < picture.pixels[..., 9:, :].min()
    write_picture(picture, tmp_path / "upright.jpg", text="x")
    with Image.open(tmp_path / "upright.jpg") as written:
        assert written.size == (8, 16)
        assert written.getexif().get(0x0112, 1) == 1
        if not name.endswith(".tif"):  # a TIFF's tags describe its own storage
            assert written.getexif()[0x010F] == "Maker"


@pytest.mark.parametrize(
    "exif", [b"garbage, no header", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"]
)
def test_damaged_exif_costs_neither_the_picture_nor_its_text(tmp_path, exif):
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "bad.jpg", exif=b"Exif\0\0" + exif)
    picture = read_picture(tmp_path / "bad.jpg")
    write_picture(picture, tmp_path / "good.jpg", text="Steps: 20")
    assert read_settings_text(tmp_path / "good.jpg") == "Steps: 20"


def test_exif_that_is_no_exif_is_left_out_and_said_so(tmp_path):
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "bad.jpg", exif=b"Exif\0\0garbage, no header")
    picture = read_picture(tmp_path / "bad.jpg")
    assert picture.exif is None
    assert "EXIF" in picture.notes[0]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_colour_profile_exif_and_text_survive_in_every_format(tmp_path, name, mode):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0xA002] = 6  # a width that will be out of date
    Image.new(mode, (6, 4), 128).save(tmp_path / "in.png", icc_profile=profile, exif=exif.tobytes())
    larger = dataclasses.replace(read_picture(tmp_path / "in.png"), pixels=torch.full((1, 3, 8, 12), 0.5))
    write_picture(larger, tmp_path / name, text="Größe: 1, ✓: 2")
    assert read_settings_text(tmp_path / name) == "Größe: 1, ✓: 2"
    with Image.open(tmp_path / name) as image:
        assert image.info["icc_profile"] == profile
        assert image.getexif()[0x010F] == "Maker"
        assert image.getexif().get_ifd(0x8769).get(0xA002, 12) == 12
        assert image.mode == mode or name == "a.webp"


def test_colour_under_transparent_pixels_is_its_neighbours():
    values = np.zeros((40, 60, 4), dtype=np.uint8)  # black where nobody sees it
    values[10:30, 10:25] = (255, 0, 0, 255)
    values[10:30, 35:50] = (0, 255, 0, 255)
    picture = picture_from_pil(Image.fromarray(values))
    assert all(colour_at(picture, row, col) == RED for row in (9, 31) for col in range(10, 25))
    assert all(colour_at(picture, row, 51) == GREEN for row in range(10, 30))
    assert picture.pixels.amax(1).min() > 0.4  # no black is left anywhere
    assert_close(picture.alpha[0, 0].numpy() * 255, values[..., 3].astype(np.float32))


def test_an_enlarged_cut_out_has_no_dark_fringe():
    values = np.zeros((16, 16, 4), dtype=np.uint8)
    values[4:12, 4:12] = (255, 255, 255, 255)
    picture = picture_from_pil(Image.fromarray(values))
    shown = torch.nn.functional.interpolate(picture.pixels, scale_factor=2.0, mode="bicubic")
    assert shown.min() > 0.99


def test_a_fully_transparent_picture_keeps_its_colours():
    values = np.concatenate([noise(4, 4, 3), np.zeros((4, 4, 1), dtype=np.uint8)], axis=2)
    assert np.array_equal(np.asarray(picture_from_pil(Image.fromarray(values)).to_pil()), values)


def test_alpha_that_would_be_written_as_opaque_is_not_transparent():
    alpha = torch.full((1, 1, 2, 2), 1 - 1e-6)  # what resizing makes of 1
    assert not Picture(torch.zeros(1, 3, 2, 2), alpha).transparent
    assert Picture(torch.zeros(1, 3, 2, 2), alpha * 254 / 255).transparent


def test_jpeg_refuses_transparency_and_takes_an_opaque_alpha_channel(tmp_path):
    with pytest.raises(ImageError, match="PNG"):
        write_picture(picture_from_pil(Image.new("RGBA", (4, 4), (9, 9, 9, 254))), tmp_path / "a.jpg", text="x")
    assert list(tmp_path.iterdir()) == []
    write_picture(picture_from_pil(Image.new("RGBA", (4, 4), (9, 9, 9, 255))), tmp_path / "a.jpg", text="x")
    assert read_picture(tmp_path / "a.jpg").alpha is None


def test_jpeg_keeps_full_colour_resolution(tmp_path):
    write_picture(picture_from_pil(Image.fromarray(noise(16, 16, 3))), tmp_path / "a.jpg", text="x")
    with Image.open(tmp_path / "a.jpg") as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3  # no subsampling


def test_exif_too_long_for_a_jpeg_gives_way_to_the_text(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "M" * 65_400
    picture = Picture(torch.rand(1, 3, 4, 4), exif=exif.tobytes())
    write_picture(picture, tmp_path / "a.jpg", text="Steps: 20, Seed: 1, Size: 4x4")
    assert read_settings_text(tmp_path / "a.jpg") == "Steps: 20, Seed: 1, Size: 4x4"


def test_a_failing_write_leaves_neither_a_picture_nor_a_temporary_file(tmp_path, monkeypatch):
    def break_off(self, file, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.png").write_bytes(b"what was there before")
    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(ImageError, match="No space left"):
        write_picture(picture_from_pil(Image.new("L", (2, 2))), tmp_path / "a.png", text="x", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"what was there before"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(self, file, **options):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_picture(picture_from_pil(Image.new("L", (2, 2))), tmp_path / "a.png", text="x")
    assert list(tmp_path.iterdir()) == []


def test_reading_leaves_the_callers_image_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("P", (4, 2)).save(buffer, "PNG", exif=exif.tobytes())
    image = Image.open(buffer)
    assert picture_from_pil(image).size == (4, 2)
    assert (image.size, image.mode, image.getexif()[0x0112]) == ((4, 2), "P", 6)


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4, 4), (1, 1, 4, 4)])
def test_a_picture_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="1, 3, H, W"):
        Picture(torch.zeros(shape))


def test_values_round_to_the_nearest_level():
    picture = Picture(torch.tensor([0.4, 0.6, 254.6]).div(255).view(1, 3, 1, 1))
    assert picture.to_pil().getpixel((0, 0)) == (0, 1, 255)


def test_the_public_names_are_all_there():
    assert all(hasattr(images, name) for name in images.__all__)
