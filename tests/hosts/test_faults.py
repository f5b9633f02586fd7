"""Faults made in a running WebUI: no numbers, no memory, an interrupt. Nothing is lost, nothing broken called done."""

import time

import pytest
from client import SMALL, picture
from PIL import ImageChops, ImageStat

from lib_dino.settings import INFOTEXT_FAULTY_KEY, INFOTEXT_STOPPED_KEY

GIVEN = {**SMALL, "dino_enabled": False, "denoise": 0.5}


@pytest.fixture
def faults(host, probe):
    if host.call("/host-probe/faults").status != 200:
        pytest.skip("the WebUI has an older test extension")

    def plan(kind, *calls):
        host.call(f"/host-probe/faults?kind={kind}&calls={','.join(map(str, calls))}", {})

    plan.told = lambda: host.call("/host-probe/faults").body
    yield plan
    plan("nan")


@pytest.fixture(scope="module")
def calls(host, probe):
    """The model's calls for one tile, and for the picture."""
    host.call("/host-probe/faults?kind=nan&calls=", {})
    assert host.dropdown(GIVEN).status == 200
    made = host.call("/host-probe/faults").body["seen"]
    assert made % 9 == 0 or made % 6 == 0
    return made


def apart(one, other):
    """Mean difference of two pictures, 0 to 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean) / 3


def test_a_tile_without_numbers_is_sampled_again(host, faults, calls):
    sound = host.dropdown(GIVEN)
    faults("nan", 2)
    answer = host.dropdown(GIVEN)
    assert faults.told()["made"] == 1 and faults.told()["seen"] > calls
    assert INFOTEXT_FAULTY_KEY not in answer.saved
    assert answer.image.size == sound.image.size and apart(answer.image, sound.image) < 30


def test_a_tile_that_stays_without_numbers_keeps_the_enlarged_source_and_says_so(host, faults):
    sound = host.dropdown(GIVEN)
    faults("nan", *range(1, 9))
    answer = host.dropdown(GIVEN)
    # One host goes through a tile's steps with NaN in hand, the other ends the tile at the first.
    assert 1 <= int(answer.saved[INFOTEXT_FAULTY_KEY]) <= 4
    dark = ImageStat.Stat(answer.image.convert("L")).mean[0]
    assert dark > 0.5 * ImageStat.Stat(sound.image.convert("L")).mean[0]
    faults("nan")
    assert host.dropdown(GIVEN).pixels == sound.pixels


def test_where_every_call_gives_no_numbers_the_result_is_the_enlarged_source(host, faults):
    faults("nan", *range(1, 400))
    answer = host.dropdown(GIVEN)
    plain = picture().resize(answer.image.size)
    assert int(answer.saved[INFOTEXT_FAULTY_KEY]) >= 6 and apart(answer.image, plain) < 6


@pytest.fixture
def half(host, faults):
    """The host's model in bfloat16, as on a card."""
    if host.family.name not in ("sd1", "sdxl"):
        pytest.skip("the test extension knows how with UNets")
    host.call("/host-probe/half?on=true", {})
    assert faults.told()["half"]
    yield
    host.call("/host-probe/half?on=false", {})


def test_half_precision_is_given_up_for_a_tile_without_numbers(host, faults, half):
    sound = host.dropdown(GIVEN)
    assert sound.status == 200, sound.text[:500]
    faults("half", *range(1, 400))
    answer = host.dropdown(GIVEN)
    assert faults.told()["made"] > 0 and INFOTEXT_FAULTY_KEY not in answer.saved
    assert 0 < apart(answer.image, sound.image) < 8
    faults("half")
    assert host.dropdown(GIVEN).pixels == sound.pixels  # back in half precision


def test_a_batch_that_runs_out_of_memory_goes_in_smaller_ones(host, faults):
    sound = host.dropdown(GIVEN)
    faults("memory", 1)
    answer = host.dropdown({**GIVEN, "tile_batch_size": 4})
    assert faults.told()["made"] == 1
    assert apart(answer.image, sound.image) < 4


def test_an_interrupted_job_goes_on_bitwise(host, faults, probe):
    job = {**GIVEN, "scale_factor": 4.0}
    whole = host.dropdown(job, seed=11)
    work = host.in_background(host.dropdown, job, seed=11)
    host.wait_for_tile(4)
    host.call("/sdapi/v1/interrupt", {})
    work.join()
    stopped = work.answer
    assert stopped.saved[INFOTEXT_STOPPED_KEY].startswith("after ") and stopped.image.size == whole.image.size
    faults("nan")
    resumed = host.dropdown(job, seed=11)
    went_on = faults.told()["seen"]
    assert went_on > 0
    assert resumed.pixels == whole.pixels and resumed.saved == whole.saved
    assert probe.held()["replaced"] == []
    faults("nan")
    assert host.dropdown(job, seed=11).pixels == whole.pixels
    assert faults.told()["seen"] > went_on  # once the picture was whole nothing was left to go on with


def test_a_seed_the_host_drew_is_found_again(host):
    job = {**GIVEN, "scale_factor": 4.0}
    work = host.in_background(host.dropdown, job, seed=-1)
    host.wait_for_tile(4)
    host.call("/sdapi/v1/interrupt", {})
    work.join()
    resumed = host.dropdown(job, seed=-1)
    assert resumed.saved["Seed"] == work.answer.saved["Seed"]
    assert host.dropdown({**job, "resume": False}, seed=int(resumed.saved["Seed"])).pixels == resumed.pixels
    other = host.dropdown(job, seed=-1)
    assert other.saved["Seed"] != resumed.saved["Seed"]


def test_two_calls_at_once_and_an_interrupt_of_one_do_not_meet(host):
    jobs = [{**GIVEN, "scale_factor": 3.0}, {**GIVEN, "scale_factor": 2.5, "denoise": 0.3}]
    alone = [host.dropdown(job, seed=21).pixels for job in jobs]
    both = [host.in_background(host.dropdown, job, seed=21) for job in jobs]
    for work in both:
        work.join()
    assert [work.answer.pixels for work in both] == alone
    first = host.in_background(host.dropdown, {**GIVEN, "scale_factor": 6.0}, seed=5)
    host.wait_for_tile(2)
    second = host.in_background(host.dropdown, jobs[1], seed=21)
    time.sleep(0.3)
    host.call("/sdapi/v1/interrupt", {})
    first.join()
    second.join()
    assert INFOTEXT_STOPPED_KEY in first.answer.saved
    assert second.answer.pixels == alone[1] and INFOTEXT_STOPPED_KEY not in second.answer.saved
