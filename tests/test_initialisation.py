"""How weights are drawn: each scheme against its definition and against the library it is from."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models import VisionTransformer

import vitmini as vm
from vitmini.initialisation import (
    KINDS,
    SCHEMES,
    attention_products,
    init_weights,
    length_scales,
    signal_norms,
)

timm_vit = pytest.importorskip("timm.models.vision_transformer")

WIDTH, DEPTH, HEADS = 192, 4, 3
SIZE = {"image_size": 32, "patch_size": 8, "dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
each_scheme = pytest.mark.parametrize("init", SCHEMES)


def fresh(init="deit", seed=0, **more):
    torch.manual_seed(seed)
    return vm.ViT(vm.ViTConfig(**SIZE | {"num_classes": 100} | more, init=init))


def stds(model, name):
    return [p.std().item() for n, p in model.named_parameters() if n.endswith(name)]


def near(values, wanted, rel=0.03):
    return all(value == pytest.approx(wanted, rel=rel) for value in values) and len(values) > 0


def test_deit_draws_every_linear_layer_and_table_with_std_002():
    model = fresh("deit")
    for name in ("qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight", "head.weight"):
        assert near(stds(model, name), 0.02)
    assert near(stds(model, "pos_embed"), 0.02)
    bound = (3 * 8 * 8) ** -0.5  # PyTorch's own for a convolution: uniform in ±1/sqrt(fan in)
    conv = model.patch_embed.proj
    assert near([conv.weight.std().item()], bound / 3**0.5)
    assert conv.weight.abs().max() <= bound and conv.bias.abs().max() <= bound


def test_google_is_xavier_for_each_of_queries_keys_and_values():
    model = fresh("google")
    for block in model.blocks:
        for part in block.attn.qkv.weight.chunk(3):
            assert near([part.std().item()], (2 / (2 * WIDTH)) ** 0.5)
            assert part.abs().max() <= (6 / (2 * WIDTH)) ** 0.5
    assert near(stds(model, "attn.proj.weight"), (2 / (2 * WIDTH)) ** 0.5)
    assert near(stds(model, "fc1.weight") + stds(model, "fc2.weight"), (2 / (5 * WIDTH)) ** 0.5)
    assert near(stds(model, "patch_embed.proj.weight"), (3 * 64) ** -0.5)
    assert near(stds(model, "fc1.bias") + stds(model, "fc2.bias"), 1e-6, rel=0.2)


def test_torchvision_is_xavier_on_the_fused_matrix():
    model = fresh("torchvision")
    assert near(stds(model, "qkv.weight"), (2 / (4 * WIDTH)) ** 0.5)
    assert near(stds(fresh("google"), "qkv.weight"), 2**0.5 * stds(model, "qkv.weight")[0])


def test_torchvision_draws_as_torchvisions_own_model_does():
    ours = fresh("torchvision")
    torch.manual_seed(1)
    theirs = VisionTransformer(32, 8, DEPTH, HEADS, WIDTH, 4 * WIDTH, num_classes=100)
    names = {
        "patch_embed.proj.weight": "conv_proj.weight",
        "attn.qkv.weight": "in_proj_weight",
        "attn.proj.weight": "out_proj.weight",
        "fc1.weight": "mlp.0.weight",
        "fc2.weight": "mlp.3.weight",
        "pos_embed": "pos_embedding",
    }
    for mine, other in names.items():
        for a, b in zip(stds(ours, mine), stds(theirs, other), strict=True):
            assert a == pytest.approx(b, rel=0.04), mine
    for name in ("cls_token", "head.weight", "head.bias"):
        assert not ours.get_parameter(name).any()
    assert not theirs.class_token.any() and not theirs.heads.head.weight.any()
    for block in ours.blocks:
        assert not block.attn.qkv.bias.any() and not block.attn.proj.bias.any()


def test_scaled_divides_what_writes_to_the_stream_by_the_root_of_2l():
    deit, scaled = fresh("deit"), fresh("scaled")
    for (name, a), (_, b) in zip(deit.named_parameters(), scaled.named_parameters(), strict=True):
        writes = name.endswith(("attn.proj.weight", "fc2.weight"))
        assert torch.allclose(a / (2 * DEPTH) ** 0.5 if writes else a, b), name
    assert near(stds(scaled, "fc2.weight"), 0.02 / math.sqrt(8))


def test_mimetic_queries_meet_their_own_keys_and_values_are_taken_away():
    """Against the product that each pair of factors has to give, not against the factors."""
    model = fresh("mimetic")
    eye = torch.eye(WIDTH)
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)
        for q_head, k_head in zip(q.chunk(HEADS), k.chunk(HEADS), strict=True):
            product = q_head.T @ k_head
            assert torch.linalg.matrix_rank(product) == WIDTH // HEADS
            assert (product.diag().mean() / product.std()) > 3  # the diagonal stands out
        rest = block.attn.proj.weight @ v / 0.4 + eye  # this is Z
        assert rest.std().item() == pytest.approx(WIDTH**-0.5, rel=0.03)
        assert abs(rest.mean().item()) < 1e-3 and abs(rest.diag().mean().item()) < 0.02
        assert rest.abs().max() <= (3 / WIDTH) ** 0.5 + 1e-4  # uniform


def test_a_mimetic_head_of_full_rank_is_the_whole_product():
    """With one head nothing is cut off, so that the product must be 0.7 (Z + I) itself."""
    model = fresh("mimetic", num_heads=1)
    for block in model.blocks:
        q, k, _ = block.attn.qkv.weight.chunk(3)
        rest = q.T @ k / 0.7 - torch.eye(WIDTH)
        assert rest.std().item() == pytest.approx(WIDTH**-0.5, rel=0.03)
        assert rest.abs().max() <= (3 / WIDTH) ** 0.5 + 1e-4


def test_a_mimetic_token_looks_at_its_like():
    """What the scheme is for: fresh attention has its mass on the diagonal."""

    def diagonal(init):
        attn = fresh(init, num_heads=1).blocks[0].attn
        tokens = torch.nn.functional.layer_norm(torch.randn(1, 16, WIDTH), (WIDTH,))
        q, k, _ = attn.qkv(tokens).chunk(3, dim=-1)
        return vm.attention_weights(q, k)[0].diag().mean().item()

    assert diagonal("deit") == pytest.approx(1 / 16, rel=0.1)
    assert diagonal("mimetic") > 0.9


@each_scheme
@pytest.mark.parametrize("more", [{}, {"distilled": True}, {"pool": "mean"}, {"qkv_bias": False}])
def test_a_second_draw_leaves_nothing_of_the_first(init, more):
    model = fresh(init, pos_embed="learned2d", layer_scale=1e-4, **more)
    for p in model.parameters():
        torch.nn.init.constant_(p, 7.0)
    torch.manual_seed(0)
    init_weights(model, init)
    again = model.state_dict()
    assert not any((p == 7.0).any() for p in model.parameters())
    torch.manual_seed(0)
    init_weights(model, init)
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert (model.blocks[0].ls1.gamma == 1e-4).all() and (model.norm.weight == 1).all()


@each_scheme
@pytest.mark.parametrize("pos_embed", ["learned", "learned2d", "relative", "none"])
def test_every_scheme_draws_every_kind_of_positions(init, pos_embed):
    model = fresh(init, pos_embed=pos_embed)
    if pos_embed in ("learned", "learned2d"):
        assert model.positions().std().item() == pytest.approx(0.02, rel=0.1)
    if pos_embed == "relative":
        assert not any(block.attn.rel_pos().any() for block in model.blocks)


@each_scheme
def test_a_zero_head_says_nothing_yet(init):
    images = torch.randn(2, 3, 32, 32)
    model = fresh(init, zero_head=True, distilled=True)
    assert all(not logits.any() for logits in model(images))
    says_something = fresh(init)(images).detach().any()
    assert says_something == (init in ("deit", "scaled", "mimetic"))


@each_scheme
def test_every_scheme_can_be_built_without_memory(init):
    with torch.device("meta"):
        assert vm.ViT(vm.ViTConfig(init=init)).head.weight.is_meta


def test_schemes_draw_timms_model_too():
    torch.manual_seed(0)
    model = timm_vit.VisionTransformer(
        32, 8, num_classes=100, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS
    )
    assert near(stds(model, "qkv.weight"), 0.02)  # timm's default is DeiT's
    init_weights(model, "google")
    assert near(stds(model, "qkv.weight"), WIDTH**-0.5) and not model.head.weight.any()


def test_an_unknown_scheme_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"scheme must be one of deit, google.*got 'he'"):
        init_weights(fresh(), "he")


def stack(widths, kind="plain", factor=2.0, scales=1.0, draws=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return length_scales(widths, kind, factor, scales, draws, generator)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["plain", "conv"])
@pytest.mark.parametrize("factor", [1.0, 2.0, 2.2])
def test_the_mean_length_scale_is_half_the_factor_to_the_depth(kind, factor, seed):
    lengths = stack([24] * 6, kind, factor, seed=seed)
    for layer in range(6):
        error = 4 * (lengths[:, layer].std() / 1000**0.5).item() + 1e-12
        assert lengths[:, layer].mean().item() == pytest.approx((factor / 2) ** layer, abs=error)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("widths", [[16] * 3, [8, 32, 16], [40, 24, 24, 24, 24]])
def test_the_second_moment_is_the_product_of_one_plus_five_over_n(widths, seed):
    last = stack(widths, draws=4000, seed=seed)[:, -1]
    wanted = math.prod(1 + 5 / n for n in widths[1:])  # the input's own width does not matter
    assert (last.square().mean() / last.mean() ** 2).item() == pytest.approx(wanted, rel=0.12)


def test_a_network_that_is_wide_enough_has_neither_failure_mode():
    lengths = stack([400] * 6, draws=30)
    assert lengths.std(0).max().item() < 0.4 and abs(lengths.mean().item() - 1) < 0.1


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "scales", [[1.0] * 6, [6**-0.5] * 6, [0.5**i for i in range(1, 7)], [0.3, 0.9, 0, 0, 2, 1]]
)
def test_branches_with_linear_ends_multiply_by_one_plus_eta_squared(scales, seed):
    lengths = stack([20] * 7, "residual_linear", scales=scales, draws=2000, seed=seed)
    for layer in range(7):
        wanted = math.prod(1 + eta**2 for eta in scales[:layer])
        error = 4 * (lengths[:, layer].std() / 2000**0.5).item() + 1e-12
        assert lengths[:, layer].mean().item() == pytest.approx(wanted, abs=error)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scales", [[1.0] * 3, [3**-0.5] * 3, [0.3, 0.9, 0, 2]])
def test_the_second_moment_of_linear_ends_is_a_product_too(scales, seed):
    n = 16
    lengths = stack([n] * (len(scales) + 1), "residual_linear", 2.0, scales, 6000, seed)[:, -1]
    wanted = 1.0
    for e2 in (eta**2 for eta in scales):
        second = 1 + 2 * e2 + 4 * e2 / n + e2**2 * (1 + 5 / n) * (1 + 2 / n)
        wanted *= second / (1 + e2) ** 2
    assert (lengths.square().mean() / lengths.mean() ** 2).item() == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(
    "scales", [[1.0] * 8, [8**-0.5] * 8, [1 / 8] * 8, [0.9**i for i in range(8)]]
)
def test_branches_with_relu_ends_follow_the_recursion_of_the_wide_limit(scales):
    lengths = stack([160] * 9, "residual", scales=scales, draws=100)
    m, s = 1.0, 0.0
    for layer, eta in enumerate(scales, 1):
        step = math.sqrt(m / math.pi)
        m, s = (1 + eta**2) * m + 2 * eta * s * step, s + eta * step
        assert lengths[:, layer].mean().item() == pytest.approx(m, rel=0.1)
    assert m <= math.prod((1 + eta) ** 2 for eta in scales)


def test_one_scale_is_the_same_as_that_scale_for_every_layer():
    for kind in ("residual", "residual_linear"):
        assert torch.equal(stack([8] * 4, kind, scales=0.3), stack([8] * 4, kind, scales=[0.3] * 3))
        still = stack([8] * 4, kind, scales=0.0, draws=5)
        assert torch.allclose(still, torch.ones(5, 4, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_length_scales_start_at_one_and_are_reproducible(kind):
    lengths = stack([8] * 5, kind, draws=7)
    assert lengths.shape == (7, 5) and lengths.dtype == torch.float64
    assert torch.allclose(lengths[:, 0], torch.ones(7, dtype=torch.float64))
    assert torch.equal(lengths, stack([8] * 5, kind, draws=7))
    assert not torch.equal(lengths, stack([8] * 5, kind, draws=7, seed=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(widths=[4, 4], kind="dense"), "kind must be one of plain"),
        (dict(widths=[4]), "widths must be two or more"),
        (dict(widths=[4, 0]), "widths must be two or more"),
        (dict(widths=[4, 4], draws=0), "draws must be positive"),
        (dict(widths=[4, 4], factor=0.0), "factor must be positive"),
        (dict(widths=[4, 4], factor=math.nan), "factor must be positive"),
        (dict(widths=[4, 8], kind="residual"), "widths must all be equal"),
        (dict(widths=[4, 4], scales=0.5), "scales must be 1.0 for kind 'plain'"),
        (dict(widths=[4, 4], kind="conv", scales=[1.0]), "scales must be 1.0 for kind 'conv'"),
        (dict(widths=[4] * 3, kind="residual", scales=[1.0]), "scales must be one number or 2"),
    ],
)
def test_impossible_stacks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        length_scales(**arguments)


def batch(count=6):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return images, torch.arange(count) % 5


@pytest.mark.parametrize("init", ["deit", "mimetic"])
def test_signal_norms_are_those_of_a_model_taken_apart_by_hand(init):
    model = fresh(init).train()
    images, labels = batch()
    found = signal_norms(model, images, labels)
    x = torch.cat([model.cls_token.expand(6, -1, -1), model.patch_embed(images)], 1)
    x = x + model.positions()
    states = [x]
    for block in model.blocks:
        states.append(block(states[-1]))
    for i, state in enumerate(states):
        assert found.stream[i].item() == pytest.approx(state.square().mean().sqrt().item(), 1e-5)
        first = state[:, 0].square().mean().sqrt().item()
        assert found.first_token[i].item() == pytest.approx(first, rel=1e-5)
    assert found.gradient.shape == (DEPTH,) and len(found.stream) == DEPTH + 1
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    for norm, block in zip(found.gradient, model.blocks, strict=True):
        by_hand = torch.cat([p.grad.flatten() for p in block.parameters()]).norm()
        assert norm.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_signal_norms_leave_the_model_as_it_was():
    model = fresh("deit", drop_path=0.5, dropout=0.1).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = [signal_norms(model, *batch()) for _ in range(2)]
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # no dropout while measuring
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(block._forward_hooks for block in model.blocks)
    with pytest.raises(ValueError, match="image"):
        signal_norms(model, torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.long))
    assert model.training and not any(block._forward_hooks for block in model.blocks)


def test_a_zero_head_gives_no_gradient_and_frozen_blocks_are_skipped():
    assert not signal_norms(fresh("google"), *batch()).gradient.any()
    model = fresh("deit")
    model.blocks[1].requires_grad_(False)
    gradient = signal_norms(model, *batch()).gradient
    assert gradient[1] == 0 and (gradient[[0, 2, 3]] > 0).all()


def test_signal_norms_want_a_model_with_blocks():
    with pytest.raises(ValueError, match="model must have blocks, Linear has none"):
        signal_norms(torch.nn.Linear(3, 3), *batch())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pre_norm_stream_adds_and_a_scaled_one_does_not_depend_on_depth(seed):
    def growth(init, depth):
        stream = signal_norms(fresh(init, seed, depth=depth), *batch()).stream
        return (stream[-1] ** 2 - stream[0] ** 2).item()

    # 4 if every block adds as much, more as tokens grow alike; a product would give 2**18
    assert 3 < growth("google", 24) / growth("google", 6) < 10
    shallow, deep = growth("scaled", 6), growth("scaled", 24)
    assert abs(shallow - deep) < 0.02 and abs(deep) < growth("deit", 24)


def test_attention_products_give_the_scores_and_the_values_written():
    attn = fresh("google").blocks[0].attn
    x = torch.randn(5, WIDTH)
    qk, written = attention_products(attn)
    assert qk.shape == (HEADS, WIDTH, WIDTH) and written.shape == (WIDTH, WIDTH)
    q, k, v = attn.qkv(x).chunk(3, dim=-1)  # the biases are zero
    d = WIDTH // HEADS
    for h in range(HEADS):
        part = slice(d * h, d * h + d)
        scores = q[:, part] @ k[:, part].T
        assert torch.allclose(x @ qk[h] @ x.T, scores, atol=1e-4)
    assert torch.allclose(x @ written.T, attn.proj(v), atol=1e-4)


def test_deits_truncation_truncates_nothing():
    weight = fresh("deit", dim=768, num_heads=12, depth=1).blocks[0].mlp.fc1.weight
    assert weight.abs().max() > 4 * 0.02


def test_a_curve_whose_loss_is_no_number_any_more_ends_in_a_cross():
    nan = math.nan
    curves = {"ends": [2.0, 1.0, nan, nan], "never": [nan] * 4, "whole": [4.0, 3.0, 2.0, 1.0]}
    figure = vm.plot.lines({n: ([1, 2, 3, 4], y) for n, y in curves.items()}, "step", "loss")
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [(list(c.get_xdata()), list(c.get_ydata())) for c in crosses] == [([2], [1.0])]
    assert crosses[0].get_color() == figure.axes[0].lines[0].get_color()
