"""What the package never does: run what files hold, and call out."""

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parent.parent / "lib_dino"
MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "subprocess", "code", "yaml"}
"""They run code, or what a file says."""

NETWORK = {"socket", "http", "urllib", "ssl", "requests", "aiohttp", "httpx", "ftplib", "smtplib", "websockets"}
ALLOWED = {
    "networks/download.py": "fetches published weights when asked, against pinned checksums",
    "cli/webui_client.py": "the doctor's and the benchmarks' own WebUI",
}
CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("os", "system"), ("os", "popen")}


def faults_of(text: str, *, network: bool) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            level = getattr(node, "level", 0)
            first = {name.split(".")[0] for name in names} if not level else set()
            found += sorted(first & (MODULES | (set() if network else NETWORK)))
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in CALLS:
                found.append(function.id)
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                called = function.value.id, function.attr
                found += [".".join(called)] if called in LOADERS else []
    return found


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_no_file_unpickles_evaluates_or_calls_out(path):
    network = path.relative_to(CORE).as_posix() in ALLOWED
    assert faults_of(path.read_text(encoding="utf-8"), network=network) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from urllib import request", "torch.load(x)", "eval('1')", "def f():\n    import socket"],
)
def test_the_rule_bites(text):
    assert faults_of(text, network=False)
    assert faults_of("from ..networks import download\nmodel.load(x)\nre.compile('a')", network=False) == []
