"""The encoder block: each part against a formula of its own, and what dropping does on average."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitmini as vm
from vitmini.encoder import MLP, Block, DropPath, LayerScale, drop_path_rates, residual_stream
from vitmini.positions import RelativePositionBias


def grown(dim=8, heads=2, **options):
    """A block in evaluation mode with weights so large that everything in it matters."""
    torch.manual_seed(0)
    block = Block(dim, heads, **options).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def tokens(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norm_by_hand(x, norm):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias


def mlp_by_hand(x, mlp, tanh=False):
    h = x @ mlp.fc1.weight.T + mlp.fc1.bias
    if tanh:
        h = 0.5 * h * (1 + torch.tanh((2 / math.pi) ** 0.5 * (h + 0.044715 * h**3)))
    else:
        h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    return h @ mlp.fc2.weight.T + mlp.fc2.bias


def attention_by_hand(x, attn):
    D, heads = x.shape[-1], attn.num_heads
    out = torch.zeros_like(x)
    q, k, v = (x @ attn.qkv.weight.T + (0 if attn.qkv.bias is None else attn.qkv.bias)).chunk(3, -1)
    for h in range(heads):
        part = slice(h * D // heads, (h + 1) * D // heads)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / (D / heads) ** 0.5
        out[..., part] = scores.softmax(-1) @ v[..., part]
    return out @ attn.proj.weight.T + attn.proj.bias


def block_by_hand(x, block, norm, tanh=False):
    scales = [1.0 if isinstance(s, nn.Identity) else s.gamma for s in (block.ls1, block.ls2)]
    if norm == "pre":
        x = x + attention_by_hand(norm_by_hand(x, block.norm1), block.attn) * scales[0]
        return x + mlp_by_hand(norm_by_hand(x, block.norm2), block.mlp, tanh) * scales[1]
    x = norm_by_hand(x + attention_by_hand(x, block.attn) * scales[0], block.norm1)
    return norm_by_hand(x + mlp_by_hand(x, block.mlp, tanh) * scales[1], block.norm2)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
@pytest.mark.parametrize("gelu", ["exact", "tanh"])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_block_is_its_equations(norm, layer_scale, gelu, qkv_bias):
    block = grown(
        norm=norm, layer_scale=layer_scale, gelu=gelu, qkv_bias=qkv_bias, norm_eps=0.1, mlp_ratio=3
    )
    x = tokens(2, 5, 8)
    by_hand = block_by_hand(x, block, norm, gelu == "tanh")
    assert torch.allclose(block(x), by_hand, atol=1e-10)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_relative_bias_reaches_the_blocks_attention(norm):
    bias = RelativePositionBias((1, 2), 2)
    block, x = Block(8, 2, norm=norm, rel_pos=bias), torch.randn(2, 3, 8)
    assert block.attn.rel_pos is bias
    before = block(x)
    nn.init.normal_(bias.offsets)
    assert not torch.allclose(block(x), before)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_gradients_of_a_block_are_those_of_finite_differences(norm):
    block = grown(dim=4, norm=norm, layer_scale=0.5)
    weights = dict(block.named_parameters())
    names = ["norm1.weight", "attn.qkv.weight", "ls1.gamma", "mlp.fc1.bias", "norm2.bias"]
    x = tokens(1, 3, 4).requires_grad_()

    def call(x, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), x)

    given = [weights[n].detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(call, (x, *given))


@pytest.mark.parametrize(("gelu", "largest"), [("exact", 0.0), ("tanh", 4.74e-4)])
def test_tanh_gelu_is_off_by_a_twothousandth_at_most(gelu, largest):
    mlp, x = MLP(1, 1, gelu).double(), torch.linspace(-6, 6, 12_001, dtype=torch.float64)
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    difference = (mlp(x[:, None])[:, 0] - F.gelu(x)).abs().max().item()
    assert difference == pytest.approx(largest, rel=2e-3)


@pytest.mark.parametrize(
    ("D", "ratio", "bias"), [(768, 4.0, True), (64, 2.0, True), (8, 3.0, False)]
)
def test_a_block_has_the_parameters_that_the_formula_counts(D, ratio, bias):
    with torch.device("meta"):
        block = Block(D, 1, ratio, bias)
    count = sum(p.numel() for p in block.parameters())
    H = int(ratio * D)
    assert count == 4 * D * D + D + 3 * D * bias + 2 * D * H + H + D + 4 * D
    assert D != 768 or count == 12 * D * D + 13 * D == 7_087_872
    assert sum(p.numel() for p in block.mlp.parameters()) == 2 * D * H + H + D


def test_only_attention_lets_tokens_meet():
    block, x = grown(16), tokens(2, 6, 16)
    changed = x.clone()
    changed[0, 2, 0] += 1  # a shift of all components would not get through the norm
    for part, reach in ((block.norm1, 1), (block.mlp, 1), (block.attn, 6), (block, 6)):
        moved = (part(x) - part(changed)).abs().amax(-1) > 1e-9
        assert moved[0].sum() == reach and not moved[1].any()
        order = torch.tensor([4, 0, 5, 1, 3, 2])
        assert torch.allclose(part(x)[:, order], part(x[:, order]))


@pytest.mark.parametrize("shape", [(40_000,), (40_000, 3), (20_000, 2, 3), (20_000, 1, 2, 2)])
@pytest.mark.parametrize("rate", [0.1, 0.25, 0.6])
def test_drop_path_keeps_the_mean_and_has_the_variance_of_the_formula(shape, rate):
    torch.manual_seed(0)
    drop, x = DropPath(rate).train(), torch.full(shape, 3.0)
    y = drop(x).reshape(shape[0], -1)
    assert {round(v, 4) for v in y.unique().tolist()} == {0.0, round(3 / (1 - rate), 4)}
    assert (y.amin(1) == y.amax(1)).all(), "one coin for an image"
    variance = 9 * rate / (1 - rate)
    assert y[:, 0].mean().item() == pytest.approx(3, abs=5 * (variance / shape[0]) ** 0.5)
    assert y[:, 0].var().item() == pytest.approx(variance, rel=0.06)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_zero():
    x = torch.randn(5, 2, 3)
    assert DropPath(0.5).eval()(x) is x and DropPath(0.0).train()(x) is x


def test_drop_path_draws_anew_each_time_and_repeats_with_the_seed():
    drop, x = DropPath(0.5).train(), torch.ones(64, 1)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)
    assert torch.equal(first, drop(x)) and not torch.equal(first, second)


def test_no_gradient_passes_a_dropped_branch_and_a_scaled_one_passes_a_kept_one():
    torch.manual_seed(0)
    x = torch.ones(64, 3, requires_grad=True)
    y = DropPath(0.25).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_whose_branches_are_dropped_hands_the_image_on(norm):
    block, x = grown(norm=norm, drop_path=0.5), tokens(400, 3, 8)
    with torch.no_grad():
        block.train()
        torch.manual_seed(0)
        y = block(x)
    untouched = x if norm == "pre" else norm_by_hand(norm_by_hand(x, block.norm1), block.norm2)
    same = (y - untouched).abs().amax((1, 2)) < 1e-9
    assert same.float().mean().item() == pytest.approx(0.25, abs=0.08), "both coins, 0.5 each"


def test_dropout_and_drop_path_do_nothing_in_evaluation():
    block = grown(dropout=0.5, drop_path=0.5)
    plain, x = grown(), tokens(2, 4, 8)
    plain.load_state_dict(block.state_dict())
    assert torch.equal(block(x), plain(x))
    assert not torch.equal(block.train()(x), plain(x))


@pytest.mark.parametrize(("rate", "depth"), [(0.1, 12), (0.3, 4), (0.5, 1), (0.0, 3)])
def test_drop_rates_rise_linearly_and_leave_the_blocks_that_the_formula_says(rate, depth):
    rates = drop_path_rates(rate, depth)
    assert len(rates) == depth and rates[0] == 0
    steps = {round(b - a, 9) for a, b in itertools.pairwise(rates)}
    assert len(steps) <= 1
    if depth > 1:
        assert rates[-1] == pytest.approx(rate)
        assert sum(1 - r for r in rates) == pytest.approx(depth - rate * depth / 2)
    model = vm.ViT(vm.ViTConfig(8, 4, 1, 2, 8, depth, 2, drop_path=rate))
    assert [b.drop_path.rate for b in model.blocks] == rates


def test_layer_scale_starts_at_its_value_and_a_block_near_the_identity():
    x = tokens(2, 4, 8)
    assert torch.allclose(LayerScale(8, 0.1).double()(x), 0.1 * x, rtol=1e-6)
    torch.manual_seed(0)
    change = {}
    for init in (1.0, 1e-4):
        block = Block(8, 2, layer_scale=init).double()
        nn.init.normal_(block.attn.proj.weight)
        change[init] = (block(x) - x).norm().item()
    assert change[1e-4] < 1e-3 * change[1.0]
    scale = LayerScale(8, 0.1)
    nn.init.normal_(scale.gamma)
    scale.reset_parameters()
    assert torch.equal(scale.gamma, torch.full((8,), 0.1))


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layer_scale", [None, 0.2])
def test_the_residual_stream_is_what_the_blocks_compute(norm, layer_scale):
    torch.manual_seed(0)
    blocks = nn.Sequential(*(grown(norm=norm, layer_scale=layer_scale) for _ in range(3)))
    x = tokens(2, 5, 8)
    states, branches = residual_stream(blocks, x)
    assert len(states) == 7 and len(branches) == 6
    assert states[0] is x
    for i, block in enumerate(blocks):
        x = block(x)
        assert torch.allclose(states[2 * i + 2], x, atol=1e-10)
    if norm == "pre":
        assert torch.allclose(states[0] + sum(branches), states[-1], atol=1e-10)
    else:
        norms = [n for b in blocks for n in (b.norm1, b.norm2)]
        for i, n in enumerate(norms):
            assert torch.allclose(n(states[i] + branches[i]), states[i + 1], atol=1e-10)


def test_the_residual_stream_keeps_what_gradients_need():
    blocks, x = nn.Sequential(grown(), grown()), tokens(1, 3, 8).requires_grad_()
    states, _ = residual_stream(blocks, x)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(states[-1][..., 0].sum(), states))


def test_without_shortcuts_all_tokens_become_alike():
    torch.manual_seed(0)
    blocks = vm.create_model("vit_digits", depth=6).double().blocks
    with_shortcut = without = tokens(4, 5, 64)
    with torch.no_grad():
        for block in blocks:
            with_shortcut = block(with_shortcut)
            without = block.mlp(block.norm2(block.attn(block.norm1(without))))

    def apart(x):
        return ((x - x.mean(1, keepdim=True)).norm() / x.norm()).item()

    assert apart(without) < 1e-3 < 0.3 < apart(with_shortcut)


def test_the_last_gradient_shrinks_with_depth_for_pre_norm_only():
    sizes = {}
    for norm in ("pre", "post"):
        for depth in (3, 12):
            torch.manual_seed(0)
            model = vm.create_model("vit_digits", depth=depth, norm=norm)
            x, readout = torch.randn(32, 5, 64), torch.randn(32, 64)
            out = (model.norm(model.blocks(x))[:, 0] * readout).sum()
            (gradient,) = torch.autograd.grad(out, model.blocks[-1].mlp.fc2.weight)
            sizes[norm, depth] = gradient.norm().item()
    assert sizes["pre", 3] / sizes["pre", 12] == pytest.approx(2, rel=0.2)
    assert sizes["post", 3] / sizes["post", 12] == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_keeps_the_dtype(norm, dtype):
    block = Block(8, 2, norm=norm, layer_scale=0.1, drop_path=0.3, dropout=0.1).to(dtype).train()
    assert block(torch.randn(4, 3, 8, dtype=dtype)).dtype == dtype
    assert DropPath(0.5).train()(torch.ones(4, 2, dtype=dtype)).dtype == dtype


def test_under_autocast_the_stream_stays_in_float32_and_close():
    block, x = grown().float(), tokens(2, 5, 8).float()
    exact = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block.train()(x)
    assert out.dtype == torch.float32
    assert (out - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_exports_with_any_batch_and_gives_the_same(norm):
    block, x = grown(norm=norm, layer_scale=0.1, drop_path=0.2), tokens(3, 5, 8)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(x), block(x))
    assert program.module()(tokens(7, 5, 8)).shape == (7, 5, 8)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_block_compiles_whole(mode):
    block = getattr(grown(drop_path=0.2, layer_scale=0.1), mode)()
    x = tokens(3, 5, 8)
    torch.manual_seed(0)
    expected = block(x)
    torch.manual_seed(0)
    compiled = torch.compile(block, fullgraph=True, backend="eager")(x)
    assert torch.allclose(compiled, expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MLP(4, 8, "relu"), "gelu must be exact or tanh, got 'relu'"),
        (lambda: DropPath(1.0), r"rate must be in \[0, 1\), got 1.0"),
        (lambda: DropPath(-0.1), "rate must be"),
        (lambda: DropPath(float("nan")), "rate must be"),
        (lambda: drop_path_rates(1.5, 12), "rate must be"),
        (lambda: drop_path_rates(0.1, 0), "depth must be at least 1, got 0"),
        (lambda: Block(8, 2, norm="none"), "norm must be pre or post, got 'none'"),
        (lambda: Block(8, 3), "divide"),
        (lambda: Block(8, 2, drop_path=1.0), "rate must be"),
    ],
)
def test_what_cannot_be_built_is_refused_when_it_is_made(make, words):
    with pytest.raises(ValueError, match=words):
        make()
