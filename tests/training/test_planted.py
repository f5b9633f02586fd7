
import numpy as np
import pytest
import torch

from lib_dino.tiling.resample import resize
from training import planted


def enlarge(source, size, denoise, seed):
    return resize(source, size).clamp(0, 1)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    fine = torch.from_numpy(rng.random((2, 3, 56, 56)).astype(np.float32))
    return [(0.3 + 0.4 * resize(one[None], (112, 112))).clamp(0, 1) for one in fine]


def scene(pictures, rng, *, signed=False):
    carrier = planted.draw_carrier(["true"], rng)
    return planted.stage(pictures[0], scale=2, carrier=carrier, upscale=enlarge, rng=rng, signed=signed, clean=True)


def seen_by_the_source(case):
    small = resize(case.result, tuple(case.source.shape[-2:]))
    return float((small - case.source).abs().mean((0, 1)).max())


@pytest.mark.parametrize("kind", planted.KINDS)
def test_every_kind_changes_something_somewhere_and_leaves_the_rest(pictures, kind):
    rng = np.random.default_rng(3)
    case = planted.plant(scene(pictures, rng, signed=True), pictures[1], kind, visible=True, upscale=enlarge, rng=rng)
    change = planted.patch_change(case)
    assert change.max() > 0.5
    assert (change == 0).float().mean() > 0.15


@pytest.mark.parametrize("kind", ["object", "texture", "letters", "warp"])
def test_a_hidden_edit_is_unseen_by_downscaling_and_a_visible_one_is_not(pictures, kind):
    seen = {}
    for visible in (True, False):
        rng = np.random.default_rng(5)
        staged = scene(pictures, rng, signed=True)
        case = planted.plant(staged, pictures[1], kind, visible=visible, upscale=enlarge, rng=rng)
        honest = planted.untouched(staged, visible=visible)
        seen[visible] = seen_by_the_source(case) - seen_by_the_source(honest)
        assert case.change.max() > 1 / 255
    assert seen[False] < 0.25 * seen[True]


def test_the_same_seed_plants_the_same_edit(pictures):
    def one(seed):
        rng = np.random.default_rng(seed)
        return planted.plant(scene(pictures, rng), pictures[1], "warp", visible=True, upscale=enlarge, rng=rng).result

    assert torch.equal(one(2), one(2))
    assert not torch.equal(one(2), one(4))


def test_letters_change_in_at_most_three_places():
    for seed in range(20):
        one, other = planted.two_words(np.random.default_rng(seed))
        assert len(one) == len(other)
        assert 1 <= sum(a != b for a, b in zip(one, other, strict=True)) <= 3


def test_benchmark_figures_are_what_they_say():
    from benchmarks import detection

    assert detection.auc(np.array([3.0, 1.0]), np.array([0.0, 2.0])) == 0.75
    assert detection.auc(np.array([1.0]), np.array([1.0, 1.0])) == 0.5
    target = np.zeros((4, 4))
    target[1, 1] = 5
    hot = np.zeros((4, 4))
    hot[2, 2] = 1

    def row(maps):
        return detection.Judged("p", "object", "true", 2, True, target, {"m": maps})

    assert detection.pointed(row(hot), "m")
    assert not detection.pointed(row(np.roll(hot, 1, 1)), "m")


def test_the_plan_has_enough_cases_and_a_third_that_downscaling_cannot_see():
    from benchmarks import detection

    edits = [edit for _, _, *edits in detection.PLAN for edit in edits]
    assert 12 * len(edits) >= 200
    assert 1 / 3 <= sum(not visible for _, visible in edits) / len(edits) < 0.5
    assert {kind for kind, _ in edits} == set(detection.KINDS)
