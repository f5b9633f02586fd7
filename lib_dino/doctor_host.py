"""What the doctor asks a running WebUI, over its API alone; nothing in it is left changed.

The generations are tiny (80 x 64 px in two tiles of 64 px), are not saved, and guide with the feature network that
ships, so that nothing is downloaded.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from . import __version__
from .doctor import Check, Failed, Skipped
from .errors import SettingsError
from .host.args import BUILT_IN_MODEL, DEFAULT_MODEL, FIELDS, TITLE, all_knobs
from .infotext import parse_infotext
from .published import PUBLISHED
from .settings import INFOTEXT_VERSION_KEY, Settings
from .webapi import Answer, Unanswered, WebUI

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
_CONSOLE: Final = "The console of the WebUI says more."
_REINSTALL: Final = (
    "Put this version's folder into the WebUI's extensions folder, replacing the one there, and restart the WebUI."
)


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
            raise Failed(f"{path} answers {answer.status}: {answer.error}", _CONSOLE)
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
            raise Failed(f"no picture came back ({error!r})", _CONSOLE) from error
        return image

    def _advice(self, answer: Answer) -> str:
        """Whose fault it is, as far as the host's list of last exceptions tells."""
        if answer.status == 422:
            return "Update the extension and this command line to the same version."
        other = _culprit(_last_exception(self.webui))
        return f"The error comes from {other}: update it or switch it off. {_CONSOLE}" if other else _CONSOLE


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


def _answers(visit: Visit) -> str:
    answer = visit.webui.get("/")
    if answer.status >= 500:
        raise Failed(
            f"{visit.webui.url} answers {answer.status}: {answer.error}",
            "The WebUI may still be starting, or stand behind a gateway that does not reach it: wait and try again.",
        )
    return visit.webui.url


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


def _host(visit: Visit) -> str:
    answer = visit.webui.get("/internal/sysinfo", timeout=visit.webui.timeout)
    if answer.status != 200 or not isinstance(answer.body, dict):
        raise Skipped("the WebUI does not tell (it was started with --nowebui, or is an old one)")
    visit.sysinfo = answer.body
    packages = dict(str(line).partition("==")[::2] for line in visit.sysinfo.get("Packages") or () if "==" in str(line))
    found = [f"{name} {packages[name]}" for name in ("gradio", "torch", "transformers", "timm") if name in packages]
    parts = [f"{_kind(visit)} {visit.sysinfo.get('Version', '')}".strip(), f"Python {visit.sysinfo.get('Python')}"]
    return ", ".join([*parts, *found])


def _kind(visit: Visit) -> str:
    """Which WebUI it is, by settings that only one of them has."""
    if visit.sysinfo.get("Version") == "classic":
        return "Forge Classic"
    telltales = {"forge_try_reproduce": "Forge", "custom_cfg_conds": "reForge"}
    return next((name for key, name in telltales.items() if key in visit.options), "AUTOMATIC1111")


def _checkpoint(visit: Visit) -> str:
    if not visit.listed("/sdapi/v1/sd-models"):
        raise Failed(
            "the WebUI has none",
            "Put a checkpoint into models/Stable-diffusion, press the refresh button beside the list of checkpoints, "
            "and choose it.",
        )
    return str(visit.options.get("sd_model_checkpoint") or "the first of the list")


def _extension(visit: Visit) -> str:
    scripts = [s for s in visit.listed("/sdapi/v1/script-info") if str(s.get("name", "")).lower() == TITLE.lower()]
    if not scripts:
        raise Failed("the WebUI does not know it", _why_missing(visit))
    seen = {(bool(s.get("is_img2img")), bool(s.get("is_alwayson"))): s for s in scripts}
    places = {(True, False): "img2img's script list", (True, True): "img2img", (False, True): "txt2img"}
    missing = [name for key, name in places.items() if key not in seen]
    if missing:
        raise Failed(f"it is missing in {', '.join(missing)}", f"{_REINSTALL} {_CONSOLE}")
    visit.arguments = [*seen[True, False].get("args", ())]
    return f"in {', '.join(places.values())}"


def _why_missing(visit: Visit) -> str:
    """Whether it is absent, switched off or broken, as far as the system info tells."""
    for entry in visit.sysinfo.get("Inactive extensions") or ():
        if "dino" in str(entry).lower():
            return f"It is switched off: tick {entry.get('name')!r} on the Extensions tab, apply, and restart."
    for entry in visit.sysinfo.get("Exceptions") or ():
        if "dino_upscale" in str(entry) or "lib_dino" in str(entry):
            return f"It failed to load: {str(entry.get('exception'))[:300]}. Update it, or report this line."
    return f"{_REINSTALL} If it is there, it failed to load: the console says why."


def _arguments(visit: Visit) -> str:
    there, here = [str(a.get("label")) for a in visit.arguments], [k.label for k in all_knobs().values()]
    if there == here:
        return f"{len(FIELDS)}, as in this version ({__version__})"
    differing = next((i for i, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]), None)
    if differing is None:
        differing = min(len(there), len(here))
    name = f"argument {differing + 1} is {(there[differing:] or ['missing'])[0]!r} there, "
    raise Failed(
        f"{name}{(here[differing:] or ['missing'])[0]!r} here ({len(there)} and {len(here)} in all)",
        "The WebUI has another version of the extension than this command line: update both, restart the WebUI.",
    )


def _normal(visit: Visit) -> str:
    visit.images["normal"] = visit.plain()
    return "a normal img2img works"


def _upscale(visit: Visit) -> str:
    visit.images["off"] = _sized(visit.upscaled())
    return f"{SOURCE_PX[0]}x{SOURCE_PX[1]} -> {2 * SOURCE_PX[0]}x{2 * SOURCE_PX[1]} px"


def _sized(image: Image.Image) -> Image.Image:
    wanted = (2 * SOURCE_PX[0], 2 * SOURCE_PX[1])
    if image.size != wanted:
        raise Failed(f"the result is {image.width}x{image.height} px, not {wanted[0]}x{wanted[1]}", _CONSOLE)
    return image


def _always_on(visit: Visit) -> str:
    other = _sized(visit.upscaled(always_on=True))
    _same(visit, other, visit.images["off"], "the two ways differ")
    return "script_name and alwayson_scripts give the same pixels"


def _strength_nought(visit: Visit) -> str:
    nought = visit.upscaled(dino_enabled=True, dino_strength=0.0)
    _same(visit, nought, visit.images["off"], "strength 0 changes the picture")
    return "strength 0 is bitwise off"


def _guidance(visit: Visit) -> str:
    full = visit.upscaled(dino_enabled=True, dino_strength=1.0)
    difference = apart(full, visit.images["off"])
    if difference == 0:
        raise Failed(
            "strength 1 changes nothing",
            f"Guidance does not reach the denoising. {_CONSOLE} Look for a line that begins with \"DINO\".",
        )
    return f"strength 1 differs from off by {difference:.2f} grey levels on average"


def _consistency(visit: Visit) -> str:
    without, full = (
        apart(image.resize(SOURCE_PX, _box()), source())
        for image in (visit.images["off"], visit.upscaled(consistency=1.0))
    )
    if not full < without:
        raise Failed(
            f"made small again the result differs from the source by {full:.2f} grey levels with it and "
            f"{without:.2f} without",
            f"The result is not being held to the source. {_CONSOLE}",
        )
    return f"made small again it differs by {full:.2f} grey levels from the source, {without:.2f} without"


def _saved_text(visit: Visit) -> str:
    found = parse_infotext(str(visit.images["off"].info.get("parameters", "")))
    try:
        read = Settings.from_infotext(found)
    except SettingsError as error:
        raise Failed(str(error), "Update the extension and this command line to the same version.") from error
    wrong = [name for name in ("scale_factor", "tile_size", "denoise", "steps") if getattr(read, name) != SMALL[name]]
    if wrong or INFOTEXT_VERSION_KEY not in found:
        raise Failed(
            f"the picture's text does not give {', '.join(wrong) or 'the version'}",
            "Switch on \"Write infotext to metadata of the generated image\" in the WebUI's settings.",
        )
    if found[INFOTEXT_VERSION_KEY] != __version__:
        raise Failed(
            f"the picture was made by version {found[INFOTEXT_VERSION_KEY]}, this is {__version__}",
            "Update both to the same version, and restart the WebUI.",
        )
    return f"every setting is in the picture, version {found[INFOTEXT_VERSION_KEY]}"


def _refusal(visit: Visit) -> str:
    answer = visit.asked({"script_name": TITLE, "script_args": [{**SMALL, "dino_strength": 2.0}]})
    if answer.status < 400 or "dino_strength" not in json.dumps(answer.body):
        words = answer.error if answer.status >= 400 else "a picture"
        raise Failed(
            f"a DINO strength of 2 is answered with HTTP {answer.status}: {words}",
            f"A wrong value should be refused with the name of its field. {_CONSOLE}",
        )
    return f"a wrong value is refused by name (HTTP {answer.status})"


def _feature_model(visit: Visit) -> str:
    chosen = str(visit.options.get("dino_upscale_model") or BUILT_IN_MODEL)
    at = FIELDS.index("dino_model")
    choices = [str(c) for c in visit.arguments[at].get("choices") or ()] if at < len(visit.arguments) else []
    if chosen == BUILT_IN_MODEL:
        return f"{DEFAULT_MODEL} is the built-in network; {len(choices)} to choose from"
    if chosen.rpartition("/")[2] in PUBLISHED and not visit.fetch:
        raise Skipped(f"{chosen} is downloaded when first used, if it is not there yet; --fetch tries it now")
    visit.upscaled(dino_enabled=True, dino_model=DEFAULT_MODEL)
    return f"{DEFAULT_MODEL} is {chosen}, and it works"


def _left_alone(visit: Visit) -> str:
    now = visit.listed("/sdapi/v1/options")
    changed = sorted(key for key in {*now, *visit.options} if now.get(key) != visit.options.get(key))
    # Which checkpoint was loaded is filled in by the host's own first generation.
    changed = [key for key in changed if key not in ("sd_checkpoint_hash", "sd_model_checkpoint")]
    if changed:
        raise Failed(f"settings differ from before: {', '.join(changed[:8])}", "Was somebody else at the settings?")
    _same(visit, visit.plain(), visit.images["normal"], "a normal img2img is not what it was before")
    return "settings and a normal img2img are what they were before"


def _same(visit: Visit, image: Image.Image, wanted: Image.Image, complaint: str) -> None:
    """Nothing, unless the two differ though this WebUI repeats itself."""
    difference = apart(image, wanted)
    if image.size == wanted.size and not difference:
        return
    if apart(visit.plain(), visit.images["normal"]):
        raise Skipped("this WebUI never gives the same pixels twice (--xformers does that): nothing can be compared")
    raise Failed(f"{complaint} (by {difference:.2f} grey levels on average)", f"Please report it. {_CONSOLE}")


def apart(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of two pictures, grey levels; 255 when their sizes differ."""
    from PIL import ImageChops, ImageStat

    if a.size != b.size:
        return 255.0
    means = ImageStat.Stat(ImageChops.difference(a.convert("RGB"), b.convert("RGB"))).mean
    return sum(means) / len(means)


def _box() -> Any:
    from PIL import Image

    return Image.Resampling.BOX


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


_BASE: Final = ("WebUI answers", "API")
CHECKS: Final[tuple[Check, ...]] = (
    Check("WebUI answers", _answers),
    Check("API", _api, ("WebUI answers",)),
    Check("host", _host, ("WebUI answers",)),
    Check("checkpoint", _checkpoint, _BASE),
    Check("extension", _extension, _BASE),
    Check("arguments", _arguments, ("extension",)),
    Check("normal generation", _normal, (*_BASE, "checkpoint")),
    Check("small upscale", _upscale, ("extension", "normal generation")),
    Check("both ways", _always_on, ("small upscale",)),
    Check("guidance off", _strength_nought, ("small upscale",)),
    Check("guidance acts", _guidance, ("small upscale",)),
    Check("consistency acts", _consistency, ("small upscale",)),
    Check("saved text", _saved_text, ("small upscale",)),
    Check("wrong values", _refusal, ("extension",)),
    Check("feature model", _feature_model, ("extension", "normal generation")),
    Check("left as it was", _left_alone, ("normal generation",)),
)
