"""Conditioning by an adapter in a running WebUI; DINO_OTHER_HOST names a second one to compare the effect with.

The WebUI must run on this machine, for it reads the adapter's file.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from client import SMALL, TITLE, Host, picture
from make_adapter import tiny_adapter

QUIET = {**SMALL, "dino_enabled": False, "consistency": 0, "denoise": 0.6}


@pytest.fixture(scope="module")
def adapter(host, adapter_folder):
    if not host.family.adapter:
        pytest.skip(f"there are no adapters for {host.family.name}, a transformer without cross-attention")
    tiny_adapter(base=host.family.adapter).save(adapter_folder / "dino-probe-tiny.safetensors")
    return "dino-probe-tiny"


@pytest.fixture(scope="module")
def off(host):
    return host.dropdown(QUIET)


def array(answer):
    return np.asarray(answer.image.convert("RGB"), dtype=float)


def effect(host, adapter, strength=1.0, **more):
    """What the adapter changes, (H, W, 3) in 1/255."""
    settings = {**QUIET, **more}
    return array(host.dropdown({**settings, "adapter": adapter, "adapter_strength": strength})) - array(
        host.dropdown(settings)
    )


def test_strength_nought_is_bitwise_off(host, adapter, off):
    assert host.dropdown({**QUIET, "adapter": adapter, "adapter_strength": 0}).pixels == off.pixels
    assert host.dropdown({**QUIET, "adapter_strength": 1}).pixels == off.pixels  # no adapter chosen


def test_more_strength_changes_more(host, adapter):
    half, full = (np.abs(effect(host, adapter, s)).mean() for s in (0.5, 1.0))
    assert 0.3 < half < full


def test_nothing_is_left_behind(host, adapter, probe):
    before, held = host.img2img().pixels, probe.held()
    assert np.abs(effect(host, adapter)).max() > 0
    assert host.img2img().pixels == before
    assert probe.held() == held


def test_each_tile_of_a_batch_looks_at_its_own_tokens(host, adapter):
    one, three = (effect(host, adapter, tile_batch_size=n) for n in (1, 3))
    assert np.abs(one - three).mean() < 0.05 * np.abs(one).mean()


def test_another_source_gets_another_effect(host, adapter):
    # The plain picture's share is taken off, so what differs is what the tokens did.
    mirrored = picture().transpose(1).transpose(0)
    settings = {**QUIET, "adapter": adapter, "adapter_strength": 1}
    off_there = array(host.dropdown(QUIET, source=mirrored))
    there = array(host.dropdown(settings, source=mirrored)) - off_there
    here = effect(host, adapter)
    assert np.abs(here - there).mean() > 0.3 * np.abs(here).mean()


@pytest.mark.parametrize("more", [{"cfg_scale": 1}, {"prompt": "a house AND a red sun", "cfg_scale": 7}])
def test_it_acts_without_guidance_and_with_several_prompts(host, adapter, more):
    on, plain = (host.dropdown({**QUIET, "adapter": adapter, "adapter_strength": s}, **more) for s in (1, 0))
    assert np.abs(array(on) - array(plain)).mean() > 0.1


@pytest.mark.parametrize("sampler", ["DDIM", "UniPC", "Heun", "DPM++ 2M"])
def test_it_acts_with_every_kind_of_sampler(host, adapter, sampler):
    assert np.abs(effect(host, adapter, sampler_name=sampler, steps=8)).mean() > 0.3


def test_the_saved_text_says_which_and_how_strongly(host, adapter):
    saved = host.dropdown({**QUIET, "adapter": adapter, "adapter_strength": 0.4}).saved
    assert saved["DINO adapter"] == adapter
    assert saved["DINO adapter strength"] == "0.4"


def test_what_cannot_be_used_is_refused_by_name(host, adapter, adapter_folder, tmp_path):
    (adapter_folder / "dino-probe-a.bin").write_bytes(b"pickled")
    (adapter_folder / "dino-probe-b.safetensors").write_bytes(b"broken")
    other = {"sd15": "sdxl", "sdxl": "sd15"}[host.family.adapter]
    tiny_adapter(base=other).save(adapter_folder / "dino-probe-c.safetensors")
    tiny_adapter(base=host.family.adapter).save(tmp_path / "elsewhere.safetensors")
    for name, words in (
        ("none-such", "no adapter"), (str(tmp_path / "elsewhere.safetensors"), "no adapter"),
        ("dino-probe-a.bin", "can run code"), ("dino-probe-b.safetensors", "damaged"),
        ("dino-probe-c", f"made for {other}; the loaded checkpoint is {host.family.adapter}"),
    ):  # fmt: skip
        answer = host.dropdown({**QUIET, "adapter": name, "adapter_strength": 1})
        assert answer.status == 422, answer.text[:500]
        assert words in answer.text
        assert "adapter" in answer.body["detail"]
    assert host.dropdown(QUIET).status == 200


def test_two_kinds_of_webui_agree_on_the_effect(host, adapter, adapter_folder):
    address = os.environ.get("DINO_OTHER_HOST")
    if not address:
        pytest.skip("DINO_OTHER_HOST names no second WebUI")
    other = Host(address.rstrip("/"), host.family)
    there = Path(other.call("/host-probe/models").body) / "dino-adapter" / f"{adapter}.safetensors"
    there.parent.mkdir(exist_ok=True)
    shutil.copy(adapter_folder / there.name, there)
    try:
        ours, theirs = effect(host, adapter), effect(other, adapter)
    finally:
        there.unlink()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98
    assert np.abs(ours - theirs).mean() < 0.1 * np.abs(ours).mean()


def test_always_on_and_dropdown_agree(host, adapter):
    settings = {**QUIET, "adapter": adapter, "adapter_strength": 1}
    assert host.always_on(settings).pixels == host.dropdown(settings).pixels
    assert TITLE in host.dropdown(settings).saved["Script"]
