"""Freeze what the product does: run jobs of every kind and compare them with stored results.

    python tests/frozen/behaviour.py            compare with results.json; exit code 1 when anything differs
    python tests/frozen/behaviour.py --write    store the results of this code
    python tests/frozen/behaviour.py --only webui.forge

A refactoring runs it before each commit: pixels, saved texts and figures stay the same. What people read (notes, help)
is stored apart, so that a reworded sentence shows as one. Exact hashes hold for one torch on one kind of processor;
elsewhere small thumbnails are compared instead.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import platform
import re
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from standin import make_modules  # noqa: E402
from standin.host import Img2Img, Txt2Img, generation  # noqa: E402

import lib_dino  # noqa: E402

STORED = Path(__file__).with_name("results.json")
CLOSE = 3  # of 255: what thumbnails may differ by on another machine
TILES = {"tile_size": 64, "overlap": 16}

Job = Callable[[], dict[str, Any]]
JOBS: dict[str, Job] = {}


# ---------------------------------------------------------------- sources


def photo(width: int = 48, height: int = 40, left: int = 200, top: int = 60) -> Image.Image:
    """A piece of the example photograph."""
    with Image.open(ROOT / "examples" / "astronaut.png") as image:
        return image.convert("RGB").crop((left, top, left + width, top + height))


def noisy() -> Image.Image:
    """The piece with noise of 12/255."""
    values = np.asarray(photo(), dtype=np.float32) + np.random.default_rng(1).normal(0, 12, (40, 48, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def jpeg() -> Image.Image:
    """The piece as a JPEG of quality 40 gives it back."""
    stream = io.BytesIO()
    photo(64, 48).save(stream, "JPEG", quality=40)
    return Image.open(io.BytesIO(stream.getvalue()))


def transparent() -> Image.Image:
    """The piece with a hole."""
    image = photo().convert("RGBA")
    alpha = np.full((40, 48), 255, np.uint8)
    alpha[10:20, 10:30], alpha[20:25, 5:15] = 0, 128
    image.putalpha(Image.fromarray(alpha))
    return image


def deep_grey() -> Image.Image:
    """A ramp of 16 bits."""
    return Image.fromarray((np.arange(40 * 48, dtype=np.uint16) * 30).reshape(40, 48))


def flat_and_busy() -> Image.Image:
    """A smooth sky over the piece."""
    image = Image.new("RGB", (64, 96), (120, 150, 200))
    image.paste(photo(64, 40), (0, 56))
    return image


# ---------------------------------------------------------------- what is stored


def sha(data: bytes) -> str:
    """Sixteen hex digits."""
    return hashlib.sha256(data).hexdigest()[:16]


def of_picture(image: Image.Image) -> dict[str, Any]:
    """Hash, size and thumbnail of a picture's pixels."""
    values = np.asarray(image)
    small = np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX)).reshape(-1).tolist()
    return {"pixels": sha(values.tobytes()), "size": [image.mode, *image.size], "thumbnail": small}


def of_tensor(values: torch.Tensor) -> str:
    """Hash of a tensor's bytes."""
    return sha(values.detach().cpu().contiguous().numpy().tobytes())


def plain(values: Any) -> Any:
    """JSON-able values without times and sentences; floats to four digits."""
    if isinstance(values, dict):
        return {k: plain(v) for k, v in values.items() if k not in ("seconds", "notes")}
    if isinstance(values, list | tuple):
        return [plain(v) for v in values]
    return float(f"{values:.4g}") if isinstance(values, float) else values


def digest(values: Any) -> str:
    """Hash of plain values; keys in order of name, so that fields may move."""
    return sha(json.dumps(plain(values), sort_keys=True).encode())


def of_result(result: Any) -> dict[str, Any]:
    """Everything about a `lib_dino.Result`."""
    report = result.report.to_dict()
    return {
        **of_picture(result.picture.to_pil()),
        "figures": digest(report),
        "settings": digest(report["settings"]),
        "calls": report["model_calls"],
        "heats": [(heat.kind, of_tensor(heat.values)) for heat in result.heats],
        "words": list(report["notes"]),
    }


# ---------------------------------------------------------------- the core


def core(name: str, source: Callable[[], Image.Image], *, measure: bool = False, **settings: Any) -> None:
    """A job of `lib_dino.upscale` on the embedded model."""

    def job() -> dict[str, Any]:
        told: list[tuple[int, ...]] = []
        given = lib_dino.Settings(**{"seed": 3, "steps": 8, "overlap": 16, **settings})
        result = lib_dino.upscale(
            source(), given, measure=measure,
            progress=lambda p: told.append((p.tile, p.tiles, p.call, p.calls, p.redone)),
        )  # fmt: skip
        return {**of_result(result), "told": told[-1] if told else None, "steps_told": digest(told)}

    JOBS[f"core.{name}"] = job


core("defaults", photo)
core("measured", photo, measure=True)
core("tiles", photo, tile_size=64)
core("tiles_measured_batch4", photo, measure=True, tile_size=64, tile_batch_size=4)
core("scale_1.7", photo, scale_factor=1.7, tile_size=64)
core("exact_size", photo, width=101, height=77, tile_size=64)
core("width_only", photo, width=90)
core("megapixels", photo, megapixels=0.01)
core("denoise_0", photo, denoise=0.0)
core("denoise_0.5", photo, denoise=0.5, steps=6, tile_size=64)
core("conservative", photo, **{"denoise": 0.15, "dino_strength": 0.8, "steps": 20})
core("creative", photo, **{"denoise": 0.5, "dino_strength": 0.4, "steps": 28})
core("no_dino", photo, dino_enabled=False)
core("strength_0", photo, dino_strength=0.0)
core("strength_1_unheld", photo, dino_strength=1.0, consistency=0.0, denoise=0.5)
core("consistency_0", photo, consistency=0.0)
core("consistency_half", photo, consistency=0.5, denoise=0.4)
core("clean_0", noisy, clean_source=0.0)
core("clean_half", noisy, clean_source=0.5)
core("texture_0", photo, texture=0.0, denoise=0.4)
core("noisy", noisy, measure=True)
core("jpeg", jpeg, scale_factor=3.0)
core("grey", lambda: photo().convert("L"), measure=True, max_drift=0.02, denoise=0.6, consistency=0.0)
core("alpha", transparent, tile_size=64)
core("sixteen_bit", deep_grey)
core("one_pixel", lambda: photo(1, 1))
core("sliver", lambda: photo(1, 30), scale_factor=3.0)
core("x4", lambda: photo(24, 20), scale_factor=4.0, denoise=0.3, tile_size=64)
core("repair", photo, measure=True, repair_tries=2, denoise=0.9, consistency=0.0, dino_enabled=False, tile_size=64)
core("repair_held", photo, measure=True, repair_tries=1, denoise=0.9, steps=3, tile_size=64, tile_batch_size=2)
core("drift_limit", photo, measure=True, max_drift=0.01, denoise=0.8, steps=4, consistency=0.0, tile_size=64)
core("repair_and_limit", photo, repair_tries=2, max_drift=0.02, denoise=0.8, steps=3, consistency=0.3, tile_size=64)
core("skip_flat", flat_and_busy, skip_flat=True, tile_size=64, overlap=8)
core("adapter", photo, adapter_strength=0.8, denoise=0.5, tile_size=64)
core("adapter_measured_repair", photo, measure=True, adapter_strength=1.0, denoise=0.9, repair_tries=1)


def compared() -> dict[str, Any]:
    """All arms of `lib_dino.compare`."""
    arms = lib_dino.compare(photo(), lib_dino.Settings(seed=3, steps=8))
    return {label: of_result(arm) for label, arm in arms.items()}


JOBS["core.compare"] = compared


# ---------------------------------------------------------------- the command line


def command(name: str, *arguments: str, pictures: Callable[[Path], None]) -> None:
    """A job of `python -m lib_dino`, in a folder of its own."""

    def job() -> dict[str, Any]:
        from lib_dino.__main__ import main

        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            pictures(Path(folder))
            before = set(Path(folder).iterdir())
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(list(arguments))
            words = [re.sub(r"\d+\.\d s\b", "N s", text.getvalue().replace(folder, "")) for text in (out, err)]
            made = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p not in before)
            return {"code": code, "files": {str(p.relative_to(folder)): of_file(p) for p in made}, "words": words}

    JOBS[f"cli.{name}"] = job


def of_file(path: Path) -> dict[str, Any]:
    """What a written file holds."""
    if path.suffix == ".json":
        values = json.loads(path.read_text(encoding="utf-8"))
        return {"figures": digest(values), "keys": sorted(values), "words": values["notes"]}
    if path.suffix == ".html":
        page = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", path.read_text(encoding="utf-8"))
        words = sha(re.sub(r"[\d.]+", "", page).encode())
        return {"images": page.count("base64,"), "rows": page.count("<tr data-tile"), "words": words}
    if path.name == "c.png":
        return {"bytes": sha(path.read_bytes())}
    with Image.open(path) as image:
        text = image.info.get("parameters") or image.getexif().get_ifd(0x8769).get(0x9286)
        return {**of_picture(image), "text": text if isinstance(text, str | None) else sha(text)}


def one(folder: Path) -> None:
    """photo.png"""
    photo().save(folder / "photo.png")


def several(folder: Path) -> None:
    """in/a.png, in/b.jpg, in/c.png, the last one no picture"""
    (folder / "in").mkdir()
    photo().save(folder / "in" / "a.png")
    photo(32, 32).save(folder / "in" / "b.jpg", quality=95)
    (folder / "in" / "c.png").write_bytes(b"no picture")


def upscaled(folder: Path) -> None:
    """A picture that carries its settings."""
    result = lib_dino.upscale(photo(16, 16), lib_dino.Settings(seed=3, denoise=0.0, dino_strength=0.25))
    result.save(folder / "made.png")


FAST = ("--steps", "8", "--seed", "3", "--overlap", "16", "--quiet")
command("plain", "upscale", "photo.png", "-o", "big.png", *FAST, pictures=one)
command(
    "everything", "upscale", "photo.png", "-o", "out/", "--report", "--map", "--compare", "--preset", "creative",
    "--tile-size", "64", *FAST, pictures=one,
)  # fmt: skip
command("jpeg", "upscale", "photo.png", "-o", "big.jpg", "--max-drift", "0.05", "--report", *FAST, pictures=one)
command("folder", "upscale", "in", "-o", "out", "--width", "70", "--no-dino", *FAST, pictures=several)
command("bad_setting", "upscale", "photo.png", "-o", "out/", "--scale", "9", pictures=one)
command("settings", "settings", "made.png", "--json", pictures=upscaled)


# ---------------------------------------------------------------- stand-in WebUIs


@contextlib.contextmanager
def webui(kind: str) -> Iterator[tuple[Any, Any]]:
    """A stand-in host and the extension's script file, loaded into it as a host would."""
    with tempfile.TemporaryDirectory() as folder:
        host, modules = make_modules(kind, Path(folder))
        callbacks = modules["modules.script_callbacks"]
        callbacks.on_ui_settings = callbacks.on_before_ui = lambda *_: None
        modules["gradio"] = types.ModuleType("gradio")
        modules["modules.ui_components"] = types.ModuleType("modules.ui_components")
        modules["modules.ui_components"].InputAccordion = None
        kept = {name: sys.modules.get(name) for name in modules}
        sys.modules.update(modules)
        forget_host_classes()
        try:
            spec = importlib.util.spec_from_file_location("dino_upscale_script", ROOT / "scripts" / "dino_upscale.py")
            script = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(script)
            yield host, script
        finally:
            for name, module in kept.items():
                if module is None:
                    sys.modules.pop(name, None)
                else:
                    sys.modules[name] = module
            forget_host_classes()


def forget_host_classes() -> None:
    """Classes that the extension derived from a host's are made anew for the next host."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lib_dino") and hasattr(module, "_tile_script_class"):
            module._tile_script_class.cache_clear()


def in_webuis(
    name: str, settings: dict[str, Any], *, source: Callable[[], Image.Image] = photo, always_on: bool = False,
    kinds: tuple[str, ...] = ("a1111", "forge"), text2img: bool = False, mask: bool = False,
    positional: list[Any] | None = None, **request: Any,
) -> None:
    """A job of the script in each kind of stand-in."""

    def job(kind: str) -> dict[str, Any]:
        torch.manual_seed(0)
        with webui(kind) as (host, module):
            given = positional or [{**TILES, "dino_model": "Built-in", **settings}]
            values: dict[str, Any] = {"seed": 5, "prompt": "a <lora:x:1>", "steps": 6, **request}
            if not text2img:
                values = {"init_images": [source()], "denoising_strength": 0.5, **values}
            if mask:
                image = Image.new("L", source().size, 0)
                image.paste(255, (0, 0, 20, 40))
                values["mask"] = image
            script = (module.DinoUpscaleAlwaysOn if always_on else module.DinoUpscale)()
            script.args_from, script.args_to, script.filename = 1, 1 + len(given), "x"
            p = generation(
                host, scripts=[script] if always_on else [], args=given if always_on else (),
                kind=Txt2Img if text2img else Img2Img, **values,
            )  # fmt: skip
            processed = host.process_images(p) if always_on else script.run(p, *given)
            return {
                "images": [of_picture(image) for image in processed.images],
                "texts": [
                    dict(text) if isinstance(text := image.info.get("parameters") or {}, dict) else text
                    for image in processed.images
                ],
                "infotexts": [re.sub(r"\d\.\d\d s", "", text) for text in processed.infotexts],
                "calls": len(host.calls), "tiles": [(c.width, c.height, c.prompt) for c in host.calls],
                "seen": digest([(level, of_tensor(x)) for _, level, x in host.seen]),
                "swallowed": len(host.callbacks.swallowed),
                "words": sorted({text for c in (p, *host.calls) for text in (c.comments or {})}),
            }  # fmt: skip

    for kind in kinds:
        JOBS[f"webui.{kind}.{name}"] = lambda kind=kind: job(kind)


in_webuis("defaults", {})
in_webuis("always_on", {"scale_factor": 1.7}, always_on=True)
in_webuis("off", {"dino_strength": 0.0, "consistency": 0.0, "texture": 0.0, "clean_source": 0.0})
in_webuis("strength_1", {"dino_strength": 1.0, "tile_batch_size": 3}, sampler_name="Euler a")
in_webuis("ddim", {"dino_strength": 1.0, "steps": 8}, sampler_name="DDIM")
in_webuis("sde_own_size", {"width": 101, "height": 83, "sampler_name": "DPM++ SDE"})
in_webuis("preset_upscaler", {"preset": "Conservative", "upscaler": "Nearest"})
in_webuis("repair_and_limit", {"repair_tries": 1, "max_drift": 0.02, "consistency": 0.2, "denoise": 0.8, "steps": 3})
in_webuis("reports", {"drift_map": True, "save_report": True})
in_webuis("skip_flat", {"skip_flat": True, "denoise": 0.2}, source=flat_and_busy)
in_webuis("subject", {"subject_prompt": "sharp photo", "dino_strength": 0}, source=lambda: photo(96, 96, 150, 0))
in_webuis("mask", {"dino_enabled": False}, mask=True)
in_webuis("noisy_batch", {"clean_source": 0.5, "dino_enabled": False}, source=noisy, batch_size=2, n_iter=2)
in_webuis("txt2img", {"enabled": True, "denoise": 0.4}, always_on=True, text2img=True, width=48, height=40)
in_webuis(
    "positional", {}, kinds=("forge",),
    positional=[
        True, 1.5, 0, 0, "None", 0.3, 0, "Use same sampler", "Use same scheduler", 64, 16, 2, True, 0.5, "Built-in",
        1.0, "Custom", 7, 0, 0, 0, "None", 0.0, False, False, False, 0.0, "", 1.0, 1.0,
    ],
)  # fmt: skip


# ---------------------------------------------------------------- comparing


def machine() -> str:
    """What exact hashes hold for."""
    return f"torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def run(names: list[str]) -> dict[str, Any]:
    """Results by name."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    found: dict[str, Any] = {}
    for name in names:
        torch.manual_seed(zlib.crc32(name.encode()))
        started = time.perf_counter()
        try:
            values = JOBS[name]()
        except Exception as error:  # a refusal is behaviour too
            values = {"refused": type(error).__name__, "words": [str(error)]}
        found[name] = json.loads(json.dumps(values))
        sys.stderr.write(f"{time.perf_counter() - started:5.1f} s  {name}\n")
    return found


def differences(was: Any, now: Any, path: str = "", *, exact: bool = True) -> Iterator[str]:
    """Where two results differ, one line each; `words` are marked, hashes count only where `exact`."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            yield from differences(was.get(key), now.get(key), f"{path}/{key}", exact=exact)
    elif path.endswith("/thumbnail") and not exact and was and now:
        if max(abs(a - b) for a, b in zip(was, now, strict=True)) > CLOSE:
            yield f"{path}: {was} -> {now}"
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, (a, b) in enumerate(zip(was, now, strict=True)):
            yield from differences(a, b, f"{path}/{i}", exact=exact)
    elif was != now and (exact or not path.endswith(("/pixels", "/figures", "/seen", "/steps_told"))):
        yield f"{path}: {was!r} -> {now!r}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store what this code does")
    parser.add_argument("--only", default="", help="jobs whose names begin so")
    parser.add_argument("--words", action="store_true", help="show reworded sentences too")
    given = parser.parse_args()
    names = [name for name in JOBS if name.startswith(given.only)]
    found = run(names)
    if given.write:
        kept = json.loads(STORED.read_text(encoding="utf-8"))["jobs"] if STORED.is_file() and given.only else {}
        held = {"machine": machine(), "jobs": {**kept, **found}}
        STORED.write_text(json.dumps(held, indent=0, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{len(found)} jobs stored in {STORED.name}.")
        return 0
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    exact = stored["machine"] == machine()
    lines = [line for name in names for line in differences(stored["jobs"].get(name), found[name], name, exact=exact)]
    words = [line for line in lines if "/words" in line]
    rest = [line for line in lines if "/words" not in line]
    print("\n".join([*rest, *(words if given.words else [])]))
    how = "exactly" if exact else f"by thumbnails, for the results are from {stored['machine']}"
    print(f"{len(names)} jobs compared {how}: {len(rest)} differences, {len(words)} sentences reworded.")
    return 1 if rest else 0


if __name__ == "__main__":
    sys.exit(main())
