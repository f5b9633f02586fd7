import logging
import sys
import types

import pytest

from lib_dino.errors import ModelError, SettingsError
from lib_dino.networks import download
from lib_dino.networks.hub import PUBLISHED
from lib_dino.webui.model import model_files as weights


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The host's modules as far as weights need them; `fetched` holds what was asked of the downloader."""
    options = types.SimpleNamespace(data={})
    state = types.SimpleNamespace(textinfo=None, interrupted=False, skipped=False, stopping_generation=False)
    shared = types.SimpleNamespace(opts=options, device="cpu", state=state)
    held = types.SimpleNamespace(options=options.data, state=state, fetched=[], lines=[], error=None)

    def fetch(url, target, *, sha256, told, check):
        held.fetched.append((url, sha256))
        told(30_000_000, 120_000_000)
        held.lines.append(state.textinfo)
        if held.error is not None:
            raise ModelError(held.error)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"weights")
        return target

    found = {"paths": types.SimpleNamespace(models_path=str(tmp_path)), "shared": shared}
    monkeypatch.setitem(sys.modules, "modules", types.SimpleNamespace(**found))
    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return held


def test_the_network_that_ships_needs_nothing(host):
    assert weights.chosen("") == weights.BUILT_IN_MODEL
    assert weights.source(weights.BUILT_IN_MODEL) is None
    assert host.fetched == []


def test_the_settings_page_says_what_the_default_is(host):
    host.options[weights.OPTION_MODEL] = "dinov2-base"
    assert weights.chosen("") == weights.chosen("Default") == "dinov2-base"
    assert weights.chosen("dinov2-small") == "dinov2-small"


def test_a_known_network_is_fetched_once_into_the_models_folder(host, tmp_path):
    for name in ("dinov2-small", "facebook/dinov2-small", "dinov2-small"):
        assert weights.source(name) == tmp_path / "dinov2" / "dinov2-small.safetensors"
    published = PUBLISHED["dinov2-small"]
    assert host.fetched == [(published.url, published.sha256)]


def test_the_line_under_the_bar_says_how_far_it_is_and_goes_away(host, caplog):
    with caplog.at_level(logging.INFO, "dino_upscale"):
        weights.source("dinov2-small")
    assert host.lines == ["Fetching dinov2-small.safetensors: 30 of 120 MB, 25%"]
    assert host.state.textinfo is None
    assert "dinov2-small.safetensors from https://" in caplog.text


def test_interrupt_ends_the_download(host):
    host.state.interrupted = True
    with pytest.raises(ModelError, match="interrupted"):
        weights.source("dinov2-small")


def test_the_error_says_which_file_from_where_to_which_folder(host, tmp_path):
    host.error = "no route to host"
    with pytest.raises(ModelError) as caught:
        weights.source("dinov2-base")
    for word in ("dinov2-base.safetensors", "https://", str(tmp_path / "dinov2"), "no route to host"):
        assert word in str(caught.value)
    assert host.state.textinfo is None


def test_offline_nothing_is_asked_for(host, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        weights.source("dinov2-base")
    assert host.fetched == []


def test_files_and_folders_of_the_models_folder_and_paths_are_found_and_listed(host, tmp_path):
    place = tmp_path / "dinov2"
    (place / "mine").mkdir(parents=True)
    (place / "mine" / "model.safetensors").write_bytes(b"")
    (place / "own.safetensors").write_bytes(b"")
    assert {"mine", "own"} <= set(weights.names())
    assert weights.source("mine") == place / "mine"
    assert weights.source("own") == place / "own.safetensors"
    assert weights.source(str(place / "own.safetensors")) == place / "own.safetensors"
    assert host.fetched == []


@pytest.mark.parametrize("find", [weights.source, weights.adapter_file], ids=["network", "adapter"])
def test_no_name_reaches_a_file_outside_of_the_folder(host, tmp_path, find):
    for folder in (weights.folder(), weights.adapter_folder()):
        folder.mkdir(parents=True)
        (folder / "inside.safetensors").write_bytes(b"")
        (folder / "linked.safetensors").symlink_to(tmp_path / "secret.safetensors")
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"")
    wrong = (
        str(secret), "../secret", "../secret.safetensors", "x/../../secret", "~/secret", "/etc/passwd", "", ".", "..",
        "a\0b", "\ud800", f"{secret}\0", "../dinov2", "./../../" * 9 + str(secret),
    )  # fmt: skip
    for name in wrong:
        with pytest.raises(SettingsError):
            find(name)
    assert find("inside").name == "inside.safetensors"
    assert find("linked").name == "linked.safetensors"  # its owner has put it there


def test_the_folder_can_be_chosen(host, tmp_path):
    host.options[weights.OPTION_FOLDER] = str(tmp_path / "elsewhere")
    assert weights.folder() == tmp_path / "elsewhere"


def test_a_name_is_checked_without_fetching_anything(host, monkeypatch):
    monkeypatch.setattr(weights, "_fetch", None)
    weights.check("dinov2-small")
    weights.check(weights.BUILT_IN_MODEL)
    with pytest.raises(SettingsError, match="no-such-model"):
        weights.check("no-such-model")


def test_an_unknown_network_is_refused_by_name(host):
    with pytest.raises(SettingsError) as caught:
        weights.source("no-such-model")
    assert caught.value.field == "dino_model"
