import sys
import types

import pytest
import torch

from lib_dino.webui import memory

FORGE, OLDER = "backend.memory_management", "ldm_patched.modules.model_management"
CARD = torch.device("cuda")


class Network(torch.nn.Module):
    """Notes where it is sent; a full card refuses it."""

    def __init__(self, events, *, full=False):
        super().__init__()
        self.weight, self.events, self.full = torch.nn.Parameter(torch.zeros(1000)), events, full

    def to(self, device):
        self.events.append(device.type)
        if self.full and device.type == "cuda":
            raise torch.cuda.OutOfMemoryError
        assert not torch.is_inference_mode_enabled()
        return self


@pytest.fixture
def events(monkeypatch):
    """What is asked of a host without a memory manager, in order."""
    found = []
    devices = types.SimpleNamespace(torch_gc=lambda: found.append("collect"))
    shared = types.SimpleNamespace(device="cuda:1", opts=types.SimpleNamespace(data={}))
    monkeypatch.setitem(sys.modules, "modules", types.SimpleNamespace(devices=devices, shared=shared))
    return found


def with_manager(monkeypatch, events, name):
    parts = name.split(".")
    for i in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(parts[i - 1]))
    manager = types.SimpleNamespace(
        minimum_inference_memory=lambda: 2**20, free_memory=lambda size, device: events.append((size, device.type))
    )
    monkeypatch.setitem(sys.modules, name, manager)


@pytest.mark.parametrize("name", [FORGE, OLDER])
def test_room_is_asked_for_before_a_network_goes_onto_the_card(events, monkeypatch, name):
    with_manager(monkeypatch, events, name)
    with torch.inference_mode(), memory.on_device(Network(events), CARD, "it") as said:
        assert events == [(pytest.approx(1.3 * 4000 + 2**20), "cuda"), "cuda"]
        assert said == ""
    assert events[2:] == ["cpu", "collect"]


def test_without_a_manager_unused_memory_is_handed_back_first(events):
    with memory.on_device(Network(events), CARD, "it"):
        assert events == ["collect", "cuda"]


def test_a_failure_inside_leaves_the_card_as_it_was(events):
    with pytest.raises(KeyError), memory.on_device(Network(events), CARD, "it"):
        raise KeyError
    assert events[-2:] == ["cpu", "collect"]


def test_what_does_not_fit_stays_on_the_cpu_and_says_so(events, caplog):
    with memory.on_device(Network(events, full=True), CARD, "the feature network") as said:
        assert events[-1] == "cpu"
    assert said == "There is too little memory on cuda for the feature network; it runs on the CPU, which is slower."
    assert said in caplog.text


@pytest.mark.parametrize("network", [None, "one"])
def test_on_the_cpu_nothing_is_asked_or_moved(events, network):
    with memory.on_device(network and Network(events), torch.device("cpu"), "it") as said:
        assert said == ""
    with memory.on_device(None, CARD, "it"):
        pass
    assert events == []


@pytest.mark.parametrize(
    ("chosen", "device"), [(None, "cuda:1"), ("", "cuda:1"), ("Automatic", "cuda:1"), ("CPU", "cpu")]
)
def test_the_settings_page_chooses_the_feature_networks_device(events, chosen, device):
    if chosen is not None:
        sys.modules["modules"].shared.opts.data[memory.OPTION_DEVICE] = chosen
    assert memory.feature_device() == torch.device(device)
    assert memory.host_device() == torch.device("cuda:1")
