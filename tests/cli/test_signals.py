"""The command line killed, interrupted and terminated for real, and gone on with.

The model is a stand-in that takes a moment for each call: `make chaos` does the same with the one that ships.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from lib_dino.cli.signals import Stop, stopping
from lib_dino.pictures.files import read_settings_text

ROOT = Path(__file__).resolve().parents[2]
GIVEN = ("--tile-size", "64", "--overlap", "16", "--no-dino", "--seed", "7")
COMMAND = """
import sys, time
sys.path.insert(0, "tests")
from made import FakeModel
from lib_dino import __main__, pipeline

class Model(FakeModel):
    fingerprint = "stand-in"

def paint(tiles, noise):
    time.sleep(0.05)
    return (0.9 * tiles + 0.05 * noise).clamp(0, 1)

pipeline._model = lambda model: Model(paint)
sys.exit(__main__.run())
"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    with Image.open(ROOT / "examples" / "astronaut.png") as image:
        image.convert("RGB").crop((180, 40, 280, 140)).save(path)
    return path


def start(photo, out, tiles, *more):
    environment = {**os.environ, "DINO_UPSCALE_TILES": str(tiles), "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-c", COMMAND, "upscale", str(photo), "-o", str(out), *GIVEN, *more)
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(*given):
    process = start(*given)
    said = "".join(process.communicate(timeout=120))
    assert "Traceback" not in said
    return process.returncode, said


def after_tiles(process, tiles, count):
    """Wait until so many tiles have landed."""
    end = time.monotonic() + 120
    while len(list(tiles.rglob("*.tiles"))) < count:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.002)


def pixels(path):
    with Image.open(path) as image:
        return image.tobytes()


@pytest.fixture(scope="module")
def undisturbed(photo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, _ = finished(photo, folder / "out.png", folder / "tiles")
    assert code == 0 and not list((folder / "tiles").rglob("*.*"))
    return folder / "out.png"


@pytest.mark.parametrize("count", [1, 5])
def test_after_kill_9_the_job_goes_on_and_the_file_is_bitwise_the_undisturbed_one(photo, tmp_path, undisturbed, count):
    tiles, out = tmp_path / "tiles", tmp_path / "out.png"
    process = start(photo, out, tiles)
    after_tiles(process, tiles, count)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    code, said = finished(photo, out, tiles, "--resume")
    assert code == 0 and "goes on" in said
    assert out.read_bytes() == undisturbed.read_bytes()
    assert not list(tiles.rglob("*.*"))


@pytest.mark.parametrize(("number", "report"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--report",))])
def test_a_signal_writes_what_is_done_says_so_and_the_job_goes_on(photo, tmp_path, undisturbed, number, report):
    tiles, out = tmp_path / "tiles", tmp_path / "out.png"
    process = start(photo, out, tiles, *report)
    after_tiles(process, tiles, 3)
    process.send_signal(number)
    said = "".join(process.communicate(timeout=120))
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said and "--resume" in said
    assert "DINO stopped: after " in read_settings_text(out)
    if report:
        notes = json.loads((tmp_path / "out.json").read_text())["notes"]
        assert any("Stopped" in note for note in notes)
    else:
        code, said = finished(photo, out, tiles)
        assert code == 3 and "exists already" in said
    code, _ = finished(photo, out, tiles, "--resume")
    assert code == 0 and pixels(out) == pixels(undisturbed)
    if not report:
        code, said = finished(photo, out, tiles, "--resume")
        assert code == 0 and "is there already" in said


def test_a_second_signal_ends_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    said = []
    with stopping(lambda line, error: said.append(line)) as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop() and stop.exit_code == 143 and len(said) == 1
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_other_threads_set_no_handlers():
    found = []

    def work():
        with stopping(lambda line, error: None) as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [Stop()]
