"""Source consistency: made small again, the result must be the source.

Back-projection (Irani and Peleg, 1991): x <- x + s * U soft_threshold(y - D x), with the very operators D and U of
`resample`. It needs no network, changes nothing that downscaling cannot see, and is zero for a faithful
sharp picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import arrays
from ..tiling.resample import TileOperators, resize

FINAL_ITERATIONS = 3

COVARIANCE_RIDGE, COLOR_RIDGE = 1e-3, 1e-4
"""Added to variances of latents, which are about 1, and of colours: a tile of one colour has an inverse too.
Chosen (docs/constants.md)."""

COLOR_THRESHOLD = 0.1
"""Differences of a latent's colour that are let stand, in pictures of [-1, 1]: a linear map is wrong by about that much
on sharp detail (docs/constants.md)."""


def soft_threshold(residual: Tensor, threshold: float | Tensor) -> Tensor:
    """Take everything up to `threshold`, one for all or one each, off `residual`."""
    if isinstance(threshold, Tensor):
        return residual - residual.clamp(-threshold, threshold)
    return residual if threshold == 0 else residual - residual.clamp(-threshold, threshold)


def tile_pull(tile: Tensor, source: Tensor, operators: TileOperators, *, threshold: float) -> Tensor:
    """One back-projection step: what to add to `tile`, (B, 3, h, w) in [0, 1], towards the whole `source`."""
    return operators.up(soft_threshold(operators.crop(source).to(tile) - operators.down(tile), threshold))


def color_step(clean: Tensor, reference: Tensor, table: Tensor, *, to_latent: Tensor | None = None) -> Tensor:
    """What to add to latents so that their coarse colours are the source's; needs no network.

    Swapping the latents' low frequencies would take sharpness along, for blur is coded in all channels. Here only what
    the linear map to colour sees is moved, and by the change of latents that is smallest against the source's own
    covariance (minimum Mahalanobis), so that channels which carry texture stay.

    Args:
        clean: (B, C, h, w), predicted clean latents.
        reference: (1 or B, C, h, w), the enlarged source as latents.
        table: (C + 1, 3), colour in [-1, 1] as a linear map of the channels, the constant last.
        to_latent: `color_to_latent` of the two before, for callers that pull towards one reference again and again.

    Returns:
        (B, C, h, w); nothing where colours differ by less than `COLOR_THRESHOLD`.
    """
    missing = soft_threshold(_smooth(_mapped(reference - clean, table[:-1].T)), COLOR_THRESHOLD)
    return _mapped(missing, color_to_latent(reference, table) if to_latent is None else to_latent)


def _mapped(x: Tensor, matrix: Tensor) -> Tensor:
    """(B, n, h, w) to (B, m, h, w) by an (m, n) `matrix`.

    Term by term: a matrix product's last bit depends on where in memory its operands lie, and equal jobs are to give
    equal bits.
    """
    terms = (x[:, i : i + 1] * matrix[:, i].to(x).view(1, -1, 1, 1) for i in range(x.shape[1]))
    total: Tensor = sum(terms, start=x.new_zeros(()))
    return total


def color_to_latent(reference: Tensor, table: Tensor) -> Tensor:
    """(C, 3): the change of latents for a change of colour; see `color_step`.

    In double precision on the CPU, so that single precision is the same however the sums were done.
    """
    values = reference.transpose(0, 1).flatten(1).double().cpu()
    covariance = torch.cov(values) + COVARIANCE_RIDGE * torch.eye(len(values), dtype=torch.float64)
    weights = table[:-1].double().cpu()
    seen = weights.T @ covariance @ weights
    lift: Tensor = covariance @ weights @ torch.linalg.inv(seen + COLOR_RIDGE * torch.eye(3, dtype=torch.float64))
    return lift


def _smooth(colour: Tensor) -> Tensor:
    """(B, 3, h, w) after a Gaussian of 0.7 cells: single cells of a linear map are noisy."""
    height, width = colour.shape[-2:]
    padded = F.pad(colour, (1, 1, 1, 1), mode="replicate")
    across = 0.1904 * (padded[..., :width] + padded[..., 2:]) + 0.6192 * padded[..., 1:-1]
    smooth: Tensor = 0.1904 * (across[..., :height, :] + across[..., 2:, :]) + 0.6192 * across[..., 1:-1, :]
    return smooth


Pull = Callable[[Tensor], Tensor]
"""A tile's picture, (1, 3, h, w) in [0, 1], to what must be added to make it consistent with its source."""

Consistency = Callable[[Tensor, float], Tensor]
"""A tile's predicted clean data, (1, C, h, w), at a noise-to-signal ratio, to the same held to its source."""


def pixel_consistency(pull: Pull, strength: float) -> Consistency:
    """Hold pictures in [-1, 1] exactly, at every call."""
    return lambda clean, _: clean + 2 * (strength * pull((clean + 1) / 2)).to(clean)


class ColorConsistency:
    """Holds coarse colours alone, by a linear map: for latents without an exact decoder.

    Args:
        reference: (1, C, h, w), the source's tile as latents.
        table: as for `color_step`.
        strength: 0 to 1.
    """

    def __init__(self, reference: Tensor, table: Tensor, strength: float) -> None:
        self._reference, self._table, self._strength = reference, table, strength
        self._to_latent: Tensor | None = None

    def __call__(self, clean: Tensor, noise_to_signal: float) -> Tensor:
        """Latents, (1, C, h, w), after one step towards the source's colours."""
        if self._to_latent is None:  # once a tile: on a GPU it waits for the CPU
            self._to_latent = color_to_latent(self._reference, self._table)
        step = color_step(clean, self._reference.to(clean), self._table, to_latent=self._to_latent)
        return clean + self._strength * step


@dataclass(frozen=True)
class Autoencoder:
    """Encoder and decoder that are exact enough to be held against the source pixel by pixel.

    Attributes:
        encode, decode: between pictures in [0, 1] and latents, one (1, ...) tile at a time; values that are not finite
            say that it failed.
        available: asked before each use.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    available: Callable[[], bool] = lambda: True


class AutoencoderConsistency:
    """Holds latents exactly at a few noise levels; in between by the last exact step and coarse colours.

    Args:
        autoencoder: may become unavailable in the middle of a tile.
        exact_sigmas: noise-to-signal ratios, falling; an exact step is due once each, when a tile's falls so low.
        pull: towards the tile's source.
        strength: 0 to 1.
        otherwise: acts where no exact step was taken; None leaves the latents alone.
    """

    def __init__(
        self, autoencoder: Autoencoder, exact_sigmas: tuple[float, ...], pull: Pull, strength: float,
        otherwise: Consistency | None,
    ) -> None:  # fmt: skip
        self._autoencoder, self._exact_sigmas, self._pull = autoencoder, exact_sigmas, pull
        self._strength, self._otherwise = strength, otherwise
        self._passed: int | None = None
        self._last: tuple[Tensor, float] | None = None

    def __call__(self, clean: Tensor, noise_to_signal: float) -> Tensor:
        """Latents, (1, C, h, w), held to the source."""
        if self._is_due(noise_to_signal) and self._autoencoder.available():
            step = self._exact_step(clean)
            if step is not None:
                moved = clean + step
                self._last = moved - clean, noise_to_signal
                return moved
        if self._last is not None:
            # What was moved at `then` makes up 1 - now / then of the noisy data by now: the rest is still missing.
            step, then = self._last
            clean = clean + min(1.0, noise_to_signal / then) * step
        return clean if self._otherwise is None else self._otherwise(clean, noise_to_signal)

    @torch.no_grad()
    def _exact_step(self, clean: Tensor) -> Tensor | None:
        """Difference that the pull makes to the encoded picture; None where the autoencoder gives no valid numbers."""
        encode = self._autoencoder.encode
        picture = self._autoencoder.decode(clean.float())
        step = encode(picture + self._strength * self._pull(picture)) - encode(picture)
        return step.to(clean) if bool(torch.isfinite(step).all()) else None

    def _is_due(self, noise_to_signal: float) -> bool:
        """Count by noise, not by calls: ten steps and forty get the same exact steps.

        A tile that begins with less noise than some levels has its first at the next of them, at once where there is
        none.
        """
        passed, before = sum(noise_to_signal <= level for level in self._exact_sigmas), self._passed
        self._passed = max(passed, before or 0)
        return passed == len(self._exact_sigmas) if before is None else passed > before


def back_project(
    image: Tensor, source: Tensor, *, strength: float, threshold: float = 0.0, iterations: int = FINAL_ITERATIONS
) -> Tensor:
    """`image`, (1, 3, H, W) in [0, 1], made consistent with `source`, (1, 3, h, w) in [0, 1].

    Args:
        strength: share of the difference taken back per iteration, 0 to 1; 0 returns `image` itself.
        threshold: differences up to this are let stand, in units of the picture's range.
    """
    if strength == 0:
        return image
    source = source.to(torch.float32)
    out = image.to(torch.float32)
    for _ in range(iterations):
        residual = arrays.by_bands(
            lambda wanted, shown: soft_threshold(wanted - shown, threshold), source, resize(out, _size(source))
        )
        pull = resize(residual, _size(out))
        out = arrays.by_bands(lambda made, step: (made + strength * step).clamp(0, 1), out, pull, into=pull)
    return out.to(image.dtype)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
