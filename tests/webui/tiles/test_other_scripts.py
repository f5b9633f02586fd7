import base64
import io
import types

import numpy as np
import pytest
from PIL import Image

from lib_dino.tiling.plan import Tile
from lib_dino.webui.tiles.other_scripts import ControlNet

TILE, CANVAS = Tile(64, 128, 192, 256), (256, 512)


def script():
    return types.SimpleNamespace(title=lambda: "ControlNet", args_from=2, args_to=4)


def hint():
    """Half as large as the canvas; each pixel says where it is."""
    rows, cols = np.meshgrid(np.arange(128), np.arange(256), indexing="ij")
    return np.stack([rows, cols, rows], -1).astype(np.uint8)


def as_text(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


WANTED = hint()[32:96, 64:128]


def test_an_array_is_cut_down_to_the_tile_and_the_unit_stays_as_it_was():
    unit = types.SimpleNamespace(enabled=True, image=hint(), mask_image=None)
    args = ControlNet([script()], ["a", "b", unit, None]).cropped(TILE, CANVAS)
    assert (args[2].image == WANTED).all()
    assert unit.image.shape == (128, 256, 3)
    assert args[:2] == ["a", "b"]


@pytest.mark.parametrize("form", ["text", "url", "dictionary", "pil"])
def test_every_form_a_hint_comes_in_is_cut(form):
    held = {
        "text": as_text(hint()), "url": "data:image/png;base64," + as_text(hint()),
        "dictionary": {"image": hint(), "mask": None}, "pil": Image.fromarray(hint()),
    }[form]  # fmt: skip
    cut = ControlNet([script()], [0, 0, {"image": held}, None]).cropped(TILE, CANVAS)[2]["image"]
    if form in ("text", "url"):
        cut = np.array(Image.open(io.BytesIO(base64.b64decode(cut))))
    if form == "dictionary":
        assert cut["mask"] is None
        cut = cut["image"]
    assert (np.array(cut) == WANTED).all()


@pytest.mark.parametrize(
    ("unit", "active"),
    [
        ({"image": None}, True),
        ({"enabled": False}, False),
        (types.SimpleNamespace(enabled=True), True),
        (types.SimpleNamespace(enabled=False), False),
        (None, False),
    ],
)
def test_a_unit_that_is_on_makes_tiles_go_one_by_one(unit, active):
    assert ControlNet([script()], [0, 0, unit, None]).active is active
    assert not ControlNet([], [0, 0, unit, None]).active
