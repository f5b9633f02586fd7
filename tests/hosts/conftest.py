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
