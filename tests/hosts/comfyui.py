"""A running ComfyUI over its API."""

import io
import json
import time
import urllib.error
import urllib.request
import uuid

from PIL import Image

PLAIN = {
    "scale_factor": 2.0, "denoise": 0.4, "tile_size": 128, "sampler_name": "euler", "scheduler": "normal", "steps": 3,
    "cfg": 4.0, "dino_enabled": True, "dino_strength": 0.5, "seed": 1, "consistency": 1.0, "preset": "Custom",
    "overlap": 32, "tile_batch_size": 1,
}  # fmt: skip


class Outcome:
    """What one workflow gave."""

    def __init__(self, host, record):
        self._host, self.record = host, record
        self.ok = record["status"]["status_str"] == "success"

    @property
    def error(self):
        """The message of the node that failed."""
        messages = self.record["status"]["messages"]
        return next((facts["exception_message"] for kind, facts in messages if kind == "execution_error"), "")

    @property
    def interrupted(self):
        return any(message[0] == "execution_interrupted" for message in self.record["status"]["messages"])

    def images(self, node="out"):
        return [self._host.view(image) for image in self.record["outputs"][node]["images"]]

    def pixels(self, node="out"):
        return [image.tobytes() for image in self.images(node)]

    def text(self, node="text"):
        return self.record["outputs"][node]["text"][0]


class ComfyUI:
    """One that listens at `address`."""

    def __init__(self, address, checkpoint, scheduler):
        self.address, self.checkpoint, self.scheduler = address, checkpoint, scheduler
        self._fresh = 0

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from None
        return json.loads(text) if text else None

    def upload(self, image):
        stream, mark, name = io.BytesIO(), uuid.uuid4().hex, f"dino-{uuid.uuid4().hex[:8]}.png"
        image.save(stream, "PNG")
        head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        body = (head + "Content-Type: image/png\r\n\r\n").encode() + stream.getvalue() + f"\r\n--{mark}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        request = urllib.request.Request(self.address + "/upload/image", body, kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["name"]

    def view(self, image):
        query = "&".join(f"{key}={image[key]}" for key in ("filename", "subfolder", "type"))
        with urllib.request.urlopen(f"{self.address}/view?{query}", timeout=60) as answer:
            return Image.open(io.BytesIO(answer.read())).convert("RGB")

    def begin(self, workflow):
        return self.call("/prompt", {"prompt": workflow})["prompt_id"]

    def wait(self, number, seconds=300):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if number in (found := self.call(f"/history/{number}")):
                return Outcome(self, found[number])
            time.sleep(0.2)
        raise AssertionError(f"nothing came within {seconds} s")

    def run(self, workflow):
        return self.wait(self.begin(workflow))

    def base(self, image, prompt="a house"):
        """A checkpoint, a picture and two prompts; the picture's name makes nothing come from ComfyUI's cache."""
        return {
            "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": self.checkpoint}},
            "image": {"class_type": "LoadImage", "inputs": {"image": self.upload(image)}},
            "positive": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["model", 1]}},
            "negative": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["model", 1]}},
        }

    def workflow(self, image, *, references=None, **settings):
        """One DINO Upscale, saved, with its report."""
        links = {
            "image": ["image", 0], "model": ["model", 0], "vae": ["model", 2], "positive": ["positive", 0],
            "negative": ["negative", 0],
        }  # fmt: skip
        nodes = {
            **self.base(image),
            "up": {"class_type": "DINOUpscale", "inputs": {**links, **PLAIN, "scheduler": self.scheduler, **settings}},
            "out": {"class_type": "PreviewImage", "inputs": {"images": ["up", 0]}},
            "text": {"class_type": "PreviewAny", "inputs": {"source": ["up", 1]}},
        }
        if references is not None:
            nodes["reference"] = {"class_type": "LoadImage", "inputs": {"image": self.upload(references)}}
            nodes["up"]["inputs"]["references"] = ["reference", 0]
        return nodes

    def upscale(self, image, **settings):
        return self.run(self.workflow(image, **settings))
