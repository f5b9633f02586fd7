"""The doctor's checks of a running WebUI, over its API alone; nothing in it is left changed.

The generations are tiny (80 x 64 px in two tiles of 64 px), are not saved, and guide with the feature network that
ships, so that nothing is downloaded.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..errors import SettingsError
from ..networks.hub import PUBLISHED
from ..pictures.infotext import parse_infotext
from ..settings import INFOTEXT_VERSION_KEY, Settings
from ..version import __version__
from ..webui_settings import FIELDS, TITLE, all_knobs
from .doctor import SOURCE_PX, Check, Failed, Skipped, sample_picture
from .webui_client import CONSOLE, Answer, WebUI

if TYPE_CHECKING:
    from PIL import Image

# Names that the WebUI side of the extension gives its feature models and their option.
DEFAULT_MODEL, BUILT_IN_MODEL, OPTION_MODEL = "Default", "Built-in", "dino_upscale_model"

SMALL: Final[dict[str, Any]] = {
    "scale_factor": 2.0, "tile_size": 64, "overlap": 16, "denoise": 0.6, "steps": 5, "consistency": 0.0,
    "dino_enabled": False, "dino_strength": 1.0, "dino_model": BUILT_IN_MODEL,
}  # fmt: skip
_REQUEST: Final[dict[str, Any]] = {
    "prompt": "a red house", "negative_prompt": "", "seed": 7, "steps": 5, "cfg_scale": 5, "sampler_name": "Euler",
    "width": 64, "height": 64, "denoising_strength": 0.6, "send_images": True, "save_images": False,
}  # fmt: skip
_SIZE: Final = (2 * SOURCE_PX[0], 2 * SOURCE_PX[1])
_FLOW_SCHEDULE: Final = "Simple"
_BOTH: Final = "Update the extension and this command line to the same version"
_REINSTALL: Final = (
    "Put this version's folder into the WebUI's extensions folder, replacing the one there, and restart the WebUI."
)


@dataclass
class Visit:
    """A WebUI and what was learned of it so far.

    Attributes:
        wanted: fields that its model needs in every request.
    """

    webui: WebUI
    fetch: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    sysinfo: dict[str, Any] = field(default_factory=dict)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, Image.Image] = field(default_factory=dict)
    wanted: dict[str, Any] = field(default_factory=dict)

    def listed(self, path: str) -> Any:
        """The JSON of a quick question."""
        answer = self.webui.get(path)
        if answer.status != 200 or not answer.is_json:
            raise Failed(f"{path} answers {answer.status}: {answer.error}", CONSOLE)
        return answer.body

    def schedules(self) -> list[dict[str, Any]]:
        """The WebUI's noise schedules; none where it keeps them in the names of its samplers."""
        answer = self.webui.get("/sdapi/v1/schedulers")
        return answer.body if answer.status == 200 and isinstance(answer.body, list) else []

    def asked(self, **more: Any) -> Answer:
        """The answer to an img2img of the test picture."""
        stream = io.BytesIO()
        sample_picture().save(stream, "PNG")
        picture = base64.b64encode(stream.getvalue()).decode()
        return self.webui.post("/sdapi/v1/img2img", {**_REQUEST, **self.wanted, "init_images": [picture], **more})

    def made(self, **more: Any) -> Image.Image:
        """The picture of an img2img, the host's own unless `more` names a script."""
        answer = self.asked(**more)
        if answer.status != 200:
            advice = f"{_BOTH}." if answer.status == 422 else self.webui.blame()
            raise Failed(f"HTTP {answer.status}: {answer.error}", advice)
        try:
            return answer.image()
        except ValueError as error:
            raise Failed(f"no picture came back ({error})", CONSOLE) from error

    def upscaled(self, always_on: bool = False, **changes: Any) -> Image.Image:
        """A small upscale, through the script list or `alwayson_scripts`."""
        args = [{**SMALL, **changes}]
        image = self.made(alwayson_scripts={TITLE: {"args": args}}) if always_on else self.made(
            script_name=TITLE, script_args=args
        )
        if image.size != _SIZE:
            raise Failed(f"the result is {image.width}x{image.height} px, not {_SIZE[0]}x{_SIZE[1]}", CONSOLE)
        return image

    def check_same(self, image: Image.Image, expected: str, complaint: str) -> None:
        """Compare with an earlier picture, as far as this WebUI repeats itself."""
        difference = apart(image, self.images[expected])
        if not difference:
            return
        if apart(self.made(), self.images["normal"]):
            raise Skipped("this WebUI never gives the same pixels twice (--xformers does that): nothing to compare")
        raise Failed(f"{complaint} (by {difference:.2f} grey levels on average)", f"Please report it. {CONSOLE}")


def apart(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of two pictures, grey levels; 255 when their sizes differ."""
    from PIL import ImageChops, ImageStat

    if a.size != b.size:
        return 255.0
    means = ImageStat.Stat(ImageChops.difference(a.convert("RGB"), b.convert("RGB"))).mean
    return sum(means) / len(means)


def _is_black(image: Image.Image) -> bool:
    return image.convert("L").point(lambda value: 255 * (value > 2)).getbbox() is None


CHECKS: Final[list[Check]] = []


def _check(name: str, *needs: str) -> Callable[[Callable[[Visit], str]], Callable[[Visit], str]]:
    """Add a function to `CHECKS`."""

    def add(ask: Callable[[Visit], str]) -> Callable[[Visit], str]:
        CHECKS.append(Check(name, ask, needs))
        return ask

    return add


@_check("WebUI answers")
def _answers(visit: Visit) -> str:
    answer = visit.webui.get("/")
    if answer.status >= 500:
        raise Failed(
            f"{visit.webui.url} answers {answer.status}: {answer.error}",
            "The WebUI may still be starting, or stand behind a gateway that does not reach it: wait and try again.",
        )
    return visit.webui.url


@_check("API", "WebUI answers")
def _api(visit: Visit) -> str:
    answer = visit.webui.get("/sdapi/v1/options")
    if answer.status in (401, 403):
        raise Failed(
            f"it asks for a password (HTTP {answer.status})",
            "Give --auth USER:PASSWORD, the pair that follows --api-auth where the WebUI is started.",
        )
    if answer.status == 404 or (answer.status == 405 and not answer.is_json):
        raise Failed("there is no API (HTTP 404)", "Start the WebUI with --api, on its command line or in webui-user.")
    if answer.status != 200 or not isinstance(answer.body, dict):
        raise Failed(
            f"what answers at {visit.webui.url} is no WebUI's API (HTTP {answer.status}): {answer.error}",
            "Give the address of the WebUI itself; a page for logging in, or another program, seems to stand there.",
        )
    visit.options = answer.body
    return "switched on"


@_check("host", "WebUI answers")
def _host(visit: Visit) -> str:
    visit.sysinfo = info = visit.webui.sysinfo()
    if not info:
        raise Skipped("the WebUI does not tell (it was started with --nowebui, or is an old one)")
    packages = dict(str(line).partition("==")[::2] for line in info.get("Packages") or () if "==" in str(line))
    parts = [f"{_kind(visit)} {info.get('Version', '')}".strip(), f"Python {info.get('Python')}"]
    names = (name for name in ("gradio", "torch", "transformers", "timm") if name in packages)
    return ", ".join([*parts, *(f"{name} {packages[name]}" for name in names)])


def _kind(visit: Visit) -> str:
    """Which WebUI it is, by settings that only one of them has."""
    if visit.sysinfo.get("Version") == "classic":
        return "Forge Classic"
    telltales = {"forge_try_reproduce": "Forge", "custom_cfg_conds": "reForge"}
    return next((name for key, name in telltales.items() if key in visit.options), "AUTOMATIC1111")


@_check("checkpoint", "API")
def _checkpoint(visit: Visit) -> str:
    if not visit.listed("/sdapi/v1/sd-models"):
        raise Failed(
            "the WebUI has none",
            "Put a checkpoint into models/Stable-diffusion, press the refresh button beside the list of checkpoints, "
            "and choose it.",
        )
    return str(visit.options.get("sd_model_checkpoint") or "the first of the list")


@_check("extension", "API")
def _extension(visit: Visit) -> str:
    scripts = [s for s in visit.listed("/sdapi/v1/script-info") if str(s.get("name", "")).lower() == TITLE.lower()]
    if not scripts:
        raise Failed("the WebUI does not know it", _why_missing(visit))
    registered = {(bool(s.get("is_img2img")), bool(s.get("is_alwayson"))): s for s in scripts}
    places = {(True, False): "img2img's script list", (True, True): "img2img", (False, True): "txt2img"}
    missing = [name for key, name in places.items() if key not in registered]
    if missing:
        raise Failed(f"it is missing in {', '.join(missing)}", f"{_REINSTALL} {CONSOLE}")
    visit.arguments = [*registered[True, False].get("args", ())]
    return f"in {', '.join(places.values())}"


def _why_missing(visit: Visit) -> str:
    """Advice for an extension that is absent, switched off or broken, as far as the system info tells."""
    for entry in visit.sysinfo.get("Inactive extensions") or ():
        if "dino" in str(entry).lower():
            return f"It is switched off: tick {entry.get('name')!r} on the Extensions tab, apply, and restart."
    for entry in visit.sysinfo.get("Exceptions") or ():
        if "dino_upscale" in str(entry) or "lib_dino" in str(entry):
            return f"It failed to load: {str(entry.get('exception'))[:300]}. Update it, or report this line."
    return f"{_REINSTALL} If it is there, it failed to load: the console says why."


@_check("arguments", "extension")
def _arguments(visit: Visit) -> str:
    there, here = [str(a.get("label")) for a in visit.arguments], [k.label for k in all_knobs().values()]
    if there == here:
        return f"{len(FIELDS)}, as in this version ({__version__})"
    pairs = enumerate(zip([*there, "missing"], [*here, "missing"], strict=False))
    number, (theirs, ours) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    raise Failed(
        f"argument {number + 1} is {theirs!r} there, {ours!r} here ({len(there)} and {len(here)} in all)",
        f"The WebUI has another version of the extension than this command line. {_BOTH}, and restart the WebUI.",
    )


@_check("normal generation", "API", "checkpoint")
def _normal(visit: Visit) -> str:
    image, words = visit.made(), "a normal img2img works"
    if _is_black(image) and any(entry.get("label") == _FLOW_SCHEDULE for entry in visit.schedules()):
        # What flow models (SD 3, FLUX) give in Forge where no schedule is named.
        visit.wanted["scheduler"] = _FLOW_SCHEDULE
        image = visit.made()
        words += f" with the schedule type {_FLOW_SCHEDULE}; with Automatic this model gives black pictures: choose it"
    if _is_black(image):
        raise Failed(
            "a normal img2img gives a black picture",
            "The checkpoint does not work in this WebUI as it is set up: try another VAE, --no-half-vae or --no-half.",
        )
    visit.images["normal"] = image
    return words


@_check("small upscale", "extension", "normal generation")
def _upscale(visit: Visit) -> str:
    visit.images["off"] = visit.upscaled()
    return f"{SOURCE_PX[0]}x{SOURCE_PX[1]} -> {_SIZE[0]}x{_SIZE[1]} px"


@_check("both ways", "small upscale")
def _always_on(visit: Visit) -> str:
    visit.check_same(visit.upscaled(always_on=True), "off", "the two ways differ")
    return "script_name and alwayson_scripts give the same pixels"


@_check("guidance off", "small upscale")
def _strength_0(visit: Visit) -> str:
    visit.check_same(
        visit.upscaled(dino_enabled=True, dino_strength=0.0), "off", "strength 0 changes the picture"
    )
    return "strength 0 is bitwise off"


@_check("guidance acts", "small upscale")
def _guidance(visit: Visit) -> str:
    difference = apart(visit.upscaled(dino_enabled=True, dino_strength=1.0), visit.images["off"])
    if difference == 0:
        raise Failed(
            "strength 1 changes nothing",
            f"Guidance does not reach the denoising. {CONSOLE} Look for a line that begins with \"DINO\".",
        )
    return f"strength 1 differs from off by {difference:.2f} grey levels on average"


@_check("consistency acts", "small upscale")
def _consistency(visit: Visit) -> str:
    from PIL.Image import Resampling

    images = visit.images["off"], visit.upscaled(consistency=1.0)
    without, full = (apart(image.resize(SOURCE_PX, Resampling.BOX), sample_picture()) for image in images)
    words = f"made small again it differs from the source by {full:.2f} grey levels, {without:.2f} without consistency"
    if full >= without:
        raise Failed(words, f"The result is not being held to the source. {CONSOLE}")
    return words


@_check("saved text", "small upscale")
def _saved_text(visit: Visit) -> str:
    saved = parse_infotext(str(visit.images["off"].info.get("parameters", "")))
    try:
        settings = Settings.from_infotext(saved)
    except SettingsError as error:
        raise Failed(str(error), f"{_BOTH}.") from error
    names = ("scale_factor", "tile_size", "denoise", "steps")
    wrong = [name for name in names if getattr(settings, name) != SMALL[name]]
    version = saved.get(INFOTEXT_VERSION_KEY)
    if wrong or version is None:
        raise Failed(
            f"the picture's text does not give {', '.join(wrong) or 'the version'}",
            "Switch on \"Write infotext to metadata of the generated image\" in the WebUI's settings.",
        )
    if version != __version__:
        raise Failed(f"the picture was made by version {version}, this is {__version__}", f"{_BOTH}, and restart it.")
    return f"every setting is in the picture, version {version}"


@_check("wrong values", "extension")
def _refusal(visit: Visit) -> str:
    answer = visit.asked(script_name=TITLE, script_args=[{**SMALL, "dino_strength": 2.0}])
    if answer.status < 400 or "dino_strength" not in json.dumps(answer.body):
        words = answer.error if answer.status >= 400 else "a picture"
        raise Failed(
            f"a DINO strength of 2 is answered with HTTP {answer.status}: {words}",
            f"A wrong value should be refused with the name of its field. {CONSOLE}",
        )
    return f"a wrong value is refused by name (HTTP {answer.status})"


@_check("feature model", "extension", "normal generation")
def _feature_model(visit: Visit) -> str:
    chosen = str(visit.options.get(OPTION_MODEL) or BUILT_IN_MODEL)
    if chosen == BUILT_IN_MODEL:
        arguments = dict(zip(FIELDS, visit.arguments, strict=False))
        count = len(arguments.get("dino_model", {}).get("choices") or ())
        return f"{DEFAULT_MODEL} is the built-in network; {count} to choose from"
    if chosen.rpartition("/")[2] in PUBLISHED and not visit.fetch:
        raise Skipped(f"{chosen} is downloaded when first used, if it is not there yet; --fetch tries it now")
    visit.upscaled(dino_enabled=True, dino_model=DEFAULT_MODEL)
    return f"{DEFAULT_MODEL} is {chosen}, and it works"


@_check("left as it was", "normal generation")
def _left_alone(visit: Visit) -> str:
    now = visit.listed("/sdapi/v1/options")
    changed = sorted(key for key in {*now, *visit.options} if now.get(key) != visit.options.get(key))
    # Which checkpoint was loaded is filled in by the host's own first generation.
    changed = [key for key in changed if key not in ("sd_checkpoint_hash", "sd_model_checkpoint")]
    if changed:
        raise Failed(f"settings differ from before: {', '.join(changed[:8])}", "Was somebody else at the settings?")
    visit.check_same(visit.made(), "normal", "a normal img2img is not what it was before")
    return "settings and a normal img2img are what they were before"
