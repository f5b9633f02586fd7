"""The nodes, in ComfyUI's V3 schema."""

from __future__ import annotations

import json
from typing import Any, Final

import comfy.samplers
import torch
from comfy_api.latest import ComfyExtension, io

from .. import pipeline
from ..declarations import Knob
from ..errors import DinoError, SettingsError
from ..report.heatmap import heatmap
from ..settings import MAX_SEED, PRESETS, Settings, knobs
from ..settings import preset as preset_of
from . import images, upscale
from .model import Sampling

CATEGORY: Final = "image/upscaling"
CUSTOM: Final = "Custom"
PROMPT: Final = "high quality, detailed, sharp"
PROMPT_HELP: Final = "Is the prompt of every tile where positive is not connected."
CFG_HELP: Final = "Sets the guidance scale."
PRESET_HELP: Final = "Fills in denoise and DINO strength."


def _number(name: str, **more: Any) -> Any:
    """The input of a setting, with the limits and the words of its declaration."""
    knob: Knob = knobs()[name]
    low = knob.low if knob.none_value is None else knob.none_value
    kind = io.Int if knob.kind is int else io.Float
    given = {"default": knob.default, "min": low, "max": knob.high, "step": knob.step or 1, "tooltip": knob.help}
    return kind.Input(name, **{**given, **more})


class DinoUpscale(io.ComfyNode):  # type: ignore[misc]
    """Enlarges pictures tile by tile and keeps them what they are."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs and outputs."""
        return io.Schema(
            node_id="DINOUpscale",
            display_name="DINO Upscale",
            category=CATEGORY,
            description="Enlarges pictures by tiled img2img, held to their source; references lend their detail.",
            # In the order of the node that this one descends from, so that its saved workflows still load.
            inputs=[
                io.Image.Input("image"),
                _number("scale_factor"),
                _number("denoise"),
                _number("tile_size", default=1024, min=0, step=64),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS),
                _number("steps", tooltip="Sets the steps of a tile; all of them are made whatever the denoise."),
                io.Boolean.Input("dino_enabled", default=True, tooltip=knobs()["dino_enabled"].help),
                _number("dino_strength"),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
                io.Model.Input("model"),
                io.Vae.Input("vae"),
                io.String.Input("prompt", default=PROMPT, multiline=True, optional=True, tooltip=PROMPT_HELP),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the prompt where positive is not connected."),
                io.Conditioning.Input("positive", optional=True),
                io.Conditioning.Input("negative", optional=True),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, optional=True, tooltip=CFG_HELP),
                _number("consistency", optional=True),
                io.Combo.Input("preset", options=[CUSTOM, *PRESETS], optional=True, tooltip=PRESET_HELP),
                _number("overlap", optional=True),
                _number("tile_batch_size", optional=True),
                io.Image.Input("references", optional=True, tooltip="Up to 8 sharp pictures of the same thing."),
                io.Mask.Input("mask", optional=True, tooltip="Where the picture may change."),
            ],
            outputs=[
                io.Image.Output("enlarged", display_name="IMAGE"), io.String.Output("report", display_name="REPORT"),
            ],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, model: Any, vae: Any, sampler_name: str, scheduler: str, *, cfg: float = 7.0,
        positive: Any = None, negative: Any = None, clip: Any = None, prompt: str = PROMPT, preset: str = CUSTOM,
        references: torch.Tensor | None = None, mask: torch.Tensor | None = None, seed: int = 0, **values: Any,
    ) -> Any:  # fmt: skip
        """Enlarge."""
        filled = {} if preset == CUSTOM else {k: v for k, v in preset_of(preset).items() if k != "steps"}
        settings = Settings.from_mapping({**values, **filled, "seed": seed % (MAX_SEED + 1)})
        sampling = Sampling(
            sampler_name, scheduler, cfg, _conditioning(positive, clip, prompt, "positive"),
            _conditioning(negative, clip, "", "negative"),
        )  # fmt: skip
        made, report = upscale.upscale(
            model, vae, image, settings, sampling, references=references, mask=mask
        )
        return io.NodeOutput(made, report)


def _conditioning(given: Any, clip: Any, text: str, name: str) -> Any:
    """What is connected, or `text` as the text encoder has it."""
    if given is not None:
        return given
    if clip is None:
        raise SettingsError(
            f"Neither {name} nor clip is connected. Connect a CLIP Text Encode to {name}, or the checkpoint's CLIP to "
            f"clip.",
            field=name, value=None, limit="a prompt",
        )  # fmt: skip
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


class ApplyDinoGuidance(io.ComfyNode):  # type: ignore[misc]
    """Holds whatever is sampled with a model to a picture."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ApplyDinoGuidance",
            display_name="Apply DINO Guidance",
            category=CATEGORY,
            description="Holds what any sampler makes with this model to a picture, which it is to show enlarged.",
            inputs=[
                io.Model.Input("model"),
                io.Vae.Input("vae"),
                io.Image.Input("image"),
                _number("consistency"),
                _number("dino_strength", tooltip="Sets how strongly features guide where consistency is below 1."),
            ],
            outputs=[io.Model.Output("guided", display_name="MODEL")],
        )

    @classmethod
    def execute(cls, model: Any, vae: Any, image: torch.Tensor, consistency: float, dino_strength: float) -> Any:
        """Guide a copy of the model."""
        strength = dino_strength if consistency < 1 else 0.0
        if not (strength or consistency):
            return io.NodeOutput(model)
        return io.NodeOutput(upscale.guided(model, vae, image, strength=strength, consistency=consistency))


class DinoDriftReport(io.ComfyNode):  # type: ignore[misc]
    """Measures how far a picture has left its source."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs and outputs."""
        return io.Schema(
            node_id="DinoDriftReport",
            display_name="DINO Drift Report",
            category=CATEGORY,
            description="Measures how far an enlarged picture has left its source; the map shows where.",
            inputs=[io.Image.Input("source"), io.Image.Input("result")],
            outputs=[
                io.String.Output("report", display_name="REPORT"), io.Image.Output("drift_map", display_name="MAP"),
            ],
        )

    @classmethod
    def execute(cls, source: torch.Tensor, result: torch.Tensor) -> Any:
        """Measure every pair."""
        if len(source) not in (1, len(result)):
            raise DinoError(f"There must be one source, or one for each result: got {len(source)} and {len(result)}.")
        with torch.inference_mode(False), torch.no_grad():
            sources, results = images.pictures(source), images.pictures(result)
            found = [pipeline.measure(sources[min(i, len(sources) - 1)], made) for i, made in enumerate(results)]
            maps = images.as_batch([heatmap(f.picture, next(iter(f.heats), None), f.report) for f in found])
        return io.NodeOutput(json.dumps([f.report.to_dict() for f in found], indent=2), maps)


class DinoExtension(ComfyExtension):  # type: ignore[misc]
    """What ComfyUI asks for."""

    async def get_node_list(self) -> list[type]:
        """The nodes."""
        return [DinoUpscale, ApplyDinoGuidance, DinoDriftReport]


async def comfy_entrypoint() -> DinoExtension:
    """Called by ComfyUI once it has imported the extension."""
    return DinoExtension()
