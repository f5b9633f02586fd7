"""The host suite drives a running WebUI: `pytest tests/hosts --host http://127.0.0.1:7860`."""

import os

import pytest
from client import Host


def pytest_addoption(parser):
    parser.addoption("--host", default=None, help="address of a running WebUI with its API switched on")


@pytest.fixture(scope="session")
def host(request):
    address = request.config.getoption("--host", default=None) or os.environ.get("DINO_HOST")
    if not address:
        pytest.skip("no WebUI was named: pytest tests/hosts --host http://127.0.0.1:7860")
    return Host(address.rstrip("/"))


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

    def weights(self):
        """The norm of a layer of the UNet at every model call since the last time."""
        return self._host.call("/host-probe/weights").body


@pytest.fixture(scope="session")
def probe(host):
    if host.call("/host-probe/held").status != 200:
        pytest.skip("the WebUI does not have the test extension: link tests/hosts/probe into its extensions folder")
    return Probe(host)
