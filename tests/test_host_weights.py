import hashlib
import sys
import types

import pytest

from lib_dino.errors import ModelError, SettingsError
from lib_dino.host import weights


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The host's modules as far as weights need them; `fetched` holds what was asked of its downloader."""
    options = types.SimpleNamespace(data={})
    shared = types.SimpleNamespace(opts=options, device="cpu", state=types.SimpleNamespace(textinfo=None))
    held = types.SimpleNamespace(options=options.data, fetched=[], content=b"weights")

    def load_file_from_url(url, *, model_dir, file_name, progress=True):
        held.fetched.append(url)
        if held.content is None:
            raise OSError("no route to host")
        (tmp_path / "dinov2").mkdir(exist_ok=True)
        (tmp_path / "dinov2" / file_name).write_bytes(held.content)

    found = {
        "paths": types.SimpleNamespace(models_path=str(tmp_path)), "shared": shared,
        "modelloader": types.SimpleNamespace(load_file_from_url=load_file_from_url),
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "modules", types.SimpleNamespace(**found))
    monkeypatch.setattr(weights, "_checksum", lambda url: hashlib.sha256(b"weights").hexdigest())
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
    assert len(host.fetched) == 1
    assert host.fetched[0].endswith("facebook/dinov2-small/resolve/main/model.safetensors")


def test_a_file_of_another_checksum_is_removed_and_refused(host, tmp_path):
    host.content = b"something else"
    with pytest.raises(ModelError, match="checksum"):
        weights.source("dinov2-small")
    assert not (tmp_path / "dinov2" / "dinov2-small.safetensors").exists()


def test_offline_the_error_says_which_file_from_where_to_which_folder(host, tmp_path):
    host.content = None
    with pytest.raises(ModelError) as caught:
        weights.source("dinov2-base")
    for word in ("dinov2-base.safetensors", "https://", str(tmp_path / "dinov2"), "no route to host"):
        assert word in str(caught.value)


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


def test_the_folder_can_be_chosen(host, tmp_path):
    host.options[weights.OPTION_FOLDER] = str(tmp_path / "elsewhere")
    assert weights.folder() == tmp_path / "elsewhere"


def test_an_unknown_network_is_refused_by_name(host):
    with pytest.raises(SettingsError) as caught:
        weights.source("no-such-model")
    assert caught.value.field == "dino_model"
