"""Who may import whom: rooms in one direction, no host in the core, no torch for planning."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parent.parent / "lib_dino"
COMFYUI_PACKAGES = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes"}
WEBUI_PACKAGES = {"modules", "modules_forge", "backend", "ldm_patched", "gradio", "launch"}
HOST_PACKAGES = WEBUI_PACKAGES | COMFYUI_PACKAGES
# A room imports from rooms on lines above its own, and from itself.
FLOORS = [
    {"errors", "version"},
    {"arrays", "declarations", "memory"},
    {"settings"},
    {"webui_settings"},
    {"tiling", "pictures"},
    {"networks"},
    {"measure"},
    {"adapter", "references", "report"},
    {"sampling"},
    {"run"},
    {"resume"},
    {"pipeline"},
    {"cli", "comfyui", "webui.interrupt", "webui.memory"},
    {"webui.model"},
    {"webui.panel", "webui.tiles"},
    {"webui.generation"},
    {"__init__", "__main__"},
]
WEBUI = [f"webui.{name}" for name in ("interrupt", "memory", "model", "panel", "tiles", "generation")]
APART = [{"cli", "comfyui"}, *({home, room} for home in ("cli", "comfyui") for room in WEBUI)]
# `python -m lib_dino` is the command line; `__init__` names the public functions.
ENTRANCES = {"__main__": {"cli"}, "__init__": {"pipeline", "settings", "sampling", "version"}}
ROOMS = sorted(name for floor in FLOORS for name in floor)


def room_of(module: str) -> str:
    """The room of a module below `lib_dino`: its folder, or its name where it lies at the top; of `webui` two parts."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "webui" and len(parts) > 1 else parts[0]


def files_of(room: str) -> list[Path]:
    folder = CORE / room.replace(".", "/")
    return sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports(path: Path, package: str = "lib_dino") -> set[str]:
    """Modules a file imports anywhere: absolute ones by first name, own ones as ".room.file"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = package.split(".")
            parts = parts[1 : len(parts) - node.level + 1] + (node.module.split(".") if node.module else [])
            names = [".".join([*parts, alias.name]) for alias in node.names]
            found |= {"." + name for name in names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def package_of(path: Path) -> str:
    return ".".join(["lib_dino", *path.relative_to(CORE).parts[:-1]])


def rooms_entered(path: Path) -> set[str]:
    own = {name[1:] for name in imports(path, package_of(path)) if name.startswith(".")}
    return {room_of(name) for name in own}


def upward(room: str) -> set[str]:
    """Rooms that `room` may not import from."""
    floor = next(i for i, names in enumerate(FLOORS) if room in names)
    lower = {name for names in FLOORS[:floor] for name in names} | {room}
    apart = {name for pair in APART if room in pair for name in pair} - {room}
    return set(ROOMS) - lower - ENTRANCES.get(room, set()) | apart


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_rooms_below_it(room):
    for path in files_of(room):
        assert not rooms_entered(path) & upward(room), path.relative_to(CORE)


def test_every_file_lies_in_a_room():
    known = {path for room in ROOMS for path in files_of(room)} | {CORE / "webui" / "__init__.py"}
    assert set(CORE.rglob("*.py")) == known


@pytest.mark.parametrize("room", ROOMS)
def test_a_host_is_imported_in_its_own_room_alone(room):
    foreign = COMFYUI_PACKAGES if room.startswith("webui") else WEBUI_PACKAGES if room == "comfyui" else HOST_PACKAGES
    for path in files_of(room):
        assert not imports(path) & foreign, path.relative_to(CORE)


def test_the_rule_bites(tmp_path):
    offender = tmp_path / "plan.py"
    offender.write_text("from ..run.tiles import x\nfrom . import blend\ndef f():\n    import modules.shared\n")
    assert imports(offender, "lib_dino.tiling") == {".run.tiles.x", ".tiling.blend", "modules"}
    assert "run" in upward("tiling") and "cli" in upward("webui.panel") and "webui.generation" in upward("webui.model")


@pytest.mark.parametrize("room", [room for room in ROOMS if (CORE / room.replace(".", "/")).is_dir()])
def test_tests_lie_where_their_file_does_and_begin_with_its_name(room):
    stems = {path.stem for path in files_of(room)}
    for path in sorted((CORE.parent / "tests" / room.replace(".", "/")).glob("test_*.py")):
        tested = path.stem.removeprefix("test_")
        assert any(tested == stem or tested.startswith(f"{stem}_") for stem in stems), path


@pytest.mark.parametrize("room", [room for room in ROOMS if (CORE / room.replace(".", "/")).is_dir()])
def test_a_room_has_four_to_nine_files(room):
    assert 4 <= len([path for path in files_of(room) if path.stem != "__init__"]) <= 9


def loaded_by(statement: str, *names: str) -> list[str]:
    probe = f"import sys\n{statement}\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=CORE.parent)
    return done.stdout.split()


def test_planning_loads_without_torch():
    names = ("tiling.plan", "webui_settings", "report.records", "errors")
    statement = "import " + ", ".join(f"lib_dino.{name}" for name in names)
    assert loaded_by(statement, "torch", "PIL", "numpy") == []
    assert loaded_by("import lib_dino.run.plan", "torch") == []


def test_the_core_loads_without_the_networks_libraries():
    # They are imported when a network is: not by a WebUI that never uses them.
    names = ("diffusers", "transformers", "timm", "modules", "gradio")
    assert loaded_by("import lib_dino.pipeline", *names) == []


def test_the_probe_sees_what_is_loaded():
    assert loaded_by("import json", "json", "torch") == ["json"]


MODEL_FACTS = {"name", "tile_px", "multiple_px", "channels", "factor", "fits_any_tile"}
"""Of a `TileModel`; they never change."""


def fields_set(cls: ast.ClassDef) -> set[str]:
    """Attributes that a class gives itself when it is made."""
    makers = [part for part in cls.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    return {
        node.attr for maker in makers for node in ast.walk(maker)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name) and node.value.id == "self"
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_no_object_holds_more_than_eight_things(path):
    for cls in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        network = isinstance(cls, ast.ClassDef) and any("nn.Module" in ast.unparse(base) for base in cls.bases)
        if isinstance(cls, ast.ClassDef) and not network:
            assert len(fields_set(cls) - MODEL_FACTS) <= 8, cls.name
