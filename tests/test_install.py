import importlib.util
import runpy
import sys
import types
from pathlib import Path

import pytest

INSTALL = Path(__file__).parent.parent / "install.py"


class Environment:
    """A WebUI's packages, and its `launch` that notes what it was asked to install."""

    def __init__(self, tmp_path, *packages, dinov2=False, skip_install=False, fails=None):
        self.packages, self.root, self.commands = set(packages), tmp_path, []
        self.skip_install, self.fails = skip_install, fails
        models = tmp_path / "transformers" / "models"
        (models / ("dinov2" if dinov2 else "vit")).mkdir(parents=True)

    def find_spec(self, name):
        if name not in self.packages:
            return None
        return types.SimpleNamespace(submodule_search_locations=[str(self.root / name)])

    def run_pip(self, command, description):
        if self.skip_install:
            return
        self.commands.append(command)
        if self.fails:
            raise RuntimeError(self.fails)
        self.packages.add(command.split()[-1].split("==")[0])


USUAL = ("torch", "safetensors", "numpy", "PIL", "transformers")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def start(*packages, launch=True, **kwargs):
        environment = Environment(tmp_path, *packages, **kwargs)
        monkeypatch.setattr(importlib.util, "find_spec", environment.find_spec)
        monkeypatch.setitem(sys.modules, "launch", environment if launch else None)
        runpy.run_path(str(INSTALL), run_name="__main__")
        return environment.commands, capsys.readouterr().out

    return start


@pytest.mark.parametrize(
    ("packages", "dinov2"),
    [
        (USUAL, True),  # A1111 1.10.1, Forge and reForge
        ((*USUAL, "timm"), False),  # A1111 1.9.4 and Forge Classic: transformers 4.30.2
        ((*USUAL, "timm"), True),
    ],
)
def test_where_everything_is_there_nothing_is_touched_and_nothing_said(run, packages, dinov2):
    assert run(*packages, dinov2=dinov2) == ([], "")


def test_timm_is_added_where_nothing_knows_dinov2_and_nothing_else_with_it(run):
    commands, said = run(*USUAL)
    [command] = commands
    assert command.split()[:2] == ["install", "--no-deps"]
    assert command.split()[2].startswith("timm==")
    assert said == ""


def test_the_hosts_own_packages_are_never_installed(run):
    commands, said = run("numpy", "PIL", "transformers", "timm")
    assert commands == []
    assert "torch, safetensors" in said


@pytest.mark.parametrize("kwargs", [{"skip_install": True}, {"launch": False}])
def test_without_leave_to_install_it_says_what_is_missing_and_how_to_add_it(run, kwargs):
    commands, said = run(*USUAL, **kwargs)
    assert commands == []
    assert "pip install --no-deps timm==" in said


def test_a_failing_pip_does_not_end_the_start(run):
    commands, said = run(*USUAL, fails="no network")
    assert len(commands) == 1
    assert "no network" in said and "DINO guidance will not work" in said


def test_importing_it_does_nothing(tmp_path, monkeypatch, capsys):
    environment = Environment(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", environment.find_spec)
    monkeypatch.setitem(sys.modules, "launch", environment)
    runpy.run_path(str(INSTALL), run_name="install")
    assert environment.commands == [] and capsys.readouterr().out == ""
