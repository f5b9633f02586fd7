"""Every benchmark at work on one tiny picture: what it overrides or reads must still be there."""

import argparse
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import (
    affinity,
    bound,
    contrast,
    denoise_map,
    detection,
    few_steps,
    fidelity,
    fidelity_report,
    flops,
    gpu_host,
    host_time,
    oracle_guidance,
    references,
    repair,
    runs,
    seams,
    skip,
    sparing,
    veto,
)
from benchmarks.fidelity_arms import Arm, Lab, Plant, arms, disk
from lib_dino import Settings, upscale
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.sampling import guidance
from lib_dino.sampling.pixel_model import PixelTileModel

FOLDER = Path(runs.__file__).parent
TINY = ["--side", "64", "--steps", "2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Waves and grain, twice."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    y, x = np.mgrid[0:170, 0:180]
    waves = 127 + 60 * np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], -1)
    paths = [folder / "one.png", folder / "two.png"]
    for path, picture in zip(paths, (waves, waves[::-1, :, ::-1]), strict=True):
        noisy = picture + draw.normal(0, 6, picture.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return [str(path) for path in paths]


def test_every_benchmark_is_imported_here():
    here = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    names = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert {name for name in names if not re.search(rf"\b{name}\b", here)} == set()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_keep_to_public_names(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"sys\.path|mock|\b(?:model|run|job|dino|super\(\))\._[a-z]", text)
    assert not re.search(r"from lib_dino.* import .*\b_[a-z]", text)


def test_affinity(photos, capsys):
    assert affinity.main([photos[0], *TINY]) == 0
    assert "| DINO, places in a wrong order |" in capsys.readouterr().out


def test_references(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lib_dino.references.matching.SIZES", (1.0,))
    rows = tmp_path / "rows.json"
    assert references.main([*photos, "--side", "64", "--factor", "2", "--views", "1", "--rows", str(rows)]) == 0
    assert "| 5 degrees, 1x, DINO |" in capsys.readouterr().out and len(json.loads(rows.read_text())) == 2


def test_bound(photos, capsys):
    tiny = ["--side", "64", "--steps", "1", "--tile-size", "64", "--bounds", "0.2"]
    assert bound.main([*photos, *tiny, "--kinds", "pasted"]) == 0
    (row,) = capsys.readouterr().out.splitlines()
    assert row.startswith("pasted, bound 0.2: 2 pictures, 2 tiles, 2 over it at first, 0 in the written file")


def test_denoise_map(photos, capsys):
    assert denoise_map.main([photos[0], *TINY]) == 0
    assert "| logarithm | oracle |" in capsys.readouterr().out


def test_detection(photos):
    pictures = {Path(p).stem: runs.middle(p, 84).mul(255).byte() for p in photos}
    cases = itertools.islice(detection.cases(pictures, 1, 0), 5)
    measures = {"LR residual": detection.lr_residual, "sharpness": detection.sharpness}
    rows = detection.judge_cases(cases, measures, {"DINO": None})
    assert {row.kind for row in rows} >= {"honest", "object"}
    page = detection.write(rows, [row for row in rows if row.kind == "honest"], 0.5, "suspicion, DINO", 0)
    assert "| drift, DINO |" in page


def test_repair_sees_what_was_planted_and_redoes_what_drifted(photos, capsys):
    arguments = ["--tile-size", "64", "--insists", "1", "--tries", "1", "--arms", "planted", "hidden"]
    assert repair.main([photos[0], *TINY, *arguments]) == 0
    planted, hidden = capsys.readouterr().out.splitlines()
    assert planted.startswith("planted: failing 1 of 1") and "planted 1, redone 1, kept 1" in planted
    assert hidden.startswith("hidden: failing 0 of 1") and "planted 1, redone 0, kept 1" in hidden


def test_repair_by_drift_alone_has_no_detector(tmp_path):
    from lib_dino.measure.calibration import load_calibration

    alone = load_calibration(repair.without_detector(tmp_path))
    with_it = load_calibration(load_dinov2())
    assert alone.thresholds.bound == with_it.thresholds.bound and alone.thresholds.alarm is None
    assert alone.detector is None and with_it.detector is not None


ROW = r"\| [\d.]+ \| [+-][\d.]+ dB \([+-][\d.]+ to [+-][\d.]+\) \|"


def test_oracle_guidance_is_led_by_the_original(photos, capsys, monkeypatch):
    led = []

    def noted(clean, ratio, **given):
        led.append(given["target"].features.shape[-2:])
        return guidance.guide(clean, ratio, **given)

    monkeypatch.setattr(oracle_guidance, "guide", noted)
    assert oracle_guidance.main([photos[0], *TINY, "--factor", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| oracle", "| oracle, three steps a call", "| oracle, random weights",
    ]  # fmt: skip
    assert all(re.search(ROW, line) for line in lines[2:]) and set(led) == {(16, 16)}
    assert len({line.split("|")[3] for line in lines[2:]}) > 1


def test_contrast_shows_both_pictures_and_its_control_differs(photos, capsys):
    assert contrast.main([*photos, "--side", "64", "--steps", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(contrast.ARMS) and all(re.search(ROW, line) for line in lines[2:])


def test_veto_takes_back_what_the_detector_finds_and_no_more(photos, capsys, monkeypatch):
    arguments = [*photos, "--side", "64", "--steps", "6"]

    def run(found):
        monkeypatch.setattr(veto, "probability", lambda dino, image, small, plain: torch.full((4, 4), found))
        assert veto.main(arguments) == 0
        return [[float(x) for x in re.findall(r"\d\.\d{3}", line)] for line in capsys.readouterr().out.splitlines()]

    (left, kept), *_, (left_shuffled, kept_shuffled) = run(0.0)
    assert left == left_shuffled > 0 and kept == kept_shuffled == 1
    everywhere = run(1.0)
    assert everywhere[0] == [left, 1] and everywhere[2][0] < 0.5 * left and everywhere[2][1] < everywhere[1][1] < 1


def test_seams(photos, capsys):
    tiles = ["--side", "96", "--tile-size", "64", "--overlap", "16"]
    assert seams.main([photos[0], *tiles, "--steps", "1", "--denoise", "0.5"]) == 0
    assert "denoise 0.5 default: mean" in capsys.readouterr().out


def test_skip(photos, capsys):
    assert skip.main([photos[0], *TINY, "--tile-size", "64"]) == 0
    assert re.search(r"vertical: 1 of 1 tiles.*\n(.*\n)*all: time x\d", capsys.readouterr().out)


def test_sparing(photos, capsys):
    sparing.main([photos[0], "--denoise", "0.5", "--steps", "2"])
    pulls = [float(found) for found in re.findall(r"pulls +([\d.]+)", capsys.readouterr().out)]
    assert pulls[0] == 0 < pulls[1] <= pulls[2] == 2


def test_few_steps(photos, capsys):
    few_steps.main([photos[0], "--side", "48", "--calls", "1", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "4"]
    assert len({line.split()[3] for line in lines}) == 2


def test_flops():
    assert flops.pulls(0.2, 20) == (5, 1) and flops.pulls(0.5, 20) == (11, 3)
    cost = flops.cost(lambda cells: 10.0, 4, 64, 5)
    assert cost.model == 50 and 0 < cost.pull[0] < cost.pull[1] and cost.ratios(1, 0)[0] > cost.ratios(0, 0)[0] > 1


def test_host_time():
    clock = {"total": [1, 2.0, 1.6], "unet": [10, 1.0, 0.8], "vae": [2, 0.4, 0.4]}
    assert host_time.row("off", 4, [clock, clock]).split("|")[1].split() == ["500.0", "150.0", "30.0", "%"]


class Card:
    """A WebUI that answers each call with one colour, and holds memory on a card."""

    def __init__(self, *, dark=False, leaks=False):
        self.dark, self.leaks, self.held = dark, leaks, 2**30

    def call(self, path):
        assert path == "/sdapi/v1/memory"
        return argparse.Namespace(body={"cuda": {"allocated": {"current": self.held}, "reserved": {"peak": 2 * 2**30}}})

    def img2img(self, source, **request):
        return argparse.Namespace(image=Image.new("RGB", source.size, (90, 80, 70)))

    def dropdown(self, settings, *, source, **request):
        self.held += self.leaks * 2**28
        strength = settings.get("dino_strength", 0.5) if settings.get("dino_enabled", True) else 0
        colour = (0, 0, 0) if self.dark and strength == 1 else (90, 80, 70 + round(10 * strength))
        return argparse.Namespace(image=Image.new("RGB", source.size, colour))


def test_gpu_host():
    request = {"steps": 4, "denoising_strength": 0.5}
    good, dark, leaking = (
        "\n".join(gpu_host.measure(card, 128, 128, request, 2)) for card in (Card(), Card(dark=True), Card(leaks=True))
    )
    assert "128 px to 256 px, 9 tiles of up to 128 px" in good and good.count("\n- yes: ") == 6
    assert len(re.findall(r"\| [\d.]+ \| \d+ \| [\d.]+ \| 2\.00 \|", good)) == len(gpu_host.ARMS) == 6
    assert re.findall(r"\*\*NO\*\*: (.*)", dark) == ["no picture is black"]
    assert re.findall(r"\*\*NO\*\*: (.*?) \(", leaking) == ["the card holds no more than before"]


@pytest.fixture(scope="module")
def lab():
    return Lab(half=False)


@pytest.fixture(scope="module")
def small(photos):
    return [Image.open(photo).convert("RGB").crop((20, 20, 52, 52)) for photo in photos]


SETTINGS = {"denoise": 0.5, "steps": 2, "seed": 1}


def test_the_fidelity_benchmark_measures_the_product(lab, small):
    ours = lab.run(small[0], Arm({"adapter_strength": 1.0}), SETTINGS, other=small[1])
    assert torch.equal(ours, upscale(small[0], Settings(**SETTINGS, adapter_strength=1.0)).picture.pixels)


def test_every_arm_of_the_fidelity_benchmark_differs_from_every_other(lab, small):
    assert len({*arms(adapter=False)} - {*arms(adapter=True)}) == 0
    results = {}
    for name, arm in arms(adapter=True).items():
        if not re.search(r"0\.|no texture|source as given", name):
            results[name] = lab.run(small[0], arm, {**SETTINGS, "steps": 1, "consistency": 0.5}, other=small[1])
    # A token of zeros says nothing, which is what it is for.
    assert torch.equal(results.pop("adapter, zero tokens"), results["consistency"])
    for (one, a), (two, b) in itertools.combinations(results.items(), 2):
        assert not torch.equal(a, b), f"{one} gives the same picture as {two}"


def test_a_plant_shows_where_it_is(lab, small):
    other = runs.resize(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), (64, 64)).clamp(0, 1)
    mask = disk((64, 64), 0)
    settings = {**SETTINGS, "consistency": 0.0, "texture": 0.0, "dino_enabled": False}
    clean, planted = (lab.run(small[0], Arm(), settings, other=small[1], plant=plant)
                      for plant in (None, Plant(other, mask, 2, hidden=False)))  # fmt: skip
    changed = (clean - planted).abs().mean(1, keepdim=True)
    assert float(changed[mask == 1].mean()) > 5 * float(changed[mask == 0].mean()) > 0


def test_the_fidelity_benchmark_has_jobs_and_writes_its_page(tmp_path):
    options = argparse.Namespace(seeds=1, denoise=[0.5], plant_denoise=0.5, side=64, steps=2, docs=tmp_path,
                                 pictures_out=tmp_path / "pictures")  # fmt: skip
    names = ["consistency", "defaults", "DINO 1"]
    jobs = list(fidelity.jobs(list("abc"), [], names, options))
    assert {job.arm for job in jobs} >= {"unguided", *names}
    figures = {"NS": 0.1, "T2": 0.1, "PSNR": 30.0, "SSIM": 0.9, "HF": 0.9, "LR": 50.0, "drift": 0.1, "seconds": 1.0,
               "survival": 0.1, "elsewhere": 1.0}  # fmt: skip
    rows = [{**vars(job), **figures, "side": 64, "steps": 2} for job in jobs]
    fidelity_report.write_report(rows, options)
    assert "## What the README may claim" in (tmp_path / "fidelity.md").read_text()


def test_a_model_in_half_precision_is_nearly_itself(photos):
    source, model = runs.halved(runs.middle(photos[0], 64)), PixelTileModel()
    settings = Settings(denoise=0.3, steps=2, seed=1, dino_enabled=False)
    whole, half = (runs.run(source, settings, each).image for each in (model, runs.HalfPrecision(model)))
    assert 0 < float((whole - half).abs().max()) < 0.05
