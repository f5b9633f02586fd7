"""A running WebUI as the doctor meets it: what it answers, and the small pictures it makes.

The generations are tiny (80 x 64 px in two tiles of 64 px), are not saved, and guide with the feature network that
ships, so that nothing is downloaded.
"""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..webui.model.model_files import BUILT_IN_MODEL
from ..webui_settings import TITLE
from .doctor import Failed
from .webui_client import Answer, Unanswered, WebUI

if TYPE_CHECKING:
    from PIL import Image

SOURCE_PX: Final = (40, 32)
SMALL: Final[dict[str, Any]] = {
    "scale_factor": 2.0, "tile_size": 64, "overlap": 16, "denoise": 0.6, "steps": 5, "consistency": 0.0,
    "dino_enabled": False, "dino_strength": 1.0, "dino_model": BUILT_IN_MODEL,
}  # fmt: skip
_REQUEST: Final[dict[str, Any]] = {
    "prompt": "a red house", "negative_prompt": "", "seed": 7, "steps": 5, "cfg_scale": 5, "sampler_name": "Euler",
    "width": 64, "height": 64, "denoising_strength": 0.6, "send_images": True, "save_images": False,
}  # fmt: skip
CONSOLE: Final = "The console of the WebUI says more."


@dataclass
class Visit:
    """A WebUI and what was learned of it so far."""

    webui: WebUI
    fetch: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    sysinfo: dict[str, Any] = field(default_factory=dict)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, Image.Image] = field(default_factory=dict)

    def listed(self, path: str) -> Any:
        """The JSON of a quick question."""
        answer = self.webui.get(path)
        if answer.status != 200 or not answer.is_json:
            raise Failed(f"{path} answers {answer.status}: {answer.error}", CONSOLE)
        return answer.body

    def plain(self) -> Image.Image:
        """An img2img of the host's own."""
        return self._made({})

    def upscaled(self, always_on: bool = False, **changes: Any) -> Image.Image:
        """A small upscale, through the script list or `alwayson_scripts`."""
        args = [{**SMALL, **changes}]
        if always_on:
            return self._made({"alwayson_scripts": {TITLE: {"args": args}}})
        return self._made({"script_name": TITLE, "script_args": args})

    def asked(self, more: dict[str, Any]) -> Answer:
        """The answer to an img2img of the test picture."""
        stream = io.BytesIO()
        source().save(stream, "PNG")
        picture = base64.b64encode(stream.getvalue()).decode()
        return self.webui.post("/sdapi/v1/img2img", {**_REQUEST, "init_images": [picture], **more})

    def _made(self, more: dict[str, Any]) -> Image.Image:
        from PIL import Image, UnidentifiedImageError

        answer = self.asked(more)
        if answer.status != 200:
            raise Failed(f"HTTP {answer.status}: {answer.error}", self._advice(answer))
        try:
            image = Image.open(io.BytesIO(base64.b64decode(answer.body["images"][0])))
            image.load()
        except (KeyError, IndexError, TypeError, binascii.Error, UnidentifiedImageError) as error:
            raise Failed(f"no picture came back ({error!r})", CONSOLE) from error
        return image

    def _advice(self, answer: Answer) -> str:
        """Whose fault it is, as far as the host's list of last exceptions tells."""
        if answer.status == 422:
            return "Update the extension and this command line to the same version."
        other = _culprit(_last_exception(self.webui))
        return f"The error comes from {other}: update it or switch it off. {CONSOLE}" if other else CONSOLE


def source() -> Image.Image:
    """A house under the sun: something for features to see."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SOURCE_PX, (120, 160, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 20, 40, 32), fill=(60, 120, 50))
    draw.ellipse((3, 2, 12, 11), fill=(250, 220, 90))
    draw.rectangle((20, 12, 33, 26), fill=(170, 60, 50))
    draw.polygon([(18, 12), (26, 4), (35, 12)], fill=(70, 40, 40))
    return image


def apart(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of two pictures, grey levels; 255 when their sizes differ."""
    from PIL import ImageChops, ImageStat

    if a.size != b.size:
        return 255.0
    means = ImageStat.Stat(ImageChops.difference(a.convert("RGB"), b.convert("RGB"))).mean
    return sum(means) / len(means)


def _last_exception(webui: WebUI) -> dict[str, Any]:
    try:
        body = webui.get("/internal/sysinfo", timeout=webui.timeout).body
    except Unanswered:
        return {}
    held = body.get("Exceptions") if isinstance(body, dict) else None
    return held[0] if isinstance(held, list) and held and isinstance(held[0], dict) else {}


def _culprit(exception: dict[str, Any]) -> str:
    """The extension that a host's traceback ends in, in words; empty when none, or ours."""
    frames = [str(frame) for frame in exception.get("traceback") or ()]
    paths = " ".join(frames).replace("\\", "/")
    names = [part.split("/")[0] for part in paths.split("/extensions/")[1:]]
    if not names or "lib_dino" in frames[-1]:
        return ""
    return f"the extension {names[-1]!r}"
