import sys

import pytest
from standin import comfy


@pytest.fixture
def host(monkeypatch):
    """A ComfyUI of the stand-in's; what happens in it can be steered."""
    state, modules = comfy.make_modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    comfy.Bar.shown = []
    for name in [name for name in sys.modules if name.startswith("lib_dino.comfyui")]:
        monkeypatch.delitem(sys.modules, name)
    yield state
    for name in [name for name in sys.modules if name.startswith("lib_dino.comfyui")]:
        del sys.modules[name]
