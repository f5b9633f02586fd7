import pytest
import torch
from made import random_detector, tiny_network, whole

from lib_dino.measure.edits import detail_logits, tokens_at
from lib_dino.networks.edit_detector import DetectorShape
from lib_dino.tiling.resample import resize, tile_operators


@pytest.fixture
def dino(tmp_path):
    return tiny_network(tmp_path, depth=3)


def test_suspicion_covers_the_tile_and_carries_gradients(dino, generator):
    source = torch.rand(1, 3, 40, 50, generator=generator)
    operators, plain = whole(source)
    made = plain.clamp(0, 1).requires_grad_()
    over = torch.zeros(1, 4, 5)
    logits, size = detail_logits(dino, random_detector(dino), made, plain, source, operators, over, over)
    assert logits.shape == (1, 6, 8)
    assert size == (80, 100)
    logits.sum().backward()
    assert float(made.grad.abs().max()) > 0


def test_an_inner_tile_is_held_against_the_same_part_of_the_enlarged_source(dino, generator):
    """With nothing added, suspicion must see no difference anywhere, wherever the tile lies."""
    source = torch.rand(1, 3, 60, 70, generator=generator)
    plain = resize(source, (150, 175))
    operators = tile_operators((60, 70), (150, 175), slice(30, 130), slice(40, 140))
    seen = []

    class Spy(torch.nn.Module):
        shape = DetectorShape(dino.dim, (1,), tokens=False)

        def forward(self, pixels, made, plain, seen_by):
            seen.append(pixels)
            return seen_by[:, 0]

    over = torch.zeros(1, 4, 4)
    detail_logits(dino, Spy(), plain[..., 30:130, 40:140], plain, source, operators, over, over)
    assert seen[0][:, 1].abs().max() < 1e-5
    assert seen[0][:, 3].abs().max() < 1e-5


def test_large_results_are_seen_in_windows_that_cover_them(dino, generator):
    image = torch.rand(1, 3, 70, 98, generator=generator)
    whole_grid = tokens_at(dino, image, (1, 3))
    pieces = tokens_at(dino, image, (1, 3), window=3)
    assert pieces.shape == whole_grid.shape == (1, 2 * dino.dim, 5, 7)
    assert (pieces.abs().sum(1) > 0).all()
    first = tokens_at(dino, image[..., :42, :42], (1, 3))
    torch.testing.assert_close(pieces[..., :1, :1], first[..., :1, :1])
