
import numpy as np
import pytest
import torch
from made import random_detector, tiny_network, whole
from PIL import Image

from lib_dino.measure.calibration import Thresholds, files_beside, load_calibration, save_thresholds
from lib_dino.measure.drift import DriftMeter
from lib_dino.networks.edit_detector import DetectorShape, save_detector
from lib_dino.tiling.resample import resize


@pytest.fixture
def dino(tmp_path):
    return tiny_network(tmp_path, depth=3)


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
    assert held.thresholds.measured and held.detector.shape.tokens is tokens
    assert 0 < found.bound < found.invented
    source = torch.rand(1, 3, 42, 42)
    operators, plain = whole(source)
    tile = DriftMeter(dino, source, plain=plain, calibration=held).tile(plain, operators, detail=True)
    assert tile.edit_map.shape == (6, 6)
    assert 0 <= tile.edit_probability <= 1


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
        save_detector(random_detector(dino), weights)
        save_thresholds(settings, dino, Thresholds(0.03, 0.4, 0.0, measured=True), {})
    source = torch.rand(1, 3, 30, 40, generator=generator)
    options = Settings(seed=1, overlap=16, dino_enabled=False)
    report = ran(source, options, FakeModel(lambda t, n: t), dino).report()
    assert any("make calibrate" in note for note in report.notes) is not calibrated
    assert all((tile.edit_probability is not None) is calibrated for tile in report.tiles)
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
    lines = leave_out.table(data, data, DetectorShape(8, (1,)), minutes=1.0, kinds=("object", "letters"))
    assert asked == [None, "object", "letters"]
    assert lines[2:] == ["| object | 1.000 | 0.000 | 1.000 | 0.000 |", "| letters | 1.000 | 0.000 | 0.500 | 0.500 |"]
