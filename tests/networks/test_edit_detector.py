import pytest
import torch
from made import tiny_network

from lib_dino.errors import ModelError
from lib_dino.networks.edit_detector import DetectorShape, EditDetector, load_detector, save_detector


def test_a_head_for_other_features_is_refused(tmp_path):
    dino = tiny_network(tmp_path, depth=3)
    torch.manual_seed(0)
    path = tmp_path / "head.safetensors"
    save_detector(EditDetector(DetectorShape(dino.dim + 1, (1,), width=8, pixels=4)), path)
    with pytest.raises(ModelError, match=f"{dino.dim + 1} channels"):
        load_detector(path, dino)
    path.write_bytes(b"no")
    with pytest.raises(ModelError, match="no edit detector"):
        load_detector(path, dino)


def test_the_head_in_a_file_is_the_one_that_was_saved(tmp_path):
    dino = tiny_network(tmp_path, depth=3)
    head = EditDetector(DetectorShape(dino.dim, (1, 3), width=8, pixels=4))
    save_detector(head, tmp_path / "head.safetensors")
    loaded = load_detector(tmp_path / "head.safetensors", dino)
    assert loaded.shape == head.shape
    assert all(torch.equal(value.half(), loaded.state_dict()[key].half()) for key, value in head.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
