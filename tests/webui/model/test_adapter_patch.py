"""An adapter in the hosts' own UNets: modules wrapped as in A1111, patches as in the Forge family, one result."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lib_dino.adapter.format import AdapterInfo
from lib_dino.adapter.injection import Adapter, Injection
from lib_dino.adapter.load import new_layers
from lib_dino.adapter.projectors import PatchTokens, cell_centres, fourier
from lib_dino.errors import ModelError
from lib_dino.webui.model import adapter_patch as adapters
from lib_dino.webui.model.adapter_patch import Conditioner, check, places
from lib_dino.webui.model.family import Model

SD1 = Model("sd1", 4, 512, 8, False)
WIDTH, CONTEXT, GRID = 768, 768, (2, 2)


class CrossAttention(nn.Module):
    """As the hosts have it: the same names, the same maths."""

    def __init__(self, channels, context, heads=2):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0.0))

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        return self.to_out(attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


def attention(q, k, v, heads):
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels)
        self.attn2 = CrossAttention(channels, CONTEXT)


class Transformer(nn.Module):
    def __init__(self, channels, depth):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(Block(channels) for _ in range(depth))


class UNet(nn.Module):
    """Blocks registered down, middle, up, as the hosts register theirs."""

    def __init__(self):
        super().__init__()
        plain = nn.Identity
        self.input_blocks = nn.ModuleList(
            nn.Sequential(plain(), *part) for part in ([], [Transformer(8, 1)], [Transformer(16, 2)])
        )
        self.middle_block = nn.Sequential(plain(), Transformer(32, 1), plain())
        self.output_blocks = nn.ModuleList([nn.Sequential(plain()), nn.Sequential(plain(), Transformer(12, 1))])

    def forward(self, x, context):
        """Every cross-attention layer's answer, side by side; the layers take what channels they need."""
        found = []
        for name, module in self.named_modules():
            if name.endswith("attn2"):
                found.append(module(x[..., : module.to_q.in_features], context=context))
        return torch.cat(found, -1)


@pytest.fixture
def unet():
    torch.manual_seed(1)
    return UNet().requires_grad_(False)


def make(channels=(8, 16, 16, 12, 32), base="sd15"):
    torch.manual_seed(2)
    info = AdapterInfo("test", "0" * 16, (8,), 224, 518, base)
    layers = new_layers([(c, CONTEXT) for c in channels], [2] * len(channels), width=WIDTH)
    for layer in layers:
        nn.init.normal_(layer.to_v_ip.weight)
    return Adapter(info, PatchTokens(64, WIDTH, 64), layers, name="test").requires_grad_(False)


def loaded(unet):
    return types.SimpleNamespace(model=types.SimpleNamespace(diffusion_model=unet))


def call_of(rows, conditional):
    """What the host tells before a model call: latents of `rows` rows, the first `conditional` with a prompt."""
    return types.SimpleNamespace(x=torch.zeros(rows, 4, 2, 3), text_cond=torch.zeros(conditional, 77, CONTEXT))


def by_hand(unet, adapter, tokens, strength, x, context, rows):
    """The decoupled attention of every layer, written out: softmax(q k) v + strength * softmax(q' k_ip) v_ip."""
    places_of = fourier(cell_centres(2, 3, step=(GRID[0] / 2, GRID[1] / 3)))[None]
    numbers = {place.module: number for number, place in enumerate(places(unet))}
    found = []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            q = module.to_q(x[..., : module.to_q.in_features])
            seen = attention(q, module.to_k(context), module.to_v(context), module.heads)
            layer = adapter.layers[numbers[module]]
            placed = q + layer.to_q_ip(torch.cat([q, places_of.expand(len(q), -1, -1)], -1))
            for i, row in enumerate(rows):
                if row >= 0:
                    k, v = layer.to_k_ip(tokens[row : row + 1]), layer.to_v_ip(tokens[row : row + 1])
                    seen[i] += strength * attention(placed[i : i + 1], k, v, module.heads)[0]
            found.append(module.to_out(seen))
    return torch.cat(found, -1)


def test_layers_are_counted_down_up_middle(unet):
    keys = [place.key for place in places(unet)]
    assert keys == [("input", 1, 0), ("input", 2, 0), ("input", 2, 1), ("output", 1, 0), ("middle", 0, 0)]
    assert [place.module.to_q.in_features for place in places(unet)] == [8, 16, 16, 12, 32]


def data(generator, tiles=2, rows=4):
    x = torch.randn(rows, 6, 32, generator=generator)
    return x, torch.randn(rows, 77, CONTEXT, generator=generator), torch.randn(tiles, 3, WIDTH, generator=generator)


@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 1, 1, 1], [3, 1]])
def test_a1111_sees_the_formula_however_the_rows_of_a_step_are_split(unet, generator, sizes):
    x, context, tokens = data(generator)
    adapter, conditioner = make(), Conditioner()
    wanted = by_hand(unet, adapter, tokens, 0.5, x, context, [0, 1, -1, -1])
    p = types.SimpleNamespace(sd_model=loaded(unet))
    with conditioner.conditioned(Injection(adapter, tokens, 0.5, GRID)), conditioner.installed(p):
        for _ in range(2):  # two steps
            conditioner.before_model(call_of(4, 2))
            parts = zip(x.split(sizes), context.split(sizes), strict=True)
            assert_close(torch.cat([unet(*part) for part in parts]), wanted)
        conditioner.check_looked()


def test_several_prompts_of_a_tile_and_a_step_without_unconditional_rows(unet, generator):
    x, context, tokens = data(generator, rows=6)
    adapter, conditioner = make(), Conditioner()
    p = types.SimpleNamespace(sd_model=loaded(unet))
    with conditioner.conditioned(Injection(adapter, tokens, 1.0, GRID)), conditioner.installed(p):
        conditioner.before_model(call_of(6, 4))
        wanted = by_hand(unet, adapter, tokens, 1.0, x, context, [0, 0, 1, 1, -1, -1])
        assert_close(unet(x, context), wanted, rtol=1e-4, atol=1e-4)
        conditioner.before_model(call_of(6, 4))  # the host leaves its last rows out
        assert_close(unet(x[:4], context[:4]), wanted[:4], rtol=1e-4, atol=1e-4)
        with pytest.raises(ModelError, match="tile batch size to 1"):
            conditioner.before_model(call_of(5, 3))


def test_nothing_of_a1111s_wrapping_is_left_whatever_happens(unet, generator):
    x, context, tokens = data(generator)
    conditioner, p = Conditioner(), types.SimpleNamespace(sd_model=loaded(unet))
    other = places(unet)[1].module
    kept = other.forward
    other.forward = lambda *args, **kwargs: 2 * kept(*args, **kwargs)  # another extension's
    theirs, before = other.forward, unet(x, context)
    injection = Injection(make(), tokens, 1.0, GRID)
    with pytest.raises(KeyboardInterrupt), conditioner.conditioned(injection), conditioner.installed(p):
        conditioner.before_model(call_of(4, 2))
        changed = unet(x, context)
        raise KeyboardInterrupt
    assert (changed - before).abs().max() > 0.01
    assert conditioner.injection is None
    assert other.forward is theirs
    assert all("forward" not in place.module.__dict__ for place in places(unet) if place.module is not other)
    assert torch.equal(unet(x, context), before)


def test_without_an_injection_nothing_is_touched(unet):
    conditioner = Conditioner()
    with conditioner.installed(types.SimpleNamespace(sd_model=loaded(unet))):
        assert all("forward" not in place.module.__dict__ for place in places(unet))
    conditioner.check_looked()


def test_a_unet_that_never_looks_is_reported(unet, generator):
    _, _, tokens = data(generator)
    conditioner = Conditioner()
    with conditioner.conditioned(Injection(make(), tokens, 1.0, GRID)):
        with conditioner.installed(types.SimpleNamespace(sd_model=loaded(unet))):
            pass
        with pytest.raises(ModelError, match="was not used"):
            conditioner.check_looked()


class Patcher:
    """The part of the Forge family's UNet patcher that matters: clones, deep copies, one replacement a key."""

    def __init__(self, unet, options=None):
        self.model = types.SimpleNamespace(diffusion_model=unet)
        self.model_options = options or {"transformer_options": {}}

    def clone(self):
        return Patcher(self.model.diffusion_model, copy.deepcopy(self.model_options))

    def set_model_attn2_replace(self, patch, block, number, index):
        replaced = self.model_options["transformer_options"].setdefault("patches_replace", {}).setdefault("attn2", {})
        replaced[block, number, index] = patch

    def run(self, x, context, chunks):
        """The host's block: its own attention where nothing replaces it."""
        unet, options = self.model.diffusion_model, self.model_options["transformer_options"]
        replaced = options.get("patches_replace", {}).get("attn2", {})
        keys, found = {place.module: place.key for place in places(unet)}, []
        extra = {"cond_or_uncond": chunks, "original_shape": [len(x), 4, 2, 3], "n_heads": 2}
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                q, k, v = module.to_q(x[..., : module.to_q.in_features]), module.to_k(context), module.to_v(context)
                patch = replaced.get(keys[module]) or replaced.get(keys[module][:2])
                found.append(module.to_out(patch(q, k, v, extra) if patch else attention(q, k, v, 2)))
        return torch.cat(found, -1)


@pytest.fixture
def forge(unet, monkeypatch):
    monkeypatch.setattr(adapters, "forge_attention", lambda: lambda q, k, v, extra: attention(q, k, v, 2))
    objects = types.SimpleNamespace(unet=Patcher(unet))
    return types.SimpleNamespace(sd_model=types.SimpleNamespace(forge_objects=objects))


def test_forge_sees_the_formula_on_a_clone_that_is_put_back(forge, unet, generator):
    x, context, tokens = data(generator)
    adapter, conditioner, before = make(), Conditioner(), forge.sd_model.forge_objects.unet
    with conditioner.conditioned(Injection(adapter, tokens, 0.5, GRID)), conditioner.installed(forge):
        conditioner.patch(forge)
        used = forge.sd_model.forge_objects.unet.clone()  # what other extensions do after us
        assert used is not before
        assert_close(used.run(x, context, [0, 1]), by_hand(unet, adapter, tokens, 0.5, x, context, [0, 1, -1, -1]))
        assert_close(used.run(x, context, [1, 0]), by_hand(unet, adapter, tokens, 0.5, x, context, [-1, -1, 0, 1]))
        assert_close(used.run(x[:2], context[:2], [0]), by_hand(unet, adapter, tokens, 0.5, x[:2], context[:2], [0, 1]))
        plain = before.run(x[:2], context[:2], [1])
        assert torch.equal(used.run(x[:2], context[:2], [1]), plain)
        with pytest.raises(ModelError, match="tokens of 2 tiles"):
            used.run(x, context, [0])
        conditioner.check_looked()
    assert forge.sd_model.forge_objects.unet is before
    assert before.model_options == {"transformer_options": {}}


def test_forge_keeps_what_other_extensions_replaced(forge, unet, generator):
    x, context, tokens = data(generator)

    def theirs(q, k, v, extra):
        return 3 * attention(q, k, v, 2)

    first = forge.sd_model.forge_objects.unet
    first.set_model_attn2_replace(theirs, "input", 1, 0)
    first.model_options["transformer_options"]["patches_replace"]["attn2"]["output", 1] = theirs  # a whole block's
    adapter, conditioner = make(), Conditioner()
    plain = first.run(x, context, [0, 1])
    with conditioner.conditioned(Injection(adapter, tokens, 1.0, GRID)), conditioner.installed(forge):
        conditioner.patch(forge)
        both = forge.sd_model.forge_objects.unet.run(x, context, [0, 1])
    alone = by_hand(unet, adapter, tokens, 1.0, x, context, [0, 1, -1, -1])
    nothing = by_hand(unet, adapter, tokens, 0.0, x, context, [0, 1, -1, -1])
    assert_close(both - plain, alone - nothing, rtol=1e-3, atol=1e-5)
    assert (plain - nothing).abs().max() > 0.1


def test_both_hosts_agree(forge, unet, generator):
    x, context, tokens = data(generator)
    adapter, conditioner = make(), Conditioner()
    with conditioner.conditioned(Injection(adapter, tokens, 1.0, GRID)), conditioner.installed(forge):
        conditioner.patch(forge)
        patched = forge.sd_model.forge_objects.unet.run(x, context, [0, 1])
    wrapped = Conditioner()
    p = types.SimpleNamespace(sd_model=loaded(unet))
    with wrapped.conditioned(Injection(adapter, tokens, 1.0, GRID)), wrapped.installed(p):
        wrapped.before_model(call_of(4, 2))
        assert_close(unet(x, context), patched)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_models_without_cross_attention_are_refused(unet, family):
    with pytest.raises(ModelError, match=f"loaded checkpoint is {family}"):
        check(make(), loaded(unet), Model(family, 16, 1024, 16, True))


def test_adapters_for_other_checkpoints_are_refused(unet):
    check(make(), loaded(unet), SD1)
    with pytest.raises(ModelError, match="was made for sdxl; the loaded checkpoint is sd15"):
        check(make(base="sdxl"), loaded(unet), SD1)
    with pytest.raises(ModelError, match="4 cross-attention layers of 8/16/12 channels; the loaded checkpoint has 5"):
        check(make(channels=(8, 16, 16, 12)), loaded(unet), SD1)


def test_a_checkpoint_with_other_text_tokens_is_refused(unet):
    for place in places(unet):
        place.module.to_k = nn.Linear(1024, place.module.to_q.in_features, bias=False)  # SD 2
    with pytest.raises(ModelError, match="768 wide; those of the loaded checkpoint are 1024"):
        check(make(), loaded(unet), SD1)
