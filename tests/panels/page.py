"""The extension's panels in a real Gradio, with as much of a host around them as building them takes.

Run by `tests/webui/panel` with the interpreter of either Gradio, without torch. Builds every panel as a host does,
once for the page and twice more for the API's defaults; prints what it found as JSON. With `--serve` it serves the
page instead, with a button that pastes a saved text, and prints its address.
"""

import asyncio
import importlib.util
import json
import sys
import types
from pathlib import Path

import gradio
import gradio as gr

ROOT = Path(__file__).parent.parent.parent
NEW = gr.__version__.startswith("4.")
TABS = {"img2img": True, "txt2img": False}
SEEN = ("label", "minimum", "maximum", "step", "value", "elem_id", "info")
if NEW:
    # It writes a file beside the class of every component; Forge stops that as well.
    gradio.component_meta.create_or_modify_pyi = lambda *args: None


class Script:
    """As much of the host's class as building a panel takes."""

    infotext_fields = None
    paste_field_names = None

    def show(self, is_img2img):
        return True


class Options(types.SimpleNamespace):
    """The host's options: declared ones and their values."""

    def __init__(self):
        super().__init__(data={}, declared={}, img2img_fix_steps=False)

    def add_option(self, key, info):
        self.declared[key] = info


def option_info(default, label, component, component_args, section):
    return types.SimpleNamespace(
        default=default, label=label, component=component, component_args=component_args, section=section
    )


class OldAccordion(gr.Checkbox):
    """The host's accordion that can be ticked: a hidden checkbox and an accordion that follow each other."""

    def __init__(self, value, *, label, elem_id):
        super().__init__(value, label=label, elem_id=f"{elem_id}-checkbox", visible=False)
        self.accordion = gr.Accordion(label=label, elem_id=elem_id, open=value, elem_classes=["input-accordion"])

    def __enter__(self):
        self.accordion.__enter__()
        return self

    def __exit__(self, *args):
        self.accordion.__exit__(*args)

    def get_block_name(self):
        return "checkbox"


def new_accordion(value, *, label, elem_id):
    """Forge's is a function."""
    return OldAccordion(value, label=label, elem_id=elem_id)


def install_modules(folder):
    """The host's modules, as far as panels ask them."""
    names = ["Euler a", "DPM++ 2M", "DDIM"]
    samplers = [types.SimpleNamespace(name=n, options={}) for n in names]
    always, options = object(), Options()
    content = {
        "scripts": {"Script": Script, "AlwaysVisible": always, "scripts_data": [], "basedir": lambda: str(ROOT)},
        "script_callbacks": {"on_ui_settings": lambda f, **kw: SETTINGS.append(f), "on_before_ui": lambda f, **kw: None,
                             "on_app_started": lambda f, **kw: None},
        "ui_components": {"InputAccordion": new_accordion if NEW else OldAccordion},
        "sd_samplers": {"all_samplers": samplers, "all_samplers_map": {s.name: s for s in samplers},
                        "visible_sampler_names": lambda: names},
        "sd_schedulers": {"schedulers": [types.SimpleNamespace(label=n) for n in ("Automatic", "Karras")]},
        "shared": {"opts": options, "OptionInfo": option_info, "device": "cpu",
                   "sd_upscalers": [types.SimpleNamespace(name=n) for n in ("None", "Lanczos", "ESRGAN_4x")]},
        "paths": {"models_path": str(folder)},
        "sd_models": {"model_data": types.SimpleNamespace(sd_model=None),
                      "get_closet_checkpoint_match": lambda name: None},
    }  # fmt: skip
    sys.modules["modules"] = types.ModuleType("modules")
    for name, values in content.items():
        module = sys.modules[f"modules.{name}"] = types.ModuleType(f"modules.{name}")
        vars(module).update(values)
        setattr(sys.modules["modules"], name, module)
    # What generates needs torch, and no panel is made of it.
    sys.modules["lib_dino.webui.generation.entry"] = types.ModuleType("lib_dino.webui.generation.entry")
    return always, options


SETTINGS = []


def accept_underscore_js():
    """Forge takes `_js=` on every event of a component, as the other hosts' Gradio does; Gradio 4 itself does not."""

    def renamed(event):
        def call(self, *args, _js=None, **kwargs):
            return event(self, *args, **{**kwargs, **({"js": _js} if _js else {})})

        return call

    for kind in vars(gr.components).values():
        for event in getattr(kind, "EVENTS", ()):
            setattr(kind, str(event), renamed(getattr(kind, str(event))))


def load_script():
    spec = importlib.util.spec_from_file_location("dino_upscale.py", ROOT / "scripts" / "dino_upscale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(module, always):
    """All panels, each in a group of its own, by (class, tab)."""
    made = {}
    for tab, is_img2img in TABS.items():
        for kind in (module.DinoUpscaleAlwaysOn, module.DinoUpscale):
            script = kind()
            shown = script.show(is_img2img)
            if shown:
                with gr.Group(visible=shown is always):
                    made[kind.__name__, tab] = script, script.ui(is_img2img)
    return made


def facts(component):
    """What the API lists of an argument, and what the page needs of it."""
    choices = getattr(component, "choices", None)
    found = {name: getattr(component, name, None) for name in SEEN}
    found |= {"type": type(component).__name__, "tooltip": getattr(component, "webui_tooltip", None)}
    found |= {"visible": component.visible, "saved": not getattr(component, "do_not_save_to_config", False)}
    found["choices"] = choices and [c[0] if isinstance(c, tuple | list) else c for c in choices]
    around = list(ancestors(component))
    found["group"] = next((b.label for b in around if isinstance(b, gr.Accordion)), None)
    found["shown"] = component.visible and all(b.visible for b in around[:-2])
    return found


def ancestors(component):
    """The blocks around a component, the nearest first; the page and the panel's own group are the last."""
    while component := component.parent:
        yield component


def events(page):
    """Every event as (component's id, event's name, inputs, outputs, whether JavaScript runs first)."""
    found = []
    for dependency in page.get_config_file()["dependencies"]:
        for target in dependency["targets"]:
            target, trigger = target if isinstance(target, tuple | list) else (target, dependency["trigger"])
            found.append((target, trigger, dependency["inputs"], dependency["outputs"], dependency["js"]))
    return found


def answer(page, index, inputs):
    """What an event's function answers to the page, through Gradio's own conversions."""
    call = page.process_api(index, inputs, None) if NEW else page.process_api(index, inputs, {})
    return asyncio.run(call)["data"]


def index_of(found, component, trigger):
    return next(i for i, (target, name, *_) in enumerate(found) if (target, name) == (component._id, trigger))


def walk(page, made):
    """Everything the tests ask for."""
    found, answers = events(page), {}
    by_id = dict(page.blocks)
    for (kind, tab), (_, controls) in made.items():
        own = controls[1].elem_id.removesuffix("scale_factor")
        named = {c.elem_id: c for c in by_id.values() if str(getattr(c, "elem_id", "")).startswith(own)}
        again, preset = named[f"{own}again"], named[f"{own}preset"]
        index = index_of(found, again, "click")
        tab_text = json.dumps({"width": 640, "height": 480, "steps": 30, "sampler": "Euler a"})
        shown = [tab_text, *(by_id[i].value for i in found[index][2][1:])]
        text = answer(page, index, shown)[0]
        filled = answer(page, index_of(found, preset, "input"), ["creative"])
        answers[f"{kind} {tab}"] = {
            "summary": text, "filled": filled, "line": f"{own}summary",
            "modes": modes(page, found, named[f"{own}resize"]),
            "labels": labels(page, found, named, own),
        }  # fmt: skip
    return found, answers


def modes(page, found, resize):
    """What the switch between ways to give the size answers, by way."""
    ways = [c[0] if isinstance(c, tuple | list) else c for c in resize.choices]
    index = index_of(found, resize, "change")
    return {way: answer(page, index, [way]) for way in ways}


def labels(page, found, named, own):
    """What folded groups are called after tile size and overlap were changed, by their name at first."""
    index = index_of(found, named[f"{own}overlap"], "change")
    new = {named[f"{own}tile_size"]._id: 256, named[f"{own}overlap"]._id: 32}
    _, _, inputs, outputs, _ = found[index]
    given = ["", *(new.get(i, page.blocks[i].value) for i in inputs[1:])]
    updates = answer(page, index, given)[1:]
    return {page.blocks[i].label: update["label"] for i, update in zip(outputs[1:], updates, strict=True)}


def main():
    always, options = install_modules(ROOT / "out" / "no models")
    if NEW:
        accept_underscore_js()
    module = load_script()
    with gr.Blocks() as page:
        made = build(module, always)
    for _ in range(2):
        with gr.Blocks():
            again = build(module, always)
    for declare in SETTINGS:
        declare()
    found, answers = walk(page, made)
    panels = {
        f"{kind} {tab}": {
            "arguments": [facts(c) for c in controls],
            "ids": [c._id for c in controls],
            "pasted": [(c.elem_id, c.label) for c, _ in script.infotext_fields or ()],
            "paste_names": script.paste_field_names,
        }
        for (kind, tab), (script, controls) in made.items()
    }
    everything = [facts(c) for c in page.blocks.values() if getattr(c, "elem_id", None)]
    json.dump({
        "version": gr.__version__, "torch": "torch" in sys.modules, "panels": panels, "events": found,
        "answers": answers, "everything": everything,
        "same": {f"{kind} {tab}": [facts(c) for c in own] for (kind, tab), (_, own) in again.items()},
        "options": {key: {"default": o.default, "label": o.label} for key, o in options.declared.items()},
    }, sys.stdout)  # fmt: skip


def add_paste(script):
    """A script's panel, a field for a picture's parameters, and a button that gives them to the panel as hosts do."""
    script.ui(is_img2img=True)
    text, button = gr.Textbox(elem_id="pasted_text", label="Parameters"), gr.Button("Paste", elem_id="paste")

    def paste(written):
        values = [read(json.loads(written)) for _, read in script.infotext_fields]
        return [gr.update() if value is None else gr.update(value=value) for value in values]

    button.click(paste, inputs=[text], outputs=[widget for widget, _ in script.infotext_fields])


def serve():
    """Serve img2img's panel, and txt2img's in the host's row of accordions, until the input ends."""
    install_modules(ROOT / "out" / "no models")
    if NEW:
        accept_underscore_js()
    module = load_script()
    with gr.Blocks() as page:
        add_paste(module.DinoUpscale())
        with gr.Row(elem_classes=["accordions"]):
            with gr.Accordion("Hires. fix", open=False, elem_classes=["input-accordion"]):
                gr.Markdown("The host's own")
            with gr.Group():
                module.DinoUpscaleAlwaysOn().ui(is_img2img=False)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", show_api=False)
    sys.stdout.write(f"\n{address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve() if "--serve" in sys.argv else main()
