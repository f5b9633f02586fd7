import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made import tiny_network
from PIL import Image

from lib_dino.errors import ModelError
from lib_dino.measure.calibration import Thresholds, files_beside, load_calibration, save_thresholds
from lib_dino.measure.drift import Yardstick
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.networks.edit_detector import DetailHead, HeadShape, load_head, save_head, tokens_at
from lib_dino.tiling.resample import resize, tile_operators


@pytest.fixture
def dino(tmp_path):
    return tiny_network(tmp_path, depth=3)


def whole(source, factor=2):
    size = (source.shape[-2] * factor, source.shape[-1] * factor)
    return tile_operators(source.shape[-2:], size, slice(0, size[0]), slice(0, size[1])), resize(source, size)


def head_for(dino, generator, **shape):
    torch.manual_seed(3)
    head = DetailHead(HeadShape(dino.dim, (1, 3), width=8, pixels=4, **shape))
    torch.nn.init.normal_(head.out.weight)
    return head.eval().requires_grad_(False)


def test_the_embedded_network_is_calibrated():
    dino = load_dinov2()
    found = load_calibration(dino)
    assert found.thresholds.measured
    assert 0 < found.thresholds.bound < found.thresholds.invented < 2
    assert found.thresholds.note == ""
    assert found.head.shape.dim == dino.dim


def test_a_network_without_a_calibration_gets_the_defaults_and_says_so(dino):
    found = load_calibration(dino)
    assert not found.thresholds.measured
    assert found.head is None
    assert "make calibrate" in found.thresholds.note


def test_what_was_saved_comes_back(dino, generator):
    settings, weights = files_beside(dino.path)
    head = head_for(dino, generator)
    save_head(head, weights)
    save_thresholds(settings, dino, Thresholds(0.03, 0.4, 0.9, measured=True), {})
    found = load_calibration(dino)
    assert found.thresholds == Thresholds(0.03, 0.4, 0.9, measured=True)
    assert found.head.shape == head.shape
    torch.testing.assert_close(found.head.join.weight, head.join.weight, atol=1e-3, rtol=1e-3)


def test_a_single_file_has_a_calibration_of_its_own_name():
    settings, head = files_beside(Path("models/dino_small.safetensors"))
    assert (settings.name, head.name) == ("dino_small.calibration.json", "dino_small.detail_head.safetensors")


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1}', "[1]"])
def test_a_damaged_calibration_is_refused(dino, text):
    files_beside(dino.path)[0].write_text(text)
    with pytest.raises(ModelError, match="calibrate"):
        load_calibration(dino)


def test_another_networks_calibration_is_refused(dino):
    settings, _ = files_beside(dino.path)
    save_thresholds(settings, dino, Thresholds(measured=True), {})
    held = json.loads(settings.read_text())
    settings.write_text(json.dumps({**held, "network": "0" * 16}))
    with pytest.raises(ModelError, match="another network"):
        load_calibration(dino)


def test_a_head_for_other_features_is_refused(dino, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "head.safetensors"
    save_head(DetailHead(HeadShape(dino.dim + 1, (1,), width=8, pixels=4)), path)
    with pytest.raises(ModelError, match=f"{dino.dim + 1} channels"):
        load_head(path, dino)
    path.write_bytes(b"no")
    with pytest.raises(ModelError, match="no expected-detail head"):
        load_head(path, dino)


def test_suspicion_covers_the_tile_and_carries_gradients(dino, generator):
    from lib_dino.measure.drift import detail_logits

    source = torch.rand(1, 3, 40, 50, generator=generator)
    operators, plain = whole(source)
    made = plain.clamp(0, 1).requires_grad_()
    over = torch.zeros(1, 4, 5)
    logits, size = detail_logits(dino, head_for(dino, generator), made, plain, source, operators, over, over)
    assert logits.shape == (1, 6, 8)
    assert size == (80, 100)
    logits.sum().backward()
    assert float(made.grad.abs().max()) > 0


def test_an_inner_tile_is_held_against_the_same_part_of_the_enlarged_source(dino, generator):
    """With nothing added, suspicion must see no difference anywhere, wherever the tile lies."""
    from lib_dino.measure.drift import detail_logits

    source = torch.rand(1, 3, 60, 70, generator=generator)
    plain = resize(source, (150, 175))
    operators = tile_operators((60, 70), (150, 175), slice(30, 130), slice(40, 140))
    seen = []

    class Spy(torch.nn.Module):
        shape = HeadShape(dino.dim, (1,), tokens=False)

        def forward(self, pixels, made, plain, seen_by):
            seen.append(pixels)
            return seen_by[:, 0]

    over = torch.zeros(1, 4, 4)
    detail_logits(dino, Spy(), plain[..., 30:130, 40:140], plain, source, operators, over, over)
    assert seen[0][:, 1].abs().max() < 1e-5
    assert seen[0][:, 3].abs().max() < 1e-5


def test_large_results_are_seen_in_windows_that_cover_them(dino, generator):
    image = torch.rand(1, 3, 70, 98, generator=generator)
    whole_grid = tokens_at(dino, image, (1, 3))
    pieces = tokens_at(dino, image, (1, 3), window=3)
    assert pieces.shape == whole_grid.shape == (1, 2 * dino.dim, 5, 7)
    assert (pieces.abs().sum(1) > 0).all()
    first = tokens_at(dino, image[..., :42, :42], (1, 3))
    torch.testing.assert_close(pieces[..., :1, :1], first[..., :1, :1])


@pytest.mark.parametrize("tokens", [True, False])
def test_calibrating_end_to_end_on_any_network_and_pictures(tmp_path, monkeypatch, tokens):
    from training import calibrate

    dino = tiny_network(tmp_path / "net", depth=2)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in "ab":
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{name}.png")
    monkeypatch.setattr(calibrate, "TILE_PX", 112)
    monkeypatch.setattr(calibrate, "LEAST_AUC", 0.0)
    monkeypatch.setattr(calibrate, "embedded_upscale", lambda: lambda s, size, d, seed: resize(s, size).clamp(0, 1))
    pictures = calibrate.load_pictures(tmp_path / "photos")
    found = calibrate.calibrate(dino, pictures, tmp_path / "net", scenes=2, minutes=1e-4, null_px=84, nulls=3,
                                with_tokens=tokens)
    held = load_calibration(dino)
    assert held.thresholds == found
    assert held.thresholds.measured and held.head.shape.tokens is tokens
    assert 0 < found.bound < found.invented
    source = torch.rand(1, 3, 42, 42)
    operators, plain = whole(source)
    tile = Yardstick(dino, source, plain=plain, calibration=held).tile(plain, operators, detail=True)
    assert tile.suspicion.shape == (6, 6)
    assert 0 <= tile.suspicion_score <= 1


def test_calibration_refuses_an_empty_folder(tmp_path, capsys):
    from training import calibrate

    with pytest.raises(SystemExit):
        calibrate.main(["--photos", str(tmp_path)])
    assert "there are none" in capsys.readouterr().err


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_run_reports_suspicion_or_says_that_thresholds_are_defaults(dino, generator, calibrated):
    from made import FakeModel, ran

    from lib_dino.settings import Settings

    if calibrated:
        settings, weights = files_beside(dino.path)
        save_head(head_for(dino, generator), weights)
        save_thresholds(settings, dino, Thresholds(0.03, 0.4, 0.0, measured=True), {})
    source = torch.rand(1, 3, 30, 40, generator=generator)
    options = Settings(seed=1, overlap=16, dino_enabled=False)
    report = ran(source, options, FakeModel(lambda t, n: t), dino).report()
    assert any("make calibrate" in note for note in report.notes) is not calibrated
    assert all((tile.suspicion is not None) is calibrated for tile in report.tiles)
    assert all(tile.alarm is calibrated for tile in report.tiles)  # the bar is at nothing


def test_a_kind_left_out_is_kept_from_the_head_that_is_judged_on_it(monkeypatch, generator):
    from training import leave_out
    from training.calibrate import Inputs

    kinds = ["honest", "object", "letters", "object"]
    change = torch.tensor([0.0, 4.0, 4.0, 4.0])[:, None, None].expand(4, 2, 2)
    data = Inputs(change, change, change, change, change,
                  [(kind, "true", None if kind == "honest" else number < 3, "p") for number, kind in enumerate(kinds)])
    asked = []

    def fit(train, shape, *, minutes, leave_out=None):
        asked.append(leave_out)
        return -1 if leave_out else 1  # a head that knows all kinds is right, another wrong

    monkeypatch.setattr(leave_out, "fit_head", fit)
    monkeypatch.setattr(leave_out, "answers", lambda head, given: head * given.change)
    lines = leave_out.table(data, data, HeadShape(8, (1,)), minutes=1.0, kinds=("object", "letters"))
    assert asked == [None, "object", "letters"]
    assert lines[2:] == ["| object | 1.000 | 0.000 | 1.000 | 0.000 |", "| letters | 1.000 | 0.000 | 0.500 | 0.500 |"]
