import pytest
import torch
from torch.testing import assert_close

from lib_dino.errors import ModelError
from lib_dino.networks.cleaner import Cleaner, load_cleaner, save_cleaner


def test_files_are_read_back_and_damaged_ones_refused(tmp_path, generator):
    cleaner = Cleaner(width=8, blocks=1).eval()
    path = tmp_path / "model.safetensors"
    save_cleaner(cleaner, path)
    again = load_cleaner(path)
    image = torch.rand(1, 3, 8, 8, generator=generator)
    with torch.no_grad():
        for one, two in zip(cleaner(image), again(image), strict=True):
            assert_close(one, two, atol=1e-2, rtol=0)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="no network that cleans"):
        load_cleaner(path)
    with pytest.raises(ModelError, match=r"missing\.safetensors"):
        load_cleaner(tmp_path / "missing.safetensors")
