"""Large arrays: the same bits in pieces as at once, little memory, files that vanish, and no need of a disk."""

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_dino import Settings, arrays, upscale
from lib_dino.errors import ImageError
from lib_dino.measure.quality import detail_energy, psnr
from lib_dino.pictures.picture import Picture, picture_from_pil
from lib_dino.run.prepare import estimate_noise, extend, has_palette, make_reference
from lib_dino.run.tiles import noise_canvas
from lib_dino.sampling.consistency import back_project
from lib_dino.tiling import resample

SIZES = [
    ((233, 311), (700, 933)), ((700, 933), (233, 311)), ((300, 200), (299, 801)), ((128, 128), (129, 129)),
    ((97, 31), (97, 64)), ((31, 97), (64, 97)),
]  # fmt: skip


@pytest.fixture
def in_files(monkeypatch, tmp_path):
    """Everything beyond 16 KiB lies in files and goes in bands of 64 KiB."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def switch() -> None:
        monkeypatch.setattr(arrays, "LARGE_BYTES", 2**14)
        monkeypatch.setattr(arrays, "BAND_BYTES", 2**16)
        monkeypatch.setattr(resample, "COLUMNS_PX", 40)
        monkeypatch.setattr("lib_dino.run.tiles.NOISE_PIECE", 160)
        monkeypatch.setattr("lib_dino.run.prepare.STRIP_PX", 32)

    return switch


def picture(*size: int, seed: int = 0) -> torch.Tensor:
    small = torch.rand(1, 3, *(side // 6 + 2 for side in size), generator=torch.Generator().manual_seed(seed))
    rough = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed + 1))
    return (0.9 * resample.resize(small, size) + 0.1 * rough).clamp(0, 1)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_a_picture_resized_in_pieces_has_the_same_bits(in_files, before, after):
    image = picture(*before)
    whole = resample.resize(image, after)
    in_files()
    assert torch.equal(resample.resize(image, after), whole)


@pytest.mark.parametrize("count", [16, 161, 2000, 4813])
def test_noise_drawn_in_pieces_has_the_same_bits(in_files, count):
    whole = noise_canvas((1, 1, 1, count), 5)
    in_files()
    arrays.LARGE_BYTES = 0
    assert torch.equal(noise_canvas((1, 1, 1, count), 5), whole)


@pytest.mark.parametrize("size", [(201, 133), (96, 256), (48, 48)])
def test_whatever_is_measured_of_a_source_is_the_same_in_pieces(in_files, size):
    image, other = picture(*size), picture(*size, seed=3)
    palette = (image * 3).round() / 3

    def measured():
        reference = make_reference(image, strength=1.0)
        return (
            estimate_noise(image), has_palette(image), has_palette(palette), torch.sum(reference.image).item(),
            extend(image, (208, 264)), back_project(image, other[..., ::2, ::2], strength=0.7, threshold=0.01),
        )  # fmt: skip

    whole, figures = measured(), (psnr(image, other), detail_energy(image))
    in_files()
    pieces = measured()
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(whole, pieces, strict=True))
    assert (psnr(image, other), detail_energy(image)) == pytest.approx(figures, rel=1e-6)
    assert has_palette(palette) and not has_palette(image)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_factor": 2, "denoise": 0.3},
        {"scale_factor": 2.6, "denoise": 0.5, "consistency": 0.9, "dino_strength": 1, "repair_tries": 1},
        {"scale_factor": 1.5, "denoise": 0.6, "consistency": 0, "max_drift": 0.05},
        {"scale_factor": 2, "denoise": 0.0, "clean_source": 0},
    ],
    ids=str,
)
def test_a_picture_made_in_files_has_the_same_bits(in_files, settings):
    source = Picture(picture(48, 66))
    asked = Settings(**{"steps": 2, "seed": 3, "tile_size": 96, "overlap": 16, **settings})
    whole = upscale(source, asked, measure=True)
    in_files()
    pieces = upscale(source, asked, measure=True)
    assert torch.equal(whole.picture.pixels, pieces.picture.pixels)
    assert {**whole.figures(), "seconds": 0} == {**pieces.figures(), "seconds": 0}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_pictures_of_every_kind_are_read_and_given_back_the_same(in_files, mode):
    values = (picture(80, 60)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    image = Image.fromarray(values).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    whole = picture_from_pil(image)
    bytes_ = whole.to_pil().tobytes()
    in_files()
    pieces = picture_from_pil(image)
    assert torch.equal(whole.pixels, pieces.pixels) and pieces.to_pil().tobytes() == bytes_
    assert (whole.alpha is None) == (pieces.alpha is None)


def mapped(folder: Path) -> list[str]:
    """Mapped files of `folder` that have no name any more."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if f"{folder}/" in line and "(deleted)" in line]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_a_large_array_lies_in_a_file_that_vanishes_with_it(in_files, tmp_path):
    in_files()
    array = arrays.zeros((1, 3, 64, 64))
    assert len(mapped(tmp_path)) == 1 and not list(tmp_path.iterdir())
    array += 1
    arrays.release()
    assert float(array.sum()) == array.numel()
    del array
    gc.collect()
    assert not mapped(tmp_path)
    assert arrays.zeros((1, 3, 8, 8)).numel() and not mapped(tmp_path)


def test_where_the_disk_has_no_room_memory_is_taken(in_files, monkeypatch):
    in_files()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert float(arrays.zeros((1, 3, 64, 64)).sum()) == 0
    monkeypatch.setattr(arrays, "MEMORY_SHARE", 0)
    with pytest.raises(ImageError, match=r"0\.0 GB more .* no room .*TMPDIR"):
        arrays.zeros((1, 3, 64, 64))


def test_a_result_may_be_written_over_what_it_was_made_of(in_files, generator):
    one, two = torch.rand(2, 1, 3, 64, 64, generator=generator)
    expected = arrays.by_bands(torch.add, one, two)
    in_files()
    made = arrays.copied(two)
    assert arrays.by_bands(torch.add, one, made, into=made) is made
    assert torch.equal(made, expected)


def test_the_folder_is_the_one_that_the_user_sets(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert arrays.folder() == tmp_path
    monkeypatch.delenv("TMPDIR")
    assert arrays.folder() in (Path("/var/tmp"), Path(__import__("tempfile").gettempdir()))
