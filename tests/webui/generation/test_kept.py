"""Generations that were cut short go on in the stand-in hosts, bitwise; no other generation takes their tiles."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from standin import make_modules
from standin.host import Script, generation

from lib_dino.resume.place import jobs_in
from lib_dino.settings import INFOTEXT_STOPPED_KEY
from lib_dino.webui.generation import entry, kept
from lib_dino.webui.tiles import tile_img2img

SMALL = {"tile_size": 64, "overlap": 16, "scale_factor": 3, "dino_enabled": False}


@pytest.fixture(params=["a1111", "forge"])
def host(request, tmp_path, monkeypatch):
    held, modules = make_modules(request.param, tmp_path)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    tile_img2img._tile_script_class.cache_clear()
    return held


@pytest.fixture
def source(generator):
    small = torch.rand(1, 3, 6, 8, generator=generator)
    large = torch.nn.functional.interpolate(small, size=(40, 48), mode="bilinear")[0]
    return Image.fromarray((large * 255).byte().permute(1, 2, 0).numpy())


class Own(Script):
    args_from, args_to, filename = 1, 40, "x"

    def title(self):
        return "DINO Upscale"

    def before_process(self, p, *args):
        entry.begin(p, args, own=(Own,))

    def postprocess(self, p, processed, *args):
        entry.restore(p, processed)


class Other(Script):
    args_from, args_to, filename = 40, 42, "y"

    def title(self):
        return "Other"

    def process_before_every_sampling(self, p, *args, **kwargs): ...


def run(host, source, settings=(), *, scripts=(), args=(), **values):
    p = generation(
        host, scripts=scripts, args=args, init_images=[source],
        **{"denoising_strength": 0.5, "seed": 5, "sampler_name": "Euler a", **values},
    )  # fmt: skip
    return entry.run_as_script(p, Own(), [{**SMALL, **dict(settings)}], own=(Own,))


def pixels(processed):
    return [np.array(image).tobytes() for image in processed.images]


STEPS = 5
"""Model calls of a tile here."""


class CrashError(Exception):
    pass


def cut_short(host, source, tiles, *more, **values):
    """Have the host die in the middle of a tile."""
    calls = []

    def on_call():
        calls.append(1)
        if len(calls) > STEPS * tiles + 1:
            raise CrashError

    host.seen.clear()

    host.on_call = on_call
    with pytest.raises(CrashError):
        run(host, source, *more, **values)
    host.on_call = None
    host.seen.clear()


def jobs():
    return jobs_in(kept.folder())


def count():
    return sum(len(list(job.glob("*.tiles"))) for job in jobs())


@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_generation_goes_on_bitwise(host, source, batch):
    settings = {"tile_batch_size": batch}
    whole = run(host, source, settings)
    calls = len(host.seen)
    assert calls == STEPS * -(-9 // batch)
    cut_short(host, source, 2, settings)
    assert count() == 2
    resumed = run(host, source, settings)
    assert pixels(resumed) == pixels(whole)
    assert len(host.seen) == calls - 2 * STEPS
    assert any("went on after" in text for text in resumed.p.comments)
    assert resumed.images[0].info["parameters"] == whole.images[0].info["parameters"]
    assert jobs() == []


def test_a_seed_the_host_drew_is_found_again_and_said(host, source, monkeypatch):
    from modules import processing

    drawn = iter([111, 222, 333, 444])
    inner = host._inner

    def with_drawn_seed(p):
        if p.seed == -1:
            p.seed = next(drawn)
        return inner(p)

    monkeypatch.setattr(host, "_inner", with_drawn_seed)
    assert processing.process_images == host.process_images
    cut_short(host, source, 2, seed=-1)
    resumed = run(host, source, seed=-1)
    assert resumed.p.all_seeds == [111] and resumed.p.seeds == [111]
    assert pixels(resumed) == pixels(run(host, source, seed=111))
    assert run(host, source, seed=-1).p.all_seeds == [333]


def test_of_several_pictures_each_goes_on(host, source):
    whole = run(host, source, n_iter=3)
    cut_short(host, source, 14, n_iter=3)
    resumed = run(host, source, n_iter=3)
    assert pixels(resumed) == pixels(whole) and jobs() == []


CHANGES = [
    ({"denoise": 0.4}, {}), ({"steps": 5}, {}), ({"overlap": 24}, {}), ({"upscaler": "Nearest"}, {}),
    ({}, {"prompt": "other"}), ({}, {"negative_prompt": "other"}), ({}, {"cfg_scale": 6}),
    ({}, {"sampler_name": "Euler"}), ({}, {"seed": 6}), ({}, {"mask": Image.new("L", (48, 40), 255)}),
    ({}, {"scripts": [Other()], "args": [0] * 41}),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "values"), CHANGES, ids=lambda given: next(iter(given), ""))
def test_another_generation_never_takes_tiles(host, source, settings, values):
    fresh = pixels(run(host, source, settings, **values))
    cut_short(host, source, 2)
    made = run(host, source, settings, **values)
    assert pixels(made) == fresh
    assert not any("went on" in text for text in made.p.comments)


def test_another_picture_option_checkpoint_or_scripts_argument_never_takes_tiles(host, source, tmp_path):
    def name(image=source, **values):
        before = {job.name for job in jobs()}
        cut_short(host, image, 1, **values)
        return {job.name for job in jobs()} - before

    names = [name()]
    changed = source.copy()
    changed.putpixel((3, 4), (1, 2, 3))
    names.append(name(changed))
    host.shared.opts.upcast_attn = True
    names.append(name())
    host.shared.sd_model.sd_checkpoint_info = type("Info", (), {"filename": str(tmp_path / "a.safetensors")})
    names.append(name())
    (tmp_path / "a.safetensors").write_text("weights")
    names.append(name())
    (tmp_path / "a.safetensors").write_text("others")
    names.append(name())
    names.append(name(scripts=[Other()], args=[0] * 41))
    names.append(name(scripts=[Other()], args=[0] * 40 + [1]))
    assert all(len(new) == 1 for new in names) and len(jobs()) == len(names)


def test_what_nobody_can_tell_is_not_kept(host, source):
    whole = pixels(run(host, source, scripts=[Other()], args=[0] * 40 + [object()]))
    cut_short(host, source, 2, scripts=[Other()], args=[0] * 40 + [object()])
    assert jobs() == []
    assert pixels(run(host, source, scripts=[Other()], args=[0] * 40 + [object()])) == whole


def test_resume_can_be_unticked_and_keeping_switched_off(host, source):
    cut_short(host, source, 2)
    made = run(host, source, {"resume": False})
    assert not any("went on" in text for text in made.p.comments)
    host.shared.opts.dino_upscale_kept_tiles_gib = 0
    cut_short(host, source, 2)
    assert jobs() == []


@pytest.mark.parametrize("stop", ["interrupted", "skipped"])
def test_an_interrupt_hands_back_what_is_done_and_the_next_run_goes_on(host, source, stop):
    whole = run(host, source)
    calls = []

    def on_call():
        calls.append(1)
        if len(calls) == 2 * STEPS + 2:
            setattr(host.shared.state, stop, True)

    host.on_call = on_call
    stopped = run(host, source)
    host.on_call = None
    setattr(host.shared.state, stop, False)
    told = stopped.images[0].info["parameters"][INFOTEXT_STOPPED_KEY]
    assert (told[0] if isinstance(told, list) else told).startswith("after 2 of ")
    assert any("started again goes on" in text for text in stopped.p.comments)
    assert stopped.images[0].size == whole.images[0].size and pixels(stopped) != pixels(whole)
    assert count() == 2
    resumed = run(host, source)
    assert pixels(resumed) == pixels(whole)
    assert resumed.images[0].info["parameters"] == whole.images[0].info["parameters"]
