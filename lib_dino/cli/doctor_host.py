"""What the doctor asks a running WebUI, over its API alone; nothing in it is left changed."""

from __future__ import annotations

from typing import Final

from ..version import __version__
from ..webui_settings import FIELDS, TITLE, all_knobs
from . import doctor_generations as generations
from .doctor import Check, Failed, Skipped
from .doctor_visit import CONSOLE, Visit

_REINSTALL: Final = (
    "Put this version's folder into the WebUI's extensions folder, replacing the one there, and restart the WebUI."
)


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
        raise Failed(f"it is missing in {', '.join(missing)}", f"{_REINSTALL} {CONSOLE}")
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


_BASE: Final = ("WebUI answers", "API")
CHECKS: Final[tuple[Check, ...]] = (
    Check("WebUI answers", _answers),
    Check("API", _api, ("WebUI answers",)),
    Check("host", _host, ("WebUI answers",)),
    Check("checkpoint", _checkpoint, _BASE),
    Check("extension", _extension, _BASE),
    Check("arguments", _arguments, ("extension",)),
    Check("normal generation", generations.normal, (*_BASE, "checkpoint")),
    Check("small upscale", generations.upscale, ("extension", "normal generation")),
    Check("both ways", generations.always_on, ("small upscale",)),
    Check("guidance off", generations.strength_nought, ("small upscale",)),
    Check("guidance acts", generations.guidance, ("small upscale",)),
    Check("consistency acts", generations.consistency, ("small upscale",)),
    Check("saved text", generations.saved_text, ("small upscale",)),
    Check("wrong values", generations.refusal, ("extension",)),
    Check("feature model", generations.feature_model, ("extension", "normal generation")),
    Check("left as it was", generations.left_alone, ("normal generation",)),
)
