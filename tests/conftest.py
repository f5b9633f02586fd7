import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings

import pytest
import torch

if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    # The same examples every time; `make fuzz` is what looks for new ones.
    settings.register_profile("suite", deadline=None, derandomize=True, database=None)
    settings.load_profile("suite")


@pytest.fixture(autouse=True)
def no_tiles_at_home(tmp_path_factory, monkeypatch):
    """Tests keep no tiles in the user's own folder."""
    monkeypatch.setenv("DINO_UPSCALE_TILES", str(tmp_path_factory.getbasetemp() / "kept-tiles"))


@pytest.fixture
def generator() -> torch.Generator:
    """The same random numbers for every run of every test."""
    return torch.Generator().manual_seed(20240229)


@pytest.fixture(scope="session")
def timm():
    """timm, with a stand-in for torchvision while it is imported where that is not installed."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    before = set(sys.modules)
    finder = _EmptyTorchvision()
    sys.meta_path.append(finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("timm")
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]


class Block(torch.nn.Module):
    """Mixes a patch's channels, and a little of all patches into each."""

    def __init__(self, dim, generator):
        super().__init__()
        self.mix = torch.nn.Parameter(torch.randn(dim, dim, generator=generator) / dim**0.5, requires_grad=False)

    def forward(self, tokens):
        return tokens + torch.tanh((tokens + 0.1 * tokens.mean(1, keepdim=True)) @ self.mix)


@pytest.fixture(scope="session")
def quick_dino():
    """A DINOv2 of one made-up block: a random network sees pasted things well enough, and costs nothing."""
    from lib_dino.networks.dinov2 import Dinov2
    from lib_dino.networks.dinov2_weights import Weights

    generator, dim = torch.Generator().manual_seed(3), 16
    tensors = {
        "cls": torch.zeros(1, 1, dim), "positions": torch.zeros(1, 16, dim),
        "patch.weight": torch.randn(dim, 3, 14, 14, generator=generator) / 14, "patch.bias": torch.zeros(dim),
        "norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim), "blocks.0.norm1.weight": torch.ones(dim),
    }  # fmt: skip
    blocks = torch.nn.ModuleList([Block(dim, generator)])
    return Dinov2(Weights(tensors, heads=1), blocks, name="quick", backend="test")


class _EmptyTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of torchvision, each with any class one asks for."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: _torchvision_class(name)
        return module

    def exec_module(self, module):
        pass


def _torchvision_class(name):
    if name.startswith("__"):
        raise AttributeError(name)
    # Enumerations are read member by member while timm is imported.
    return type(name, (torch.nn.Module,), {word: word for word in ("NEAREST", "BILINEAR", "BICUBIC", "BOX",
                                                                    "HAMMING", "LANCZOS")})
