"""The host suite drives a running WebUI: `pytest tests/hosts --host http://127.0.0.1:7860 --family sdxl`."""

import os
from pathlib import Path

import pytest
from client import FAMILIES, Host

TINY_OFF = {"dino_upscale_tiny_autoencoder": False}


def pytest_addoption(parser):
    parser.addoption("--host", default=None, help="address of a running WebUI with its API switched on")
    parser.addoption("--comfyui", default=None, help="address of a running ComfyUI")
    parser.addoption("--family", default="sd1", choices=sorted(FAMILIES), help="which tiny checkpoint it is to use")


@pytest.fixture(scope="session")
def host(request):
    address = request.config.getoption("--host", default=None) or os.environ.get("DINO_HOST")
    if not address:
        pytest.skip("no WebUI was named: pytest tests/hosts --host http://127.0.0.1:7860")
    host = Host(address.rstrip("/"), FAMILIES[request.config.getoption("--family", default="sd1")])
    found = host.options()
    kept = {name: found[name] for name in (*host.family.options, "sd_model_checkpoint") if found.get(name)}
    # Pictures do not depend on which tiny autoencoders lie in the WebUI's folder; the tests about them ask for them.
    host.set_options(**host.family.options, **TINY_OFF)
    host.choose_checkpoint()
    try:
        yield host
    finally:
        # Hosts do not tell the options of extensions, so these go back to their defaults.
        host.set_options(**kept, **dict.fromkeys(TINY_OFF, True))


class Probe:
    """The test extension `probe`, running inside the host."""

    def __init__(self, host):
        self._host = host

    def held(self):
        return self._host.call("/host-probe/held").body

    def seen(self):
        """What its scripts wrote down since the last time."""
        return self._host.call("/host-probe/seen").body

    def final_pass(self, on):
        assert self._host.call(f"/host-probe/final-pass?on={str(on).lower()}", {}).status == 200

    def ratios(self, on=None):
        """With `on`, start noting every noise-to-signal ratio of a correction; without it, what was noted."""
        return self._host.call("/host-probe/ratios", None if on is None else {}).body

    def rows(self, on=None):
        """With `on`, start noting how many rows each call of the model has; without it, what was noted."""
        return self._host.call("/host-probe/rows", None if on is None else {}).body

    def weights(self):
        """The norm of a layer of the model at every model call since the last time."""
        return self._host.call("/host-probe/weights").body


@pytest.fixture(scope="session")
def adapter_folder(host, probe):
    """The host's folder of adapters, for files that are called dino-probe-*; they are gone afterwards."""
    folder = Path(host.call("/host-probe/models").body) / "dino-adapter"
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    yield folder
    for path in folder.glob("dino-probe-*"):
        path.unlink()
    if made:
        folder.rmdir()


@pytest.fixture(scope="session")
def probe(host):
    if host.call("/host-probe/held").status != 200:
        pytest.skip("the WebUI does not have the test extension: link tests/hosts/probe into its extensions folder")
    return Probe(host)
