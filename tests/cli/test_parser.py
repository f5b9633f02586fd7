import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import types

import pytest
import torch
from PIL import Image

from lib_dino import pipeline
from lib_dino.cli import parser as cli
from lib_dino.declarations import GROUPS
from lib_dino.errors import Interrupted, ModelError
from lib_dino.pictures.picture import Picture, read_picture, write_picture
from lib_dino.pipeline import Result
from lib_dino.report.records import Report
from lib_dino.settings import Settings, knobs


class Calls(list):
    stops, done = False, 1


@pytest.fixture
def calls(monkeypatch):
    """Repaints nothing: pixels are repeated. Yields the settings of each call."""
    made = Calls()

    def enlarge(source, settings, *, model=None, measure=False, progress=None, keeping=None, stop=bool, **more):
        made.append(
            types.SimpleNamespace(
                settings=settings, model=model, measure=measure, keeping=keeping, references=more.get("references")
            )
        )
        if made.stops:
            signal.raise_signal(signal.SIGINT)
        settings = settings.replace(seed=77) if settings.seed < 0 else settings
        height, width = size = settings.target_size(source.size)
        progress(pipeline.Progress(1, 1, 1, 1))
        rows, cols = torch.arange(height) % source.size[0], torch.arange(width) % source.size[1]
        report = Report(
            source.size, size, dataclasses.asdict(settings), model="none", features=None, model_calls=0,
            seconds=0.0, source_psnr=50.0, detail=1.0, source_noise=0.0,
        )
        alpha = None if source.alpha is None else source.alpha[..., rows, :][..., cols]
        picture = Picture(source.pixels[..., rows, :][..., cols], alpha, source.grey)
        marks = {"DINO stopped": f"after {made.done} of 2 tiles"} if stop() else {}
        return Result(picture, report, settings, marks=marks, stopped=stop(), sampled_tiles=made.done)

    def arms(source, settings, **more):
        return {label: enlarge(source, settings, **more) for label in ("Lanczos", "img2img", "DINO")}

    monkeypatch.setattr(pipeline, "upscale", enlarge)
    monkeypatch.setattr(pipeline, "compare", arms)
    return made


@pytest.fixture
def photo(tmp_path):
    return sample(tmp_path / "photo.jpg")


def sample(path, mode="RGB", size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert(mode).save(path)
    return path


def run(*argv):
    return cli.main([str(part) for part in argv])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_one_picture_is_written_to_the_file_that_was_named(calls, photo, tmp_path, capsys):
    assert run("upscale", photo, "-o", tmp_path / "large.png") == 0
    assert size_of(tmp_path / "large.png") == (96, 80)
    assert str(tmp_path / "large.png") in capsys.readouterr().out


def test_a_folder_is_made_and_the_name_says_the_size(calls, photo, tmp_path):
    assert run("upscale", photo, "-o", tmp_path / "new" / "folder") == 0
    assert run("upscale", photo, "-o", tmp_path / "new" / "folder", "--scale", "1.5") == 0
    assert run("upscale", photo, "-o", tmp_path / "new" / "folder", "--width", "100") == 0
    assert run("upscale", photo, "-o", tmp_path / "new" / "folder", "--width", "99", "--height", "81") == 0
    assert names(tmp_path / "new" / "folder") == [
        "photo_99x81.png", "photo_w100.png", "photo_x1.5.png", "photo_x2.png",
    ]
    assert size_of(tmp_path / "new" / "folder" / "photo_w100.png") == (100, 83)


def test_every_setting_has_a_flag_and_its_help_a_limit(capsys):
    assert run("upscale", "--help") == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, knob in knobs().items():
        assert f" {cli.flag_of(name)} " in shown, name
        assert knob.low is None or knob.limit() in shown, name


def test_flags_reach_the_settings(calls, photo, tmp_path):
    flags = (
        "--scale 3 --denoise 0.3 --dino-strength 0.4 --no-dino --consistency 0.7 --tile-size 256 --overlap 32 "
        "--tile-batch-size 2 --steps 12 --seed 9 --dino-model some/folder "
        "--adapter a.safetensors --adapter-strength 0.6"
    )
    assert run("upscale", photo, "-o", tmp_path / "a.png", *flags.split(), "--model", "other") == 0
    assert calls[0].model == "other"
    assert calls[0].settings == Settings(
        scale_factor=3.0, denoise=0.3, dino_strength=0.4, dino_enabled=False, consistency=0.7, tile_size=256,
        overlap=32, tile_batch_size=2, steps=12, seed=9, dino_model="some/folder",
        adapter="a.safetensors", adapter_strength=0.6,
    )


def test_flags_win_over_the_preset_wherever_it_stands(calls, photo, tmp_path):
    assert run("upscale", photo, "--steps", "9", "--preset", "creative", "-o", tmp_path / "a.png") == 0
    used = calls[0].settings
    assert (used.denoise, used.dino_strength, used.steps) == (0.5, 0.4, 9)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--denoise", "1.5"], "--denoise"),
        (["--denoise", "nan"], "--denoise"),
        (["--denoise", "inf"], "--denoise"),
        (["--denoise", "much"], "--denoise"),
        (["--steps", "2.5"], "--steps"),
        (["--seed", "x"], "--seed"),
        (["--scale", "9"], "--scale"),
        (["--scale", "2", "--width", "90"], "--width"),
        (["--width", "90", "--megapixels", "1"], "--megapixels"),
        (["--tile-size", "64", "--overlap", "64"], "--overlap"),
        (["--preset", "wild"], "--preset"),
        (["--sharpen"], "--sharpen"),
        (["--den", "0.5"], "--den"),
        (["--width", "10"], "--width"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_flag(calls, photo, tmp_path, capsys, flags, word):
    assert run("upscale", photo, "-o", tmp_path / "out", *flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert word in said.err
    assert not calls


@pytest.mark.parametrize("argv", [[], ["upscale"], ["upscale", "a.png"], ["paint"], ["settings"]])
def test_missing_arguments_are_one_line(argv, capsys):
    assert run(*argv) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_folders_and_unexpanded_patterns_are_taken_apart(calls, tmp_path):
    for name in ("in/b.png", "in/a.jpg", "in/deep/c.png", "more/d.webp", "more/e.png"):
        sample(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert run("upscale", tmp_path / "in", tmp_path / "more" / "*.webp", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a_x2.png", "b_x2.png", "d_x2.png"]


def test_a_file_named_twice_is_done_once(calls, photo, tmp_path):
    assert run("upscale", photo, tmp_path / "*.jpg", f"{tmp_path}/../{tmp_path.name}", "-o", tmp_path / "out.png") == 0
    assert len(calls) == 1


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(calls, tmp_path):
    assert run("upscale", sample(tmp_path / "a[1].png"), "-o", tmp_path / "out.png") == 0


@pytest.mark.parametrize("empty", ["nothing", "*.png"])
def test_a_folder_or_pattern_without_pictures_is_wrong_usage(calls, tmp_path, capsys, empty):
    (tmp_path / "nothing").mkdir()
    assert run("upscale", tmp_path / empty, "-o", tmp_path / "out") == 2
    assert empty in capsys.readouterr().err


def test_one_bad_picture_is_reported_and_the_others_are_done(calls, tmp_path, capsys):
    for name in ("a.png", "c.png"):
        sample(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes(b"")
    assert run("upscale", tmp_path / "in", tmp_path / "missing.png", "-o", tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["a_x2.png", "c_x2.png"]
    said = capsys.readouterr().err
    assert "b.png" in said
    assert "missing.png" in said
    assert "2 of 4" in said


def test_when_every_picture_fails_the_exit_code_says_so(calls, tmp_path, capsys):
    (tmp_path / "a.png").write_text("no picture")
    assert run("upscale", tmp_path / "a.png", tmp_path / "none.png", "-o", tmp_path / "out") == 3
    assert "Traceback" not in capsys.readouterr().err


def test_an_existing_result_is_only_replaced_by_force(calls, photo, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"mine")
    assert run("upscale", photo, "-o", tmp_path / "a.png") == 3
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert not calls
    assert "--force" in capsys.readouterr().err
    assert run("upscale", photo, "-o", tmp_path / "a.png", "--force") == 0
    assert size_of(tmp_path / "a.png") == (96, 80)


def test_the_source_is_not_replaced_without_force(calls, tmp_path):
    source = sample(tmp_path / "a.png")
    before = source.read_bytes()
    assert run("upscale", source, "-o", source) == 3
    assert source.read_bytes() == before


def test_force_alone_does_not_replace_the_source(calls, tmp_path, capsys):
    source = sample(tmp_path / "a.png")
    before = source.read_bytes()
    (tmp_path / "link.png").symlink_to(source)
    for out in (source, tmp_path / "link.png"):
        assert run("upscale", source, "-o", out, "--force") == 2 and not calls
        assert "--replace-source" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert run("upscale", source, "-o", source, "--replace-source") == 3  # is no force
    assert run("upscale", source, "-o", source, "--force", "--replace-source") == 0
    assert size_of(source) == (96, 80)


def test_too_large_a_picture_is_refused_before_a_pixel_is_decoded(calls, tmp_path, capsys, monkeypatch):
    source = sample(tmp_path / "a.png", size=(1000, 500))
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    assert run("upscale", source, "-o", tmp_path / "b.png", "--max-megapixels", "0.4") == 3
    assert "0.4 megapixels" in capsys.readouterr().err and not calls
    for wrong in ("0", "-1", "nan", "inf", "many", "1001"):
        assert run("upscale", source, "-o", tmp_path / "b.png", f"--max-megapixels={wrong}") == 2


def test_tiles_are_kept_and_taken_as_asked(calls, photo, tmp_path):
    for flags, keeps, resumes in (((), True, False), (("--resume",), True, True), (("--no-keep",), False, False)):
        assert run("upscale", photo, "-o", tmp_path / "a.png", "--force", *flags) == 0
        keeping = calls[-1].keeping
        assert (keeping is not None) == keeps and bool(keeping and keeping.resumes) == resumes
        assert keeping is None or str(keeping.folder) == os.environ["DINO_UPSCALE_TILES"]


def test_resume_replaces_a_result_that_was_stopped_and_no_other(calls, photo, tmp_path, capsys):
    out = tmp_path / "a.png"
    assert run("upscale", photo, "-o", out) == 0
    assert run("upscale", photo, "-o", out, "--resume") == 0 and len(calls) == 1
    assert "is there already" in capsys.readouterr().out
    assert run("upscale", photo, "-o", out, "--resume", "--denoise", "0.3") == 3 and len(calls) == 1
    with Image.open(out) as image:
        text = image.info["parameters"]
    write_picture(read_picture(out), out, text=f"{text}, DINO stopped: after 3 of 9 tiles", force=True)
    assert run("upscale", photo, "-o", out, "--resume", "--denoise", "0.3") == 3 and len(calls) == 1
    assert run("upscale", photo, "-o", out, "--resume") == 0 and len(calls) == 2


def test_kept_tiles_are_spoken_of(calls, photo, tmp_path, capsys):
    for flags, words in (((), "Add --resume"), (("--resume",), "goes on, 5 batches")):
        assert run("upscale", photo, "-o", tmp_path / "a.png", "--force", *flags) == 0
        calls[-1].keeping.on_found(5)
        assert words in capsys.readouterr().err


def test_a_stop_ends_the_batch_with_what_is_done_and_its_exit_code(calls, photo, tmp_path, capsys):
    calls.stops = True
    more = sample(tmp_path / "other.png")
    assert run("upscale", photo, more, "-o", tmp_path / "out") == 130
    said = capsys.readouterr().out
    assert "stopped after 1 of 2 tiles" in said and "--resume goes on" in said
    assert names(tmp_path / "out") == ["photo_x2.png"] and len(calls) == 1
    calls.done = 0
    assert run("upscale", more, "-o", tmp_path / "out") == 130
    assert names(tmp_path / "out") == ["photo_x2.png"]
    assert "nothing is written" in capsys.readouterr().out


def test_pictures_of_one_name_get_names_of_their_own(calls, tmp_path):
    for name in ("in/a.jpg", "in/a.png", "in/b.png", "more/a.png"):
        sample(tmp_path / name)
    assert run("upscale", tmp_path / "in", tmp_path / "more", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a_jpg_x2.png", "a_png_2_x2.png", "a_png_x2.png", "b_x2.png"]


def test_what_is_finished_already_is_left_alone_and_said(calls, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    sample(folder / "a.png")
    again = ("upscale", folder, "-o", out)
    assert run(*again) == 0 and len(calls) == 1
    sample(folder / "b.png")
    assert run(*again) == 0 and len(calls) == 2
    assert "a_x2.png is there already, made with these settings" in capsys.readouterr().out
    assert run(*again, "--force") == 0 and len(calls) == 4
    assert run(*again, "--denoise", "0.3") == 3 and len(calls) == 4  # made otherwise: refused, as ever
    assert run(*again, "--seed", "5") == 3
    assert run(*again, "--report") == 3 and len(calls) == 4  # a file is missing
    sample(folder / "a.png", size=(50, 40))
    assert run(*again) == 1 and len(calls) == 4  # another picture of that name
    os.utime(out / "b_x2.png", (0, 0))
    assert run(*again) == 3 and len(calls) == 4


def test_a_result_that_was_stopped_is_not_finished(calls, photo, tmp_path):
    out = tmp_path / "out"
    assert run("upscale", photo, "-o", f"{out}/") == 0
    result = read_picture(out / "photo_x2.png")
    with Image.open(out / "photo_x2.png") as image:
        text = image.info["parameters"]
    write_picture(result, out / "photo_x2.png", text=f"{text}, DINO stopped: after 3 of 9 tiles", force=True)
    assert run("upscale", photo, "-o", f"{out}/") == 3


def test_a_result_never_replaces_another_picture_of_the_batch(calls, tmp_path):
    sample(tmp_path / "a.png")
    sample(tmp_path / "a_x2.png")
    assert run("upscale", tmp_path, "-o", tmp_path, "--force") == 2
    assert not calls


@pytest.mark.parametrize("out", ["out.png", "out.xyz"])
def test_an_output_that_does_not_suit_the_inputs_is_refused(calls, photo, tmp_path, capsys, out):
    more = [sample(tmp_path / "other.png")] if out == "out.png" else []
    assert run("upscale", photo, *more, "-o", tmp_path / out) == 2
    assert out in capsys.readouterr().err


def test_an_unwritable_output_is_found_out_before_the_work(calls, photo, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("upscale", photo, "-o", tmp_path / "file" / "a.png") == 3
    assert run("upscale", photo, "-o", tmp_path / "file" / "folder" / "") == 3
    assert run("upscale", photo, "-o", tmp_path / "b.png", "--report", tmp_path / "none" / "r.json") == 3
    assert not calls
    assert "Traceback" not in capsys.readouterr().err


def test_a_transparent_picture_is_refused_as_jpeg_before_the_work(calls, tmp_path):
    source = tmp_path / "a.png"
    Image.new("RGBA", (8, 8), (1, 2, 3, 100)).save(source)
    assert run("upscale", source, "-o", tmp_path / "a.jpg") == 3
    assert not calls


def test_a_report_is_written_beside_the_result_or_where_it_was_asked_for(calls, photo, tmp_path):
    assert run("upscale", "--report", photo, "-o", tmp_path / "a.png") == 0
    assert json.loads((tmp_path / "a.json").read_text())["result_size"] == [80, 96]
    assert run("upscale", "--report", tmp_path / "mine.json", photo, "-o", tmp_path / "b.png") == 0
    assert json.loads((tmp_path / "mine.json").read_text())["result_size"] == [80, 96]
    assert all(call.measure for call in calls)


def test_one_report_file_for_several_pictures_is_wrong_usage(calls, tmp_path):
    argv = [sample(tmp_path / "a.png"), sample(tmp_path / "b.png"), "--report", tmp_path / "r.json"]
    assert run("upscale", *argv, "-o", tmp_path / "out") == 2


def test_a_page_for_people_goes_with_the_report(calls, photo, tmp_path):
    assert run("upscale", photo, "-o", tmp_path / "a.png", "--report", tmp_path / "mine.json") == 0
    assert "a.png" in (tmp_path / "mine_report.html").read_text(encoding="utf-8")
    assert run("upscale", photo, "-o", tmp_path / "a.png", "--report", tmp_path / "mine.json") == 3  # nothing replaced


def test_a_map_and_the_worst_places_are_written_on_demand(calls, photo, tmp_path):
    assert run("upscale", photo, "-o", tmp_path / "a.png", "--map") == 0
    assert names(tmp_path) == ["a.png", "a_map.png", "a_worst.png", "photo.jpg"]
    assert calls[-1].measure
    (tmp_path / "a.png").unlink()
    assert run("upscale", photo, "-o", tmp_path / "a.png", "--map") == 3
    assert not (tmp_path / "a.png").exists()


def test_compare_writes_the_arms_beside_each_other(calls, photo, tmp_path):
    assert run("upscale", photo, "-o", tmp_path / "a.png", "--compare", "--report") == 0
    assert names(tmp_path) == ["a.json", "a.png", "a_compare.png", "a_report.html", "photo.jpg"]
    width, height = size_of(tmp_path / "a_compare.png")
    assert width > 3 * 96
    assert height > 80


def test_saved_settings_are_printed_back(calls, photo, tmp_path, capsys):
    assert run("upscale", photo, "-o", tmp_path / "a.png", "--denoise", "0.35") == 0
    capsys.readouterr()
    assert run("settings", tmp_path / "a.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(knobs())
    assert {"denoise: 0.35", "seed: 77"} <= set(lines)  # the seed that was drawn
    assert run("settings", tmp_path / "a.png", "--json") == 0
    assert Settings(**json.loads(capsys.readouterr().out)) == Settings(denoise=0.35, seed=77)


def test_a_retired_setting_in_a_picture_is_told_beside_the_others(tmp_path, capsys):
    path = sample(tmp_path / "a.png")
    text = "Steps: 20, Seed: 1, Size: 8x8, DINO upscale: 2.0, DINO allowed drift: 0.05, DINO denoise: 0.3"
    write_picture(read_picture(path), path, text=text, force=True)
    assert run("settings", path, "--json") == 0
    said = capsys.readouterr()
    assert Settings(**json.loads(said.out)) == Settings(denoise=0.3)
    assert said.err.count("\n") == 1 and "allowed_drift" in said.err and "max_drift" in said.err


def test_help_groups_the_settings_as_the_panel_does(capsys):
    assert run("upscale", "--help") == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"\n{group}:\n") for group in GROUPS if any(k.group == group for k in knobs().values())]
    assert places == sorted(places) and len(places) > 4


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif"])
def test_settings_are_printed_back_from_every_format(calls, photo, tmp_path, capsys, name):
    assert run("upscale", photo, "-o", tmp_path / name, "--seed", "5") == 0
    assert run("settings", tmp_path / name) == 0
    assert "seed: 5" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "a cat\nSteps: 20, Seed: 1, Size: 8x8", "DINO denoise: x, a b: 1, c d: 2"])
def test_a_picture_without_settings_of_ours_is_said_to_have_none(tmp_path, capsys, text):
    path = sample(tmp_path / "a.png")
    if text:
        write_picture(read_picture(path), path, text=text, force=True)
    assert run("settings", path) in (2, 3)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_model_ends_the_batch_at_once(photo, tmp_path, monkeypatch, capsys):
    def fail(*args, **more):
        raise ModelError("no weights in there")

    monkeypatch.setattr(pipeline, "upscale", fail)
    assert run("upscale", photo, sample(tmp_path / "b.png"), "-o", tmp_path / "out") == 3
    assert capsys.readouterr().err.count("no weights in there") == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Interrupted])
def test_ctrl_c_ends_in_one_line_and_leaves_nothing_half_written(photo, tmp_path, monkeypatch, capsys, stop):
    def interrupt(*args, **more):
        raise stop

    monkeypatch.setattr(pipeline, "upscale", interrupt)
    assert run("upscale", photo, "-o", tmp_path / "out") == 130
    assert names(tmp_path / "out") == []
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: you tried 8 TB")])
def test_a_result_too_large_for_the_memory_is_said_so(photo, tmp_path, monkeypatch, capsys, error):
    def fail(*args, **more):
        raise error

    monkeypatch.setattr(pipeline, "upscale", fail)
    assert run("upscale", photo, "-o", tmp_path / "out") == 3
    assert "96x80 px" in capsys.readouterr().err


def test_a_bug_is_not_hidden_as_bad_input(photo, tmp_path, monkeypatch):
    def fail(*args, **more):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(pipeline, "upscale", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run("upscale", photo, "-o", tmp_path / "out")


def test_what_was_done_to_a_picture_is_told_unless_quiet(calls, tmp_path, capsys):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert run("upscale", tmp_path / "a.gif", "-o", tmp_path / "a.png") == 0
    assert "first of 2 frames" in capsys.readouterr().err
    assert run("upscale", tmp_path / "a.gif", "-o", tmp_path / "b.png", "--quiet") == 0
    said = capsys.readouterr()
    assert (said.err, said.out.count("\n")) == ("", 1)


def test_a_terminal_sees_tiles_and_time_left(calls, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("upscale", photo, "-o", tmp_path / "a.png") == 0
    shown = capsys.readouterr().err
    assert "tile 1/1" in shown
    assert "left" in shown


def test_the_demo_writes_three_files_and_sums_up(calls, photo, tmp_path, capsys):
    for _ in range(2):  # a second demo replaces the first
        assert run("demo", photo, "--out", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["photo_x2.json", "photo_x2.png", "photo_x2_compare.png", "photo_x2_report.html"]
    said = capsys.readouterr().out
    assert all(name in said for name in names(tmp_path / "out"))
    assert len(said.splitlines()) == 2 * (3 + 5)
    assert len({call.settings for call in calls}) == 1
    assert calls[0].settings.seed >= 0


def test_the_demo_has_a_photo_of_its_own():
    assert size_of(cli.EXAMPLE) == (512, 512)


def test_the_demo_says_that_a_large_photo_takes_longer(calls, tmp_path, capsys):
    assert run("demo", sample(tmp_path / "wide.png", size=(600, 8)), "--out", tmp_path / "out") == 0
    assert "600x8" in capsys.readouterr().out


def test_help_and_usage_errors_load_no_torch():
    probe = (
        "import sys; from lib_dino.cli import parser as cli; "
        "codes = [cli.main(['--help']), cli.main(['upscale', '--help']),"
        " cli.main(['upscale', 'a', '-o', 'b', '--scale', '9'])]; print(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 2] False"


def test_the_package_runs_as_a_module(tmp_path):
    argv = [sys.executable, "-m", "lib_dino", "settings", str(tmp_path / "none.png")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "does not exist" in done.stderr


def test_the_real_pipeline_upscales_a_small_photo_end_to_end(tmp_path, capsys):
    source = sample(tmp_path / "grey.png", mode="LA")
    flags = ["--denoise", "0.1", "--seed", "1", "--scale", "1.5", "--report", "--map"]
    assert run("upscale", source, "-o", tmp_path / "out.png", *flags) == 0
    with Image.open(tmp_path / "out.png") as image:
        assert (image.mode, image.size) == ("LA", (72, 60))
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["seed"] == 1
    assert run("settings", tmp_path / "out.png") == 0
    assert "scale_factor: 1.5" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    talk = "import sys, lib_dino.__main__ as m; m.main = lambda: print('x' * 10**6) or 0; sys.exit(m.run())"
    command = [sys.executable, "-c", talk]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_strength_that_cannot_act_says_so(calls, photo, tmp_path, capsys):
    note = "--dino-strength does nothing at full source consistency"
    for number, (flags, said) in enumerate([
        ((), False), (("--dino-strength", "1"), True), (("--dino-strength", "1", "--consistency", "0.9"), False),
        (("--dino-strength", "0"), False), (("--dino-strength", "1", "--quiet"), False),
    ]):  # fmt: skip
        assert run("upscale", photo, "-o", tmp_path / f"{number}.png", *flags) == 0
        assert (note in capsys.readouterr().err) is said, flags


def test_references_are_handed_over_in_their_order_and_must_be_pictures(calls, photo, tmp_path, capsys):
    first, second = sample(tmp_path / "a.png"), sample(tmp_path / "b.png")
    assert run("upscale", photo, "-o", tmp_path / "l.png", "--reference", first, "--reference", second) == 0
    assert calls[0].references == [str(first), str(second)]
    (tmp_path / "no.png").write_text("no picture")
    assert run("upscale", photo, "-o", tmp_path / "m.png", "--reference", tmp_path / "no.png") == 3
    assert "no.png should be a picture" in capsys.readouterr().err and not (tmp_path / "m.png").exists()
    assert run("upscale", photo, "-o", tmp_path / "m.png", "--reference", tmp_path / "gone.png") == 3
    assert "does not exist" in capsys.readouterr().err


def test_a_result_with_references_is_never_taken_for_finished(calls, photo, tmp_path, capsys):
    reference = sample(tmp_path / "a.png")
    assert run("upscale", photo, "-o", tmp_path / "out", "--reference", reference) == 0
    assert run("upscale", photo, "-o", tmp_path / "out", "--reference", reference) == 3
    assert "exists" in capsys.readouterr().err
    assert run("upscale", photo, "-o", tmp_path / "out", "--reference", reference, "--force") == 0


def test_references_without_strength_are_said_to_do_nothing(calls, photo, tmp_path, capsys):
    flags = ("--reference", sample(tmp_path / "a.png"), "--dino-strength", "0")
    assert run("upscale", photo, "-o", tmp_path / "l.png", *flags) == 0
    assert "--reference does nothing" in capsys.readouterr().err
    assert run("upscale", photo, "-o", tmp_path / "m.png", *flags, "--quiet") == 0
    assert "--reference" not in capsys.readouterr().err
