"""What makes a whole checkpoint of each family, and what AUTOMATIC1111 wants to lie beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .text import CLIP_G, CLIP_L, LAYERS, POSITIONS, TOKENS, add_clip, add_open_clip, add_t5
from .transformer import FLUX, add_flux, add_sd3
from .transformer import SD3 as SD3_TRANSFORMER
from .unet import SD1, SDXL, UNetSizes, add_unet, lay_unet_paths
from .vae import Latents, VAESizes, add_vae, lay_vae_paths
from .weights import Weights

CLIP_G_NAME = "dino-tiny-bigG"
"""The name of open_clip's model config that AUTOMATIC1111 takes SDXL's second text encoder from."""

LATENTS = {
    "sd1": Latents(
        ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473)),
        0.18215, 0.0, True, "taesd",
    ),
    "sdxl": Latents(
        ((0.392, 0.4054, 0.4549), (-0.2634, -0.0196, 0.0653), (0.0568, 0.1687, -0.0755), (-0.3112, -0.2359, -0.2076)),
        0.13025, 0.0, True, "taesdxl",
    ),
    "sd3": Latents(
        (
            (-0.0645, 0.0177, 0.1052), (0.0028, 0.0312, 0.065), (0.1848, 0.0762, 0.036), (0.0944, 0.036, 0.0889),
            (0.0897, 0.0506, -0.0364), (-0.002, 0.1203, 0.0284), (0.0855, 0.0118, 0.0283), (-0.0539, 0.0658, 0.1047),
            (-0.0057, 0.0116, 0.07), (-0.0412, 0.0281, -0.0039), (0.1106, 0.1171, 0.122), (-0.0248, 0.0682, -0.0481),
            (0.0815, 0.0846, 0.1207), (-0.012, -0.0055, -0.0867), (-0.0749, -0.0634, -0.0456),
            (-0.1418, -0.1457, -0.1259),
        ),
        1.5305, 0.0609, False, "taesd3",
    ),
    "flux": Latents(
        (
            (-0.0404, 0.0159, 0.0609), (0.0043, 0.0298, 0.085), (0.0328, -0.0749, -0.0503), (-0.0245, 0.0085, 0.0549),
            (0.0966, 0.0894, 0.053), (0.0035, 0.0399, 0.0123), (0.0583, 0.1184, 0.1262), (-0.0191, -0.0206, -0.0306),
            (-0.0324, 0.0055, 0.1001), (0.0955, 0.0659, -0.0545), (-0.0504, 0.0231, -0.0013),
            (0.05, -0.0008, -0.0088), (0.0982, 0.0941, 0.0976), (-0.1233, -0.028, -0.0897), (-0.0005, -0.053, -0.002),
            (-0.1273, -0.0932, -0.068),
        ),
        0.3611, 0.1159, False, "taef1",
    ),
}  # fmt: skip
"""By family, with the tables of the hosts' cheap previews, so that those agree with the decoded picture."""


@dataclass(frozen=True)
class Family:
    """How a family's checkpoint is made.

    Attributes:
        text: adds its text encoders.
        model: adds what predicts noise; the number is the gain of its random part.
        vae: what the autoencoder's names begin with.
    """

    text: Callable[[Weights], None]
    model: Callable[[Weights, float], None]
    vae: str = "first_stage_model."


def _text_sd1(weights: Weights) -> None:
    add_clip(weights, "cond_stage_model.transformer.text_model.", CLIP_L)


def _text_sdxl(weights: Weights) -> None:
    add_clip(weights, "conditioner.embedders.0.transformer.text_model.", CLIP_L)
    add_open_clip(weights, "conditioner.embedders.1.model.", CLIP_G)


def _text_flux(weights: Weights) -> None:
    add_clip(weights, "text_encoders.clip_l.transformer.text_model.", CLIP_L)
    add_t5(weights, "text_encoders.t5xxl.transformer.")


def _text_sd3(weights: Weights) -> None:
    for name, sizes in (("clip_l", CLIP_L), ("clip_g", CLIP_G)):
        at = f"text_encoders.{name}.transformer."
        add_clip(weights, f"{at}text_model.", sizes, projection=f"{at}text_projection")
    add_t5(weights, "text_encoders.t5xxl.transformer.")


def _unet(sizes: UNetSizes) -> Callable[[Weights, float], None]:
    def add(weights: Weights, noise: float) -> None:
        add_unet(weights, sizes)
        lay_unet_paths(weights, sizes, noise)

    return add


FAMILIES = {
    "sd1": Family(_text_sd1, _unet(SD1)),
    "sdxl": Family(_text_sdxl, _unet(SDXL)),
    "sd3": Family(_text_sd3, lambda weights, noise: add_sd3(weights, SD3_TRANSFORMER, noise)),
    "flux": Family(_text_flux, lambda weights, noise: add_flux(weights, FLUX, noise), "vae."),
}


def checkpoint(seed: int, *, noise: float, family: str = "sd1") -> dict[str, Tensor]:
    """State dict of the whole tiny model; text encoders in half precision, the rest in single."""
    made, latents = FAMILIES[family], LATENTS[family]
    weights, vae = Weights(seed), VAESizes()
    made.text(weights)
    weights.tensors = {name: tensor.half() for name, tensor in weights.tensors.items()}
    made.model(weights, noise)
    add_vae(weights, made.vae, vae, latents)
    lay_vae_paths(weights, made.vae, vae, latents)
    return weights.tensors


def open_clip_config() -> str:
    """The model config that has to lie among open_clip's own, as `CLIP_G_NAME`.json, before AUTOMATIC1111 starts."""
    text = {"context_length": POSITIONS, "vocab_size": TOKENS, "width": CLIP_G.width, "heads": 20, "layers": LAYERS}
    vision = {"image_size": 28, "layers": 1, "width": 64, "head_width": 64, "patch_size": 14}
    return json.dumps({"embed_dim": CLIP_G.width, "vision_cfg": vision, "text_cfg": text}, indent=1) + "\n"


def a1111_config(text: str, family: str = "sd1") -> str:
    """The .yaml AUTOMATIC1111 wants beside an SD 1.5 or SDXL; `text` names or holds CLIP's tokenizer and config."""
    sizes, vae = {"sd1": SD1, "sdxl": SDXL}[family], VAESizes()
    return {"sd1": SD1_YAML, "sdxl": SDXL_YAML}[family].format(
        scale=LATENTS[family].scale,
        unet=sizes,
        attention=list(sizes.attention),
        multipliers=list(sizes.multipliers),
        depth=[1] * len(sizes.multipliers),
        context=sizes.context,
        vae=vae,
        levels=[1] * vae.levels,
        text=text,
        clip_g=CLIP_G_NAME,
    )


SD1_YAML = """\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: {scale}
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{image_size: 32, in_channels: 4, out_channels: 4, model_channels: {unet.channels},
        attention_resolutions: {attention}, num_res_blocks: {unet.blocks}, channel_mult: {multipliers}, num_heads: 8,
        use_spatial_transformer: True, transformer_depth: 1, context_dim: {context}, use_checkpoint: False,
        legacy: False}}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig: {{double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: {vae.channels},
          ch_mult: {levels}, num_res_blocks: 0, attn_resolutions: [], dropout: 0.0}}
        lossconfig: {{target: torch.nn.Identity}}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params: {{version: "{text}"}}
"""

SDXL_YAML = """\
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: {scale}
    disable_first_stage_autocast: True
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config: {{target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting}}
        scaling_config: {{target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling}}
        discretization_config: {{target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization}}
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{adm_in_channels: {unet.vector}, num_classes: sequential, in_channels: 4, out_channels: 4,
        model_channels: {unet.channels}, attention_resolutions: {attention}, num_res_blocks: {unet.blocks},
        channel_mult: {multipliers}, num_head_channels: 64, use_spatial_transformer: True,
        use_linear_in_transformer: True, transformer_depth: {depth}, context_dim: {context},
        spatial_transformer_attn_type: softmax, use_checkpoint: False, legacy: False}}
    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
        - is_trainable: False
          input_key: txt
          target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
          params: {{version: "{text}", layer: hidden, layer_idx: 1}}
        - is_trainable: False
          input_key: txt
          target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
          params: {{arch: {clip_g}, version: laion2b_s39b_b160k, freeze: True, layer: penultimate,
            always_return_pooled: True, legacy: False}}
        - {{is_trainable: False, input_key: original_size_as_tuple,
           target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND, params: {{outdim: 256}}}}
        - {{is_trainable: False, input_key: crop_coords_top_left,
           target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND, params: {{outdim: 256}}}}
        - {{is_trainable: False, input_key: target_size_as_tuple,
           target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND, params: {{outdim: 256}}}}
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
        embed_dim: 4
        ddconfig: {{attn_type: vanilla, double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3,
          ch: {vae.channels}, ch_mult: {levels}, num_res_blocks: 0, attn_resolutions: [], dropout: 0.0}}
        lossconfig: {{target: torch.nn.Identity}}
"""
