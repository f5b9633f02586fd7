"""Two hundred hostile API calls, the same ones every time: types, sizes, nulls, unicode, huge numbers, wrong counts."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from typing import Any

from client import SMALL, TITLE, encoded, picture

from lib_dino.webui_settings import FIELDS

COUNT = 200
WRONG: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, 1.5, -0.0, 1e-300, 1e308, -1e308, float("nan"), float("inf"), -float("inf"),
    2**31, 2**63, 2**64, 10**400, -(10**40), "", " ", "0.5", "None", "nan", "\u0000", "\u202e\u00fc\u4e2d\U0001f995",
    "\ud800", "../../../etc/passwd", "a" * 5000, [], [1], [[[]]], {}, {"a": 1}, {"": None}, [None] * 50, "Euler a",
    "Custom", "Built-in", "creative", "%s%n", "<img src=x onerror=alert(1)>",
)  # fmt: skip
OUTER: tuple[tuple[str, Any], ...] = (
    ("init_images", []), ("init_images", None), ("init_images", [""]), ("init_images", ["not base64 at all"]),
    ("init_images", [base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 40).decode()]), ("init_images", "text"),
    ("init_images", [None]), ("init_images", [encoded(picture(8, 8)), encoded(picture(9, 8))]),
    ("init_images", [encoded(picture(1, 1))]), ("init_images", [encoded(picture(1, 900))]),
    ("init_images", [encoded(picture())] * 3), ("mask", "rubbish"), ("mask", encoded(picture(3, 3).convert("L"))),
    ("width", 0), ("width", -8), ("height", 7), ("width", None), ("width", 2**40), ("steps", -1), ("steps", 0),
    ("steps", 10**9), ("steps", None), ("cfg_scale", float("nan")), ("cfg_scale", -1e30), ("cfg_scale", None),
    ("denoising_strength", 2), ("denoising_strength", -1), ("denoising_strength", None), ("seed", 2**70),
    ("seed", -(2**70)), ("seed", None), ("seed", -1), ("subseed", 2**70), ("subseed_strength", 1e9), ("batch_size", 0),
    ("batch_size", -3), ("n_iter", 0), ("n_iter", -1), ("sampler_name", "\u4e2d"), ("sampler_name", None),
    ("scheduler", "\u4e2d"), ("prompt", None), ("prompt", "\u0000\u202e" * 500), ("prompt", "(((((((" * 50),
    ("prompt", "<lora:no such:1>"), ("prompt", ["a", "b"]), ("negative_prompt", None), ("styles", ["no such"]),
    ("styles", None), ("override_settings", {"no such": 1}), ("override_settings", {"sd_model_checkpoint": "no such"}),
    ("override_settings", None), ("script_args", None), ("alwayson_scripts", None), ("resize_mode", 99),
    ("mask_blur", -5), ("inpainting_fill", 77), ("restore_faces", True), ("tiling", True), ("eta", -5),
    ("s_churn", 1e9),
    ("refiner_checkpoint", "no such"), ("firstphase_width", -1), ("init_latent", 3), ("comments", {"a": 1}),
)  # fmt: skip
SHAPES: tuple[Any, ...] = (
    None, [], {}, "x", 7, {"args": None}, {"args": {}}, {"args": "x"}, {"args": 3}, {"args": [[]]},
    {"args": [None] * 300}, {"args": [{"args": [{}]}]}, {"Args": []}, {"args": [{}, {}, {}]}, {"args": [float("nan")]},
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One request: its number, where to, its body, and the same body without DINO Upscale."""

    number: int
    tab: str
    body: dict[str, Any]
    without: dict[str, Any]
    about: str


def _request(tab: str, way: str, args: Any, **outer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    body = {"prompt": "a red house", "steps": 2, "seed": 7, "sampler_name": "Euler a", "width": 64, "height": 64}
    if tab == "img2img":
        body |= {"init_images": [encoded(picture())], "denoising_strength": 0.5}
    body |= outer
    without = dict(body)
    if way == "dropdown":
        body = {**body, "script_name": TITLE, "script_args": args, **outer}
    else:
        body = {**body, "alwayson_scripts": {TITLE: {"args": args}}, **outer}
    return body, without


def _named(rng: random.Random) -> list[Any]:
    settings = dict(SMALL)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        settings[rng.choice(FIELDS)] = rng.choice(WRONG)
    if rng.random() < 0.15:
        settings[rng.choice(("", "DENOISE", "tile size", "\u4e2d", "__class__", "0", "settings"))] = rng.choice(WRONG)
    return [settings, *([rng.choice(WRONG)] if rng.random() < 0.1 else [])]


def _positional(rng: random.Random) -> list[Any]:
    usual = [True, 2.0, 0, 0, "None", 0.3, 2, "Use same sampler", "Use same scheduler", 64, 16]
    values = usual[: rng.randrange(len(usual) + 1)]
    for _ in range(rng.randrange(3)):
        if values:
            values[rng.randrange(len(values))] = rng.choice(WRONG)
    return values + [rng.choice(WRONG) for _ in range(rng.choice((0, 0, 0, 1, 9, 40)))]


def calls(seed: int = 2026) -> list[Call]:
    """The table. Every hostile request field and every malformed container comes once, the rest are drawn."""
    rng, made = random.Random(seed), []

    def add(tab: str, way: str, args: Any, about: str, **outer: Any) -> None:
        if tab == "txt2img":
            way = "always_on"
        body, without = _request(tab, way, args, **outer)
        made.append(Call(len(made), tab, body, without, f"{tab} {way} {about}"))

    for name, value in OUTER:
        tab = "img2img" if name in ("init_images", "mask") else rng.choice(("img2img", "img2img", "txt2img"))
        add(tab, rng.choice(("dropdown", "always_on")), [SMALL], f"request {name}={value!r:.40}", **{name: value})
    for shape in SHAPES:
        tab = rng.choice(("img2img", "txt2img"))
        body, without = _request(tab, "none", [])
        body["alwayson_scripts"] = {TITLE: shape}
        # What a host itself makes of a container of that kind shows with any other script of its own.
        without["alwayson_scripts"] = {"seed": shape}
        made.append(Call(len(made), tab, body, without, f"{tab} container {shape!r:.40}"))
    while len(made) < COUNT:
        draw = rng.choice((_named, _named, _positional))
        args = draw(rng)
        way = rng.choice(("dropdown", "always_on"))
        add(rng.choice(("img2img", "img2img", "txt2img")), way, args, f"{args!r:.100}")
    return made
