"""DINO Upscale in AUTOMATIC1111, Forge and their kin: the two scripts, and nothing but calls into `lib_dino.webui`."""

from __future__ import annotations

from typing import Any

import gradio as gr
import modules.scripts as scripts
from modules import script_callbacks
from modules.ui_components import InputAccordion

from lib_dino.webui.generation import entry
from lib_dino.webui.panel import options, panel, xyz_plot
from lib_dino.webui_settings import TITLE

# The always-on class comes first: the API's `alwayson_scripts` takes the first script of a title.


class DinoUpscaleAlwaysOn(scripts.Script):
    """Upscales in img2img beside another script, in txt2img what was made, and for `alwayson_scripts`."""

    section = "accordions"

    def title(self) -> str:
        """The API's name of it, in any case of letters."""
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        """On both tabs."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """A closed panel, off at first."""
        element_id = "dino_upscale_on_" + ("img2img_" if is_img2img else "txt2img_")
        with InputAccordion(False, label=TITLE, elem_id=element_id + "enabled") as enabled:
            made = panel.build(enabled, element_id=element_id.__add__, img2img=is_img2img)
        if is_img2img:
            # Same labels as the dropdown's controls, which keep the entries of `ui-config.json`.
            for widget in made.arguments:
                widget.do_not_save_to_config = True
        else:
            self.infotext_fields = [(enabled, panel.was_on), *made.infotext_fields]
            self.paste_field_names = panel.saved_keys()
        return made.arguments

    def before_process(self, p: Any, *args: Any) -> None:
        """Turn the generation into an upscaling."""
        entry.begin(p, args, own=OWN)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """Leave it as it was, with the reports that were asked for."""
        entry.restore(p, processed)


class DinoUpscale(scripts.Script):
    """The entry of img2img's script list."""

    def title(self) -> str:
        """The entry."""
        return TITLE

    def show(self, is_img2img: bool) -> bool:
        """In img2img alone."""
        return is_img2img

    def ui(self, is_img2img: bool) -> list[Any]:
        """The panel, always on."""
        enabled = gr.Checkbox(True, label="Enable DINO Upscale", visible=False, elem_id="dino_upscale_enabled")
        enabled.do_not_save_to_config = True
        made = panel.build(enabled, element_id="dino_upscale_".__add__, img2img=is_img2img)
        self.infotext_fields = made.infotext_fields
        self.paste_field_names = panel.saved_keys()
        return made.arguments

    def run(self, p: Any, *args: Any) -> Any:
        """Upscale the tab's picture."""
        return entry.run_as_script(p, self, args, own=OWN)


OWN = (DinoUpscaleAlwaysOn, DinoUpscale)

script_callbacks.on_ui_settings(options.add_options)
script_callbacks.on_before_ui(xyz_plot.add_axes)
