"""Looking inside: exact attention out of any fused ViT, its distance, filters, representations."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import timm
import torch
from sklearn.decomposition import PCA
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

import vitmini as vm
from vitmini.inspection import (
    attention_distance,
    attention_maps,
    attention_rollout,
    cka,
    cls_attention,
    layer_tokens,
    measure_attention_distance,
    patch_distances,
    patch_filters,
    recompute_attention,
)

L, H = 3, 2


def grown(model, scale=1.0):
    """Weights so large that attention is far from uniform and every part of the model matters."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        fan_in = p[0].numel() if p.ndim > 1 else 2
        shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        nn.init.normal_(p, mean=shift, std=scale * fan_in**-0.5)
    return model.eval()


def small(**overrides):
    given = {"image_size": (12, 20), "patch_size": 4, "num_classes": 5}
    given |= {"dim": 16, "depth": L, "num_heads": H}
    return grown(vm.ViT(vm.ViTConfig(**(given | overrides))))


def pictures(model, count=2):
    rows, columns = vm.patches.as_pair(model.config.image_size, "image_size")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, model.config.in_channels, rows, columns, generator=generator)


def close(a, b, atol=1e-5):
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=atol)


def by_hand(model, images):
    """The maps of a vitmini model, block by block, from its parameters."""
    x, maps = model.embed(images), []
    for block in model.blocks:
        attn = block.attn
        inside = block.norm1(x) if block.pre_norm else x
        q, k, _ = (
            torch.stack(part.chunk(attn.num_heads, dim=-1), dim=1)
            for part in attn.qkv(inside).chunk(3, dim=-1)
        )
        bias = None if attn.rel_pos is None else attn.rel_pos()
        maps.append(vm.attention_weights(q, k, bias))
        x = block(x)
    return torch.stack(maps).detach()


# Maps -----------------------------------------------------------------------------------------

TIMM = {"img_size": (24, 40), "patch_size": 8, "embed_dim": 16, "depth": L, "num_heads": H}
THEIRS = {
    "plain": (VisionTransformer, {}),
    "distilled": (VisionTransformerDistilled, {}),
    "mean of patches": (VisionTransformer, {"class_token": False, "global_pool": "avg"}),
    "registers": (VisionTransformer, {"reg_tokens": 3}),
    "norms of queries and keys": (VisionTransformer, {"qk_norm": True}),
    "norm of the output": (VisionTransformer, {"scale_attn_norm": True}),
    "no bias": (VisionTransformer, {"qkv_bias": False}),
    "relative bias": (VisionTransformerRelPos, {"class_token": True}),
    "relative bias by an MLP": (VisionTransformerRelPos, {"rel_pos_type": "mlp"}),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_maps_equal_timms_own_with_the_fused_kernel_switched_off(kind):
    build, options = THEIRS[kind]
    model = grown(build(**TIMM | options))
    images = torch.randn(2, 3, 24, 40)
    ours = attention_maps(model, images)
    theirs = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, out: theirs.append(out))
    model(images)
    assert close(ours, torch.stack(theirs).detach(), 2e-6)
    T = 15 + getattr(model, "num_prefix_tokens", 0)
    assert ours.shape == (L, 2, H, T, T) and ours.std() > 0.05


VARIANTS = {
    "class token": {},
    "mean": {"pool": "mean"},
    "distilled": {"distilled": True},
    "relative": {"pos_embed": "relative"},
    "relative, distilled": {"pos_embed": "relative", "distilled": True},
    "relative, mean": {"pos_embed": "relative", "pool": "mean"},
    "post-norm": {"norm": "post"},
    "rectangular patches": {"patch_size": (2, 5)},
    "one head": {"num_heads": 1},
    "no bias": {"qkv_bias": False},
    "dropout": {"dropout": 0.5, "drop_path": 0.5, "layer_scale": 1.0},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@each_variant
def test_maps_equal_attention_by_hand_from_the_parameters(variant):
    model = small(**VARIANTS[variant])
    images = pictures(model, 3)
    maps = attention_maps(model, images)
    assert close(maps, by_hand(model, images), 2e-6)
    assert close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]))


def test_maps_give_the_layers_own_output_when_they_weigh_the_values():
    model = small(pos_embed="relative")
    images, seen = pictures(model), {}
    attn = model.blocks[1].attn
    attn.qkv.register_forward_hook(lambda _, __, out: seen.update(qkv=out))
    attn.proj.register_forward_hook(lambda _, inputs, __: seen.update(fused=inputs[0]))
    maps = attention_maps(model, images, 1)[0]
    weights, out = recompute_attention(attn, seen["qkv"])
    assert torch.equal(maps, weights) and close(out, seen["fused"], 1e-5)
    v = torch.stack(seen["qkv"].chunk(3, dim=-1)[2].chunk(H, dim=-1), dim=1)
    assert close((maps @ v).transpose(1, 2).flatten(2), seen["fused"], 1e-5)


def test_a_scale_of_ones_own_is_honoured():
    model = small()
    images = pictures(model)
    before = attention_maps(model, images)
    for block in model.blocks:
        block.attn.scale = 0.0
    assert close(attention_maps(model, images), torch.full_like(before, 1 / 16))


def test_attention_without_a_scale_or_a_proj_is_scaled_as_the_paper_says():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.qkv, self.out = 2, nn.Linear(3, 24), nn.Linear(8, 3)

        def forward(self, images):
            x = images.flatten(2).transpose(1, 2)  # a token a pixel
            q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            out = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(out.transpose(1, 2).flatten(2))

    model, images = grown(Plain()), torch.randn(2, 3, 2, 2)
    q, k, _ = model.qkv(images.flatten(2).mT).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    expected = vm.attention_weights(q, k)[None]
    assert close(attention_maps(model, images), expected.detach())


def test_a_hybrid_shows_the_maps_of_its_transformer():
    torch.manual_seed(0)
    model = vm.create_baseline("hybrid_mini").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = attention_maps(model.vit, model.cnn(images))
    assert close(attention_maps(model, images), expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", ["class token", "relative, distilled"])
def test_half_precision_gives_maps_in_float32(variant, dtype):
    model = small(**VARIANTS[variant])
    images = pictures(model)
    exact = attention_maps(model, images)
    maps = attention_maps(model.to(dtype), images)  # images are brought to the model's type
    assert maps.dtype == torch.float32
    assert close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]), 1e-6)
    assert (maps - exact).abs().mean() < {torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert torch.equal(maps, attention_maps(model, images.to(dtype)))


def test_a_model_in_float64_gives_maps_in_float64():
    model = small().double()
    maps = attention_maps(model, pictures(model))
    assert maps.dtype == torch.float64
    assert close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]), 1e-14)


def test_autocast_around_the_call_does_not_round_the_softmax():
    model = small()
    images = pictures(model)
    exact = attention_maps(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        maps = attention_maps(model, images)
    assert maps.dtype == torch.float32
    assert close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]), 1e-6)
    assert (maps - exact).abs().mean() < 1e-2


def compiled_whole(model):
    return torch.compile(model, backend="aot_eager")


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


def compiled_by_block(model):
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="aot_eager")
    return model


@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_by_block])
def test_compiled_models_show_the_same_maps_and_stay_compiled(compiled):
    torch._dynamo.reset()
    model = small(pos_embed="relative")
    images = pictures(model)
    expected, tokens = attention_maps(model, images), layer_tokens(model, images)
    fast = compiled(copy.deepcopy(model))
    with torch.no_grad():
        logits = fast(images)  # compiled before anybody looks inside
        assert close(attention_maps(fast, images), expected, 1e-6)
        assert close(layer_tokens(fast, images), tokens, 1e-6)
        torch._dynamo.utils.counters.clear()
        with torch.compiler.set_stance("fail_on_recompile"):
            assert close(fast(images), logits, 1e-6)


def test_frozen_models_and_images_that_want_gradients_are_welcome():
    model = small()
    images = pictures(model)
    expected = attention_maps(model, images)
    maps = attention_maps(model.requires_grad_(False), images.requires_grad_())
    assert torch.equal(maps, expected) and not maps.requires_grad and not maps.is_inference()


@pytest.mark.parametrize("look", [attention_maps, layer_tokens, measure_attention_distance])
def test_a_model_that_learns_gives_numbers_without_a_graph(look):
    model = small(pos_embed="relative").train()
    found = look(model, pictures(model).requires_grad_())
    assert found.grad_fn is None and not found.requires_grad


def test_maps_are_the_same_in_inference_mode_and_with_checkpoints():
    model = small()
    images = pictures(model)
    with torch.inference_mode():
        maps = attention_maps(model, images)
    assert torch.equal(maps, attention_maps(model, images))
    theirs = grown(VisionTransformer(**TIMM))
    expected = attention_maps(theirs, torch.ones(1, 3, 24, 40))
    theirs.set_grad_checkpointing(True)
    assert torch.equal(attention_maps(theirs.train(), torch.ones(1, 3, 24, 40)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.01, 10.0, 1000.0])
def test_scores_of_any_size_are_shown(scale, dtype):
    model = grown(small(), scale).to(dtype)
    maps = attention_maps(model, pictures(model))
    assert close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]), 1e-6)


def test_a_bias_is_rounded_as_the_kernel_rounds_it():
    model = small(pos_embed="relative")
    for block in model.blocks:
        nn.init.normal_(block.attn.rel_pos.offsets, std=20)  # bfloat16 knows one in 256 of it
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_maps(model, pictures(model)).shape[0] == L
    attn = model.blocks[0].attn
    weights, _ = recompute_attention(attn, torch.zeros(1, 16, 48, dtype=torch.bfloat16))
    assert close(weights[0], attn.rel_pos().bfloat16().float().softmax(dim=-1), 1e-6)


def test_a_wrapped_qkv_is_an_attentions_too():
    class LowRank(nn.Linear):  # as fine-tuning adds it
        def __init__(self, base):
            super().__init__(base.in_features, base.out_features)
            self.load_state_dict(base.state_dict())
            self.down, self.up = nn.Linear(16, 2), nn.Linear(2, 48)

        def forward(self, x):
            return super().forward(x) + self.up(self.down(x))

    model = small()
    for block in model.blocks:
        block.attn.qkv = LowRank(block.attn.qkv)
    images = pictures(model)
    assert close(attention_maps(model, images), by_hand(model, images), 2e-6)


# Which layers, how much memory ----------------------------------------------------------------


def test_layers_are_chosen_by_number_from_either_end_in_the_order_given():
    model = small()
    images = pictures(model)
    every = attention_maps(model, images)
    for layers, expected in (
        (None, [0, 1, 2]),
        (1, [1]),
        (-1, [2]),
        ([2, 0], [2, 0]),
        ((-3,), [0]),
        ([1, 1, -1], [1, 1, 2]),
        (range(1, 3), [1, 2]),
        (np.int64(1), [1]),
        (np.arange(2), [0, 1]),
        (torch.tensor([2, 1]), [2, 1]),
    ):
        assert torch.equal(attention_maps(model, images, layers), every[expected])
        chosen = layer_tokens(model, images, layers)
        assert torch.equal(chosen, layer_tokens(model, images)[expected])


@pytest.mark.parametrize("layers", [3, -4, [0, 3], [], True, 1.0, "1", [None], {0}, [[0]]])
@pytest.mark.parametrize("function", [attention_maps, layer_tokens])
def test_layers_that_do_not_exist_are_refused(layers, function):
    model = small()
    with pytest.raises(ValueError, match="layers must be") as raised:
        function(model, pictures(model), layers)
    assert "\n" not in str(raised.value)


def test_one_layer_costs_the_memory_of_one_layer():
    model = small()
    maps = attention_maps(model, pictures(model), layers=[1])
    assert maps.untyped_storage().nbytes() == maps[0].numel() * 4


def test_all_maps_are_written_to_one_tensor_never_two_times_as_many():
    model, largest = small(image_size=(40, 40)), []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest.append(out.untyped_storage().nbytes())
            return out

    with Count():
        maps = attention_maps(model, pictures(model, 20))
    whole = maps.untyped_storage().nbytes()
    assert whole == maps.numel() * 4 and max(largest) == whole
    assert {n for n in largest if n > whole / 2} == {whole}


def test_reduced_layers_are_forgotten_before_the_next_one_comes():
    model, seen = small(), []

    def reduce(maps):
        gc.collect()
        assert all(r() is None for r in seen)
        seen.append(weakref.ref(maps))
        return maps[:, :, 0]  # a view: the whole map must not live on behind it

    model_maps = attention_maps(model, pictures(model))
    rows = attention_maps(model, pictures(model), reduce=reduce)
    assert len(seen) == L and torch.equal(rows, model_maps[:, :, :, 0])
    assert rows.untyped_storage().nbytes() == rows.numel() * 4


def test_reduce_may_give_anything_that_stacks():
    model = small()
    images = pictures(model)
    every = attention_maps(model, images)
    assert torch.equal(
        attention_maps(model, images, [2, 2], reduce=lambda m: m.amax()),
        every[2].amax().expand(2),
    )


@pytest.mark.parametrize("function", [attention_maps, layer_tokens])
def test_a_reduction_that_gives_no_tensor_or_several_shapes_is_refused(function):
    model, sizes = small(), iter(range(1, 9))
    with pytest.raises(ValueError, match="reduce must return a tensor, got float"):
        function(model, pictures(model), reduce=lambda x: x.sum().item())
    with pytest.raises(ValueError, match=r"one shape .* \(1,\) and \(2,\): ask for one layer"):
        function(model, pictures(model), reduce=lambda x: x.flatten()[: next(sizes)])
    assert hooks_of(model) == hooks_of(small())


def test_layers_of_other_shapes_want_one_call_each():
    model = small()
    model.blocks[1].attn = grown(vm.Attention(16, 4))
    images = pictures(model)
    with pytest.raises(ValueError, match="one layer at a time"):
        attention_maps(model, images)
    assert attention_maps(model, images, 1).shape[2] == 4
    assert attention_maps(model, images, [0, 2]).shape[2] == H


# The model stays as it was --------------------------------------------------------------------


def hooks_of(model):
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]


def state_of(model):
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": hooks_of(model),
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "learns": [p.requires_grad for p in model.parameters()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


class Noisy(nn.Module):
    """Draws random numbers whatever its mode."""

    def forward(self, x):
        return x + torch.randn_like(x)


LOOKS = {
    "attention_maps": attention_maps,
    "layer_tokens": layer_tokens,
    "measure_attention_distance": measure_attention_distance,
    "one layer": lambda model, images: attention_maps(model, images, 1),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("hybrid", [False, True])
def test_a_look_leaves_the_model_as_it_was(look, hybrid):
    torch.manual_seed(0)
    if hybrid:  # batch norm: in training mode it would learn from what it sees
        model = vm.create_baseline("hybrid_mini")
        vit, images = model.vit, torch.randn(4, 3, 32, 32)
    else:
        model = vit = small(dropout=0.5, drop_path=0.5)
        images = pictures(model)
    vit.head = nn.Sequential(Noisy(), vit.head)
    model.train()
    vit.blocks[1].eval()  # somebody froze a block
    vit.norm.requires_grad_(False)
    vit.blocks[0].attn.qkv.register_forward_hook(lambda *_: None)
    model(images).sum().backward()
    before = state_of(model)
    first = LOOKS[look](model, images)
    assert same(state_of(model), before)
    assert torch.equal(LOOKS[look](model, images), first), "evaluation mode draws nothing"
    assert torch.equal(LOOKS[look](model.eval(), images), first)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("where", ["before", "within", "after"])
def test_a_failure_leaves_the_model_as_it_was_too(look, where):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = small(dropout=0.5).train()
    model.blocks[0].eval()
    images = pictures(model)
    if where == "within":
        model.blocks[2].mlp = Broken()
    elif where == "after":
        model.head = Broken()
    else:
        images = images[..., :-4]
    before = state_of(model)
    with pytest.raises((RuntimeError, ValueError), match=r"broken|images must be .* 12, 20\)"):
        LOOKS[look](model, images)
    assert same(state_of(model), before)


def test_a_failing_reduction_leaves_no_hook():
    model = small()
    for function in (attention_maps, layer_tokens):
        with pytest.raises(ZeroDivisionError):
            function(model, pictures(model), reduce=lambda _: 1 / 0)
        assert hooks_of(model) == hooks_of(small())


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_gradient_hooks_of_others_stay_quiet_and_in_place():
    model, calls = small(), []
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: calls.append(1))
    for p in model.parameters():
        p.register_hook(lambda g: calls.append(1))
    before = hooks_of(model)
    expected = attention_maps(small(), pictures(model))
    assert close(attention_maps(model, pictures(model)), expected, 1e-6)
    assert not calls and hooks_of(model) == before
    model(pictures(model)).sum().backward()
    assert calls


def test_a_hook_of_others_that_changes_queries_and_keys_is_seen():
    model = small()
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda _, __, out: out * 0)
    maps = attention_maps(model, pictures(model))
    assert close(maps, torch.full_like(maps, 1 / 16))


def test_looking_does_not_disturb_a_backward_pass_that_is_under_way():
    model, other = small(), small()
    images = pictures(model)
    loss = model(images).sum()
    attention_maps(model, images)
    loss.backward()
    other(images).sum().backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


# Symmetries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("move", ["rotate", "mirror", "shuffle"])
def test_moving_the_patches_moves_the_maps_where_there_are_no_positions(move):
    model = small(pos_embed="none", image_size=16)
    images = pictures(model)
    where = torch.arange(16).view(4, 4)
    where = {"rotate": where.rot90(), "mirror": where.flip(1), "shuffle": where[[2, 0, 3, 1]]}
    where = where[move].flatten()
    moved = vm.unpatchify(vm.patchify(images, 4)[:, where], 4, 16)
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), 1 + where])
    maps = attention_maps(model, images)
    assert close(attention_maps(model, moved), maps[..., tokens, :][..., tokens])
    with_positions = small(image_size=16)
    assert not close(
        attention_maps(with_positions, moved),
        attention_maps(with_positions, images)[..., tokens, :][..., tokens],
        1e-2,
    )
    if move == "rotate":
        pictured = cls_attention(maps, (4, 4))
        assert close(cls_attention(attention_maps(model, moved), (4, 4)), pictured.rot90(1, (3, 4)))


def test_patches_in_another_shape_attend_alike_where_there_are_no_positions():
    wide, tall = (small(pos_embed="none", image_size=size) for size in ((12, 20), (20, 12)))
    images = pictures(wide)
    reshaped = vm.unpatchify(vm.patchify(images, 4), 4, (20, 12))
    assert close(attention_maps(tall, reshaped), attention_maps(wide, images))
    with_positions = [small(pos_embed="sincos2d", image_size=s) for s in ((12, 20), (20, 12))]
    one, other = (
        attention_maps(m, x) for m, x in zip(with_positions, (images, reshaped), strict=True)
    )
    assert not close(one, other, 1e-2)


@pytest.mark.parametrize("pos_embed", ["none", "relative"])
def test_a_crops_first_layer_is_what_is_left_of_the_whole_ones_brought_back_to_1(pos_embed):
    """Scores depend on the two patches and the offset between them: the softmax forgets some."""
    model = small(pos_embed=pos_embed, pool="mean", image_size=(16, 20))
    cropped = vm.ViT(vm.ViTConfig(**{**vars(model.config), "image_size": (8, 12)})).eval()
    weights = dict(model.state_dict())
    for name, tensor in weights.items():
        if name.endswith("offsets"):  # of 4x5 patches those that 2x3 patches have
            weights[name] = tensor[:, 2:5, 2:7]
    cropped.load_state_dict(weights)
    images = pictures(model)
    kept = torch.arange(20).view(4, 5)[1:3, 2:5].flatten()
    part = attention_maps(model, images, 0)[..., kept, :][..., kept]
    crop = attention_maps(cropped, images[..., 4:12, 8:20], 0)
    assert close(crop, part / part.sum(dim=-1, keepdim=True))


def test_maps_of_a_batch_are_those_of_its_images():
    model = small()
    images = pictures(model, 4)
    maps = attention_maps(model, images)
    parts = [attention_maps(model, image[None]) for image in images]
    assert close(maps, torch.cat(parts, dim=1), 2e-6)


def test_an_empty_batch_has_empty_maps():
    model = small()
    assert attention_maps(model, pictures(model)[:0]).shape == (L, 0, H, 16, 16)
    assert layer_tokens(model, pictures(model)[:0]).shape == (L, 0, 16, 16)


# What cannot be shown is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet18_cifar", "torchvision's ViT", "Hugging Face's ViT", "a linear layer"]
)
def test_a_model_without_qkv_is_told_what_to_do(name):
    from torchvision.models import VisionTransformer as TorchvisionViT
    from transformers import ViTConfig, ViTForImageClassification

    if name == "torchvision's ViT":
        model = TorchvisionViT(32, 8, 2, 2, 16, 32)
    elif name == "Hugging Face's ViT":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
        sizes |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
        model = ViTForImageClassification(ViTConfig(**sizes))
    elif name == "a linear layer":
        model = nn.Linear(2, 2)
    else:
        model = vm.create_baseline(name)
    for look in (attention_maps, measure_attention_distance):
        with pytest.raises(ValueError, match=r"qkv.*vm.from_torchvision\(model\)") as raised:
            look(model, torch.randn(1, 3, 32, 32))
        assert "\n" not in str(raised.value) and type(model).__name__ in str(raised.value)


def test_torchvisions_vit_shows_its_maps_once_it_is_converted():
    from torchvision.models import VisionTransformer as TorchvisionViT

    theirs = grown(TorchvisionViT(32, 8, 2, 2, 16, 32))
    images, expected = torch.randn(2, 3, 32, 32), []
    maps = attention_maps(vm.from_torchvision(theirs), images)
    x = theirs.conv_proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([theirs.class_token.expand(2, -1, -1), x], dim=1) + theirs.encoder.pos_embedding
    for layer in theirs.encoder.layers:
        inside = layer.ln_1(x)
        expected.append(layer.self_attention(*[inside] * 3, average_attn_weights=False)[1])
        x = layer(x)
    assert close(maps, torch.stack(expected), 1e-5)


FOREIGN = {
    "a bias of its own": ("beit_base_patch16_224", {"img_size": 32, "depth": 1}, 32),
    "windows": ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (1, 1)}, 56),
    "rotated queries": ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}, 28),
    "a gate": ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, 32),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_attention_that_does_more_is_refused_also_where_weights_are_fresh(what):
    name, options, size = FOREIGN[what]
    model = timm.create_model(name, **options)
    if what == "a gate":
        model.blocks[0].attn.gate = nn.Linear(192, 192)
        if "gate" not in type(model.blocks[0].attn).forward.__code__.co_names:
            pytest.skip("this timm knows no gates")
    before = hooks_of(model)
    with pytest.raises(ValueError, match=r"layer 0 .* does more than softmax") as raised:
        attention_maps(model, torch.randn(1, 3, size, size))
    assert "\n" not in str(raised.value) and hooks_of(model) == before


def test_a_mask_is_noticed():
    class Masked(nn.Module):
        def __init__(self, attn):
            super().__init__()
            self.inner = attn

        def forward(self, x):
            return self.inner(x, torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril())

    model = small()
    model.blocks[1].attn = Masked(model.blocks[1].attn)
    with pytest.raises(ValueError, match=r"layer 1 \(blocks.1.attn.inner\) does more"):
        attention_maps(model, pictures(model))
    assert attention_maps(model, pictures(model), 0).shape[0] == 1


def test_attention_that_is_called_twice_or_never_is_refused():
    model = small()
    model.blocks[1].attn = model.blocks[0].attn
    with pytest.raises(ValueError, match="layer 0 is used more than once"):
        attention_maps(model, pictures(model))
    model = small()
    model.spare = vm.Attention(16, 2)
    with pytest.raises(ValueError, match=r"layer 3 \(spare\) was not called"):
        attention_maps(model, pictures(model))
    assert attention_maps(model, pictures(model), [0, 1, 2]).shape[0] == L
    model = small()
    model.blocks[1].attn.qkv = model.blocks[0].attn.qkv
    with pytest.raises(ValueError, match="is used more than once"):
        attention_maps(model, pictures(model))


@pytest.mark.filterwarnings("ignore")  # PyTorch would rather have no scripts at all
def test_a_model_without_weights_and_a_script_are_refused():
    with torch.device("meta"):
        empty = vm.ViT(small().config)
    with pytest.raises(ValueError, match=r"model must have weights, .* meta device"):
        attention_maps(empty, torch.zeros(1, 3, 12, 20))
    script = torch.jit.trace(small(), torch.zeros(1, 3, 12, 20))
    with pytest.raises(ValueError, match="model must have attention with a qkv layer"):
        attention_maps(script, torch.zeros(1, 3, 12, 20))


def test_numbers_that_are_not_finite_are_named_not_shown():
    model = small()
    images = pictures(model)
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"layer 0 \(blocks.0.attn\) is not finite"):
        attention_maps(model, images)


def test_a_qkv_that_is_no_attention_over_tokens_is_refused():
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.num_heads = nn.Conv2d(3, 12, 1), 2

        def forward(self, x):
            return self.qkv(x)

    with pytest.raises(ValueError, match="no attention over tokens"):
        attention_maps(Maps(), torch.randn(1, 3, 4, 4))
    model = small()
    model.blocks[0].attn.num_heads = 5
    with pytest.raises(
        ValueError, match=r"layer 0 .blocks.0.attn.: its qkv .* width of 48, not 3 \* 5 heads"
    ):
        attention_maps(model, pictures(model))


@pytest.mark.parametrize(
    ("model", "images", "words"),
    [
        (None, torch.zeros(1, 3, 12, 20), "model must be a torch.nn.Module, got NoneType"),
        (small, torch.zeros(1, 3, 12, 20), "model must be a torch.nn.Module, got function"),
        (small(), torch.zeros(3, 12, 20), r"images must be a tensor .* got Tensor \(3, 12, 20\)"),
        (small(), torch.zeros(1, 3, 12, 20).byte(), "floating point, got torch.uint8: normalise"),
        (small(), np.zeros((1, 3, 12, 20)), r"images must be .* got ndarray"),
        (small(), None, "images must be a tensor .* got NoneType"),
    ],
)
@pytest.mark.parametrize("look", [attention_maps, layer_tokens])
def test_models_and_images_of_other_kinds_are_refused(look, model, images, words):
    with pytest.raises(ValueError, match=words) as raised:
        look(model, images)
    assert "\n" not in str(raised.value)


# Tokens layer by layer ------------------------------------------------------------------------


@each_variant
def test_tokens_are_those_after_each_block(variant):
    model = small(**VARIANTS[variant])
    images = pictures(model)
    tokens = layer_tokens(model, images)
    x = model.embed(images)
    for found, block in zip(tokens, model.blocks, strict=True):
        x = block(x)
        assert torch.equal(found, x)
    assert torch.equal(model.norm(tokens[-1]), model.forward_features(images))
    pooled = layer_tokens(model, images, [2, 0], reduce=lambda x: x.mean(dim=1))
    assert close(pooled, tokens[[2, 0]].mean(dim=2))


def test_timms_models_and_hybrids_have_tokens_too():
    model = grown(VisionTransformer(**TIMM))
    assert layer_tokens(model, torch.randn(2, 3, 24, 40)).shape == (L, 2, 16, 16)
    assert layer_tokens(vm.create_baseline("hybrid_mini"), torch.randn(2, 3, 32, 32)).ndim == 4
    with pytest.raises(ValueError, match="model must have blocks, ResNet has none"):
        layer_tokens(vm.create_baseline("resnet_mini"), torch.randn(1, 3, 32, 32))


# Distance -------------------------------------------------------------------------------------


def uniform(grid, prefix=1):
    T = prefix + grid[0] * grid[1]
    return torch.full((1, 1, 1, T, T), 1 / T)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(
    ("side", "patch", "pixels"), [(14, 16, 116.49), (24, 16, 200.05), (8, 4, 16.55), (16, 2, 16.65)]
)
def test_uniform_attention_is_as_far_as_was_computed(side, patch, pixels, prefix):
    distance = attention_distance(uniform((side, side), prefix), (side, side), patch, prefix)
    assert distance.shape == (1, 1) and distance.item() == pytest.approx(pixels, abs=0.005)


def test_attention_to_oneself_has_no_distance():
    attn = torch.eye(17).expand(2, 3, 4, 17, 17)
    assert torch.equal(attention_distance(attn, (4, 4), 16), torch.zeros(2, 4))


def test_a_neighbourhood_of_3_by_3_is_17_px_away():
    near = (patch_distances((14, 14), 1) < 1.5).float()
    attn = torch.block_diag(torch.ones(1, 1), near / near.sum(dim=1, keepdim=True))
    distance = attention_distance(attn[None, None, None], (14, 14), 16).item()
    assert distance == pytest.approx(16.7, abs=0.05)


def test_the_farthest_two_patches_of_a_224_px_image_are_294_px_apart():
    distances = patch_distances((14, 14), 16)
    assert distances.max().item() == pytest.approx(294.2, abs=0.05)
    assert torch.equal(distances, distances.T) and not distances.diagonal().any()


def loop(attn, grid, patch, prefix, renormalize):
    """The definition, one pair of patches after the other."""
    cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    far = np.zeros((attn.shape[0], attn.shape[2]))
    for layer in range(attn.shape[0]):
        for head in range(attn.shape[2]):
            rows = []
            for image in range(attn.shape[1]):
                for i, (r, c) in enumerate(cells):
                    weights = attn[layer, image, head, prefix + i, prefix:].double().tolist()
                    total = sum(weights) if renormalize else 1.0
                    away = [math.hypot((r - s) * patch[0], (c - d) * patch[1]) for s, d in cells]
                    rows.append(sum(w * a for w, a in zip(weights, away, strict=True)) / total)
            far[layer, head] = np.mean(rows)
    return torch.tensor(far)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("grid", "patch"), [((3, 3), (4, 4)), ((2, 5), (4, 4)), ((4, 2), (3, 7)), ((1, 1), (2, 2))]
)
def test_distance_equals_a_loop_over_pairs_of_patches(grid, patch, prefix, renormalize):
    T = prefix + grid[0] * grid[1]
    torch.manual_seed(0)
    attn = (3 * torch.randn(2, 3, 2, T, T)).softmax(dim=-1)
    size = patch[0] if patch[0] == patch[1] else patch
    ours = attention_distance(attn, grid, size, prefix, renormalize)
    assert ours.dtype == torch.float32
    assert close(ours, loop(attn, grid, patch, prefix, renormalize), 1e-4)


def test_rows_as_they_are_make_a_head_that_looks_at_the_class_token_seem_short():
    attn = uniform((4, 4)).clone()
    attn[..., 1:, 0] = 0.5
    attn[..., 1:, 1:] = 0.5 / 16
    full, as_is = (attention_distance(attn, (4, 4), 4, renormalize=r) for r in (True, False))
    assert as_is.item() == pytest.approx(full.item() / 2)
    assert close(full, attention_distance(uniform((4, 4)), (4, 4), 4))


def test_prefix_tokens_are_dropped_as_queries_and_as_keys():
    attn = uniform((3, 3), 2).clone()
    expected = attention_distance(attn, (3, 3), 8, 2)
    attn[..., :2, :] = torch.eye(11)[:2]
    attn[..., :2] *= 5
    assert close(attention_distance(attn, (3, 3), 8, 2), expected)


def test_queries_that_see_no_patch_are_left_out_and_a_head_without_others_is_nan_with_a_warning():
    attn = uniform((2, 2)).clone().repeat(1, 1, 2, 1, 1)
    attn[0, 0, 0, 1] = torch.eye(5)[0]  # one patch of head 0 looks at the class token alone
    pairs = patch_distances((2, 2), 4)
    distance = attention_distance(attn, (2, 2), 4)
    assert distance[0, 0].item() == pytest.approx(pairs[1:].mean().item())
    attn[0, 0, 1, :] = torch.eye(5)[0]
    with pytest.warns(RuntimeWarning, match="head 1 of layer 0 attends to no patch"):
        distance = attention_distance(attn, (2, 2), 4)
    assert distance[0, 1].isnan() and distance[0, 0].isfinite()
    assert attention_distance(attn, (2, 2), 4, renormalize=False)[0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distance_of_half_precision_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    attn = torch.randn(2, 2, 2, 197, 197).softmax(dim=-1).to(dtype)
    distance = attention_distance(attn, (14, 14), 16)
    assert distance.dtype == torch.float32
    assert torch.equal(distance, attention_distance(attn.float(), (14, 14), 16))
    assert close(distance, torch.full((2, 2), 116.5), 2.0)


def test_distance_scales_with_the_patch_and_turns_with_the_grid():
    torch.manual_seed(0)
    attn = torch.randn(2, 2, 2, 13, 13).softmax(dim=-1)
    distance = attention_distance(attn, (3, 4), 8)
    assert close(attention_distance(attn, (3, 4), 16), 2 * distance, 1e-4)
    order = torch.cat(
        [torch.zeros(1, dtype=torch.long), 1 + torch.arange(12).view(3, 4).T.flatten()]
    )
    turned = attn[..., order, :][..., order]
    assert close(attention_distance(turned, (4, 3), 8), distance, 1e-4)
    assert close(attention_distance(attn, (3, 4), (8, 8)), distance)


def test_a_fresh_vit_ti_looks_about_as_far_as_uniform_attention():
    torch.manual_seed(0)
    model = vm.create_model("vit_tiny_patch16_224", depth=2).eval()
    images = torch.randn(2, 3, 224, 224)
    full = measure_attention_distance(model, images)
    as_is = measure_attention_distance(model, images, renormalize=False)
    assert full.mean().item() == pytest.approx(116.5, abs=0.5)
    assert as_is.mean().item() == pytest.approx(115.9, abs=0.5)


@pytest.mark.parametrize("renormalize", [True, False])
@each_variant
def test_measuring_a_model_is_the_distance_of_its_maps(variant, renormalize):
    model = small(**VARIANTS[variant])
    images = pictures(model, 5)  # in batches of 2, 2 and 1
    measured = measure_attention_distance(model, images, renormalize, batch_size=2)
    maps, patch = attention_maps(model, images), model.patch_embed.patch_size
    expected = attention_distance(maps, model.grid, patch, model.num_prefix_tokens, renormalize)
    assert close(measured, expected, 1e-4)


@pytest.mark.parametrize("kind", ["plain", "distilled", "registers", "mean of patches"])
def test_timms_models_say_their_grid(kind):
    build, options = THEIRS[kind]
    model = grown(build(**TIMM | options))
    images = torch.randn(2, 3, 24, 40)
    expected = attention_distance(attention_maps(model, images), (3, 5), 8, model.num_prefix_tokens)
    assert close(measure_attention_distance(model, images), expected, 1e-4)


def test_timms_models_of_any_size_say_the_grid_of_the_images():
    model = grown(VisionTransformer(**TIMM, dynamic_img_size=True))
    images = torch.randn(2, 3, 48, 16)
    expected = attention_distance(attention_maps(model, images), (6, 2), 8)
    assert close(measure_attention_distance(model, images), expected, 1e-4)


def test_a_hybrids_patches_are_the_places_of_its_map():
    model = vm.create_baseline("hybrid_mini").eval()
    images = torch.randn(2, 3, 32, 32)
    expected = attention_distance(attention_maps(model, images), (8, 8), 4)
    assert model.vit.grid == (8, 8)
    assert close(measure_attention_distance(model, images), expected, 1e-4)


# Rollout and the class token ------------------------------------------------------------------


def maps_of(prefix=1, grid=(2, 3), layers=3, images=2, seed=0):
    T = prefix + grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(layers, images, 2, T, T, generator=generator)).softmax(dim=-1)


def test_rollout_equals_the_papers_product_one_layer_after_the_other():
    attn = maps_of()
    for image in range(2):
        expected = np.eye(7)
        for layer in range(3):
            mixed = attn[layer, image].double().numpy().mean(axis=0) / 2 + np.eye(7) / 2
            expected = mixed / mixed.sum(axis=1, keepdims=True) @ expected
        assert close(attention_rollout(attn)[image], torch.tensor(expected), 1e-6)


def test_rollout_rows_sum_to_one_and_one_layer_is_half_identity():
    attn = maps_of(layers=1)
    rollout = attention_rollout(attn)
    assert close(rollout, attn[0].mean(dim=1) / 2 + torch.eye(7) / 2, 1e-6)
    deep = attention_rollout(maps_of(layers=30).half())
    assert deep.dtype == torch.float32 and close(deep.sum(dim=-1), torch.ones(2, 7), 1e-5)
    assert torch.equal(
        attention_rollout(torch.eye(5).expand(4, 2, 3, 5, 5)), torch.eye(5).expand(2, 5, 5)
    )


def test_autocast_rounds_neither_rollout_nor_distance():
    attn = maps_of()
    with torch.autocast("cpu", torch.bfloat16):
        rollout, distance = attention_rollout(attn), attention_distance(attn, (2, 3), 4)
    assert torch.equal(rollout, attention_rollout(attn))
    assert torch.equal(distance, attention_distance(attn, (2, 3), 4))


def test_rollout_multiplies_from_the_first_layer_up():
    attn = maps_of(layers=2)
    assert not close(attention_rollout(attn), attention_rollout(attn.flip(0)), 1e-3)
    first = torch.zeros(2, 1, 1, 3, 3)
    first[0, 0, 0] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 1]])  # token 1 reads token 2
    first[1, 0, 0] = torch.tensor([[0, 1.0, 0], [0, 1, 0], [0, 0, 1]])  # then token 0 reads token 1
    assert torch.allclose(attention_rollout(first)[0, 0], torch.tensor([0.5, 0.25, 0.25]))


@pytest.mark.parametrize(("prefix", "token"), [(1, 0), (2, 0), (2, 1), (5, 4)])
def test_cls_attention_is_the_row_of_the_token_over_the_patches(prefix, token):
    attn = maps_of(prefix, (2, 3))
    picture = cls_attention(attn, (2, 3), prefix, token)
    assert picture.shape == (3, 2, 2, 2, 3)
    for row in range(2):
        for column in range(3):
            key = prefix + row * 3 + column
            assert torch.equal(picture[..., row, column], attn[..., token, key])
    left = 1 - attn[..., token, :prefix].sum(dim=-1)
    assert close(picture.sum(dim=(-1, -2)), left, 1e-6)
    assert cls_attention(attention_rollout(attn), (2, 3), prefix, token).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attention_distance(maps_of(), (2, 2), 4), r"T = 1 \+ 4 tokens.* got T = 7"),
        (lambda: attention_distance(maps_of(), (2, 3), 4, 2), r"T = 2 \+ 6 .* got T = 7"),
        (lambda: attention_distance(maps_of(), (2, 3), 0), "patch_size"),
        (lambda: attention_distance(maps_of(), (2, 3), (4, 4, 4)), "patch_size"),
        (lambda: attention_distance(maps_of(), 6, 4), r"grid of 6x6"),
        (lambda: attention_distance(maps_of(), (2.0, 3), 4), "grid"),
        (lambda: attention_distance(maps_of(), (2, 3), 4, -1), "num_prefix_tokens"),
        (lambda: attention_distance(maps_of()[0], (2, 3), 4), r"attn .* \(L, B, heads, T, T\)"),
        (lambda: attention_distance(maps_of()[..., 1:], (2, 3), 4), "attn must be"),
        (lambda: attention_distance(maps_of()[:, :0], (2, 3), 4), "one image"),
        (lambda: attention_distance(maps_of()[:0], (2, 3), 4), "one image"),
        (lambda: attention_distance(maps_of().numpy(), (2, 3), 4), "attn must be .* got ndarray"),
        (lambda: attention_distance(maps_of().long(), (2, 3), 4), "floating-point"),
        (lambda: attention_distance(-maps_of(), (2, 3), 4), "weights from 0 to 1"),
        (lambda: attention_distance(maps_of() * math.nan, (2, 3), 4), "weights from 0 to 1.* NaN"),
        (lambda: patch_distances((0, 3), 4), "grid"),
        (lambda: attention_rollout(maps_of()[0]), "attn must be"),
        (lambda: attention_rollout(maps_of()[:0]), "one image"),
        (lambda: cls_attention(maps_of(), (2, 3), 1, 1), "token must be from 0 to 0, .* got 1"),
        (lambda: cls_attention(maps_of(), (2, 3), 2, 0), r"T = 2 \+ 6"),
        (lambda: cls_attention(maps_of(), (2, 3), 1, -1), "token must be .* got -1"),
        (lambda: cls_attention(maps_of(), (2, 3), 1, True), "token must be"),
        (lambda: cls_attention(maps_of(0), (2, 3), 0), "there is none"),
        (lambda: cls_attention(maps_of()[0, 0, 0, 0], (2, 3)), "attn must be"),
        (
            lambda: measure_attention_distance(small(), torch.randn(0, 3, 12, 20)),
            "one or more, got .0, 3, 12, 20",
        ),
        (
            lambda: measure_attention_distance(small(), torch.randn(1, 3, 12, 20), batch_size=0),
            "batch_size",
        ),
        (
            lambda: measure_attention_distance(
                nn.Sequential(vm.Attention(6, 2)), torch.randn(1, 3, 12, 20)
            ),
            "model must say its grid",
        ),
        (lambda: patch_filters(torch.randn(5, 3, 2, 2), 5), "k must be from 1 to 4 .* got 5"),
        (lambda: patch_filters(torch.randn(50, 3, 2, 2), 13), "k must be from 1 to 12 .* got 13"),
        (lambda: patch_filters(torch.randn(50, 3, 2, 2), 0), "k must be .* got 0"),
        (lambda: patch_filters(torch.randn(50, 3, 2, 2), True), "k must be .* got True"),
        (lambda: patch_filters(torch.randn(50, 3, 2, 2), 3.0), "k must be .* got 3.0"),
        (lambda: patch_filters(torch.randn(50, 12), 3), r"weight must be .* got \(50, 12\)"),
        (lambda: patch_filters(torch.randn(50, 3, 2, 2) * math.inf, 3), "weight must be finite"),
        (lambda: patch_filters(np.zeros((50, 3, 2, 2)), 3), "weight must be a patch kernel"),
        (lambda: cka(torch.randn(5), torch.randn(5, 2)), r"x must be .* got \(5,\)"),
        (lambda: cka(torch.randn(5, 2), torch.randn(5, 2, 2)), "y must be"),
        (lambda: cka(torch.randn(5, 2), torch.randn(4, 2)), "got 5 and 4 rows"),
        (lambda: cka(torch.randn(1, 2), torch.randn(1, 2)), "x must be"),
        (lambda: cka(torch.ones(5, 2) / 3, torch.randn(5, 2)), "x must differ between images"),
        (lambda: cka(torch.randn(5, 2), torch.randn(5, 2) * math.nan), "y must be finite"),
        (lambda: cka(np.zeros((5, 2)), torch.randn(5, 2)), "x must be a tensor"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_that_names_them(call, words):
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


# Filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 3, 4, 4), (96, 1, 2, 5), (12, 3, 4, 4)])
def test_filters_are_the_principal_components_that_scikit_learn_finds(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(0, -1, shape[2])[:, None] + 2.0
    filters = patch_filters(weight, 8)
    theirs = PCA(8).fit(weight.flatten(1).double().numpy()).components_
    ours = filters.flatten(1).double().numpy()
    assert filters.shape == (8, *shape[1:]) and filters.dtype == torch.float32
    assert np.abs(np.abs((ours * theirs).sum(axis=1)) - 1).max() < 1e-5
    assert close(filters.flatten(1) @ filters.flatten(1).T, torch.eye(8), 1e-5)


def test_filters_have_a_sign_that_does_not_depend_on_the_order_of_the_rows():
    torch.manual_seed(0)
    weight = torch.randn(64, 3, 4, 4)
    filters = patch_filters(weight, 28)
    assert close(patch_filters(weight.flip(0), 28), filters, 1e-5)
    assert close(patch_filters(-weight, 28), filters, 1e-5)
    assert close(patch_filters(5 * weight + 1, 28), filters, 1e-5)
    flat = filters.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(dim=1, keepdim=True)) > 0).all()
    assert torch.equal(
        patch_filters(nn.Parameter(weight.half()), 5), patch_filters(weight.half(), 5)
    )


def test_one_pattern_in_all_filters_is_the_first_component():
    torch.manual_seed(0)
    pattern = torch.randn(1, 3, 4, 4)
    weight = torch.randn(50, 1, 1, 1) * pattern + 1e-3 * torch.randn(50, 3, 4, 4)
    first = patch_filters(weight, 1).flatten()
    cosine = (first @ pattern.flatten()) / pattern.norm()
    assert abs(cosine.item()) > 0.999


def test_the_trained_models_patches_have_28_filters():
    filters = patch_filters(vm.load_pretrained("vit_cifar_mini").patch_embed.proj.weight)
    assert filters.shape == (28, 3, 4, 4) and filters.isfinite().all()


# CKA ------------------------------------------------------------------------------------------


def hsic_loop(x, y):
    """CKA from the definition: two kernels, each centred by rows and columns, their cosine."""
    n = len(x)
    kernels = []
    for z in (x.double(), y.double()):
        k = np.array([[float(z[i] @ z[j]) for j in range(n)] for i in range(n)])
        centre = np.eye(n) - np.ones((n, n)) / n
        kernels.append(centre @ k @ centre)
    a, b = kernels
    return np.trace(a @ b) / math.sqrt(np.trace(a @ a) * np.trace(b @ b))


@pytest.mark.parametrize(
    ("n", "d1", "d2"), [(9, 3, 5), (5, 30, 2), (6, 40, 50), (30, 1, 1), (2, 3, 4)]
)
def test_cka_equals_its_definition_whichever_way_is_shorter(n, d1, d2):
    torch.manual_seed(0)
    x, y = torch.randn(n, d1) + 3, torch.randn(n, d2)
    y[:, 0] += x[:, 0]
    assert cka(x, y) == pytest.approx(hsic_loop(x, y), abs=1e-10)
    assert cka(x, y) == pytest.approx(cka(y, x), abs=1e-12)
    assert 0 <= cka(x, y) <= 1 + 1e-12


@pytest.mark.parametrize("shape", [(50, 8), (6, 20)])
def test_cka_knows_no_rotation_shift_or_size(shape):
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randn(shape)
    before = cka(x, y)
    rotation = torch.linalg.qr(torch.randn(shape[1], shape[1], dtype=torch.float64))[0]
    assert cka(x.double() @ rotation, y) == pytest.approx(before, abs=1e-9)
    assert cka(x * -300, y / 7 + 5) == pytest.approx(before, abs=1e-6)
    assert cka(x, 2 * x @ torch.linalg.qr(torch.randn(shape[1], shape[1]))[0]) == pytest.approx(
        1, abs=1e-6
    )
    order = torch.randperm(shape[0])
    assert cka(x[order], y[order]) == pytest.approx(before, abs=1e-9)


def test_cka_does_change_with_an_uneven_stretch():
    torch.manual_seed(0)
    x = torch.randn(500, 8)
    assert cka(x, x * torch.logspace(0, 2, 8)) < 0.5


def test_representations_that_know_nothing_of_each_other_have_no_cka():
    torch.manual_seed(0)
    assert cka(torch.randn(20_000, 4), torch.randn(20_000, 6)) < 1e-3
    assert cka(torch.randn(10, 500), torch.randn(10, 500)) > 0.9, "too few images for the width"


@pytest.mark.parametrize("bad", [float("nan"), -0.1, float("inf")])
def test_a_rollout_of_what_is_no_attention_is_refused(bad):
    attn = torch.full((2, 1, 1, 3, 3), 1 / 3)
    attn[1, 0, 0, 1, 1] = bad
    with pytest.raises(ValueError, match="attn must hold weights: an entry is negative, NaN or"):
        vm.attention_rollout(attn)


def test_a_reduce_that_is_no_function_is_refused():
    model, images = vm.create_model("vit_digits"), torch.randn(1, 1, 8, 8)
    for look in (vm.attention_maps, vm.layer_tokens):
        with pytest.raises(ValueError, match="reduce must be a function of a layer's tensor"):
            look(model, images, reduce="mean")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_positions_of_whole_or_complex_numbers_are_refused(dtype):
    table = torch.ones(1, 5, 3).to(dtype)
    for call in (
        lambda: vm.resize_pos_embed(table, (3, 3)),
        lambda: vm.position_similarity(table, (2, 2)),
    ):
        with pytest.raises(ValueError, match="pos_embed must be floating point, got torch"):
            call()
