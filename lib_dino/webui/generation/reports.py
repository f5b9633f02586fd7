"""What was measured, beside the finished pictures: more pictures in the gallery, files beside the saved ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DinoError
from ...report.records import drift_figures
from ...report.write import page_beside, write_report
from ...settings import INFOTEXT_PICTURE_KEY

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...pipeline import Result

log = logging.getLogger("dino_upscale")


@dataclass
class Reports:
    """The measured pictures of one generation, in the order they were made.

    Attributes:
        gallery: add the map and the worst places to the pictures that are handed back.
        files: write the figures and the page beside each saved picture.
    """

    gallery: bool
    files: bool
    _held: list[Result] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether anything is to be measured."""
        return self.gallery or self.files

    def add(self, p: Any, i: int, result: Result) -> None:
        """Keep the figures of picture `i` of the iteration, and put its three into the text that the host saves."""
        self._held.append(result)
        for key, value in drift_figures(result.report).items():
            save_with(p, i, key, value)

    def finish(self, processed: Any) -> None:
        """Add to what the host hands back what the job asked for; a picture is never lost over its report."""
        first = int(getattr(processed, "index_of_first_image", 0) or 0)
        made = list(processed.images)[first : first + len(self._held)]
        for n, (image, result) in enumerate(zip(made, self._held, strict=False)):
            try:
                if self.files:
                    _save(image, result)
                if self.gallery:
                    _show(processed, first + n, result)
            except (DinoError, OSError) as error:
                log.warning("The drift report could not be written: %s", error)
        self._held.clear()


def save_with(p: Any, i: int, key: str, value: str | None) -> None:
    """Put a key into the text of picture `i` of the iteration alone; None leaves it out there."""
    # The host takes each picture's entry out of a list, counting anew in every iteration.
    held = p.extra_generation_params.get(key)
    before = held[:i] if isinstance(held, list) else []
    values = [*before, *[None] * (i - len(before)), value]
    if any(each is not None for each in values):
        p.extra_generation_params[key] = values
    else:
        p.extra_generation_params.pop(key, None)


def _save(image: Image, result: Result) -> None:
    """Write NAME.json and NAME_report.html beside the saved picture; nothing where the host saved none."""
    if saved := getattr(image, "already_saved_as", None):
        figures = Path(saved).with_suffix(".json")
        write_report(
            result.report, result.heats, result.source or result.picture, result.picture, name=Path(saved).name,
            figures=figures, page=page_beside(figures), force=True,
        )  # fmt: skip


def _show(processed: Any, index: int, result: Result) -> None:
    """Append the map and the worst places of picture `index`, each with its text and what it is."""
    from ...report.crops import worst_sheet
    from ...report.heatmap import heatmap

    heat = next(iter(result.heats), None)
    extra = {"drift map": heatmap(result.picture, heat, result.report)}
    if result.report.worst_patches:
        extra["worst places"] = worst_sheet(result.source or result.picture, result.picture, result.report)
    texts = processed.infotexts
    own = texts[index] if index < len(texts) else ""
    for kind, image in extra.items():
        # The gallery shows the text of the chosen picture: one text for each, in the same order.
        texts += [""] * (len(processed.images) - len(texts))
        processed.images.append(image)
        texts.append(f"{own}, {INFOTEXT_PICTURE_KEY}: {kind}" if own else "")
        image.info["parameters"] = texts[-1]
