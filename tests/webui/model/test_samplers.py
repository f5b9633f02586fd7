"""Steps, calls and schedules as the host's samplers take them."""

import sys
import types

import pytest

from lib_dino.errors import SettingsError
from lib_dino.webui.model.family import Model
from lib_dino.webui.model.samplers import model_calls, tile_steps, working_schedule

FLOW = Model("flux", 16, 1024, 16, True)
PLAIN = Model("sd1", 4, 512, 8, False)
FORGE = types.SimpleNamespace(forge_objects=object())


@pytest.fixture
def options(monkeypatch):
    options = types.SimpleNamespace(img2img_fix_steps=False)
    kinds = {n: types.SimpleNamespace(options={"second_order": n == "Heun"}) for n in ("Euler", "Heun", "DDIM")}
    kinds["DPM++ 2M"] = types.SimpleNamespace(options={"scheduler": "karras"})
    modules = types.ModuleType("modules")
    modules.shared = types.SimpleNamespace(opts=options)
    modules.sd_samplers = types.SimpleNamespace(all_samplers_map=kinds)
    modules.sd_schedulers = types.SimpleNamespace(
        schedulers=[types.SimpleNamespace(label=label) for label in ("Automatic", "Karras", "Simple")]
    )
    monkeypatch.setitem(sys.modules, "modules", modules)
    return options


def test_calls_of_a_tile_follow_the_samplers_order_and_the_hosts_option(options):
    assert model_calls("Euler", denoise=0.2, steps=20) == 5
    assert model_calls("Heun", denoise=0.2, steps=20) == 9
    assert model_calls("Euler", denoise=0, steps=20) == 0
    assert model_calls(None, denoise=1.0, steps=20) == 20
    options.img2img_fix_steps = True
    assert model_calls("Euler", denoise=0.2, steps=20) == 20


@pytest.mark.parametrize("denoise", [0.01, 0.05, 0.15, 0.2, 0.29, 0.3, 0.5, 0.57, 0.99, 1.0])
@pytest.mark.parametrize("steps", range(1, 25))
def test_a_few_step_model_repaints_a_tile_in_the_steps_it_is_made_for(options, steps, denoise):
    asked = tile_steps(denoise, steps)
    made = int(min(denoise, 0.999) * asked)
    if steps >= 10:
        assert asked == steps
    else:
        assert made >= min(steps, 4) and asked >= steps
        # Not more than needed, and a schedule of the whole denoising where that gives enough.
        assert asked == steps or int(min(denoise, 0.999) * (asked - 1)) < min(steps, 4)


def test_few_steps_stay_as_they_are_where_the_host_gives_all_of_them_to_a_tile(options):
    options.img2img_fix_steps = True
    assert tile_steps(0.2, 4) == 4
    assert model_calls("Euler", denoise=0.2, steps=4) == 4


@pytest.mark.parametrize(
    ("sampler", "denoise", "steps", "enough"), [("DDIM", 0.05, 20, 40), ("UniPC", 0.2, 12, 15), ("UniPC", 0.5, 2, 3)]
)
def test_a_sampler_that_cannot_work_with_so_few_steps_is_refused_with_what_would_do(
    options, sampler, denoise, steps, enough
):
    with pytest.raises(SettingsError, match=f"Raise the steps to {enough}, ") as caught:
        model_calls(sampler, denoise=denoise, steps=steps)
    assert caught.value.field == "steps"
    assert model_calls(sampler, denoise=denoise, steps=enough) > 0


def test_a_denoise_that_no_steps_can_make_up_for_is_no_endless_search(options):
    assert tile_steps(1e-9, 4) == 4
    with pytest.raises(SettingsError, match="Raise the denoise, "):
        model_calls("DDIM", denoise=1e-9, steps=20)


def test_unipc_asks_for_as_many_steps_as_the_hosts_order(options):
    assert model_calls("UniPC", denoise=0.2, steps=15) == 4
    options.uni_pc_order = 4
    with pytest.raises(SettingsError, match="needs 4 steps"):
        model_calls("UniPC", denoise=0.2, steps=15)


def test_forges_own_noise_levels_are_not_used_for_flow_models(options):
    assert working_schedule(FORGE, FLOW, "Euler", "Automatic") == "Simple"
    assert working_schedule(FORGE, FLOW, "Euler", None) == "Simple"
    assert working_schedule(FORGE, FLOW, "DPM++ 2M", "Automatic") is None
    assert working_schedule(FORGE, FLOW, "Euler", "Karras") is None
    assert working_schedule(FORGE, PLAIN, "Euler", "Automatic") is None
    assert working_schedule(object(), FLOW, "Euler", "Automatic") is None
    sys.modules["modules"].sd_schedulers.schedulers.pop()
    assert working_schedule(FORGE, FLOW, "Euler", "Automatic") is None


def test_forge_neos_automatic_is_left_to_forge_neo(options):
    sys.modules["modules"].sd_schedulers.schedulers.append(types.SimpleNamespace(label="Flux2"))
    assert working_schedule(FORGE, FLOW, "Euler", "Automatic") is None
