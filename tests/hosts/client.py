"""A WebUI over HTTP, and pictures to send it."""

import base64
import io
import json
import re
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw

TITLE = "DINO Upscale"
SMALL = {"tile_size": 64, "overlap": 16, "scale_factor": 2.0, "consistency": 0.9}
"""Guided: at full consistency guidance is not run."""


@dataclass(frozen=True)
class Family:
    """What a checkpoint family needs from a request, and what it has.

    Attributes:
        name: as make_checkpoint.py calls it.
        request: fields of every generation.
        options: of the WebUI while the suite runs.
        flow: noisy latents are sigma * noise + (1 - sigma) * clean.
        adapter: base of the adapters it takes; empty where it takes none.
        checkpoints: names of its checkpoint's file without the ending, the first one found is used.
        lora: name of its LoRA.
        alone: tiles go one a call, and without an unconditional row.
        noise: its checkpoint is noise through and through: nothing it paints is near to anything.
    """

    name: str
    request: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    flow: bool = False
    adapter: str = ""
    checkpoints: tuple[str, ...] = ()
    lora: str = ""
    alone: bool = False
    noise: bool = False

    @property
    def names(self):
        return self.checkpoints or (f"tiny-{self.name}",)

    @property
    def lora_name(self):
        return self.lora or f"dino-probe-lora-{self.name}"


# The usual preview would fetch a network for SDXL and SD 3.
_CHEAP = {"show_progress_type": "Approx cheap"}
FAMILIES = {
    family.name: family
    for family in (
        Family("sd1", adapter="sd15", checkpoints=("tiny-sd1", "tiny"), lora="dino-probe-lora"),
        Family("sdxl", options=_CHEAP, adapter="sdxl"),
        Family("sd3", {"scheduler": "Simple"}, _CHEAP, flow=True),
        Family("flux", {"scheduler": "Simple", "distilled_cfg_scale": 3.5}, _CHEAP, flow=True),
        # Of Forge Neo: 128 channels in cells of 16 px, latents with a frame axis, FLUX's autoencoder.
        Family("flux2", {"cfg_scale": 1}, _CHEAP, flow=True, checkpoints=("tiny-klein",), alone=True, noise=True),
        Family("qwenimage", {"cfg_scale": 1}, _CHEAP, flow=True, alone=True, noise=True),
        Family("zimage", {"cfg_scale": 1}, _CHEAP, flow=True, noise=True),
    )
}


def picture(width=64, height=48):
    """A sky, a hill, a sun and a house: something for features to see."""
    image = Image.new("RGB", (width, height), (120, 160, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height * 0.6, width, height), fill=(60, 120, 50))
    draw.ellipse((width * 0.1, height * 0.1, width * 0.3, height * 0.4), fill=(250, 220, 90))
    draw.rectangle((width * 0.5, height * 0.35, width * 0.8, height * 0.8), fill=(170, 60, 50))
    draw.polygon(
        [(width * 0.45, height * 0.35), (width * 0.65, height * 0.1), (width * 0.85, height * 0.35)], fill=(70, 40, 40)
    )
    return image


def encoded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


class Answer:
    """One answer of the API."""

    def __init__(self, status, body):
        self.status, self.body = status, body

    @property
    def text(self):
        return json.dumps(self.body)

    @property
    def images(self):
        assert self.status == 200, self.text[:2000]
        opened = []
        for text in self.body["images"]:
            image = Image.open(io.BytesIO(base64.b64decode(text)))
            image.load()
            opened.append(image)
        return opened

    @property
    def image(self):
        return self.images[0]

    @property
    def pixels(self):
        return self.image.tobytes()

    @property
    def saved(self):
        """Keys and values of the first picture's saved text."""
        last = self.image.info["parameters"].strip().split("\n")[-1]
        pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
        return {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}


class Host:
    """A running WebUI.

    Attributes:
        family: of the checkpoint it works with.
    """

    def __init__(self, address, family=FAMILIES["sd1"]):
        self.address, self.family = address, family

    def call(self, path, body=None, timeout=600):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return Answer(reply.status, json.loads(reply.read() or b"null"))
        except urllib.error.HTTPError as error:
            raw = error.read()
            try:
                return Answer(error.code, json.loads(raw))
            except ValueError:
                return Answer(error.code, raw.decode(errors="replace"))

    def img2img(self, source=None, **more):
        image = source or picture()
        body = {
            "init_images": [encoded(image)], "prompt": "a red house", "negative_prompt": "blurry", "steps": 4,
            "seed": 7, "cfg_scale": 5, "sampler_name": "Euler a", "denoising_strength": 0.5, "width": 64, "height": 64,
        }  # fmt: skip
        return self.call("/sdapi/v1/img2img", {**body, **self.family.request, **more})

    def txt2img(self, **more):
        body = {"prompt": "a red house", "steps": 3, "seed": 7, "sampler_name": "Euler a", "width": 64, "height": 64}
        return self.call("/sdapi/v1/txt2img", {**body, **self.family.request, **more})

    def dropdown(self, *args, source=None, **more):
        """Upscale as the chosen script; `args` as in `script_args`."""
        return self.img2img(source, script_name=TITLE, script_args=list(args), **more)

    def always_on(self, *args, source=None, **more):
        """Upscale through `alwayson_scripts`."""
        return self.img2img(source, alwayson_scripts={TITLE: {"args": list(args)}}, **more)

    def options(self):
        return self.call("/sdapi/v1/options").body

    def set_options(self, **options):
        answer = self.call("/sdapi/v1/options", options)
        assert answer.status == 200, f"{options}: {answer.text[:500]}"

    def choose_checkpoint(self):
        """Have the family's tiny checkpoint loaded for the next generation."""
        names = self.family.names
        known = {model["model_name"]: model["title"] for model in self.call("/sdapi/v1/sd-models").body}
        title = next((known[name] for name in names if name in known), None)
        if title is None:
            raise LookupError(
                f"The WebUI has no checkpoint called {' or '.join(names)}; it has {', '.join(known)}. Make one with "
                f"tests/hosts/make_checkpoint.py --family {self.family.name}, and refresh or restart the WebUI."
            )
        self.set_options(sd_model_checkpoint=title)

    def in_background(self, function, *args, **kwargs):
        """Start a call and go on; `.join()`, then `.answer`."""
        thread = threading.Thread(target=lambda: setattr(thread, "answer", function(*args, **kwargs)))
        thread.start()
        return thread

    def wait_for_tile(self, number, timeout=300):
        """Until the progress line says that so many tiles are done."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            seen = self.call("/sdapi/v1/progress?skip_current_image=true").body or {}
            line = seen.get("textinfo") or ""
            found = re.search(r"tile (\d+)/", line)
            # The line of a job that failed may still be there when the next one has not begun.
            if found and int(found[1]) > number and seen["progress"] > 0:
                return line
            time.sleep(0.05)
        raise AssertionError(f"tile {number} was not reached in {timeout} s")
