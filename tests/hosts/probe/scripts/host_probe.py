"""An extension for tests alone: what a host still holds of DINO Upscale, where time goes, and some company for it.

Linked into a host's `extensions` folder beside DINO Upscale it answers

- `GET /host-probe/held`: callbacks, replaced functions and modules of DINO Upscale that the host holds right now;
- `POST /host-probe/clock` starts the clocks, `GET /host-probe/clock` reads them;
- `GET /host-probe/seen`: what its scripts wrote down since it was last asked;
- `GET /host-probe/weights`: the norm of one of the model's layers at every model call since it was last asked;
- `POST /host-probe/ratios` starts, `GET /host-probe/ratios` ends and reads: at every correction of DINO Upscale's, the
  host's sigma, the noise-to-signal ratio that DINO Upscale takes it for, and the one measured in the latents;
- `POST /host-probe/rows` starts, `GET /host-probe/rows` ends and reads: how many rows each call of the model has;
- `POST /host-probe/faults?kind=nan&calls=3,4`: at these of the model's calls from now on it gives NaN (`nan`), NaN
  where it computes with fewer bits than float32 (`half`), or runs out of memory (`memory`); `GET` tells how often;
- `POST /host-probe/half?on=true`: the diffusion model computes in bfloat16, as on a card, until `on=false`;
- `GET /host-probe/models`: the folder of the host's models;
- `GET /host-probe/memory`: resident bytes, and how many tensors of how many bytes are alive;
- `POST /host-probe/reload` reloads the page's server and all scripts, as "Reload UI" does;
- `POST /host-probe/final-pass?on=false` leaves out consistency on the finished picture, until `on=true`.

It brings two always-on scripts. "Probe detailer" paints over a finished picture by a nested generation with a
filtered runner, as ADetailer does. "ControlNet", only where the host has none, writes down what each of its calls
would have worked with.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from typing import Any

import gradio as gr
import modules.scripts as scripts
import torch
from modules import paths, processing, script_callbacks, sd_samplers_common, shared

try:
    import modules_forge  # noqa: F401

    FORGE = True
except ImportError:
    FORGE = False


class Clocks:
    """Seconds of wall and of the calling thread's own work, inside models and around whole generations."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._depth = threading.local()
        self._undo: list[Any] = []

    def add(self, name: str, started: tuple[float, float]) -> None:
        entry = self.seconds.setdefault(name, [0, 0.0, 0.0])
        entry[0] += 1
        entry[1] += time.perf_counter() - started[0]
        entry[2] += time.thread_time() - started[1]

    def timed(self, name: str, function: Any, *, outermost: bool = False) -> Any:
        """`function`, clocked; with `outermost` only where it is not called from one that is clocked so too."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if outermost and getattr(self._depth, "inside", False):
                return function(*args, **kwargs)
            if outermost:
                self._depth.inside = True
            started = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                if outermost:
                    self._depth.inside = False
                self.add(name, started)

        return call

    def replace(self, holder: Any, attribute: str, name: str, **kwargs: Any) -> None:
        own = attribute in vars(holder)
        held = getattr(holder, attribute)
        setattr(holder, attribute, self.timed(name, held, **kwargs))
        self._undo.append(lambda: setattr(holder, attribute, held) if own else delattr(holder, attribute))

    def start(self) -> None:
        self.stop()
        self.seconds = {}
        model = shared.sd_model
        parts = getattr(model, "forge_objects", None)
        autoencoder = parts.vae.first_stage_model if parts else model.first_stage_model
        self.replace(network(), "forward", "unet")
        self.replace(autoencoder, "encode", "vae")
        self.replace(autoencoder, "decode", "vae")
        self.replace(model, "get_learned_conditioning", "text")
        self.replace(processing, "process_images", "total", outermost=True)
        self.replace(scripts.ScriptRunner, "run", "total", outermost=True)
        if features := sys.modules.get("lib_dino.networks.dinov2"):
            self.replace(features.Dinov2, "layer_tokens", "dino")
            self.replace(torch.autograd, "grad", "dino")

    def stop(self) -> None:
        while self._undo:
            self._undo.pop()()


CLOCKS = Clocks()
SEEN: list[Any] = []
WEIGHTS: list[float] = []
LAYERS = (
    "middle_block.1.transformer_blocks.0.attn2.to_v", "double_blocks.0.img_attn.qkv", "joint_blocks.0.x_block.attn.qkv",
)  # fmt: skip
"""One that the suite's LoRA changes, by family; of other networks the first of all linear maps is weighed."""


def network() -> Any:
    """The UNet or transformer that is loaded."""
    parts = getattr(shared.sd_model, "forge_objects", None)
    return parts.unet.model.diffusion_model if parts else shared.sd_model.model.diffusion_model


def layer() -> Any:
    """The module that is weighed."""
    modules = dict(network().named_modules())
    linear = (m for m in modules.values() if getattr(getattr(m, "weight", None), "ndim", 0) == 2)
    return next((modules[name] for name in LAYERS if name in modules), None) or next(linear)


def weigh(_: Any) -> None:
    """Note a layer that a LoRA changes, as it stands at this model call."""
    with torch.no_grad():
        WEIGHTS.append(float(layer().weight.float().norm()))
    del WEIGHTS[:-1000]


script_callbacks.on_cfg_after_cfg(weigh)


class Ratios:
    """Wraps the corrector of every batch that DINO Upscale arms its hooks with."""

    def __init__(self) -> None:
        self.noted: list[dict[str, Any]] = []
        self._latest: Any = None
        self._undo: Any = None

    def see(self, params: Any) -> None:
        self._latest = params if self._undo else None

    def start(self) -> None:
        from lib_dino.webui.model import cfg_callbacks

        self.stop()
        kept = cfg_callbacks.Hooks.armed
        hooks: Any = cfg_callbacks.Hooks

        def armed(own: Any, batch: Any) -> Any:
            if batch.corrector is not None:
                batch.corrector = self._noting(batch.corrector, batch.owner)
            return kept(own, batch)

        hooks.armed = armed
        self._undo = lambda: setattr(hooks, "armed", kept)

    def stop(self) -> list[dict[str, Any]]:
        if self._undo:
            self._undo()
        self._undo = None
        noted, self.noted = self.noted, []
        return noted

    def _noting(self, corrector: Any, owner: Any) -> Any:
        def correct(clean: Any, ratio: float, codec: Any) -> Any:
            params, start = self._latest, owner.init_latent.float()
            x = params.x[-len(start) :].float()
            # The noisy latents are a signal's share of the source and noise, which knows nothing of it.
            share = float((x * start).sum() / (start * start).sum())
            self.noted.append(
                {
                    "sigma": float(params.sigma.reshape(-1)[-1]),
                    "ratio": float(ratio),
                    "signal": share,
                    "noise": float((x - share * start).std()),
                    "values": start.numel(),
                }
            )
            return corrector(clean, ratio, codec)

        return correct


RATIOS = Ratios()
script_callbacks.on_cfg_denoiser(RATIOS.see)


class Rows:
    """Counts the rows of the model's calls by a hook of the module itself."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self._hook: Any = None

    def start(self) -> None:
        self.stop()
        self._hook = network().register_forward_pre_hook(
            lambda module, args, kwargs: self.noted.append(len(args[0] if args else kwargs["x"])), with_kwargs=True
        )

    def stop(self) -> list[int]:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        noted, self.noted = self.noted, []
        return noted


ROWS = Rows()


class Faults:
    """What goes wrong at which of the model's next calls."""

    def __init__(self) -> None:
        self.kind, self.calls, self.seen, self.made = "", set(), 0, 0

    def plan(self, kind: str = "nan", calls: str = "") -> str:
        self.kind, self.calls = kind, {int(call) for call in calls.split(",") if call}
        self.seen = self.made = 0
        return "planned"

    def told(self) -> dict[str, Any]:
        return {"made": self.made, "seen": self.seen, "half": computes_in_half()}

    def strike(self, params: Any) -> None:
        """At a call of the model, before it."""
        self.seen += 1
        if self.seen not in self.calls or (self.kind == "half" and not computes_in_half()):
            return
        self.made += 1
        if self.kind == "memory":
            raise OutOfMemory("CUDA out of memory. Tried to allocate 2.00 GiB")
        params.x.mul_(float("nan"))


class OutOfMemory(BaseException):
    """Passes through where a host swallows what callbacks raise; becomes torch's own error outside of it."""


def computes_in_half() -> bool:
    """Whether the loaded model has fewer bits than float32."""
    unet = getattr(getattr(shared.sd_model, "forge_objects", None), "unet", None)
    dtype = unet.model.computation_dtype if unet else next(network().parameters()).dtype
    return dtype != torch.float32


class Half:
    """The diffusion model in bfloat16, which hosts do not do on a CPU by themselves."""

    def switch(self, on: bool) -> str:
        forge = getattr(shared.sd_model, "forge_objects", None)
        if forge:
            forge.unet.model.computation_dtype = torch.bfloat16 if on else torch.float32
            for layer in network().modules():
                if hasattr(layer, "parameters_manual_cast"):
                    layer.parameters_manual_cast = on
            return "half" if on else "whole"
        for layer in network().modules():
            # On a card autocast computes these in float32; on a CPU it leaves them alone.
            if isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm):
                continue
            for weight in layer.parameters(recurse=False):
                weight.data = weight.data.to(torch.bfloat16 if on else torch.float32)
        model = shared.sd_model.model
        model.__dict__.pop("forward", None)
        if on:
            model.forward = self.autocast(model.forward)
        return "half" if on else "whole"

    def autocast(self, original: Any) -> Any:
        """As the host has it on a card, as long as the weights are in half precision."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=computes_in_half()):
                return original(*args, **kwargs)

        return forward


HALF = Half()
FAULTS = Faults()
script_callbacks.on_cfg_denoiser(FAULTS.strike)


def raise_memory(original: Any) -> Any:
    """A sampler's call in which `OutOfMemory` is what a card raises."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            if type(error).__name__ != "OutOfMemory":  # the class of before a reload is another one
                raise
            raise torch.cuda.OutOfMemoryError(str(error)) from None

    call.original = original  # type: ignore[attr-defined]
    return call


_launch = sd_samplers_common.Sampler.launch_sampling
sd_samplers_common.Sampler.launch_sampling = raise_memory(getattr(_launch, "original", _launch))


def memory() -> dict[str, Any]:
    """What is alive after a collection of garbage."""
    import gc

    gc.collect()
    alive = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {"resident": pages * 4096, "tensors": len(alive), "bytes": sum(each.nbytes for each in alive)}


def reload() -> str:
    """As the button does."""
    shared.state.request_restart()
    return "asked"


def held() -> dict[str, Any]:
    """Names of what the host holds of DINO Upscale for one generation; all empty when none is under way."""
    kept = {}
    for name, callbacks in script_callbacks.callback_map.items():
        if "cfg" in name:
            kept[name] = [str(c.callback) for c in callbacks if "lib_dino" in getattr(c.callback, "__module__", "")]
    replaced = [
        f"{holder.__name__}.{name}"
        for holder in (processing, scripts, scripts.ScriptRunner, shared.state, script_callbacks)
        if hasattr(holder, "__name__")
        for name, value in vars(holder).items()
        if callable(value) and "lib_dino" in str(getattr(value, "__module__", ""))
    ]
    return {"callbacks": kept, "replaced": replaced, "textinfo": shared.state.textinfo or ""}


def final_pass(on: bool) -> str:
    """So that what happens inside the loop can be seen alone."""
    import lib_dino.run.finish
    import lib_dino.sampling.consistency

    kept = lib_dino.sampling.consistency.back_project
    lib_dino.run.finish.back_project = kept if on else lambda image, source, **more: image
    return "on" if on else "off"


def routes(_: Any, app: Any) -> None:
    def start_clock() -> str:
        CLOCKS.start()
        return "started"

    def read_clock() -> dict[str, Any]:
        CLOCKS.stop()
        return {**CLOCKS.seconds, "process": time.process_time(), "now": time.perf_counter()}

    def start_ratios() -> str:
        RATIOS.start()
        return "started"

    def start_rows() -> str:
        ROWS.start()
        return "started"

    def seen() -> list[Any]:
        found, SEEN[:] = list(SEEN), []
        return found

    app.add_api_route("/host-probe/clock", start_clock, methods=["POST"])
    app.add_api_route("/host-probe/clock", read_clock, methods=["GET"])
    app.add_api_route("/host-probe/ratios", start_ratios, methods=["POST"])
    app.add_api_route("/host-probe/ratios", RATIOS.stop, methods=["GET"])
    app.add_api_route("/host-probe/rows", start_rows, methods=["POST"])
    app.add_api_route("/host-probe/rows", ROWS.stop, methods=["GET"])
    app.add_api_route("/host-probe/held", held, methods=["GET"])
    app.add_api_route("/host-probe/half", HALF.switch, methods=["POST"])
    app.add_api_route("/host-probe/faults", FAULTS.plan, methods=["POST"])
    app.add_api_route("/host-probe/faults", FAULTS.told, methods=["GET"])
    app.add_api_route("/host-probe/models", lambda: str(paths.models_path), methods=["GET"])
    app.add_api_route("/host-probe/memory", memory, methods=["GET"])
    app.add_api_route("/host-probe/reload", reload, methods=["POST"])

    def weights() -> list[float]:
        found, WEIGHTS[:] = list(WEIGHTS), []
        return found

    app.add_api_route("/host-probe/weights", weights, methods=["GET"])
    app.add_api_route("/host-probe/final-pass", final_pass, methods=["POST"])
    app.add_api_route("/host-probe/seen", seen, methods=["GET"])


script_callbacks.on_app_started(routes)


class ProbeDetailer(scripts.Script):
    """Repaints every finished picture by a nested img2img, as ADetailer does with faces."""

    def title(self) -> str:
        return "Probe detailer"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        return [gr.Checkbox(False, label="Probe detailer enabled")]

    def postprocess_image(self, p: Any, pp: Any, enabled: bool, *args: Any) -> None:
        if not enabled or getattr(p, "_probe_detailer_off", False):
            return
        image = pp.image.convert("RGB")
        q = processing.StableDiffusionProcessingImg2Img(
            init_images=[image], denoising_strength=0.4, prompt=p.prompt, seed=p.seed, steps=4,
            sampler_name=p.sampler_name, cfg_scale=p.cfg_scale, width=64, height=64, resize_mode=0,
            do_not_save_samples=True, do_not_save_grid=True,
        )  # fmt: skip
        q._probe_detailer_off = True
        runner = copy.copy(p.scripts)
        runner.alwayson_scripts = [s for s in runner.alwayson_scripts if "dino" in type(s).__name__.lower()]
        if hasattr(runner, "callback_map"):
            runner.callback_map = {}
        q.scripts_value, q.script_args_value, q.scripts_setup_complete = runner, list(p.script_args), True
        try:
            made = processing.process_images(q).images
        finally:
            q.close()
        if made:
            SEEN.append({"detailed": list(image.size), "dino": "DINO upscale" in q.extra_generation_params})
            part = made[0].resize((image.width // 2, image.height // 2))
            image.paste(part, (image.width // 4, image.height // 4))
            pp.image = image


if not FORGE:

    class ControlNetStandIn(scripts.Script):
        """Has ControlNet's title and the shape of its arguments, and writes down what a call would have used."""

        def title(self) -> str:
            return "ControlNet"

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            return [gr.State(None), gr.State(None)]

        def process(self, p: Any, *units: Any) -> None:
            for unit in units:
                if isinstance(unit, dict) and unit.get("enabled", True):
                    image = unit.get("image")
                    SEEN.append(
                        {
                            "own": image,
                            "tiles": [list(i.size) for i in getattr(p, "init_images", None) or ()],
                            "size": [p.width, p.height],
                            "upscale_key": any("upscale" in key.lower() for key in p.extra_generation_params),
                        }
                    )
