import pytest
import torch
from torch.testing import assert_close

from lib_dino.measure.features import centre, confidence, cosine_distance, feature_grid, grid_size
from lib_dino.networks.dinov2 import load_dinov2

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@pytest.fixture(scope="module")
def dino():
    """The network that ships: its grids have meaning and a place."""
    return load_dinov2()


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((224, 224), (16, 16)),
        ((300, 400), (21, 29)),
        ((518, 518), (37, 37)),
        ((1080, 1920), (21, 37)),
        ((1920, 1080), (37, 21)),
        ((10, 20), (8, 16)),
        ((1, 1), (16, 16)),
        ((1, 5000), (1, 37)),
        ((5000, 1), (37, 1)),
    ],
)
def test_grids_follow_the_picture_within_their_limits(size, grid):
    assert grid_size(*size) == grid


def test_the_aspect_is_kept_to_half_a_patch_a_side():
    for height in range(60, 1500, 97):
        for width in range(60, 1500, 89):
            rows, columns = grid_size(height, width)
            assert 16 <= max(rows, columns) <= 37
            assert abs(rows - columns * height / width) <= 0.5 * (1 + height / width) + 1e-9


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5), (100, 240)])
def test_a_picture_of_any_size_has_a_finite_grid(size, dino, generator):
    grid = feature_grid(dino, torch.rand(1, 3, *size, generator=generator))
    assert grid.shape == (1, dino.dim, *grid_size(*size))
    assert grid.isfinite().all()


def test_a_picture_of_whole_patches_is_only_normalised(dino, generator):
    image = torch.rand(1, 3, 224, 280, generator=generator)
    assert_close(feature_grid(dino, image), dino.patch_tokens((image - MEAN) / STD))
    assert_close(feature_grid(dino, image, layer=5), dino.layer_tokens((image - MEAN) / STD, [5])[0])


def test_pictures_of_a_batch_do_not_touch_each_other(dino, generator):
    images = torch.rand(2, 3, 56, 70, generator=generator)
    both = feature_grid(dino, images, grid=(4, 5))
    for index in range(2):
        alone = feature_grid(dino, images[index : index + 1], grid=(4, 5))
        assert_close(both[index : index + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
def test_an_object_at_the_top_right_changes_the_grid_there(dino, turned):
    plain = torch.full((1, 3, 120, 200), 0.5)
    image = plain.clone()
    image[..., 10:50, 150:190] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
    if turned:
        plain, image = plain.mT, image.mT
    change = (feature_grid(dino, image) - feature_grid(dino, plain)).norm(dim=1)[0]
    rows, columns = change.shape
    y, x = divmod(int(change.argmax()), columns)
    place = ((y + 0.5) / rows, (x + 0.5) / columns)
    high, right = place[::-1] if turned else place
    assert 0 < high < 0.5 and 0.7 < right < 1


def test_half_precision_pictures_are_seen_in_float32(dino, generator):
    image = torch.rand(1, 3, 60, 80, generator=generator).half()
    grid = feature_grid(dino, image)
    assert grid.dtype == torch.float32
    assert_close(grid, feature_grid(dino, image.float()))


def test_features_are_differentiable_through_the_resize(generator):
    dino = load_dinov2().double()
    image = torch.rand(1, 3, 20, 33, generator=generator, dtype=torch.float64)
    way = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    other = torch.rand(image.shape, generator=generator, dtype=torch.float64)
    target = feature_grid(dino, other, grid=(2, 3))

    def loss(x):
        return cosine_distance(feature_grid(dino, x, grid=(2, 3)), target).sum()

    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    step = 1e-5
    slope = (loss(image + step * way) - loss(image - step * way)) / (2 * step)
    assert slope.abs() > 1e-6
    assert_close((gradient * way).sum(), slope, rtol=5e-3, atol=1e-8)  # the resize itself is float32


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64)])
def test_another_shape_of_picture_is_refused(shape, dino):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        feature_grid(dino, torch.zeros(shape))


def test_distance_is_none_to_itself_and_whole_to_the_opposite(generator):
    grid = torch.randn(2, 8, 3, 4, generator=generator)
    assert_close(cosine_distance(grid, 5 * grid), torch.zeros(2, 3, 4))
    assert_close(cosine_distance(grid, -grid), torch.full((2, 3, 4), 2.0))
    assert_close(cosine_distance(grid, torch.zeros_like(grid)), torch.ones(2, 3, 4))


def test_distance_is_taken_at_each_place(generator):
    grid = torch.randn(1, 8, 3, 4, generator=generator)
    other = grid.clone()
    other[..., 0, 3] *= -1
    distance = cosine_distance(grid, other)
    assert_close(distance[0, 0, 3], torch.tensor(2.0))
    assert_close(distance.sum(), torch.tensor(2.0))


def test_centring_takes_away_what_all_patches_share(generator):
    grid = torch.randn(2, 8, 3, 4, generator=generator)
    shared = torch.randn(2, 8, 1, 1, generator=generator) * 10
    assert_close(centre(grid + shared), centre(grid), atol=1e-5, rtol=1e-5)
    assert_close(centre(grid).mean((2, 3)), torch.zeros(2, 8), atol=1e-6, rtol=0)
    assert_close(centre(grid, shared), grid - shared)


def test_confidence_is_none_without_a_direction_and_half_at_a_quarter_of_the_usual_energy():
    centred = torch.zeros(1, 4, 1, 3)
    centred[0, 0, 0, 1], centred[0, 0, 0, 2] = 1.0, 10.0
    weights = confidence(centred, 4.0)
    assert_close(weights[0, 0], torch.tensor([0.0, 0.5, 100 / 101]))
    assert_close(confidence(torch.zeros(1, 4, 2, 2)), torch.zeros(1, 2, 2))
    assert_close(confidence(7 * centred), confidence(centred))  # relative to the grid's own energy
