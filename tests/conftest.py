import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings

import pytest
import torch


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
