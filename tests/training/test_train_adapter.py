"""Training adapters, end to end, on tiny models of random weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lib_dino.adapter.diffusers_unet import injected
from lib_dino.adapter.injection import Injection
from lib_dino.adapter.load import load_adapter
from lib_dino.networks.dinov2 import load_dinov2
from training import train_adapter
from training.train_adapter import build, main, read_run, train

SIDE = 64
WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "house</w>", *map(chr, range(97, 123))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two pictures with something in them, one with a caption."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:96, 0:112]
    for i in range(2):
        waves = np.stack([np.sin(x / (3 + i)), np.cos(y / 4), np.sin((x + y) / (5 + i))], -1)
        Image.fromarray((127.5 + 100 * waves).astype(np.uint8)).save(folder / f"{i}.png")
    (folder / "1.txt").write_text("a house\n")
    (folder / "notes.md").write_text("no picture")
    return folder


def tokenizer(folder):
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=8)


def text_encoder(kind, width):
    from transformers import CLIPTextConfig

    return kind(CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=8, projection_dim=width, bos_token_id=0, eos_token_id=1,
    ))  # fmt: skip


def unet_of(width, **more):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=width, attention_head_dim=8,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **more,
    )  # fmt: skip


def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=2, layers_per_block=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """A diffusers folder of SD 1.5's make."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd15")
    StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(CLIPTextModel, 768), tokenizer=tokenizer(folder / "words"),
        unet=unet_of(768), scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """A diffusers folder of SDXL's make."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sdxl")
    StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder(CLIPTextModel, 768), tokenizer=tokenizer(folder / "words"),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, 1280), tokenizer_2=tokenizer(folder / "words2"),
        unet=unet_of(2048, addition_embed_type="text_time", addition_time_embed_dim=4,
                     projection_class_embeddings_input_dim=1280 + 6 * 4),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


def options(base, photos, out, *more):
    words = [
        "train", "--base", base, "--photos", photos, "--out", out, "--cpu", "--side", SIDE, "--batch", 2, "--inner", 64,
        "--steps", 4, "--rate", 1e-3, "--px", 56, 112, "--say-every", 1, *more,
    ]  # fmt: skip
    return train_adapter.parser().parse_args([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(sd15, photos, tmp_path_factory):
    """A finished run on SD 1.5, two batches to a step."""
    out = tmp_path_factory.mktemp("run")
    return train(options(sd15, photos, out, "--accumulate", 2)), out


def test_training_changes_the_adapter_and_nothing_else(trained, sd15):
    from diffusers import UNet2DConditionModel

    trainer, out = trained
    assert trainer.step == 4
    values = [layer.to_v_ip.weight for layer in read_run(out).layers]
    assert all(value.abs().max() > 0 for value in values)
    before = UNet2DConditionModel.from_pretrained(sd15, subfolder="unet").state_dict()
    assert all(torch.equal(before[name], value) for name, value in trainer.base.unet.state_dict().items())
    lines = (out / "log.txt").read_text().splitlines()
    assert "step 4/4, loss" in lines[-1] and "min left" in lines[-1]


def test_an_untrained_adapter_changes_nothing(sd15, photos, tmp_path):
    trainer = build(options(sd15, photos, tmp_path))
    batch = trainer.photographs.batch(0, 2)
    noisy, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 300])
    injection = trainer.injector(batch, torch.ones(2))()
    off = Injection(trainer.adapter, injection.tokens, 0.0, injection.grid)
    plain = trainer.base.predict(noisy, t, ["", "a"], off, SIDE)
    assert torch.equal(trainer.base.predict(noisy, t, ["", "a"], injection, SIDE), plain)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(sd15, photos, tmp_path):
    more = ["--steps", 2]
    whole = train(options(sd15, photos, tmp_path / "a", *more))
    train(options(sd15, photos, tmp_path / "b", *more, "--stop-at", 1))
    first = read_run(tmp_path / "b").state_dict()
    resumed = train(options(sd15, photos, tmp_path / "b", *more))
    assert resumed.step == whole.step == 2
    one, two = (read_run(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(first[name], two[name]) for name in first)


def test_the_runtime_paints_the_picture_that_training_saw(trained, tmp_path):
    """The exported file, tokens and all by the product's code, against the training code's own forward."""
    trainer, out = trained
    main(["export", "--out", str(out), "--file", str(tmp_path / "a.safetensors")])
    dino = load_dinov2()
    adapter = load_adapter(tmp_path / "a.safetensors", dino)
    assert (adapter.info.base, adapter.width) == ("sd15", 768)
    learned = trainer.accelerator.unwrap_model(trainer.adapter).eval()
    learned.load_state_dict(adapter.state_dict())
    batch = trainer.photographs.batch(3, 2)
    with torch.no_grad():
        theirs = trainer.injector(batch, torch.ones(2))()
        tokens, grid = adapter.tokens(dino, batch.soft, batch.scale), adapter.grid(batch.soft, batch.scale)
        ours = Injection(adapter, tokens, 1.0, grid)
        pictures = [picture_of(trainer.base, injection) for injection in (theirs, ours)]
        plain = picture_of(trainer.base, Injection(adapter, ours.tokens, 0.0, ours.grid))
    assert_close(pictures[1], pictures[0], rtol=1e-4, atol=1e-5)
    assert (plain - pictures[0]).abs().max() > 1e-4


def picture_of(base, injection):
    """Three steps of DDIM from noise, decoded."""
    pipeline = base.pipeline
    pipeline.scheduler.set_timesteps(3)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    context = torch.cat([base._text("a house")[0]] * 2)
    for t in pipeline.scheduler.timesteps:
        with injected(base.unet, injection):
            x = pipeline.scheduler.step(base.unet(x, t, context).sample, t, x).prev_sample
    return base.vae.decode(x).sample


def test_a_dropped_image_is_an_unconditional_row(trained):
    trainer, _ = trained
    batch = trainer.photographs.batch(0, 2)
    injection = trainer.injector(batch, torch.tensor([1.0, 0.0]))()
    assert injection.tokens[0].abs().max() > 0
    assert not injection.tokens[1].any()
    trainer.drop = 1.0
    assert not trainer.injector(batch, (torch.rand(2) >= trainer.drop).float())().tokens.any()
    trainer.drop = 0.05


def test_sdxl_is_trained_too(sdxl, photos, tmp_path):
    train(options(sdxl, photos, tmp_path, "--steps", 1))
    main(["export", "--out", str(tmp_path), "--file", str(tmp_path / "a.safetensors")])
    adapter = load_adapter(tmp_path / "a.safetensors", load_dinov2())
    assert (adapter.info.base, adapter.width) == ("sdxl", 2048)


def test_the_embedded_denoiser_is_trained_by_the_same_code(photos, tmp_path):
    more = ["--local", "--drop", 0, "--side", 72]
    trainer = build(options("embedded", photos, tmp_path / "a", *more))
    trainer.base.window_px = 56
    assert 0 < trainer.one_step() < 10
    adapter = trainer.accelerator.unwrap_model(trainer.adapter)
    assert adapter.channels == [128] * 3
    assert adapter.layers[0].to_v_ip.weight.abs().max() > 0
    # Places are nothing to see, and nothing but places decides who looks where.
    assert not adapter.layers[0].to_v_ip.weight[:, -32:].any()
    assert not adapter.layers[0].to_k_ip.weight[:, :-32].any()
    assert torch.equal(adapter.layers[0].to_q_ip.weight[:, :-32], -torch.eye(128))


@pytest.mark.parametrize(("base", "message"), [("nothing", "neither a diffusers folder"), ("model.ckpt", "neither")])
def test_a_model_of_another_kind_is_refused(photos, tmp_path, base, message):
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    with pytest.raises(SystemExit, match=message):
        train(options(tmp_path / base, photos, tmp_path / "out"))


def test_a_folder_without_pictures_is_refused(sd15, tmp_path):
    with pytest.raises(SystemExit, match="holds no picture of at least 80 x 80"):
        train(options(sd15, tmp_path, tmp_path / "out"))
    with pytest.raises(SystemExit, match="needs --photos"):
        main(["train", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--file"):
        main(["export", "--out", str(tmp_path)])


def test_samples_depend_on_their_number_alone(photos):
    from training.adapter_data import Photographs

    one, two = (Photographs(photos, SIDE, 3, clean=0.2) for _ in range(2))
    two.batch(8, 2)
    a, b = one.batch(5, 2), two.batch(5, 2)
    assert torch.equal(a.sharp, b.sharp) and torch.equal(a.soft, b.soft)
    assert (a.scale, a.captions) == (b.scale, b.captions)
    assert a.sharp.shape == (2, 3, SIDE, SIDE) and 0 <= a.soft.min() <= a.soft.max() <= 1
    assert not torch.equal(a.soft, a.sharp)
    assert not torch.equal(one.batch(6, 2).sharp, a.sharp)
    assert {c for n in range(8) for c in one.batch(n, 2).captions} == {"", "a house"}
