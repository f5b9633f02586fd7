"""What the user sees and presses while tiles are under way: progress, live preview, Interrupt and Skip."""

from __future__ import annotations

import time
from typing import Any, Final

from torch import Tensor

from ...pictures.pixels import to_image

PREVIEW_PX: Final = 1024
PREVIEW_SECONDS: Final = 0.7


class Screen:
    """Progress over all batches of tiles of one generation, and the whole canvas as live preview.

    Args:
        pictures: how many pictures the generation upscales.
    """

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._sized = False
        self._shown = 0.0
        self._left = self._steps = 0

    def plan(self, batches: int, steps: int) -> None:
        """Expect so many batches of so many steps for the next picture; the first picture's size the bar."""
        self._left, self._steps = batches, steps
        if self._sized or not batches:
            return
        from modules import shared

        self._sized = True
        # The host counts one job for each of its own iterations and one for each nested call.
        shared.state.job_count = max(shared.state.job_count, 0) + batches * self._pictures
        shared.total_tqdm.updateTotal(shared.state.job_count * steps)

    def begin_batch(self) -> None:
        """Count a nested call; retries make the bar longer."""
        from modules import shared

        self._left -= 1
        if self._left < 0:
            shared.state.job_count += 1
            shared.total_tqdm.updateTotal(shared.state.job_count * self._steps)

    def text(self, line: str) -> None:
        """One line under the bar."""
        from modules import shared

        shared.state.textinfo = line

    def show(self, canvas: Tensor, *, always: bool = False) -> None:
        """The canvas, (1, 3, H, W) in [0, 1], as live preview, at most every so often."""
        from modules import shared

        now = time.monotonic()
        if not shared.opts.live_previews_enable or (now - self._shown < PREVIEW_SECONDS and not always):
            return
        self._shown = now
        stride = -(-max(canvas.shape[-2:]) // PREVIEW_PX)
        shared.state.assign_current_image(to_image(canvas[0, :, ::stride, ::stride]))

    def keep(self) -> None:
        """Keep the canvas on screen: the host would show the tile it is working on."""
        from modules import shared

        shared.state.current_latent = None


def done() -> None:
    """Take the line under the bar away."""
    from modules import shared

    shared.state.textinfo = None


def comment(p: Any, text: str) -> None:
    """A line below the finished picture."""
    if hasattr(p, "comment"):
        p.comment(text)
