"""Chapter 3: attention by hand, on the fused kernel, and as others compute it, masked and not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vitmini as vm
from vitmini.attention import attention_by_hand, attention_weights
from vitmini.positions import RelativePositionBias

DIM, B, T = 12, 2, 5
INFINITY = float("inf")
each_heads = pytest.mark.parametrize("heads", [h for h in range(1, DIM + 1) if DIM % h == 0])
# Sums of a few dozen products of order 1. float32 and float64 keep 7 and 16 digits of them; each
# bfloat16 operation rounds to 8 bits, 0.4 %, and there are about five in a row.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def close(a, b, atol=2e-6):
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=atol)


def attention(heads=3, **arguments):
    """Attention with weights large enough that it looks at some tokens more than at others."""
    torch.manual_seed(0)
    module = vm.Attention(DIM, heads, **arguments)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def relative(heads=3):
    """Attention of 5 tokens, a class token and a grid of 2 x 2, with a bias that matters."""
    return attention(heads, rel_pos=RelativePositionBias((2, 2), heads, 1))


def tokens(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*(shape or (B, T, DIM)), generator=generator).to(dtype)


def heads_of(module, x):
    """Queries, keys and values (B, heads, T, head_dim), each head cut out of the projection."""
    q, k, v = module.qkv(x).chunk(3, dim=-1)
    return [torch.stack(part.chunk(module.num_heads, dim=-1), dim=1) for part in (q, k, v)]


def module_by_hand(module, x, mask=None):
    out, weights = attention_by_hand(*heads_of(module, x), mask)
    return module.proj(torch.cat(out.unbind(1), dim=-1)), weights


def masks():
    """Masks (B, heads, T, T), or what broadcasts to it; each query may look somewhere."""
    generator = torch.Generator().manual_seed(2)
    random = torch.rand(B, 3, T, T, generator=generator) > 0.5
    random[..., 0] = True
    added = torch.randn(B, 3, T, T, generator=generator)
    padding = torch.tensor([[True] * 5, [True, True, True, False, False]])
    return {
        "boolean": random,
        "boolean for all images": random[0],
        "boolean for all heads": random[:, :1],
        "boolean for all": random[0, 0],
        "numbers": added,
        "numbers for all": added[0, 0],
        "numbers, some infinite": added.masked_fill(~random, -INFINITY),
        "causal": torch.ones(T, T).tril().bool(),
        "causal, as numbers": torch.full((T, T), -INFINITY).triu(1),
        "the same keys for all": padding[1],
        "the same numbers for all": added[0, 0, 0],
        "padding": padding[:, None, None],
        "padding, as numbers": torch.zeros(B, 1, 1, T).masked_fill(
            ~padding[:, None, None], -INFINITY
        ),
    }


each_mask = pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())


# By hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.3, 1.0])
def test_weights_equal_the_equation_term_by_term(scale):
    q, k, v = tokens(3, 4), tokens(5, 4) * 1.5, tokens(5, 2)
    weights, out = np.zeros((3, 5)), np.zeros((3, 2))
    for i in range(3):
        scores = [sum(float(a * b) for a, b in zip(q[i], k[j], strict=True)) for j in range(5)]
        powers = [math.exp(score * (4**-0.5 if scale is None else scale)) for score in scores]
        for j in range(5):
            weights[i, j] = powers[j] / sum(powers)
            out[i] += weights[i, j] * v[j].numpy()
    assert close(attention_weights(q, k, scale=scale), torch.from_numpy(weights))
    got, got_weights = attention_by_hand(q, k, v, scale=scale)
    assert close(got, torch.from_numpy(out)) and close(got_weights, torch.from_numpy(weights))


@pytest.mark.parametrize("dtype", TOLERANCE)
@each_mask
def test_by_hand_equals_the_fused_kernel(mask, dtype):
    q, k, v = tokens(3, B, 3, T, 4, dtype=dtype).unbind()
    mask = mask.to(dtype) if mask.is_floating_point() else mask
    ours, weights = attention_by_hand(q, k, v, mask)
    fused = F.scaled_dot_product_attention(q, k, v, mask.expand(B, 3, T, T))
    assert ours.dtype == weights.dtype == dtype
    assert close(ours, fused, TOLERANCE[dtype])
    assert close(weights.sum(-1), torch.ones(B, 3, T), TOLERANCE[dtype])
    assert weights.min() >= 0


def test_by_hand_equals_the_fused_kernel_without_a_mask_for_other_lengths_and_widths():
    q, k, v = tokens(B, 3, 4, 8), tokens(B, 3, 7, 8), tokens(B, 3, 7, 2)
    assert close(attention_by_hand(q, k, v)[0], F.scaled_dot_product_attention(q, k, v))
    fused = F.scaled_dot_product_attention(q, k, v, scale=0.7)
    assert close(attention_by_hand(q, k, v, scale=0.7)[0], fused)


def test_a_boolean_mask_is_true_where_a_query_may_look():
    q, mask = tokens(T, 4), masks()["boolean for all"]
    weights = attention_weights(q, q, mask)
    assert torch.equal(weights > 0, mask)


def test_a_mask_of_numbers_is_added_to_the_scaled_scores():
    q, k, bias = tokens(T, 4), tokens(T, 4) + 1, masks()["numbers for all"]
    expected = (q @ k.T / 2 + bias).softmax(-1)
    assert close(attention_weights(q, k, bias), expected)


def test_the_softmax_of_half_precision_is_computed_in_float32():
    q = torch.full((1, 4), 8.0, dtype=torch.bfloat16)
    bias = torch.tensor([0.0, 0.25], dtype=torch.bfloat16)
    weights = attention_weights(q, q.expand(2, 4), bias)  # 128 + 0.25 is 128 in bfloat16
    assert weights.dtype == torch.bfloat16
    assert close(weights, bias.float().softmax(0)[None], 2e-3)


def test_the_softmax_of_float64_keeps_its_digits():
    q, k = tokens(T, 4, dtype=torch.float64), tokens(7, 4, dtype=torch.float64)
    scores = q.numpy() @ k.numpy().T / 2
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert close(attention_weights(q, k), torch.from_numpy(expected), 1e-14)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_scores_of_ten_thousand_do_not_overflow(dtype):
    q = torch.tensor([[100.0], [-100.0], [0.0]], dtype=dtype, requires_grad=True)
    ours, weights = attention_by_hand(q, q, q)
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert close(weights, expected, 2e-3)
    assert close(ours, F.scaled_dot_product_attention(q[None], q[None], q[None])[0], 0.1)
    ours.sum().backward()
    assert q.grad.isfinite().all()


def test_gradients_by_hand_are_exact():
    q, k, v = tokens(3, 2, 3, 2, dtype=torch.float64).requires_grad_().unbind()
    bias = tokens(3, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(attention_by_hand, (q, k, v, bias))


# A query that may look nowhere ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["boolean", "numbers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_query_that_may_look_nowhere_gets_zeros_and_finite_gradients(kind, dtype):
    mask = masks()["boolean for all"].clone()
    mask[2] = False
    if kind == "numbers":
        mask = torch.zeros(T, T, dtype=dtype).masked_fill(~mask, -INFINITY)
    q, k, v = (part.requires_grad_() for part in tokens(3, B, 3, T, 4, dtype=dtype).unbind())
    ours, weights = attention_by_hand(q, k, v, mask)
    assert weights[..., 2, :].abs().max() == 0 and ours[..., 2, :].abs().max() == 0
    assert close(weights.sum(-1)[..., [0, 1, 3, 4]], torch.ones(B, 3, 4), TOLERANCE[dtype])
    fused = F.scaled_dot_product_attention(q, k, v, mask)
    assert close(ours, fused, TOLERANCE[dtype])
    gradients = [torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (ours, fused)]
    for a, b in zip(*gradients, strict=True):
        assert a.isfinite().all() and close(a, b, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["boolean", "numbers"])
@pytest.mark.parametrize("make", [attention, relative])
@pytest.mark.parametrize("gradients", [True, False])
def test_in_the_module_such_a_query_gets_the_bias_of_the_projection(make, kind, gradients):
    module, x, mask = make(), tokens(), masks()["padding"].clone()
    mask = mask.expand(B, 1, T, T).clone()
    mask[1, :, 3] = False
    if kind == "numbers":
        mask = torch.zeros(B, 1, T, T).masked_fill(~mask, -INFINITY)
    with torch.set_grad_enabled(gradients):
        out = module(x, mask)
    assert out.isfinite().all() and close(out[1, 3], module.proj.bias)
    if gradients:
        out.sin().sum().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())


# The module -----------------------------------------------------------------------------------


@each_heads
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_module_equals_by_hand_for_every_number_of_heads(heads, dtype):
    module, x = attention(heads).to(dtype), tokens(dtype=dtype)
    by_hand, weights = module_by_hand(module, x)
    assert weights.shape == (B, heads, T, T) and module(x).dtype == dtype
    assert close(module(x), by_hand, 5 * TOLERANCE[dtype])  # outputs go up to 8


@each_heads
def test_module_equals_torchs_multihead_attention(heads):
    module, x = attention(heads), tokens()
    theirs = nn.MultiheadAttention(DIM, heads, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": module.qkv.weight,
            "in_proj_bias": module.qkv.bias,
            "out_proj.weight": module.proj.weight,
            "out_proj.bias": module.proj.bias,
        }
    )
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    assert close(module(x), expected, 1e-5)
    assert close(module_by_hand(module, x)[1], weights)
    causal = torch.ones(T, T).tril().bool()  # there, True forbids
    assert close(module(x, causal), theirs(x, x, x, attn_mask=~causal)[0], 1e-5)


@each_heads
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_module_takes_timms_weights_and_gives_timms_output(heads, qkv_bias):
    theirs = timm.layers.Attention(DIM, heads, qkv_bias=qkv_bias)
    module, x = attention(heads, qkv_bias=qkv_bias), tokens()
    theirs.load_state_dict(module.state_dict())
    assert close(module(x), theirs(x), 1e-5)
    theirs.fused_attn = False
    assert close(module(x), theirs(x), 1e-5)


@each_mask
def test_module_equals_by_hand_with_a_mask(mask):
    module, x = attention(), tokens()
    assert close(module(x, mask), module_by_hand(module, x, mask)[0], 1e-5)
    assert not close(module(x, mask), module(x), 1e-2)


@each_mask
def test_a_relative_bias_and_a_mask_both_count(mask):
    module, x = relative(), tokens()
    bias = module.rel_pos()
    both = bias + mask if mask.is_floating_point() else bias.masked_fill(~mask, -INFINITY)
    expected = module_by_hand(module, x, both)[0]
    assert close(module(x, mask), expected, 1e-5)
    module.rel_pos = None
    assert close(module(x, both), expected, 1e-5)
    assert not close(module(x, mask), expected, 1e-2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("make", [attention, relative])
def test_a_mask_of_numbers_may_be_of_another_type_than_the_tokens(make, dtype):
    module, x = make().to(dtype), tokens(dtype=dtype)
    mask = (2 * masks()["numbers"]).round() / 2  # no type rounds halves
    expected = module(x, mask.to(dtype))
    for other in TOLERANCE:
        out = module(x, mask.to(other))
        assert out.dtype == dtype and close(out, expected, 5 * TOLERANCE[dtype])
        weights = attention_weights(*heads_of(module, x)[:2], mask.to(other))
        assert weights.dtype == dtype


@each_heads
def test_a_relative_bias_is_added_to_the_scores_of_its_own_head(heads):
    module, x = relative(heads), tokens()
    assert module.rel_pos().std() > 0.1
    assert close(module(x), module_by_hand(module, x, module.rel_pos())[0], 1e-5)


@pytest.mark.parametrize("make", [attention, relative])
@pytest.mark.parametrize("name", ["boolean", "numbers", None])
def test_gradients_by_hand_and_fused_are_equal(make, name):
    mask, gradients = masks().get(name), []
    for by_hand in (True, False):
        module, x = make().double(), tokens(dtype=torch.float64).requires_grad_()
        if by_hand:
            bias = 0 if module.rel_pos is None else module.rel_pos()
            if name == "boolean":
                both = torch.zeros(mask.shape).double().masked_fill(~mask, -INFINITY) + bias
            else:
                both = torch.zeros(T, T).double() + bias + (0 if mask is None else mask)
            out = module_by_hand(module, x, both)[0]
        else:
            out = module(x, mask)
        out.sin().sum().backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    assert len(gradients[0]) == (5 if make is attention else 7)
    for a, b in zip(*gradients, strict=True):
        assert close(a, b, 1e-11) and a.abs().max() > 1e-3


def test_under_autocast_the_output_is_bfloat16_and_close_to_float32():
    for module in (attention(), relative()):
        for mask in (None, *masks().values()):
            expected = module(tokens(), mask)
            with torch.autocast("cpu", torch.bfloat16):
                out = module(tokens(), mask)
            assert out.dtype == torch.bfloat16
            # five operations in a row, each rounding by up to 0.4 %
            assert (out - expected).norm() < 0.02 * expected.norm()


# What attention may and may not depend on -----------------------------------------------------


@pytest.mark.parametrize("make", [attention, relative])
@pytest.mark.parametrize("name", ["padding", "padding, as numbers"])
def test_padding_has_no_influence_on_the_other_tokens(make, name):
    module, x, mask = make(), tokens(), masks()[name]
    changed = x.clone()
    changed[1, 3:] = 1000 * tokens(2, DIM)
    assert close(module(changed, mask)[0], module(x, mask)[0])
    assert close(module(changed, mask)[1, :3], module(x, mask)[1, :3])
    assert not close(module(changed)[1, :3], module(x)[1, :3], 0.1)
    if make is attention:
        assert close(module(x, mask)[1:, :3], module(x[1:, :3]), 1e-5)


@pytest.mark.parametrize("make", [attention, relative])
@pytest.mark.parametrize("name", ["causal", "causal, as numbers"])
def test_under_a_causal_mask_no_token_sees_a_later_one(make, name):
    module, x, mask = make(), tokens(), masks()[name]
    for t in range(1, T):
        changed = x.clone()
        changed[:, t:] += 10
        assert close(module(changed, mask)[:, :t], module(x, mask)[:, :t])
        assert not close(module(changed, mask)[:, t:], module(x, mask)[:, t:], 0.1)


def test_attention_is_permutation_equivariant_and_a_relative_bias_ends_that():
    order, x = [3, 0, 4, 2, 1], tokens()
    assert close(attention()(x[:, order]), attention()(x)[:, order], 1e-5)
    assert not close(relative()(x[:, order]), relative()(x)[:, order], 0.1)


def test_images_of_a_batch_do_not_see_each_other():
    module, x = relative(), tokens()
    assert close(module(x), torch.cat([module(x[:1]), module(x[1:])]), 1e-5)


def test_a_single_token_gets_its_own_value():
    module, x = attention(), tokens(B, 1, DIM)
    assert close(module(x), module.proj(module.qkv(x)[..., 2 * DIM :]), 1e-5)


@pytest.mark.parametrize("shape", [(0, T, DIM), (B, 0, DIM)])
def test_nothing_gives_nothing(shape):
    x = torch.zeros(shape, requires_grad=True)
    for module in (attention(), relative()):
        if shape[1] == T or module.rel_pos is None:
            out = module(x)
            out.sum().backward()
            assert out.shape == x.grad.shape == shape


def test_input_of_any_layout_gives_the_same():
    module, x = attention(), tokens()
    layouts = [
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.mT.contiguous().mT,
        x.repeat_interleave(2, dim=1)[:, ::2],
    ]
    for other in layouts:
        assert not other.is_contiguous() and close(module(other), module(x), 1e-5)
    one = x[:1].expand(3, -1, -1)
    assert close(module(one), module(one.contiguous()), 1e-5)


# Modes and arguments --------------------------------------------------------------------------


def test_without_dropout_training_and_evaluation_are_the_same():
    module, x = relative(), tokens()
    assert torch.equal(module.train()(x), module.eval()(x))


def test_dropout_drops_outputs_of_the_projection_in_training_only():
    x = tokens(50, T, DIM)
    whole, dropped = attention()(x), attention(dropout=0.25)
    assert torch.equal(dropped.eval()(x), whole)
    ratio = dropped.train()(x) / whole
    kept = ratio != 0
    assert close(ratio[kept], torch.full_like(ratio[kept], 1 / 0.75), 1e-5)
    assert abs(kept.float().mean().item() - 0.75) < 0.03


def test_parameters_are_named_as_timm_names_them():
    assert list(relative().state_dict()) == [
        "qkv.weight",
        "qkv.bias",
        "proj.weight",
        "proj.bias",
        "rel_pos.offsets",
        "rel_pos.prefix",
    ]
    assert "qkv.bias" not in attention(qkv_bias=False).state_dict()


def test_a_module_without_memory_knows_its_shapes_and_takes_weights_later():
    with torch.device("meta"):
        module = relative()
        assert module(torch.empty(B, T, DIM)).shape == (B, T, DIM)
    module.to_empty(device="cpu").load_state_dict(relative().state_dict())
    assert torch.equal(module(tokens()), relative()(tokens()))


Q = torch.zeros(B, 3, T, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attention_weights(Q, Q[..., :3]), r"width.*\(2, 3, 5, 4\) and \(2, 3, 5, 3\)"),
        (lambda: attention_by_hand(Q, Q, Q[:, :, :4]), r"k and v .* length.*\(2, 3, 4, 4\)"),
        (lambda: attention_by_hand(Q, Q[..., :3], Q), "q and k .* width"),
        (lambda: attention_weights(Q, Q, torch.ones(4, 4)), r"\(2, 3, 5, 5\), .* \(4, 4\)"),
        (lambda: attention_weights(Q, Q, torch.ones(5, 5).long()), "mask .* got torch.int64"),
        (lambda: attention_weights(Q, Q, torch.ones(1, 2, 3, 5, 5)), "mask must .* broadcast"),
        (lambda: attention()(tokens(B, T, DIM + 1)), r"x .* \(B, T, 12\), got \(2, 5, 13\)"),
        (lambda: attention()(tokens(T, DIM)), r"x .* got \(5, 12\)"),
        (lambda: attention()(tokens(1, B, T, DIM)), r"x .* got \(1, 2, 5, 12\)"),
        (lambda: attention()(tokens(), torch.ones(B, T).bool()), r"mask .*bool \(2, 5\)"),
        (lambda: attention()(tokens(), torch.ones(T, T).long()), "mask .* got torch.int64"),
        (lambda: relative()(tokens(), torch.ones(T, T).int()), "mask .* got torch.int32"),
        (lambda: attention()(tokens(), torch.ones(B, 2, T, T)), r"\(2, 3, 5, 5\), got"),
        (lambda: vm.Attention(12, 5), "num_heads must divide dim = 12, got 5"),
        (lambda: vm.Attention(12, 24), "num_heads must divide dim = 12, got 24"),
        (lambda: vm.Attention(12, 0), r"num_heads.* got \(12, 0\)"),
        (lambda: vm.Attention(12, -3), "num_heads"),
        (lambda: vm.Attention(12, 3.0), r"num_heads.* got \(12, 3.0\)"),
        (lambda: vm.Attention(0, 1), r"dim.* got \(0, 1\)"),
        (lambda: vm.Attention(12, 3, dropout=1.5), "dropout"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_that_names_them(call, words):
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
