"""The extension's section of the host's settings page."""

from __future__ import annotations

from typing import Any, Final

from ...webui_settings import KEPT_GB, OPTION_KEPT, TITLE
from ..memory import OPTION_DEVICE
from ..model import model_files as files

_SECTION: Final = ("dino_upscale", TITLE)


def add_options() -> None:
    """Declare the options to the host."""
    import gradio as gr
    from modules import shared

    def models() -> dict[str, Any]:
        return {"choices": ["", *(name for name in files.names() if name != files.DEFAULT_MODEL)]}

    options = [
        (files.OPTION_MODEL, "", f'Feature model that "{files.DEFAULT_MODEL}" stands for', gr.Dropdown, models),
        (files.OPTION_FOLDER, "", "Folder of feature models; empty = models/dinov2", gr.Textbox, {}),
        (OPTION_DEVICE, "Automatic", "Device of the feature model", gr.Radio, {"choices": ["Automatic", "CPU"]}),
        (files.OPTION_TINY, True, "Hold tiles to the source pixel by pixel while they are sampled, through the tiny "
         "autoencoder (TAESD), where its files are on disk", gr.Checkbox, {}),
        (files.OPTION_VAE, False, "Hold tiles to the source pixel by pixel while they are sampled, through the "
         "checkpoint's own VAE, where there is no tiny autoencoder (slow)", gr.Checkbox, {}),
        (OPTION_KEPT, KEPT_GB, "Keep the finished tiles of pictures under way on disk, so that an upscale that was cut "
         "short can go on; GiB at most, 0 = keep none", gr.Slider, {"minimum": 0, "maximum": 256, "step": 1}),
    ]  # fmt: skip
    for key, value, label, component, component_args in options:
        shared.opts.add_option(key, shared.OptionInfo(value, label, component, component_args, section=_SECTION))
