"""One control of the panel, read off its setting's declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...declarations import Knob


def make_widget(
    knob: Knob,
    *,
    element_id: Callable[[str], str],
    choices: Mapping[str, list[str]],
    img2img: bool,
) -> Any:
    """The control of a setting, with its help as the tooltip.

    Args:
        knob: the declaration.
        element_id: the page's name for the control of a setting.
        choices: what lists offer, by setting; a list without an entry is hidden.
        img2img: the tab is img2img.
    """
    common = {"value": knob.panel_default, "label": knob.label, "elem_id": element_id(knob.name)}
    if knob.widget == "hidden" or (knob.widget == "dropdown" and knob.name not in choices):
        common["visible"] = False
    if img2img and knob.img2img_note:
        common["info"] = knob.img2img_note
    widget = _MAKERS[knob.widget](knob, common, choices.get(knob.name, []))
    # What hosts make of `tooltip=` of their own buttons; Gradio by itself knows no tooltips.
    widget.webui_tooltip = knob.panel_help
    return widget


def takes_any_name(knob: Knob) -> bool:
    """Tell whether a list also takes what it does not offer, such as a path."""
    return knob.widget == "dropdown" and not knob.webui_only


def _slider(knob: Knob, common: dict[str, Any], choices: list[str]) -> Any:
    import gradio as gr

    return gr.Slider(minimum=knob.panel_low, maximum=knob.high, step=knob.step, **common)


def _number(knob: Knob, common: dict[str, Any], choices: list[str]) -> Any:
    import gradio as gr

    number = gr.Number(precision=2 if knob.kind is float else 0, **common)
    # Read by the API's list of arguments.
    number.minimum, number.maximum = knob.panel_low, knob.high
    return number


def _checkbox(knob: Knob, common: dict[str, Any], choices: list[str]) -> Any:
    import gradio as gr

    return gr.Checkbox(**common)


def _text(knob: Knob, common: dict[str, Any], choices: list[str]) -> Any:
    import gradio as gr

    return gr.Textbox(**common)


def _dropdown(knob: Knob, common: dict[str, Any], choices: list[str]) -> Any:
    import gradio as gr

    offered = list(dict.fromkeys([knob.panel_default, *choices]))
    return gr.Dropdown(choices=offered, allow_custom_value=takes_any_name(knob), **common)


def _pictures(knob: Knob, common: dict[str, Any], choices: list[str]) -> Any:
    import gradio as gr

    # As bytes: a name of a file would be opened whoever sent it.
    return gr.File(file_count="multiple", file_types=["image"], type="binary", **{**common, "value": None})


_MAKERS: Mapping[str, Callable[[Knob, dict[str, Any], list[str]], Any]] = {
    "slider": _slider, "number": _number, "checkbox": _checkbox, "text": _text, "dropdown": _dropdown,
    "pictures": _pictures, "hidden": _number,
}  # fmt: skip
