"""The panel: a line that says what a job will do, the settings by group, and what makes them act together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...declarations import FOLDED_GROUPS, OPEN_GROUPS, Knob
from ...settings import PRESETS, knobs, preset
from ...webui_settings import FIELDS, TITLE, all_knobs, in_group
from ..model.family import expected_model
from .arguments import pasted
from .host_choices import panel_choices
from .size_modes import BY_SCALE, CLEARABLE, SIZE_MODES, mode_after, mode_of
from .summary import Tab, outlook
from .widgets import make_widget, takes_any_name

_TAB_JS: Final = "(...args) => window.dinoUpscale ? window.dinoUpscale.withTab(args, {tab!r}) : args"
"""Puts what the page knows of its tab in front; see `javascript/dino_upscale.js`."""

Make = Callable[[Knob], Any]


@dataclass
class Panel:
    """The widgets of one tab, by setting, and what a pasted text does to them."""

    widgets: dict[str, Any]
    infotext_fields: list[tuple[Any, Callable[[dict[str, Any]], Any]]]

    @property
    def arguments(self) -> list[Any]:
        """The widgets in the order of the arguments."""
        return [self.widgets[name] for name in FIELDS]


def build(enabled: Any, *, element_id: Callable[[str], str], img2img: bool) -> Panel:
    """All widgets below the switch `enabled`; to be called inside the panel's own group."""
    import gradio as gr

    tab = gr.Textbox("", label="Facts about the tab", visible=False, elem_id=element_id("tab"))
    tab.do_not_save_to_config = True
    line = gr.HTML(outlook(Tab(), {}).to_html(), elem_id=element_id("summary"))
    # Pressed by the page's script when the picture changes, which no control of the panel notices.
    again = gr.Button("Look again", visible=False, elem_id=element_id("again"))
    make = functools.partial(make_widget, element_id=element_id, choices=panel_choices(), img2img=img2img)
    widgets = {"enabled": enabled}
    for group in OPEN_GROUPS:
        if group == "Size":
            resize = _size_modes(widgets, make, element_id("resize"))
        _rows(widgets, make, group)
    folds = {group: _fold(widgets, make, group, element_id) for group in FOLDED_GROUPS}
    # Settings that have no group keep their places among the arguments.
    widgets.update({name: make(knob) for name, knob in all_knobs().items() if name not in widgets})
    _connect_line(widgets, tab, line, folds, again, resize, "img2img" if img2img else "txt2img")
    _connect_presets(widgets)
    fields = [(widgets[name], _paster(knob, widgets[name])) for name, knob in _shown().items()]
    return Panel(widgets, [*fields, (resize, _pasted_mode)])


def _shown() -> dict[str, Knob]:
    """The settings that have a control, in the order of the arguments."""
    return {name: knob for name, knob in all_knobs().items() if knob.widget != "hidden"}


def _rows(widgets: dict[str, Any], make: Make, group: str) -> None:
    """The controls of a group: two in a row, but sliders that stand open have a row of their own."""
    import gradio as gr

    shown = [knob for knob in in_group(group) if knob.widget != "hidden" and knob.name not in widgets]
    alone = group in OPEN_GROUPS and any(knob.widget == "slider" for knob in shown)
    in_a_row = 1 if alone else 2
    for start in range(0, len(shown), in_a_row):
        with gr.Row():
            widgets.update({knob.name: make(knob) for knob in shown[start : start + in_a_row]})


def _size_modes(widgets: dict[str, Any], make: Make, switch_id: str) -> Any:
    """The ways to give the size, one at a time; the switch between them."""
    import gradio as gr

    resize = gr.Radio(list(SIZE_MODES), value=BY_SCALE, label="Resize", elem_id=switch_id)
    resize.do_not_save_to_config = True
    rows = []
    for mode, names in SIZE_MODES.items():
        with gr.Row(visible=mode == BY_SCALE) as row:
            widgets.update({name: make(knobs()[name]) for name in names})
        rows.append(row)

    def show(chosen: str) -> list[Any]:
        visible = [gr.update(visible=mode == chosen) for mode in SIZE_MODES]
        kept = SIZE_MODES.get(chosen, ())
        return [*visible, *(gr.update() if name in kept else gr.update(value=0) for name in CLEARABLE)]

    outputs = [*rows, *(widgets[name] for name in CLEARABLE)]
    resize.change(show, inputs=[resize], outputs=outputs, show_progress=False)
    return resize


def _fold(widgets: dict[str, Any], make: Make, group: str, element_id: Callable[[str], str]) -> Any:
    """A group that is closed at first; the accordion."""
    import gradio as gr

    with gr.Accordion(group, open=False, elem_id=element_id("group_" + group.lower().replace(" ", "_"))) as fold:
        _rows(widgets, make, group)
    return fold


def fold_label(group: str, values: Mapping[str, Any]) -> str:
    """A group's name, with how many of its `values`, by setting, are not the panel's first ones."""
    shown = [knob for knob in in_group(group) if knob.name in values]
    changed = sum(values[k.name] not in (None, k.panel_default) for k in shown)
    return f"{group} ({changed} changed)" if changed else group


def _connect_line(
    widgets: dict[str, Any],
    tab: Any,
    line: Any,
    folds: Mapping[str, Any],
    again: Any,
    resize: Any,
    name_of_tab: str,
) -> None:
    """The line and the groups' labels follow the controls and the picture."""
    import gradio as gr

    names = [name for name, knob in _shown().items() if knob.widget != "pictures"]  # too large to send each time
    inputs = [tab, *(widgets[name] for name in names)]

    def describe(text: str, *given: Any) -> list[Any]:
        values = dict(zip(names, given, strict=True))
        seen = Tab.read(text)
        words = outlook(seen, values, model=expected_model(seen.checkpoint)).to_html()
        return [words, *(gr.update(label=fold_label(group, values)) for group in folds)]

    def look_again(text: str, *given: Any) -> list[Any]:
        # Also the first look at what the host's own file of defaults has made of the controls.
        *values, mode = given
        return [*describe(text, *values), mode_after(mode, dict(zip(names, values, strict=True)))]

    shared = {"_js": _TAB_JS.format(tab=name_of_tab), "show_progress": False}
    outputs = [line, *folds.values()]
    for name in names:
        widgets[name].change(describe, inputs=inputs, outputs=outputs, **shared)
    again.click(look_again, inputs=[*inputs, resize], outputs=[*outputs, resize], **shared)


def _connect_presets(widgets: dict[str, Any]) -> None:
    """A preset fills the controls in."""
    import gradio as gr

    filled = list(next(iter(PRESETS.values())))

    def fill(name: str) -> list[Any]:
        return [gr.update(value=preset(name)[key]) if name in PRESETS else gr.update() for key in filled]

    # Not on "change": pasting a text sets the preset and the values each by themselves.
    chosen = widgets["preset"]
    chosen.input(fill, inputs=[chosen], outputs=[widgets[key] for key in filled], show_progress=False)


def _paster(knob: Knob, widget: Any) -> Callable[[dict[str, Any]], Any]:
    def paste(params: dict[str, Any]) -> Any:
        value = pasted(knob.name, params)
        allowed = [c[0] if isinstance(c, tuple | list) else c for c in getattr(widget, "choices", None) or ()]
        is_unknown = bool(allowed) and value not in allowed and not takes_any_name(knob)
        return None if is_unknown else value

    return paste


def _pasted_mode(params: dict[str, Any]) -> str | None:
    """The way to give the size that shows what a pasted text gives."""
    values: dict[str, Any] = {name: pasted(name, params) for name in CLEARABLE}
    return None if None in values.values() else mode_of(values)


def saved_keys() -> list[str]:
    """Keys of a picture's saved text that "Send to" passes on."""
    return [knob.key for knob in all_knobs().values() if knob.key]


def was_on(params: Mapping[str, Any]) -> bool:
    """Tell whether a pasted text was upscaled as txt2img made it."""
    return knobs()["scale_factor"].key in params and params.get("Script") != TITLE
