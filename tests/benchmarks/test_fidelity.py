"""The fidelity benchmark's statistics, plants and arms, on known data."""


import numpy as np
import pytest
import torch

from benchmarks.fidelity_arms import Plant, arms, disk, unseen
from benchmarks.fidelity_report import Results, claims
from benchmarks.fidelity_stats import at_detail, averaged, change, interval, spearman
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize

CURVE = [{"HF": 0.4, "NS": 0.2}, {"HF": 0.1, "NS": 0.1}, {"HF": 0.8, "NS": 0.6}]


def test_the_curve_is_read_at_equal_detail_and_held_at_its_ends():
    assert at_detail(CURVE, "NS", 0.6) == pytest.approx(0.4)
    assert at_detail(CURVE, "NS", 2.0) == 0.6


def test_a_change_is_relative_for_distances_and_absolute_for_psnr():
    worse = change([(0.6, 0.5), (0.4, 0.5), (0.5, 0.5)], "NS")
    assert worse.mean == pytest.approx(0) and worse.better == pytest.approx(1 / 3)
    assert change([(31.0, 30.0), (32.0, 30.0)], "PSNR").mean == pytest.approx(1.5)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = sum(low <= 1 <= high for low, high in (interval(rng.normal(1, 1, 30), draws=300) for _ in range(200)))
    assert 175 <= hits <= 199


def test_rank_correlation_sees_order_alone():
    assert spearman([1, 2, 3, 4], [9, 4, 3, -50]) == pytest.approx(-1)


def test_seeds_are_averaged_within_a_picture():
    rows = [{"picture": "a", "seed": s, "NS": float(s)} for s in (1, 3)]
    assert averaged(rows, ("picture",)) == {("a",): {"NS": 2.0}}


def test_hidden_texture_cannot_be_seen_when_made_small_and_the_plant_replaces_only_its_place():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    texture = unseen(image, 2)
    assert resize(texture, (32, 32)).abs().mean() < 0.05 * texture.abs().mean()
    mask = disk((64, 64), 0)
    clean = torch.zeros(1, 3, 64, 64)
    forced = Plant(image, mask, 2, hidden=False).force(clean)
    assert torch.equal(forced[:, :, mask[0, 0] == 0], clean[:, :, mask[0, 0] == 0])
    inside = mask[0, 0] == 1
    assert torch.allclose(forced[:, :, inside], 2 * image[:, :, inside] - 1)


def test_every_arm_is_a_valid_setting():
    for name, arm in arms(adapter=True).items():
        assert Settings(**arm.settings), name


def rows(**distances):
    """Arms at x2 clean, denoise 0.5, on three pictures, beside an unguided curve."""
    common = {"factor": 2, "degraded": False, "seed": 0, "plant": "", "T2": 0.1, "PSNR": 30.0, "LR": 50.0, "drift": 0.1}
    for i, picture in enumerate("abc"):
        for level in (0.0, 0.1, 0.25, 0.5):
            yield {**common, "group": "frontier", "picture": picture, "arm": "unguided", "denoise": level,
                   "HF": 0.5 + level, "NS": 0.3 + level}  # fmt: skip
        for arm, distance in distances.items():
            shown = {"NS": distance + i / 100, "T2": distance + i / 100}
            yield {**common, "group": "arms", "picture": picture, "arm": arm.replace("_", ", "), "denoise": 0.5,
                   "HF": 0.9, **shown}  # fmt: skip


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ({"adapter": 0.1, "adapter_shuffled": 0.11}, "must NOT be credited to what the features say"),
        ({"adapter": 0.1, "adapter_shuffled": 0.2}, "owed to the features"),
        ({"adapter": 0.2}, "must NOT be said to add"),
    ],
)
def test_a_gain_is_credited_to_features_only_where_false_ones_lack_it(distances, said):
    results = Results(list(rows(consistency=0.2, defaults=0.2, **distances)))
    assert said in "".join(claims(results))


def test_equal_detail_is_read_off_the_same_pictures_curve():
    results = Results(list(rows(consistency=0.2)))
    found = results.pairs("consistency", 0.5, (2, False), "NS")
    assert [rival for _, rival in found] == pytest.approx([0.7] * 3)
