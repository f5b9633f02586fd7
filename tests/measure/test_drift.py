import pytest
import torch
from made import tiny_network, whole
from torch.testing import assert_close

from lib_dino.measure.drift import DriftMeter, Thresholds, TileDrift, drift_map
from lib_dino.measure.features import grid_size, normalised, outliers
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.tiling.resample import resize, tile_operators


@pytest.fixture(scope="module")
def dino():
    return load_dinov2()


@pytest.fixture
def source(generator):
    coarse = torch.rand(1, 3, 16, 24, generator=generator)
    return (0.2 + 0.6 * resize(coarse, (112, 168))).clamp(0, 1)


def test_plain_enlargement_is_at_the_floor(dino, source):
    operators, plain = whole(source)
    found = DriftMeter(dino, source, plain=plain).tile(plain, operators)
    assert found.patches.max() < 1e-4
    assert found.mean == pytest.approx(found.baseline, abs=1e-5)
    assert found.share_over() == 0
    assert found.worst_tenth_mean < 1e-4


def test_a_foreign_object_is_found_where_it_lies(dino, source, generator):
    operators, plain = whole(source)
    made = plain.clone()
    made[..., 56:112, 224:280] = 1 - made[..., 56:112, 224:280]
    found = DriftMeter(dino, source, plain=plain).tile(made, operators)
    spread_out = drift_map([found], tuple(source.shape[-2:]))
    row, col = divmod(int(spread_out.argmax()), spread_out.shape[-1])
    assert 28 <= row < 56
    assert 112 <= col < 140
    assert 0 < found.share_over() < 0.5
    assert found.worst_tenth_mean > 10 * found.mean * found.share_over()


def test_sharpening_that_the_source_cannot_show_is_no_drift(dino, source):
    operators, plain = whole(source)
    checks = torch.ones(plain.shape[-2:])
    checks[::2, ::2] = checks[1::2, 1::2] = -1
    found = DriftMeter(dino, source, plain=plain).tile(plain + 0.2 * checks, operators)
    assert found.share_over() == 0


def test_tiles_measure_what_they_know_and_the_map_joins_them(dino, source):
    size = (224, 336)
    meter = DriftMeter(dino, source, plain=resize(source, size))
    tiles = []
    for x0 in (0, 112):
        operators = tile_operators((112, 168), size, slice(0, 224), slice(x0, x0 + 224))
        tiles.append(meter.tile(torch.zeros(1, 3, 224, 224), operators))
    assert tiles[0].cols.start == 0
    assert tiles[1].cols.stop == 168
    joined = drift_map(tiles, (112, 168))
    assert joined.shape == (1, 1, 112, 168)
    assert joined.min() > 0


def test_overlapping_maps_keep_the_larger_value():
    def flat(value, cols):
        return TileDrift(torch.full((2, 2), value), torch.ones(2, 2), 0.0, 0.0, 0.0, Thresholds(), slice(0, 4), cols)

    joined = drift_map([flat(0.5, slice(0, 6)), flat(0.2, slice(4, 10))], (4, 10))
    assert_close(joined[0, 0, 0], torch.tensor([0.5] * 6 + [0.2] * 4))


@pytest.mark.parametrize(("dim", "registers"), [(64, 0), (128, 4), (192, 4)])
def test_networks_of_any_width_and_with_registers_measure(tmp_path, source, dim, registers):
    dino = tiny_network(tmp_path, dim=dim, registers=registers)
    operators, plain = whole(source)
    meter = DriftMeter(dino, source, plain=plain)
    assert meter.tile(plain, operators).share_over(1e-3) == 0
    assert meter.tile(1 - plain, operators).share_over(1e-3) > 0.5


def test_tokens_that_keep_notes_are_found_and_weigh_nothing(tmp_path, source, monkeypatch):
    dino = tiny_network(tmp_path)
    norms = torch.rand(1, 16, 16) + 5
    norms[0, 3, 4] = 40
    assert outliers(norms).nonzero().tolist() == [[0, 3, 4]]
    assert not outliers(torch.full((1, 4, 4), 3.0)).any()
    real = dino.tokens_and_norms

    def with_note(image):
        grid, lengths = real(image)
        lengths[..., 2, 3] = 100 * lengths.max()
        return grid, lengths

    operators, plain = whole(source)
    before = DriftMeter(dino, source, plain=plain).tile(1 - plain, operators)
    monkeypatch.setattr(dino, "tokens_and_norms", with_note)
    after = DriftMeter(dino, source, plain=plain).tile(1 - plain, operators)
    assert before.patches[2, 3] > 0
    assert after.patches[2, 3] == 0
    assert (after.patches > 0).sum() == (before.patches > 0).sum() - 1


def test_networks_with_registers_need_no_such_care(tmp_path, source, monkeypatch):
    dino = tiny_network(tmp_path, dim=128, registers=4)
    monkeypatch.setattr(dino, "tokens_and_norms", None)
    operators, plain = whole(source)
    assert DriftMeter(dino, source, plain=plain).tile(plain, operators).worst_tenth_mean < 1e-3


def test_the_embedded_network_has_no_outliers(dino, source):
    grid, norms = dino.tokens_and_norms(normalised(dino, source, grid_size(112, 168)))
    assert not outliers(norms).any()
    assert_close(grid, dino.patch_tokens(normalised(dino, source, grid_size(112, 168))))


class Short:
    """Runs out of memory at the next `left` looks through the network, and notes where it was sent."""

    def __init__(self, dino, monkeypatch, left):
        self.left, self.sent, through = left, [], dino.layer_tokens

        def layer_tokens(*args, **kwargs):
            if self.left:
                self.left -= 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return through(*args, **kwargs)

        monkeypatch.setattr(dino, "layer_tokens", layer_tokens)
        monkeypatch.setattr(dino, "to", self.sent.append)


@pytest.mark.parametrize("times", [1, 2])
def test_where_features_do_not_fit_the_network_goes_on_on_the_cpu(source, quick_dino, monkeypatch, times):
    operators, plain = whole(source)
    expected = DriftMeter(quick_dino, source, plain=plain).tile(1 - plain, operators)
    meter = DriftMeter(quick_dino, source, plain=plain)
    short = Short(quick_dino, monkeypatch, times)
    if times == 1:
        assert torch.equal(meter.tile(1 - plain, operators).patches, expected.patches)
    else:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            meter.extract(source)
    assert short.sent == ["cpu"]
