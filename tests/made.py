"""What several tests make: pictures, reports, maps and a small feature network."""

import dataclasses

import pytest
import torch

from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.networks.edit_detector import DetectorShape, EditDetector
from lib_dino.pictures.picture import Picture
from lib_dino.report.maps import Heat
from lib_dino.report.records import Report, TileReport
from lib_dino.run.finish import Finished
from lib_dino.run.outcome import events, report_on, run_picture
from lib_dino.run.plan import plan_job
from lib_dino.run.prepare import Prepared, prepare
from lib_dino.sampling.correction import PixelCodec
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize, tile_operators


def picture(height=300, width=400, **more):
    ramp = torch.linspace(0.2, 0.8, width).expand(1, 3, height, width).clone()
    return Picture(ramp, **more)


def report(size, *worst):
    figures = {"drift_above": 0.02, "over_bound": 0.1, "drift_peak": 0.4, "score": 0.3}
    tile = TileReport((0, 0, *size), 1.0, worst_patches=worst, **figures)
    settings = dataclasses.asdict(Settings(seed=3))
    return Report(
        (size[0] // 2, size[1] // 2), size, settings, model="m", features="f", model_calls=1, seconds=1.0,
        source_psnr=40.0, detail=1.0, source_noise=0.0, tiles=(tile,), bound=0.1, bound_kind="default",
    )  # fmt: skip


def heat(height=150, width=200, *, spot=(slice(60, 90), slice(80, 120)), value=0.4):
    values = torch.zeros(1, 1, height, width)
    values[..., spot[0], spot[1]] = value
    return Heat("drift", values, 0.1, 0.5)


def tiny_network(folder, *, dim=64, registers=0, depth=2) -> Dinov2:
    """A DINOv2 of that width with random weights, saved by transformers and loaded as a user's would be."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {"hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": dim // 64, "image_size": 56}
    settings["patch_size"] = 14
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **settings)
        transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
    else:
        transformers.Dinov2Model(transformers.Dinov2Config(**settings)).save_pretrained(folder)
    return load_dinov2(folder)


class FakeModel:
    """A diffusion model as the core sees one: it answers with what `paint` makes of tile and noise."""

    name = "fake"
    tile_px = 48
    channels = 3
    factor = 1
    fits_any_tile = False

    def __init__(self, paint, *, multiple_px=1, stop_after=None):
        self.paint, self.multiple_px, self.stop_after = paint, multiple_px, stop_after
        self.batches = []

    def calls(self, denoise, steps):
        return 2 if denoise else 0

    def render(self, batch, corrector, on_step):
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            return None
        self.batches.append(tuple(batch.images.shape))
        clean = 2 * self.paint(batch.images, batch.noise) - 1
        for ratio in (0.5, 0.1):
            clean = corrector(clean, ratio, PixelCodec())
            on_step()
        return (clean + 1) / 2


@dataclasses.dataclass
class Ran:
    """A run that is over."""

    job: Prepared
    model: object
    finished: Finished
    progress: list

    @property
    def image(self):
        return self.finished.image

    @property
    def steps(self):
        return [event for event in self.progress if event.canvas is None]

    @property
    def plan(self):
        return self.job.plan.tiles

    @property
    def events(self):
        return list(events(self.job, self.finished))

    def report(self, *, measures=True):
        measures = measures and self.job.meter is not None
        return report_on(self.job, self.model, self.finished, measures=measures, seconds=1.5).report


def ran(source, settings, model, dino=None, **more):
    """Everything from planning to the finished picture."""
    job = prepare(source, plan_job(settings, tuple(source.shape[-2:]), model), settings, dino=dino, **more)
    progress = []
    with torch.no_grad():
        return Ran(job, model, run_picture(job, model, on_progress=progress.append), progress)


def random_detector(dino, **shape):
    """An edit detector of random weights for `dino`."""
    torch.manual_seed(3)
    head = EditDetector(DetectorShape(dino.dim, (1, 3), width=8, pixels=4, **shape))
    torch.nn.init.normal_(head.out.weight)
    return head.eval().requires_grad_(False)


def whole(source, factor=2):
    """Operators of a tile that is the whole result, and the plain enlargement."""
    size = (source.shape[-2] * factor, source.shape[-1] * factor)
    return tile_operators(source.shape[-2:], size, slice(0, size[0]), slice(0, size[1])), resize(source, size)
