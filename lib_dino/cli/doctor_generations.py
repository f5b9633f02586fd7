"""What the doctor has a WebUI generate, and how it judges that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError
from ..networks.hub import PUBLISHED
from ..pictures.infotext import parse_infotext
from ..settings import INFOTEXT_VERSION_KEY, Settings
from ..version import __version__
from ..webui.model.model_files import BUILT_IN_MODEL, DEFAULT_MODEL
from ..webui_settings import FIELDS, TITLE
from .doctor import Failed, Skipped
from .doctor_visit import CONSOLE, SMALL, SOURCE_PX, Visit, apart, source

if TYPE_CHECKING:
    from PIL import Image


def normal(visit: Visit) -> str:
    """The host works without the extension."""
    visit.images["normal"] = visit.plain()
    return "a normal img2img works"


def upscale(visit: Visit) -> str:
    """A small upscale has the size asked for."""
    visit.images["off"] = _sized(visit.upscaled())
    return f"{SOURCE_PX[0]}x{SOURCE_PX[1]} -> {2 * SOURCE_PX[0]}x{2 * SOURCE_PX[1]} px"


def _sized(image: Image.Image) -> Image.Image:
    wanted = (2 * SOURCE_PX[0], 2 * SOURCE_PX[1])
    if image.size != wanted:
        raise Failed(f"the result is {image.width}x{image.height} px, not {wanted[0]}x{wanted[1]}", CONSOLE)
    return image


def always_on(visit: Visit) -> str:
    """Both ways in give the same pixels."""
    other = _sized(visit.upscaled(always_on=True))
    _same(visit, other, visit.images["off"], "the two ways differ")
    return "script_name and alwayson_scripts give the same pixels"


def strength_nought(visit: Visit) -> str:
    """Strength 0 is bitwise off."""
    nought = visit.upscaled(dino_enabled=True, dino_strength=0.0)
    _same(visit, nought, visit.images["off"], "strength 0 changes the picture")
    return "strength 0 is bitwise off"


def guidance(visit: Visit) -> str:
    """Strength 1 changes the picture."""
    full = visit.upscaled(dino_enabled=True, dino_strength=1.0)
    difference = apart(full, visit.images["off"])
    if difference == 0:
        raise Failed(
            "strength 1 changes nothing",
            f"Guidance does not reach the denoising. {CONSOLE} Look for a line that begins with \"DINO\".",
        )
    return f"strength 1 differs from off by {difference:.2f} grey levels on average"


def consistency(visit: Visit) -> str:
    """Consistency brings the result nearer to its source."""
    without, full = (
        apart(image.resize(SOURCE_PX, _box()), source())
        for image in (visit.images["off"], visit.upscaled(consistency=1.0))
    )
    if not full < without:
        raise Failed(
            f"made small again the result differs from the source by {full:.2f} grey levels with it and "
            f"{without:.2f} without",
            f"The result is not being held to the source. {CONSOLE}",
        )
    return f"made small again it differs by {full:.2f} grey levels from the source, {without:.2f} without"


def saved_text(visit: Visit) -> str:
    """The settings are in the picture."""
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


def refusal(visit: Visit) -> str:
    """A wrong value is refused by name."""
    answer = visit.asked({"script_name": TITLE, "script_args": [{**SMALL, "dino_strength": 2.0}]})
    if answer.status < 400 or "dino_strength" not in json.dumps(answer.body):
        words = answer.error if answer.status >= 400 else "a picture"
        raise Failed(
            f"a DINO strength of 2 is answered with HTTP {answer.status}: {words}",
            f"A wrong value should be refused with the name of its field. {CONSOLE}",
        )
    return f"a wrong value is refused by name (HTTP {answer.status})"


def feature_model(visit: Visit) -> str:
    """The chosen feature network works."""
    chosen = str(visit.options.get("dino_upscale_model") or BUILT_IN_MODEL)
    at = FIELDS.index("dino_model")
    choices = [str(c) for c in visit.arguments[at].get("choices") or ()] if at < len(visit.arguments) else []
    if chosen == BUILT_IN_MODEL:
        return f"{DEFAULT_MODEL} is the built-in network; {len(choices)} to choose from"
    if chosen.rpartition("/")[2] in PUBLISHED and not visit.fetch:
        raise Skipped(f"{chosen} is downloaded when first used, if it is not there yet; --fetch tries it now")
    visit.upscaled(dino_enabled=True, dino_model=DEFAULT_MODEL)
    return f"{DEFAULT_MODEL} is {chosen}, and it works"


def left_alone(visit: Visit) -> str:
    """The WebUI is as it was before the visit."""
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
    raise Failed(f"{complaint} (by {difference:.2f} grey levels on average)", f"Please report it. {CONSOLE}")


def _box() -> Any:
    from PIL import Image

    return Image.Resampling.BOX
