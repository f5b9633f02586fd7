"""A picture of any size to its DINOv2 patch grid, and what patch grids are compared by.

Grids are `(B, D, gh, gw)`, float32: features are computed in the network's precision whatever the picture's is, and
are differentiable with respect to the picture.
"""

from __future__ import annotations

from typing import Final

import torch.nn.functional as F
from torch import Tensor

from ..networks.dinov2 import Dinov2
from ..networks.dinov2_weights import PATCH_PX
from ..tiling.resample import resize

LEAST_PX: Final = 224
MOST_PX: Final = 518
OUTLIER_SPREADS: Final = 8.0
"""Median deviations above the median from which on a token is an outlier."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as DINOv2 was trained


def grid_size(height: int, width: int, *, least_px: int = LEAST_PX, most_px: int = MOST_PX) -> tuple[int, int]:
    """Patches down and across for a picture of `height` by `width` pixels.

    One patch sees 14 of the picture's own pixels where that fits: pictures whose longer side is more than
    `most_px` are seen smaller, less than `least_px` larger. The aspect is kept to within half a patch a side; no
    side has less than one patch.
    """
    longer = max(height, width)
    scale = min(max(longer, least_px), most_px) / longer
    return max(1, round(height * scale / PATCH_PX)), max(1, round(width * scale / PATCH_PX))


def feature_grid(
    dino: Dinov2, image: Tensor, *, grid: tuple[int, int] | None = None, layer: int | None = None
) -> Tensor:
    """DINOv2 features of a picture's patches, (B, D, gh, gw), on the picture's device.

    Args:
        image: (B, 3, H, W), RGB, [0, 1], any size and float dtype.
        grid: patches down and across; None follows `grid_size`.
        layer: blocks to go through, 1 to `dino.depth`; None takes all.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"feature_grid takes images as (B, 3, H, W); got {tuple(image.shape)}.")
    given = normalised(dino, image, grid or grid_size(image.shape[2], image.shape[3]))
    return dino.layer_tokens(given, [layer or dino.depth])[0]


def normalised(dino: Dinov2, image: Tensor, grid: tuple[int, int]) -> Tensor:
    """`image`, (B, 3, H, W) in [0, 1], as `dino` takes it: of `grid` patches down and across, in its dtype."""
    small = resize(image.to(dino.positions.dtype), (grid[0] * PATCH_PX, grid[1] * PATCH_PX))
    mean, std = (small.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (small - mean) / std


def outliers(norms: Tensor) -> Tensor:
    """Which tokens are far longer than a picture's others, (B, gh, gw) of booleans.

    Large DINOv2 without registers keep global notes in patches that say little themselves (Darcet et al. 2024): such
    a token is several times as long as the rest and does not describe its place. More than half of them never are.

    Args:
        norms: (B, gh, gw), lengths before the final norm, as `Dinov2.tokens_and_norms` gives them.
    """
    flat = norms.flatten(1)
    middle = flat.median(1).values[:, None, None]
    spread = (norms - middle).abs().flatten(1).median(1).values[:, None, None]
    # Both: in an even picture the spread is next to nothing, and twice the usual length is what marks a note.
    return (norms > middle + OUTLIER_SPREADS * spread) & (norms > 2 * middle)


def centre(features: Tensor, mean: Tensor | None = None) -> Tensor:
    """Features without what all patches share, which otherwise drowns differences.

    Args:
        features: (B, D, gh, gw).
        mean: (B or 1, D, 1, 1), such as the whole source's mean; None takes each picture's own.
    """
    return features - (features.mean((-2, -1), keepdim=True) if mean is None else mean)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of two grids (B, D, gh, gw) at each patch: (B, gh, gw), 0 to 2; 1 where one has no direction."""
    return 1 - F.cosine_similarity(a, b, dim=1)


def confidence(centred: Tensor, spread: Tensor | float | None = None) -> Tensor:
    """Confidence of each patch of a centred grid, (B, gh, gw), 0 to 1: a flat sky has no direction to compare.

    Args:
        spread: mean squared norm of centred features that counts as normal; None takes the grid's own. A patch of
            a quarter of it has confidence one half.
    """
    energy = centred.square().sum(1)
    usual = energy.mean((-2, -1), keepdim=True) if spread is None else spread
    return energy / (energy + 0.25 * usual + 1e-12)
