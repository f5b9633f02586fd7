"""The benchmarks that run the command line: at work on one tiny picture."""

import torch
from PIL import Image

from benchmarks import chaos, limits
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.settings import Settings
from lib_dino.tiling.plan import Tile


def test_memory_and_time_are_measured(capsys, tmp_path):
    rows, drawn = tmp_path / "rows", tmp_path / "plot.png"
    rows.write_text('{"megapixels": 4.0, "mib": 800.0, "seconds": 10.0, "said": 6.0}\n')
    limits.main(["--megapixels", "0.01", "--rows", str(rows), "--plot", str(drawn), "--", "--denoise", "0"])
    said = capsys.readouterr().out.splitlines()
    assert len(limits.kept(rows)) == 2 and said[-3].startswith("| 4 | 800 |")
    with Image.open(drawn) as image:
        assert image.getextrema() == ((0, 255),) * 3
    row = said[-4]
    megapixels, mib, seconds, *_ = (float(cell) for cell in row.strip("|").split("|"))
    assert megapixels == 0 and 50 < mib < 2000 and 0 < seconds < 100


def test_faults_are_injected_and_survived(capsys):
    faults = ["NaN", "black tile"]
    code = chaos.main(["--side", "40", "--steps", "10", "--faults", *faults, "--places", "last", "--shares"])
    said = capsys.readouterr().out
    assert code == 0 and "4 faults, 0 not survived" in said
    assert said.count("keeps the enlarged source") == 2  # always, not once


def test_a_fault_that_spreads_is_not_survived():
    expected, tile = torch.full((1, 3, 80, 80), 0.5), Tile(0, 0, 32, 32)
    inside, outside = expected.clone(), expected.clone()
    inside[..., 3, 3], outside[..., 60, 60] = 0.9, 0.9
    assert chaos.lost_bytes(inside, expected, tile) == 0
    assert chaos.lost_bytes(outside, expected, tile) == 3
    inside[..., 3, 3] = torch.nan
    assert chaos.lost_bytes(inside, expected, tile) == 3


def test_the_fault_hits_its_tile_alone():
    source = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    settings = Settings(seed=1, steps=10, tile_size=64, overlap=16, dino_enabled=False, consistency=0.0, clean_source=0)
    sound = chaos.run(source, settings, PixelTileModel())
    failing = chaos.Failing(PixelTileModel(), "black tile", sound.tiles[0], 1)
    again = chaos.run(source, settings, failing)
    assert failing.left == 0
    last = sound.tiles[-1]
    assert torch.allclose(again.image[..., 64:, 64:], sound.image[..., 64:, 64:], atol=1e-3)
    assert (again.image[..., :16, :16] - sound.image[..., :16, :16]).abs().max() > 0.01 and last.y1 == 80
