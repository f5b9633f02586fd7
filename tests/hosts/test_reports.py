"""The drift report in a running WebUI, and the doctor's verdict on it."""

import json

from client import SMALL

from lib_dino.cli import doctor, doctor_webui
from lib_dino.cli import webui_client as webapi

KEYS = ("DINO drift", "DINO drift worst", "DINO drift over bound")


def test_a_drift_map_joins_the_pictures_and_changes_none(host):
    plain = host.dropdown(SMALL)
    for answer in (host.dropdown({**SMALL, "drift_map": True}), host.always_on({**SMALL, "drift_map": True})):
        result, shown, *worst = answer.images
        assert result.tobytes() == plain.pixels
        assert shown.width >= result.width and len(worst) <= 1
        texts = json.loads(answer.body["info"])["infotexts"]
        assert ["DINO picture: " in text for text in texts] == [False, True, *(True for _ in worst)]
        assert all(float(answer.saved[key]) >= 0 for key in KEYS)
    assert not any(key in plain.saved for key in KEYS)


def test_each_picture_of_a_batch_has_its_own_figures(host):
    settings = {**SMALL, "drift_map": True, "consistency": 0.0}
    answer = host.dropdown(settings, denoising_strength=0.9, batch_size=2, n_iter=2)
    texts = [i.info.get("parameters", "") for i in answer.images]
    texts = [text for text in texts if "DINO drift worst" in text and "DINO picture" not in text]
    assert len(texts) == 4 and len({text.partition("DINO drift: ")[2][:60] for text in texts}) == 4


def test_a_wrong_wish_for_a_report_is_refused_by_name(host):
    for name in ("drift_map", "save_report"):
        answer = host.dropdown({**SMALL, name: "yes"})
        assert answer.status == 422 and name in answer.text


def test_the_doctor_finds_nothing_wrong(host):
    visit = doctor_webui.Visit(webapi.WebUI(host.address))
    failed = [f for f in doctor.examine(doctor_webui.CHECKS, visit) if f.status == doctor.FAILED]
    assert failed == []
