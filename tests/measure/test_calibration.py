import json
from pathlib import Path

import pytest
import torch
from made import random_detector, tiny_network

from lib_dino.errors import ModelError
from lib_dino.measure import calibration
from lib_dino.measure.calibration import Thresholds, files_beside, load_calibration, save_thresholds
from lib_dino.networks.dinov2 import fingerprint, load_dinov2
from lib_dino.networks.edit_detector import save_detector


@pytest.fixture
def dino(tmp_path):
    return tiny_network(tmp_path, depth=3)


def test_the_embedded_network_is_calibrated():
    dino = load_dinov2()
    found = load_calibration(dino)
    assert found.thresholds.measured
    assert 0 < found.thresholds.bound < found.thresholds.invented < 2
    assert found.thresholds.note == ""
    assert found.detector.shape.dim == dino.dim


def test_a_network_without_a_calibration_gets_the_defaults_and_says_so(dino):
    found = load_calibration(dino)
    assert not found.thresholds.measured
    assert found.detector is None
    assert "make calibrate" in found.thresholds.note


def test_what_was_saved_comes_back(dino):
    settings, weights = files_beside(dino.path)
    head = random_detector(dino)
    save_detector(head, weights)
    save_thresholds(settings, dino, Thresholds(0.03, 0.4, 0.9, measured=True), {})
    found = load_calibration(dino)
    assert found.thresholds == Thresholds(0.03, 0.4, 0.9, measured=True)
    assert found.detector.shape == head.shape
    torch.testing.assert_close(found.detector.join.weight, head.join.weight, atol=1e-3, rtol=1e-3)


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
    stored = json.loads(settings.read_text())
    settings.write_text(json.dumps({**stored, "network": "0" * 16}))
    with pytest.raises(ModelError, match="another network"):
        load_calibration(dino)


def test_a_calibration_with_the_fingerprint_of_0_1_0_still_loads(dino):
    settings, _ = files_beside(dino.path)
    save_thresholds(settings, dino, Thresholds(0.03, 0.4, measured=True), {})
    stored = json.loads(settings.read_text())
    assert stored["network"] == fingerprint(dino)
    assert calibration._norm_fingerprint(load_dinov2()) == "88ca392da7d1b9e3"  # as 0.1.0 shipped it
    settings.write_text(json.dumps({**stored, "network": calibration._norm_fingerprint(dino)}))
    assert load_calibration(dino).thresholds.bound == 0.03


def test_its_files_are_read_once_and_again_when_they_change(dino, monkeypatch):
    settings, weights = files_beside(dino.path)
    save_detector(random_detector(dino), weights)
    save_thresholds(settings, dino, Thresholds(0.03, 0.4, 0.9, measured=True), {})
    reads = []
    monkeypatch.setattr(calibration, "load_detector", lambda *given: reads.append(given) or random_detector(dino))
    first = load_calibration(dino)
    assert load_calibration(dino) is first and load_calibration(dino) is first
    assert len(reads) == 1
    save_thresholds(settings, dino, Thresholds(0.035, 0.4, 0.9, measured=True), {})
    assert load_calibration(dino).thresholds.bound == 0.035
    assert len(reads) == 2
    settings.unlink()
    assert not load_calibration(dino).thresholds.measured
