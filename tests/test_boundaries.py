"""Who may import whom: the core knows no host, and planning needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parent.parent / "lib_dino"
HOST_PACKAGES = {"modules", "modules_forge", "backend", "ldm_patched", "gradio", "launch"}
# A file imports only from files named before its own in this list (same line: not from each other).
RANKS = [
    {"errors"},
    {"settings", "tiles", "report", "files", "dinov2_file", "download", "published", "windows", "net_file"},
    {"infotext", "blend", "resample", "quality", "sampling", "dinov2", "denoiser"},
    {"features", "consistency", "images"},
    {"clean", "compare", "detail", "adapter_file", "texture"},
    {"calibration", "adapter_tokens"},
    {"drift", "adapter"},
    {"adapter_load", "adapter_unet", "conditioning"},
    {"guidance", "figures"},
    {"correction"},
    {"bound", "render"},
    {"painter", "skipping", "subject"},
    {"dial", "repair"},
    {"tile_loop"},
    {"run"},
    {"embedded"},
    {"lettering"},
    {"heatmap", "worst"},
    {"html_report"},
    {"pipeline"},
    {"jobs", "webapi", "doctor"},
    {"doctor_visit"},
    {"doctor_generations"},
    {"doctor_host"},
    {"doctor_local"},
    {"batch"},
    {"cli"},
    {"__init__", "__main__"},
]


def core_files():
    return sorted(path for path in CORE.glob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules a file imports anywhere: absolute ones by first name, own ones as ".name"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found |= {"." + name.split(".")[0] for name in names}
            else:
                found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", core_files(), ids=lambda p: p.stem)
def test_the_core_imports_no_host(path):
    assert not imports(path) & HOST_PACKAGES


@pytest.mark.parametrize("path", core_files(), ids=lambda p: p.stem)
def test_files_import_only_from_lower_ranks(path):
    rank = next(i for i, names in enumerate(RANKS) if path.stem in names)
    lower = {"." + name for names in RANKS[:rank] for name in names}
    own = {name for name in imports(path) if name.startswith(".")} - {".host", ".__version__"}
    assert own <= lower


def test_the_rule_bites(tmp_path):
    offender = tmp_path / "tiles.py"
    offender.write_text("from .run import Run\ndef f():\n    import modules.shared\n")
    assert imports(offender) == {".run", "modules"}


def loaded_by(statement: str, *names: str) -> list[str]:
    probe = f"import sys\n{statement}\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=CORE.parent)
    return done.stdout.split()


def test_planning_loads_without_torch():
    statement = "import lib_dino, lib_dino.tiles, lib_dino.settings, lib_dino.report, lib_dino.errors"
    assert loaded_by(statement, "torch", "PIL", "numpy") == []


def test_the_core_loads_without_the_networks_libraries():
    # They are imported when a network is: not by a WebUI that never uses them.
    names = ("diffusers", "transformers", "timm", "modules", "gradio")
    assert loaded_by("import lib_dino.pipeline", *names) == []


def test_the_probe_sees_what_is_loaded():
    assert loaded_by("import json", "json", "torch") == ["json"]
