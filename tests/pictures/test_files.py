import os
import struct
import subprocess
import sys
import zlib

import pytest
from PIL import Image

from lib_dino.errors import ImageError
from lib_dino.pictures import files
from lib_dino.pictures.files import check_new_file, check_writable, new_file, open_picture, read_settings_text


def load(path):
    with open_picture(path) as image:
        image.load()
        return image.size


def sample(path, size=(48, 40)):
    Image.effect_noise(size, 60).convert("RGB").save(path)
    return path


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png does not exist"):
        load(tmp_path / "nowhere.png")


def test_a_folder_is_said_to_be_one(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        load(tmp_path)


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty"):
        load(tmp_path / "empty.png")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture, whatever its name says")
    with pytest.raises(ImageError, match="of no kind known"):
        load(tmp_path / "notes.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="no regular file"):
        load(tmp_path / "pipe.png")


def test_a_name_too_long_for_the_disk_is_an_image_error(tmp_path):
    with pytest.raises(ImageError):
        load(tmp_path / ("n" * 300 + ".png"))
    with pytest.raises(ImageError):
        check_writable(tmp_path / ("n" * 300 + ".png"))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_a_file_cut_short_anywhere_is_an_image_error(tmp_path, ending):
    whole = sample(tmp_path / f"whole.{ending}").read_bytes()
    for part in (0.02, 0.3, 0.6, 0.9):
        (tmp_path / f"cut.{ending}").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ImageError, match=rf"cut\.{ending}"):
            load(tmp_path / f"cut.{ending}")


def test_bytes_changed_at_random_give_a_picture_or_an_image_error(tmp_path):
    whole = sample(tmp_path / "whole.png").read_bytes()
    for at in range(8, 300, 7):
        (tmp_path / "odd.png").write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            load(tmp_path / "odd.png")
        except ImageError as error:
            assert "odd.png" in str(error)


def test_pillows_guard_does_not_stop_a_large_picture_and_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # refuses above 200
    assert load(sample(tmp_path / "large.png")) == (48, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pillows_guard_is_put_back_after_an_error(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(ImageError):
        load(tmp_path / "notes.png")
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_than_a_gigapixel_is_refused_before_it_is_decoded(tmp_path):
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))))
    ]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(ImageError, match="1000 megapixels"):
        load(tmp_path / "bomb.png")


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif"])
def test_an_unknown_ending_is_refused_with_those_that_work(tmp_path, name):
    with pytest.raises(ImageError, match=r"\.png.*\.jpg.*\.webp.*\.tif"):
        check_writable(tmp_path / name)


@pytest.mark.parametrize(("name", "side"), [("a.webp", 16_384), ("a.jpg", 65_501)])
def test_a_result_too_large_for_its_format_is_refused_before_the_work(tmp_path, name, side):
    check_writable(tmp_path / name, size=(10, side - 1))
    with pytest.raises(ImageError, match=str(side)):
        check_writable(tmp_path / name, size=(10, side))
    check_writable(tmp_path / "a.png", size=(10, side))


def test_transparency_is_refused_for_jpeg_alone(tmp_path):
    with pytest.raises(ImageError, match="JPEG"):
        check_writable(tmp_path / "a.jpeg", transparent=True)
    check_writable(tmp_path / "a.webp", transparent=True)


def test_an_existing_file_needs_force_and_a_check_leaves_it_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(ImageError, match="--force"):
        check_writable(tmp_path / "a.png")
    check_writable(tmp_path / "a.png", force=True)
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_found_out(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere" / "a.png", tmp_path / "file" / "a.png"):
        with pytest.raises(ImageError, match="cannot be written"):
            check_new_file(path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="is a folder"):
        check_new_file(tmp_path / "folder.png", force=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_out(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ImageError, match="Permission denied"):
        check_new_file(tmp_path / "a.png")


def test_a_file_that_appears_during_the_work_is_not_replaced(tmp_path):
    with pytest.raises(ImageError, match="exists"), new_file(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
        (tmp_path / "a.json").write_text("somebody else's")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "somebody else's")]


def test_a_new_file_appears_whole_with_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    with new_file(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.json").exists()
    assert (tmp_path / "a.json").read_text() == "new"
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_whoever_reads_the_old_file_never_sees_half_of_the_new(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with open(tmp_path / "a.json") as reader:
        with new_file(tmp_path / "a.json", force=True) as temporary:
            temporary.write_text("new and longer")
        assert reader.read() == "old"
    assert (tmp_path / "a.json").read_text() == "new and longer"


def test_a_picture_without_text_is_said_to_carry_none(tmp_path):
    with pytest.raises(ImageError, match="carries no settings"):
        read_settings_text(sample(tmp_path / "plain.png"))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_user_comment_is_typed_as_exif_asks(kind):
    data = files.exif_bytes(None, size=(4, 4), text="Steps: 20", kind=kind)
    order = ">" if data[6:8] == b"MM" else "<"
    comment = b"UNICODE\0" + "Steps: 20".encode("utf-16-be")
    assert struct.pack(f"{order}HHL", 0x9286, 7, len(comment)) in data  # 7 is UNDEFINED
    assert comment in data


def test_files_are_checked_without_torch():
    probe = "import sys, lib_dino.pictures.files; print('torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("error", [RuntimeError("codec"), MemoryError(), AssertionError(), RecursionError()])
def test_whatever_a_decoder_raises_is_one_sentence(tmp_path, monkeypatch, error):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    said = "memory" if isinstance(error, MemoryError) else "damaged"
    with pytest.raises(ImageError, match=said) as caught, open_picture(path) as image:
        image.convert("RGB")
    assert "a.png" in str(caught.value)


def test_what_killed_processes_left_half_written_is_removed_after_an_hour(tmp_path):
    old, fresh, own, other = (
        tmp_path / name for name in (
            ".dino-upscale-99999991.png.tmp", ".dino-upscale-99999992.png.tmp", f".dino-upscale-{os.getpid()}.png.tmp",
            ".dino-upscale-x.png.tmp",
        )
    )  # fmt: skip
    for path in (old, fresh, own, other):
        path.write_bytes(b"half")
    for path in (old, own, other):
        os.utime(path, (0, 0))
    with new_file(tmp_path / "result.jpg") as path:
        path.write_bytes(b"whole")
    assert set(tmp_path.iterdir()) == {fresh, own, other, tmp_path / "result.jpg"}
