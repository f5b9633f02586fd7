"""DINO guidance: keep a tile's predicted clean picture what the source is, as DINOv2 features see it.

The estimate is compared at the source's own scale (made small by `view`, which the caller gives) by the measure of
`drift`. The loss is the cosine distance of centred patch features, and the step is taken on the predicted clean
picture alone (MPGD, He et al. 2024), never through the diffusion model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..measure.drift import Extract, Target, drift

View = Callable[[Tensor], Tensor]
"""A predicted clean picture in the model's scale to what the source would show of it, in [0, 1]."""

NULL_DRIFT = 1e-4
"""Drift that is only rounding; steps are counted from here, so that what is faithful stays put."""

MAX_STEP = 0.12
"""Largest root mean square of one correction at high noise, in units of `sigma_data`. Chosen (docs/constants.md)."""


def guide(
    clean: Tensor, noise_to_signal: float, *, target: Target, view: View, extract: Extract, strength: float,
    sigma_data: float = 1.0,
) -> Tensor:  # fmt: skip
    """Take one step of `clean` towards its target.

    The step is Polyak's (loss over squared gradient norm: it vanishes with the drift and needs no learning
    rate; Shen et al. 2024 recommend it for training-free guidance), held inside a trust region that shrinks
    with the noise, for what is changed late is not cleaned up by the model any more.

    Args:
        clean: (B, C, h, w), predicted clean picture in the model's scale.
        noise_to_signal: ratio of this call, above 0.
        target: what the region should be.
        view, extract: `clean` to the source's scale, and that to features.
        strength: 0 to 1; at 0 `clean` itself comes back and nothing is computed.
        sigma_data: standard deviation of clean data in the model's scale.

    Returns:
        The corrected picture, in the dtype and on the device of `clean`.
    """
    if strength == 0:
        return clean
    # Hosts sample in inference mode or under no_grad; a clone made outside of both can carry gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(clean.device.type, enabled=False):
        leaf = clean.detach().clone().float().requires_grad_()
        loss = drift(extract(view(leaf)), target)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    excess = (loss.detach() - NULL_DRIFT).clamp(min=0).view(-1, 1, 1, 1)
    step = excess * gradient / gradient.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-20)
    size = step.square().mean((1, 2, 3), keepdim=True).sqrt()
    limit = MAX_STEP * sigma_data * noise_to_signal / (noise_to_signal**2 + 1) ** 0.5
    step = step * (limit / size.clamp(min=1e-20)).clamp(max=1)
    corrected: Tensor = clean.float() - strength * step
    return corrected.to(clean.dtype)

