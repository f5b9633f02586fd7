"""The panel's widgets, read off the settings; one function a section."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ...settings import PRESETS, RETIRED, preset
from ..model import model_files as weights
from ..model.family import expected_model
from ..model.model_files import DEFAULT_MODEL
from .arguments import FIELDS, NO_PRESET, SAME_SAMPLER, SAME_SCHEDULER, TITLE, all_knobs, default, pasted
from .host_choices import choices
from .summary import Tab, outlook

_UNSEEN: Final = ("enabled", "upscaler", "dino_model", "adapter", "preset", "seed", "drift_map", "save_report")
"""Settings that change nothing about the line."""

_TAB_JS: Final = "(...args) => window.dinoUpscale ? window.dinoUpscale.withTab(args, {tab!r}) : args"
"""Puts what the page knows of its tab in front; see `javascript/dino_upscale.js`."""


@dataclass
class Panel:
    """The widgets of one tab, by setting, and what belongs to them."""

    widgets: dict[str, Any]
    infotext_fields: list[tuple[Any, Callable[[dict[str, Any]], Any]]]

    @property
    def arguments(self) -> list[Any]:
        """The widgets in the order of the arguments."""
        return [self.widgets[name] for name in FIELDS]


def build(enabled: Any, *, element_id: Callable[[str], str], img2img: bool) -> Panel:
    """All widgets below the switch `enabled`; to be called inside the panel's own group."""
    import gradio as gr

    widgets: dict[str, Any] = {"enabled": enabled}
    make = functools.partial(_widget, element_id=element_id)
    tab = gr.Textbox("", label="Facts about the tab", visible=False, elem_id=element_id("tab"))
    tab.do_not_save_to_config = True
    _size_section(widgets, make)
    _repaint_section(widgets, make)
    _faithful_section(widgets, make)
    _report_section(widgets, make)
    with gr.Accordion("Tiles", open=False, elem_id=element_id("tiles")):
        _tile_section(widgets, make)
    line = gr.HTML(outlook(Tab(), {}).to_html(), elem_id=element_id("summary"))
    # Pressed by the page's script when the picture changes, which no control of the panel notices.
    again = gr.Button("Look again", visible=False, elem_id=element_id("again"))
    _connect(widgets, tab, line, again, "img2img" if img2img else "txt2img")
    silent = ("enabled", "seed", *RETIRED)
    fields = [(widgets[name], _paster(name, widgets[name])) for name in FIELDS if name not in silent]
    return Panel(widgets, fields)


def _size_section(widgets: dict[str, Any], make: Callable[..., Any]) -> None:
    import gradio as gr

    with gr.Row():
        widgets["preset"] = make("preset", choices=[NO_PRESET, *PRESETS])
        widgets["upscaler"] = make("upscaler", choices=choices()["upscaler"])
    widgets["scale_factor"] = make("scale_factor")
    with gr.Row():
        for name in ("width", "height", "megapixels"):
            widgets[name] = make(name)


def _repaint_section(widgets: dict[str, Any], make: Callable[..., Any]) -> None:
    import gradio as gr

    widgets["denoise"] = make("denoise")
    widgets["steps"] = make("steps")
    found = choices()
    with gr.Row():
        widgets["sampler_name"] = make("sampler_name", choices=[SAME_SAMPLER, *_visible(found["sampler_name"])])
        widgets["scheduler"] = make(
            "scheduler", choices=[SAME_SCHEDULER, *found.get("scheduler", [])], visible="scheduler" in found
        )


def _visible(names: list[str]) -> list[str]:
    from modules import sd_samplers

    return [name for name in names if name in set(sd_samplers.visible_sampler_names())] or names


def _faithful_section(widgets: dict[str, Any], make: Callable[..., Any]) -> None:
    import gradio as gr

    with gr.Row():
        widgets["dino_enabled"] = make("dino_enabled")
        widgets["dino_model"] = make("dino_model", choices=weights.names())
    widgets["dino_strength"] = make("dino_strength")
    with gr.Row():
        widgets["consistency"] = make("consistency")
        widgets["texture"] = make("texture")
        widgets["clean_source"] = make("clean_source")
    with gr.Row():
        widgets["repair_tries"] = make("repair_tries")
        widgets["max_drift"] = make("max_drift")
    widgets["subject_prompt"] = make("subject_prompt")
    with gr.Row():
        widgets["adapter"] = make("adapter", choices=weights.adapter_names())
        widgets["adapter_strength"] = make("adapter_strength")


def _report_section(widgets: dict[str, Any], make: Callable[..., Any]) -> None:
    import gradio as gr

    with gr.Row():
        for name in ("drift_map", "save_report"):
            widgets[name] = make(name)


def _tile_section(widgets: dict[str, Any], make: Callable[..., Any]) -> None:
    import gradio as gr

    for name in ("tile_size", "overlap", "tile_batch_size", "skip_flat"):
        widgets[name] = make(name)
    widgets["seed"] = make("seed", visible=False)
    # Their places among the arguments stay.
    widgets.update({name: gr.Number(0, label=knob.label, visible=False) for name, knob in RETIRED.items()})


def _widget(
    name: str,
    *,
    element_id: Callable[[str], str],
    choices: list[str] | None = None,
    visible: bool = True,
) -> Any:
    """The widget that suits a setting's type, with its help as the tooltip."""
    made = _bare_widget(name, element_id=element_id, choices=choices, visible=visible)
    # What hosts make of `tooltip=` of their own buttons; Gradio by itself knows no tooltips.
    made.webui_tooltip = all_knobs()[name].help + (" 0 takes the tab's own." if name == "steps" else "")
    return made


def _bare_widget(name: str, *, element_id: Callable[[str], str], choices: list[str] | None, visible: bool) -> Any:
    import gradio as gr

    knob, value = all_knobs()[name], default(name)
    common = {"value": value, "label": knob.label, "elem_id": element_id(name)}
    if not visible:
        common["visible"] = False
    if choices is not None:
        return gr.Dropdown(choices=choices, allow_custom_value=name in ("dino_model", "adapter"), **common)
    if isinstance(value, bool):
        return gr.Checkbox(**common)
    if isinstance(value, str):
        return gr.Textbox(**common)
    if name in ("width", "height", "megapixels", "seed"):
        number = gr.Number(precision=2 if name == "megapixels" else 0, **common)
        # Read by the API's list of arguments.
        number.minimum, number.maximum = knob.unset, knob.high
        return number
    # A slider starts at what leaves its setting open; steps of 0 are left to the tab.
    low = 0 if name == "steps" else knob.low if knob.unset is None else knob.unset
    return gr.Slider(minimum=low, maximum=knob.high, step=knob.step, **common)


def _connect(widgets: dict[str, Any], tab: Any, line: Any, again: Any, name_of_tab: str) -> None:
    """The line follows the controls and the picture; a preset fills the controls in."""
    names = [name for name in FIELDS if name not in (*_UNSEEN, *RETIRED)]
    inputs = [tab, *(widgets[name] for name in names)]

    def describe(text: str, *values: Any) -> str:
        seen = dict(zip(names, values, strict=True))
        return outlook(Tab.read(text), seen, model=expected_model()).to_html()

    script = _TAB_JS.format(tab=name_of_tab)
    for event in (*(widgets[name].change for name in names), again.click):
        event(describe, _js=script, inputs=inputs, outputs=[line], show_progress=False)
    filled = list(next(iter(PRESETS.values())))

    def fill(name: str) -> list[Any]:
        import gradio as gr

        return [gr.update(value=preset(name)[key]) if name in PRESETS else gr.update() for key in filled]

    # Not on "change": pasting a text sets the preset and the values each by themselves.
    chosen = widgets["preset"]
    chosen.input(fill, inputs=[chosen], outputs=[widgets[key] for key in filled], show_progress=False)


def _paster(name: str, widget: Any) -> Callable[[dict[str, Any]], Any]:
    def paste(params: dict[str, Any]) -> Any:
        value = pasted(name, params)
        allowed = [c[0] if isinstance(c, tuple | list) else c for c in getattr(widget, "choices", None) or ()]
        unknown = bool(allowed) and value not in allowed and name not in ("dino_model", "adapter")
        return None if unknown or value is None else value

    return paste


def saved_keys() -> list[str]:
    """Keys of a picture's saved text that "Send to" passes on."""
    return [knob.key for knob in all_knobs().values() if knob.key]


def was_on(params: dict[str, Any]) -> bool | None:
    """Whether a pasted text was upscaled as txt2img made it; None where it says nothing of it."""
    made_here = all_knobs()["scale_factor"].key in params
    return made_here and params.get("Script") != TITLE


def settings_page() -> None:
    """The extension's section of the host's settings."""
    import gradio as gr
    from modules import shared

    section = ("dino_upscale", TITLE)
    options = [
        (weights.OPTION_MODEL, "", "Feature model that \"Default\" stands for", gr.Dropdown,
         lambda: {"choices": ["", *(n for n in weights.names() if n != DEFAULT_MODEL)]}),
        (weights.OPTION_FOLDER, "", "Folder of feature models; empty is models/dinov2", gr.Textbox, {}),
        (weights.OPTION_DEVICE, "Automatic", "Device of the feature model", gr.Radio,
         {"choices": ["Automatic", "CPU"]}),
        (weights.OPTION_TINY, True, "Source consistency inside the loop through the tiny autoencoder (TAESD), where "
         "its files are on disk", gr.Checkbox, {}),
        (weights.OPTION_VAE, False, "Source consistency inside the loop through the checkpoint's own VAE, where there "
         "is no tiny autoencoder (slow)", gr.Checkbox, {}),
    ]  # fmt: skip
    for key, value, label, component, component_args in options:
        shared.opts.add_option(key, shared.OptionInfo(value, label, component, component_args, section=section))
