"""The row of docs/hosts.md that a host and a checkpoint family make: every promise once, in a few minutes.

`pytest tests/hosts/test_families.py --host http://127.0.0.1:7860 --family sd1|sdxl|sd3|flux`
"""

import math
import statistics
from contextlib import contextmanager

import pytest
from client import encoded, picture
from make_adapter import tiny_adapter
from PIL import Image, ImageChops, ImageStat

# Two tiles beside each other; guidance acts where the tiles are not held to the source altogether.
JOB = {"scale_factor": 2.0, "tile_size": 64, "overlap": 16, "consistency": 0.5}
OFF = {**JOB, "dino_enabled": False}
ON = {**JOB, "dino_strength": 1}
FREE = {**OFF, "consistency": 0.0, "texture": 0.0}
SOURCE = (48, 32)
LOOP = {"scale_factor": 2.0, "tile_size": 96, "overlap": 32, "dino_enabled": False, "denoise": 0.75, "steps": 8}
WIDE = (80, 48)
IN_LOOP = "DINO consistency in loop"


def upscaled(host, settings, source=None, **more):
    answer = host.dropdown(settings, source=source or picture(*SOURCE), **more)
    assert answer.status == 200, answer.text[:1500]
    return answer


def psnr(image, source):
    """Decibels between an enlarged picture, made small again, and its source."""
    small = image.convert("RGB").resize(source.size, Image.Resampling.BICUBIC)
    squares = ImageStat.Stat(ImageChops.difference(small, source)).sum2
    return -10 * math.log10(sum(squares) / (3 * source.width * source.height * 255**2))


def most(one, other):
    return max(ImageChops.difference(one.image.convert("L"), other.image.convert("L")).getdata())


@contextmanager
def autoencoder(host, way):
    """Consistency inside the loop goes the given way; afterwards by colours, as everywhere in the suite."""
    host.set_options(dino_upscale_tiny_autoencoder=way == "tiny", dino_upscale_host_vae=way == "VAE")
    try:
        yield
    finally:
        host.set_options(dino_upscale_tiny_autoencoder=False, dino_upscale_host_vae=False)


@pytest.fixture(scope="module")
def before(host):
    """Plain generations, before anything else in this file."""
    return host.img2img(), host.txt2img()


@pytest.fixture(scope="module")
def off(host, before):
    return upscaled(host, OFF)


@pytest.fixture(scope="module")
def on(host, before):
    return upscaled(host, ON)


@pytest.fixture
def loop_alone(probe):
    probe.final_pass(False)
    yield
    probe.final_pass(True)


def test_the_checkpoint_is_the_familys_and_paints(host, before):
    for answer in before:
        assert answer.saved["Model"] in host.family.names
        deviations = ImageStat.Stat(answer.image.convert("RGB")).stddev
        assert min(deviations) > 4, f"a black or flat picture: {deviations}"


def test_off_is_bitwise_off(host, off):
    assert upscaled(host, {**JOB, "dino_strength": 0}).pixels == off.pixels


def test_full_strength_differs_and_the_same_call_gives_the_same_pixels(host, on, off):
    assert on.pixels != off.pixels
    assert most(on, off) < 128
    assert upscaled(host, ON).pixels == on.pixels


def test_sizes_come_out_exactly(host, on):
    assert on.image.size == (96, 64)
    odd = {**OFF, "scale_factor": 1.5, "tile_size": 160}
    assert upscaled(host, odd, source=picture(201, 133)).image.size == (302, 200)


@pytest.mark.parametrize("way", ["colours", "tiny", "VAE"])
def test_consistency_acts_inside_the_loop(host, loop_alone, way):
    source, request = picture(*WIDE), {"sampler_name": "Euler"}
    with autoencoder(host, way):
        without = upscaled(host, {**LOOP, "consistency": 0}, source=source, **request)
        held = upscaled(host, {**LOOP, "consistency": 1}, source=source, **request)
        if way == "tiny" and IN_LOOP not in held.saved:
            pytest.skip("the WebUI has no tiny autoencoder of this family: make_checkpoint.py --tiny models/VAE-taesd")
        assert upscaled(host, {**LOOP, "consistency": 1}, source=source, **request).pixels == held.pixels
    assert held.saved.get(IN_LOOP) == {"colours": None, "tiny": "True", "VAE": "VAE"}[way]
    if host.family.noise:
        assert held.pixels != without.pixels
    else:
        assert psnr(held.image, source) > psnr(without.image, source) + 1


def test_back_projection_brings_the_finished_picture_to_its_source(host):
    source = picture(*WIDE)
    without, held = (upscaled(host, {**LOOP, "consistency": c}, source=source, sampler_name="Euler") for c in (0, 1))
    assert psnr(held.image, source) > max(30, psnr(without.image, source) + 3)


def test_the_noise_to_signal_ratio_is_what_the_latents_show(host, probe):
    probe.ratios(on=True)
    upscaled(host, {**OFF, "denoise": 0.6, "steps": 8, "tile_size": 96}, source=picture(64, 64), sampler_name="Euler")
    noted = probe.ratios()
    assert len(noted) >= 8
    for call in noted:
        sigma = call["sigma"]
        assert call["ratio"] == pytest.approx(sigma / (1 - sigma) if host.family.flow else sigma, rel=1e-5)
    # At a tile's first call nothing has been taken away from the noise yet.
    level = max(call["sigma"] for call in noted)
    first = [call for call in noted if call["sigma"] == level]
    shown = statistics.mean(call["noise"] for call in first) / statistics.mean(call["signal"] for call in first)
    assert len(first) >= 2 and level > 0.3
    assert first[0]["ratio"] == pytest.approx(shown, rel=0.3)


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM++ 2M", "Euler a"])
def test_guidance_acts_with_plain_second_order_and_ancestral_samplers(host, sampler):
    plain, guided = (
        upscaled(host, {**JOB, "sampler_name": sampler, "denoise": 0.75, "dino_strength": s}) for s in (0, 1)
    )
    assert plain.pixels != guided.pixels and most(plain, guided) < 128
    assert guided.saved.get("DINO sampler", guided.saved["Sampler"]) == sampler


def test_without_cfg_tiles_have_the_rows_that_the_host_gives_a_picture_and_guidance_acts(host, probe, on):
    probe.rows(on=True)
    host.img2img(cfg_scale=1)
    rows = set(probe.rows())  # one where the host leaves out the unconditional row, as the Forge family does
    probe.rows(on=True)
    plain = upscaled(host, OFF, cfg_scale=1)
    assert rows and set(probe.rows()) == rows
    guided = upscaled(host, ON, cfg_scale=1)
    assert guided.pixels != plain.pixels
    assert (guided.pixels == on.pixels) is (host.family.request.get("cfg_scale") == 1)


def test_tiles_that_share_a_call_come_out_as_alone(host, probe, off, on):
    for settings, alone in ((OFF, off), (ON, on)):
        probe.rows(on=True)
        together = upscaled(host, {**settings, "tile_batch_size": 2})
        rows = probe.rows()
        if host.family.alone:
            assert set(rows) == {1} and together.pixels == alone.pixels
            continue
        each = 1 if host.family.request.get("cfg_scale") == 1 else 2
        # With and without prompt, in one call or two; Forge Classic leaves the latter out of the first step.
        assert rows[0] in (2, 2 * each) and set(rows[1:]) in ({2}, {2 * each})
        # Noise makes a last bit that depends on where in memory a row lies as large as anything.
        assert host.family.noise or most(together, alone) <= 6


def test_a_lora_in_the_prompt_acts_on_every_tile_and_goes_again(host, probe):
    name = host.family.lora_name
    answer = host.call("/sdapi/v1/loras")
    if answer.status == 404 or not any(name in str(found) for found in answer.body):
        pytest.skip(f"the WebUI has no {name}, or no loader for it: tests/hosts/make_lora.py makes it")
    plain, prompt = upscaled(host, FREE), f"a red house <lora:{name}:1>"
    probe.weights()
    host.img2img()
    without = probe.weights()
    host.img2img(prompt=prompt)
    by_the_host = probe.weights()
    acted = upscaled(host, FREE, prompt=prompt)
    on_tiles = probe.weights()
    assert acted.pixels != plain.pixels
    assert min(by_the_host) > 1.003 * max(without)
    assert len(on_tiles) >= 4 and on_tiles == pytest.approx([by_the_host[0]] * len(on_tiles), rel=1e-6)
    assert upscaled(host, FREE).pixels == plain.pixels


def test_an_interrupt_ends_the_run_and_keeps_what_is_done(host):
    settings = {**FREE, "scale_factor": 6, "denoise": 0.9, "steps": 20}
    job = host.in_background(upscaled, host, settings)
    host.wait_for_tile(2)
    host.call("/sdapi/v1/interrupt", {})
    job.join(60)
    assert not job.is_alive()
    stopped, base = job.answer.image, upscaled(host, {**settings, "denoise": 0}).image
    assert stopped.size == (288, 192)
    first, last = (0, 0, 40, 40), (250, 150, 288, 192)
    assert stopped.crop(first).tobytes() != base.crop(first).tobytes()
    assert max(ImageChops.difference(stopped.crop(last), base.crop(last)).convert("L").getdata()) <= 8


def test_only_the_masked_part_is_replaced(host):
    mask = Image.new("L", SOURCE, 0)
    mask.paste(255, (0, 0, 16, 32))
    settings = {**FREE, "denoise": 0.75}
    masked = upscaled(host, settings, mask=encoded(mask), mask_blur=0, inpainting_fill=1).image
    whole, untouched = upscaled(host, settings).image, upscaled(host, {**settings, "denoise": 0}).image
    right, left = (44, 0, 96, 64), (0, 0, 24, 64)
    assert masked.crop(right).tobytes() == untouched.crop(right).tobytes()
    assert masked.crop(left).tobytes() != untouched.crop(left).tobytes()
    apart = ImageChops.difference(masked.crop(left), whole.crop(left)).convert("L").getextrema()[1]
    assert apart <= (8 if host.family.noise else 0)


def test_an_adapter_acts_where_the_family_has_one_and_is_refused_elsewhere(host, adapter_folder):
    tiny_adapter(base=host.family.adapter or "sd15").save(adapter_folder / "dino-probe-one.safetensors")
    wanted = {**FREE, "adapter": "dino-probe-one", "adapter_strength": 1}
    if not host.family.adapter:
        answer = host.dropdown(wanted, source=picture(*SOURCE))
        assert answer.status == 422 and f"the loaded checkpoint is {host.family.name}" in answer.text
        return
    plain = upscaled(host, FREE)
    assert upscaled(host, {**wanted, "adapter_strength": 0}).pixels == plain.pixels
    acted = upscaled(host, wanted)
    assert most(acted, plain) > 1
    assert upscaled(host, wanted).pixels == acted.pixels


def test_the_next_plain_generation_is_bitwise_what_it_was(host, before, probe):
    again = [before, *((host.img2img(), host.txt2img()) for _ in range(2 if host.family.noise else 0))]
    upscaled(host, ON)
    after = [(host.img2img(), host.txt2img()) for _ in range(len(again))]
    for kind in (0, 1):
        # One each; where noise makes much of a last bit, and a host's own pictures differ by chance, any of three.
        assert {pair[kind].pixels for pair in after} & {pair[kind].pixels for pair in again}
    assert after[0][0].saved == before[0].saved
    left = probe.held()
    assert not any(left["callbacks"].values()) and not left["replaced"], left
