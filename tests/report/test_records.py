import dataclasses
import json
import re
from pathlib import Path

import pytest

from lib_dino.pictures.infotext import infotext, parse_infotext
from lib_dino.report.records import DRIFT_KEYS, SCHEMA, Report, TileReport, WorstPatch, drift_figures
from lib_dino.settings import Settings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")


def tile(x, *worst, **more):
    patches = tuple(WorstPatch(box, drift) for box, drift in worst)
    figures = {"drift": 0.1, "drift_worst": 0.3, "drift_enlarged": 0.05, "drift_above": 0.02, "over_bound": 0.0}
    figures["score"] = 0.1
    figures["drift_peak"] = max((drift for _, drift in worst), default=0.0)
    return TileReport((0, x, 64, x + 64), 1.0, worst_patches=patches, **{**figures, **more})


def report(*tiles, **more):
    values = {"model": "m", "features": "f", "model_calls": 4, "seconds": 1.0, "source_psnr": 40.0, "detail": 1.5}
    settings = dataclasses.asdict(Settings(seed=3))
    return Report((32, 64), (64, 128), settings, source_noise=0.0, tiles=tiles, **{**values, **more})


def documented(part):
    found = re.search(rf"<!-- {part} keys.*?-->\n(.*?)<!-- end of {part} keys -->", DOCUMENT, re.S)
    assert found is not None
    return re.findall(r"^\| `(\w+)` \|", found.group(1), re.M)


def test_every_key_of_the_json_is_documented_and_the_other_way_round():
    values = json.loads(json.dumps(report(tile(0, ((0, 0, 8, 8), 0.5))).to_dict()))
    assert sorted(documented("report")) == sorted(values)
    assert sorted(documented("drift")) == sorted(values["drift"])
    assert sorted(documented("tile")) == sorted(values["tiles"][0])
    assert sorted(values["worst_patches"][0]) == ["box", "drift", "edit_probability"]
    assert f"Schema **{SCHEMA}**" in DOCUMENT and values["schema"] == SCHEMA


def test_the_worst_patches_are_sorted_and_named_once_though_tiles_overlap():
    left = tile(0, ((0, 40, 8, 48), 0.9), ((30, 0, 38, 8), 0.2), ((50, 0, 58, 8), 0.1))
    right = tile(32, ((1, 41, 9, 49), 0.8), ((50, 80, 58, 88), 0.7))
    found = report(left, right).worst_patches
    assert [p.drift for p in found] == [0.9, 0.7, 0.2]
    assert report(left, right).drift_worst_patch == 0.9


def test_what_was_not_measured_is_none_and_not_nought():
    bare = report(TileReport((0, 0, 64, 64), 1.0))
    assert set(bare.to_dict()["drift"].values()) == {None}
    assert bare.worst_patches == ()
    assert not any(key in infotext(Settings(), (64, 128), drift_figures(bare)) for key in DRIFT_KEYS)


def test_a_measured_picture_without_any_drift_has_noughts():
    clean = report(tile(0, drift_above=0.0))
    assert clean.alarms == 0
    assert clean.drift_worst_patch == 0.0 and clean.over_bound == 0.0


def test_the_three_figures_are_in_the_text_and_old_readers_pass_over_them():
    measured = report(tile(0, ((0, 0, 8, 8), 0.5), over_bound=0.25), tile(64, over_bound=0.0))
    settings = Settings(seed=3)
    parsed = parse_infotext(infotext(settings, (64, 128), drift_figures(measured)))
    assert [float(parsed[key]) for key in DRIFT_KEYS] == pytest.approx([0.02, 0.5, 0.125])
    assert Settings.from_infotext(parsed) == settings
