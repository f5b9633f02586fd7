"""The maths of injection, and a diffusers UNet that looks at tokens."""

import math

import pytest
import torch
from torch.testing import assert_close

from lib_dino.adapter.diffusers_unet import check_fits, cross_attention, injected, shapes
from lib_dino.adapter.format import AdapterInfo
from lib_dino.adapter.injection import Adapter, Injection, attend, level
from lib_dino.adapter.load import new_layers
from lib_dino.adapter.projectors import PLACE_DIM, PatchTokens, cell_centres, feature_dim, fourier
from lib_dino.errors import ModelError
from lib_dino.networks.dinov2 import fingerprint, load_dinov2

WIDTH = 48


@pytest.fixture(scope="module")
def dino():
    return load_dinov2()


@pytest.fixture(scope="module")
def unet():
    """Like SD 1.5's, small: cross-attention at two sizes and in the middle, self-attention beside it."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return unet.eval().requires_grad_(False)


def make(dino, sizes, *, heads=4, seed=0):
    """An adapter with random weights everywhere, so that it has an effect."""
    torch.manual_seed(seed)
    info = AdapterInfo(dino.name, fingerprint(dino), (3, 8), 224, 518, "embedded")
    made = PatchTokens(feature_dim(info, dino), WIDTH, 64)
    layers = new_layers(sizes, [heads] * len(sizes), width=WIDTH)
    for layer in layers:
        torch.nn.init.normal_(layer.to_v_ip.weight, std=0.3)
    return Adapter(info, made, layers, name="test").eval().requires_grad_(False)


def by_hand(layer, query, tokens, heads, places):
    """The formula, element by element."""
    k, v = tokens @ layer.to_k_ip.weight.T, tokens @ layer.to_v_ip.weight.T
    query = query + torch.cat([query, places], -1) @ layer.to_q_ip.weight.T
    out, d = torch.zeros_like(query), query.shape[-1] // heads
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        for row in range(len(query)):
            for n in range(query.shape[1]):
                scores = (k[row, :, part] @ query[row, n, part]) / math.sqrt(d)
                out[row, n, part] = torch.softmax(scores, 0) @ v[row, :, part]
    return out


def test_what_is_seen_is_the_formula(dino, generator):
    adapter = make(dino, [(16, 24)], heads=2)
    tokens = torch.randn(2, 12, WIDTH, generator=generator)
    query = torch.randn(2, 8, 16, generator=generator)
    injection = Injection(adapter, tokens, 0.7, grid=(3, 4), span=(4.0, 8.0))
    # Cells twice as coarse as the input's 4 x 8.
    places = fourier(cell_centres(2, 4, step=(1.5, 1.0)))[None].expand(2, -1, -1)
    assert_close(
        injection.seen(0, query, 2, cells=(4, 8)), 0.7 * by_hand(adapter.layers[0], query, tokens, 2, places)
    )


def test_rows_look_at_their_own_tile_and_unconditional_ones_at_nothing(dino, generator):
    adapter = make(dino, [(16, 24)], heads=2)
    tokens = torch.randn(2, 5, WIDTH, generator=generator)
    query = torch.randn(1, 6, 16, generator=generator).expand(4, -1, -1)
    both = Injection(adapter, tokens, 1.0, (2, 2))
    seen = both.seen(0, query, 2, rows=torch.tensor([1, 0, -1, 1]), cells=(2, 3))
    alone = [Injection(adapter, tokens[i : i + 1], 1.0, (2, 2)).seen(0, query[:1], 2, cells=(2, 3))[0] for i in (0, 1)]
    assert_close(seen[0], alone[1])
    assert_close(seen[1], alone[0])
    assert_close(seen[3], alone[1])
    assert not seen[2].any()
    assert (alone[0] - alone[1]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_hosts_half_precision_is_answered_in_kind(dino, generator, dtype):
    adapter = make(dino, [(16, 24)], heads=2)
    tokens, query = torch.randn(1, 4, WIDTH, generator=generator), torch.randn(1, 4, 16, generator=generator)
    wanted = Injection(adapter, tokens, 1.0, grid=(2, 2)).seen(0, query, 2, cells=(2, 2))
    seen = Injection(adapter, tokens, 1.0, grid=(2, 2)).seen(0, query.to(dtype), 2, cells=(2, 2))
    assert seen.dtype == dtype
    assert_close(seen.float(), wanted, rtol=0.05, atol=0.05)
    adapter.layers.half()  # as kept on a GPU
    seen = Injection(adapter, tokens, 1.0, grid=(2, 2)).seen(0, query, 2, cells=(2, 2))
    assert_close(seen, wanted, rtol=0.05, atol=0.05)


def test_zero_tokens_add_nothing(dino, generator):
    adapter = make(dino, [(16, 24)])
    query = torch.randn(1, 4, 16, generator=generator)
    seen = Injection(adapter, torch.zeros(1, 4, WIDTH), 1.0, grid=(2, 2), span=(2, 2)).seen(0, query, 4, cells=(2, 2))
    assert not seen.any()


def test_large_inputs_are_attended_in_parts(monkeypatch, generator):
    q, k, v = (torch.randn(2, n, 16, generator=generator) for n in (33, 5, 5))
    whole = attend(q, k, v, 4)
    monkeypatch.setattr("lib_dino.adapter.injection.MOST_SCORES", 2 * 4 * 5 * 7)
    assert_close(attend(q, k, v, 4), whole)


def test_a_new_adapter_sees_nothing_and_looks_at_the_patch_around_each_place(dino):
    torch.manual_seed(0)
    info = AdapterInfo("x", fingerprint(dino), (8,), 224, 518, "embedded")
    (layer,) = new_layers([(64, 24)], [2], width=PLACE_DIM + 16)
    projector = PatchTokens(dino.dim, PLACE_DIM + 16, 8)
    adapter = Adapter(info, projector, [layer], name="x").requires_grad_(False)
    tokens = projector(torch.randn(1, dino.dim, 6, 6)).detach()
    fresh = Injection(adapter, tokens, 1.0, grid=(6, 6), span=(6, 6)).seen(0, torch.zeros(1, 36, 64), 2, cells=(6, 6))
    assert not fresh.any()
    # Let it see each token's number instead of its content: the nearest patch dominates.
    layer.to_v_ip.weight[:16, :16] = torch.eye(16)
    tokens[..., :16] = 0
    tokens[0, 14, 0] = 1.0  # third row, third column
    seen = Injection(adapter, tokens, 1.0, grid=(6, 6), span=(6, 6)).seen(0, torch.zeros(1, 36, 64), 2, cells=(6, 6))
    shown = seen[0, :, 0]
    assert shown.argmax() == 14
    assert shown[14] > 0.5
    assert shown[35] < 0.02 * shown[14]


def test_halvings_of_odd_inputs_are_recognised():
    assert level(7 * 9, (7, 9)) == (0, (7, 9))
    assert level(4 * 5, (7, 9)) == (1, (4, 5))
    assert level(2 * 3, (7, 9)) == (2, (2, 3))
    with pytest.raises(ModelError, match="token merging"):
        level(50, (7, 9))


def test_tiles_of_other_content_get_other_tokens(dino, generator):
    adapter = make(dino, [(16, 24)])
    tiles = torch.rand(2, 3, 40, 56, generator=generator)
    tokens = adapter.tokens(dino, tiles, 2.0)
    rows, columns = adapter.grid(tiles, 2.0)
    assert tokens.shape == (2, rows * columns + 1, WIDTH)
    assert not tokens[:, -1].any()
    assert (tokens[0] - tokens[1]).abs().max() > 0.01
    assert_close(adapter.tokens(dino, tiles[1:], 2.0)[0], tokens[1], rtol=1e-3, atol=1e-4)


def run(unet, sample, context):
    with torch.no_grad():
        return unet(sample, 10, context).sample


def test_strength_nought_is_bitwise_off_and_nothing_is_left_behind(dino, unet, generator):
    adapter = make(dino, shapes(unet))
    sample, context = torch.randn(1, 4, 8, 12, generator=generator), torch.randn(1, 3, 24, generator=generator)
    tokens = torch.randn(1, 6, WIDTH, generator=generator)
    plain, before = run(unet, sample, context), dict(unet.attn_processors)
    places = {"grid": (2, 3), "span": (8.0, 12.0)}
    with injected(unet, Injection(adapter, tokens, 0.0, **places)):
        assert unet.attn_processors == before
        assert torch.equal(run(unet, sample, context), plain)
    with pytest.raises(KeyboardInterrupt), injected(unet, Injection(adapter, tokens, 1.0, **places)):
        changed = run(unet, sample, context)
        raise KeyboardInterrupt
    assert (changed - plain).abs().max() > 1e-3
    assert unet.attn_processors == before
    assert not unet._forward_pre_hooks
    assert torch.equal(run(unet, sample, context), plain)


def test_a_unet_gets_the_decoupled_attention(dino, unet, generator):
    """A processor written out from the formula gives the same picture."""
    adapter = make(dino, shapes(unet))
    tokens = torch.randn(2, 17, WIDTH, generator=generator)
    sample, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 24, generator=generator)
    with injected(unet, Injection(adapter, tokens, 0.6, (4, 4))):
        ours = run(unet, sample, context)
    plain = dict(unet.attn_processors)

    def written_out(layer):
        def process(attention, hidden, encoder_hidden_states=None, **_):
            q, k, v = attention.to_q(hidden), *(f(encoder_hidden_states) for f in (attention.to_k, attention.to_v))
            side = round(hidden.shape[1] ** 0.5)
            places = fourier(cell_centres(side, side, step=(4 / side, 4 / side)))[None].expand(2, -1, -1)
            seen = attend(q, k, v, attention.heads) + 0.6 * by_hand(layer, q, tokens, attention.heads, places)
            return attention.to_out[0](seen)

        return process

    for module, layer in zip(cross_attention(unet), adapter.layers, strict=True):
        module.processor = written_out(layer)
    theirs = run(unet, sample, context)
    unet.set_attn_processor(plain)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_odd_processors_are_the_cross_attention(unet):
    modules = cross_attention(unet)
    assert len(modules) == 2 + 4 + 1
    assert all(m.to_k.in_features == 24 != m.to_q.in_features for m in modules)
    assert modules[-1] is unet.mid_block.attentions[0].transformer_blocks[0].attn2


def test_sd15s_own_layers_are_1_to_31():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        found = shapes(UNet2DConditionModel(cross_attention_dim=768))
    up = [1280] * 3 + [640] * 3 + [320] * 3
    assert found == [(channels, 768) for channels in [320, 320, 640, 640, 1280, 1280, *up, 1280]]
    assert 2 * len(found) - 1 == 31


def test_another_model_is_refused(dino, unet):
    adapter = make(dino, [(32, 24)] * 7)
    with pytest.raises(ModelError, match="7 cross-attention layers of 32 channels; the checkpoint has 7 of 32/64"):
        check_fits(adapter, shapes(unet), base="embedded", model="the checkpoint")
    with pytest.raises(ModelError, match="was made for embedded; the checkpoint is sdxl"):
        check_fits(make(dino, shapes(unet)), shapes(unet), base="sdxl", model="the checkpoint")
