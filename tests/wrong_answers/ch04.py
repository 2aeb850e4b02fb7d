"""Chapter 4."""

import torch
import torch.nn.functional as F


def normalised(x, dims, eps, correction=0):
    centred = x - x.mean(dims, keepdim=True)
    return centred / (x.var(dims, keepdim=True, correction=correction) + eps).sqrt()


def over_the_tokens(x, weight, bias, eps):
    return normalised(x, -2, eps) * weight + bias


def over_the_image(x, weight, bias, eps):
    return normalised(x, tuple(range(1, x.ndim)), eps) * weight + bias


def over_the_batch(x, weight, bias, eps):
    return normalised(x, tuple(range(x.ndim)), eps) * weight + bias


def by_d_minus_1(x, weight, bias, eps):
    return normalised(x, -1, eps, correction=1) * weight + bias


def without_root(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (x.var(-1, keepdim=True, correction=0) + eps) * weight + bias


def eps_outside(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (x.std(-1, keepdim=True, correction=0) + eps) * weight + bias


def without_eps(x, weight, bias, eps):
    return normalised(x, -1, 0.0) * weight + bias


def without_weight(x, weight, bias, eps):
    return normalised(x, -1, eps)


def bias_first(x, weight, bias, eps):
    return (normalised(x, -1, eps) + bias) * weight


def mean_kept(x, weight, bias, eps):
    return x / (x.var(-1, keepdim=True, correction=0) + eps).sqrt() * weight + bias


def without_bias(x, weight, bias, eps):
    return normalised(x, -1, eps) * weight


def bias_alone(x, weight, bias, eps):
    return normalised(x, -1, eps) + bias


def rms_norm(x, weight, bias, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def fixed_eps(x, weight, bias, eps):
    return normalised(x, -1, 1e-6) * weight + bias


def parameters(D, ratio, qkv_bias, norms=2, last=True, width=int):
    H = width(D * ratio)
    attention = 3 * D * D + 3 * D * qkv_bias + (D * D + D) * last
    return attention + 2 * D * H + H + D + 2 * D * norms


def coins(x, rate, shape):
    return (torch.rand(shape) >= rate).to(x.dtype)


def of_images(x):
    return (len(x), *[1] * (x.ndim - 1))


def dropout(x, rate, training):
    return x * coins(x, rate, x.shape) / (1 - rate) if training else x


def of_the_batch(x, rate, training):
    return x * coins(x, rate, 1) / (1 - rate) if training else x


def a_plain_coin(x, rate, training):
    if not training:
        return x
    return x / (1 - rate) if torch.rand(()) >= rate else torch.zeros_like(x)


def of_tokens(x, rate, training):
    shape = (*x.shape[:2], *[1] * (x.ndim - 2))
    return x * coins(x, rate, shape) / (1 - rate) if training else x


def not_divided(x, rate, training):
    return x * coins(x, rate, of_images(x)) if training else x


def multiplied(x, rate, training):
    return x * coins(x, rate, of_images(x)) * (1 - rate) if training else x


def always(x, rate, training):
    return x * coins(x, rate, of_images(x)) / (1 - rate)


def as_in_the_paper(x, rate, training):
    return x * coins(x, rate, of_images(x)) if training else x * (1 - rate)


def rate_of_keeping(x, rate, training):
    return x * (1 - coins(x, rate, of_images(x))) / max(rate, 1e-6) if training else x


def coins_of_the_last_dimension(x, rate, training):
    return x * coins(x, rate, (len(x),)) / (1 - rate) if training else x


def the_same_coins(x, rate, training):
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(of_images(x), generator=generator) >= rate
    return x * kept / (1 - rate) if training else x


def pre_norm(x, attn, mlp, norm1, norm2):
    x = x + attn(norm1(x))
    return x + mlp(norm2(x))


def norm_of_the_branch(x, attn, mlp, norm1, norm2):
    x = x + norm1(attn(x))
    return x + norm2(mlp(x))


def no_shortcut(x, attn, mlp, norm1, norm2):
    return norm2(mlp(norm1(attn(x))))


def no_second_norm(x, attn, mlp, norm1, norm2):
    x = norm1(x + attn(x))
    return x + mlp(x)


def norm1_twice(x, attn, mlp, norm1, norm2):
    x = norm1(x + attn(x))
    return norm1(x + mlp(x))


def norms_exchanged(x, attn, mlp, norm1, norm2):
    x = norm2(x + attn(x))
    return norm1(x + mlp(x))


def half_and_half(x, attn, mlp, norm1, norm2):
    x = norm1(x + attn(x))
    return x + mlp(norm2(x))


def both_norms(x, attn, mlp, norm1, norm2):
    x = norm1(x + attn(norm1(x)))
    return norm2(x + mlp(norm2(x)))


def mlp_of_the_start(x, attn, mlp, norm1, norm2):
    return norm2(norm1(x + attn(x)) + mlp(x))


def shortcut_of_the_start(x, attn, mlp, norm1, norm2):
    return norm2(x + mlp(norm1(x + attn(x))))


def parallel(
    x, w_in, w_out, heads, norm=True, act=F.gelu, swap=False, split=True, join=True, scale=None
):
    B, T, D = x.shape
    h = F.layer_norm(x, (D,)) if norm else x
    q, k, v, hidden = (h @ w_in.T).split([D, D, D, len(w_in) - 3 * D], dim=-1)
    d = D // heads
    if split:
        q, k, v = (t.view(B, T, heads, d).transpose(1, 2) for t in (q, k, v))
    else:
        q, k, v = (t.reshape(B, heads, T, d) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
    mixed = (mixed.transpose(1, 2) if join else mixed).reshape(B, T, D)
    parts = [act(hidden), mixed] if swap else [mixed, act(hidden)]
    return torch.cat(parts, dim=-1) @ w_out.T


def one_after_the_other(x, w_in, w_out, heads):
    D = x.shape[-1]
    x = x + parallel(x, w_in, w_out, heads, act=torch.zeros_like)
    hidden = F.gelu(F.layer_norm(x, (D,)) @ w_in[3 * D :].T)
    return x + hidden @ w_out[:, D:].T


WRONG = {
    "layer_norm": [
        (over_the_tokens, "the last dimension"),
        (over_the_image, "not one for the whole image"),
        (over_the_batch, "not one for the whole"),
        (by_d_minus_1, "not by D - 1"),
        (without_root, "not by the variance"),
        (eps_outside, "under the root, beside"),
        (without_eps, "eps is missing"),
        (without_weight, "weight and bias are still missing"),
        (bias_first, "weight first, then bias"),
        (mean_kept, "the mean is not taken away"),
        (without_bias, "the bias is still missing"),
        (bias_alone, "the weight is still missing"),
        (rms_norm, "RMS norm"),
        (fixed_eps, "use the argument"),
    ],
    "block_parameters": [
        (lambda D, r, b: parameters(D, r, b, norms=0), "the two norms are missing"),
        (lambda D, r, b: parameters(D, r, b, norms=1), "there are two norms"),
        (lambda D, r, b: parameters(D, r, b, last=False), "attention's last matrix is missing"),
        (lambda D, r, b: parameters(D, r, True), "qkv_bias is False"),
        (lambda D, r, b: parameters(D, r, False), "3 D of them"),
        (lambda D, r, b: parameters(D, 4, b), "int(D * ratio), not 4 D"),
        (lambda D, r, b: 12 * D * D + 13 * D, "int(D * ratio), not 4 D"),
        (lambda D, r, b: parameters(D, r, b) - D, "one bias of D numbers"),
        (lambda D, r, b: parameters(D, r, b) - int(D * r) - D, "the MLP has biases too"),
        (lambda D, r, b: parameters(D, r, b) - int(D * r) + D, "so H biases, not D"),
        (lambda D, r, b: parameters(D, r, b) - int(D * r), "a bias of H numbers"),
        (lambda D, r, b: parameters(D, r, b, width=round), "int(D * ratio), 170, not 171"),
        (lambda D, r, b: parameters(D, r, b, width=float), "int(D * ratio), 170, not 170.667"),
        (lambda D, r, b: 12 * D * D, "expected 37,600"),
    ],
    "drop_path": [
        (dropout, "one coin for each image"),
        (of_tokens, "one coin for each image"),
        (of_the_batch, "not one for the batch"),
        (a_plain_coin, "not one for the batch"),
        (lambda x, rate, training: x * (not training), "in training nothing is left"),
        (not_divided, "the mean falls"),
        (multiplied, "multiplied by 1 - rate"),
        (always, "must come out as it was"),
        (as_in_the_paper, "in evaluation nothing happens"),
        (rate_of_keeping, "the share that is dropped"),
        (coins_of_the_last_dimension, "the coins need the shape"),
        (the_same_coins, "draw new coins"),
        (lambda x, rate, training: x, "some images must be dropped"),
    ],
    "post_norm": [
        (pre_norm, "that is the pre-norm block"),
        (norm_of_the_branch, "not around the branch alone"),
        (no_shortcut, "the shortcuts are missing"),
        (no_second_norm, "is missing"),
        (norm1_twice, "each is used once"),
        (half_and_half, "stands before the MLP"),
        (both_norms, "branches read the stream as it is"),
        (mlp_of_the_start, "not the x from the start"),
        (shortcut_of_the_start, "the second shortcut"),
        (norms_exchanged, "yours are exchanged"),
    ],
    "parallel_block": [
        (lambda x, i, o, h: x + parallel(x, i, o, h, norm=False), "the norm is missing"),
        (lambda x, i, o, h: parallel(x, i, o, h), "the shortcut is missing"),
        (
            lambda x, i, o, h: F.layer_norm(x, x.shape[-1:]) + parallel(x, i, o, h),
            "not LN(x)",
        ),
        (lambda x, i, o, h: x + parallel(x, i, o, h, act=lambda t: t), "GELU of the hidden"),
        (
            lambda x, i, o, h: (
                x + parallel(x, i, o, h, act=lambda t: F.gelu(t, approximate="tanh"))
            ),
            "exact one",
        ),
        (lambda x, i, o, h: x + parallel(x, i, o, 1), "one head of width D"),
        (lambda x, i, o, h: x + parallel(x, i, o, h, swap=True), "for attention first"),
        (lambda x, i, o, h: x + parallel(x, i, o, h, join=False), "joined wrongly"),
        (
            lambda x, i, o, h: x + parallel(x, i, o, h, act=torch.zeros_like),
            "the MLP's branch is missing",
        ),
        (one_after_the_other, "not attention's output"),
        (
            lambda x, i, o, h: x + parallel(x, i, o, h, scale=x.shape[-1] ** -0.5),
            "the head width d, not of D",
        ),
        (lambda x, i, o, h: x + parallel(x, i, o, h, scale=1.0), "are not scaled"),
        (lambda x, i, o, h: x + parallel(x, i, o, h, scale=h / x.shape[-1]), "not by d"),
        (lambda x, i, o, h: x + parallel(x, i, o, h, split=False), "d) mixes tokens and heads"),
        (
            lambda x, i, o, h: x + parallel(x, i, o, h, split=False, join=False),
            "and back mixes tokens and heads",
        ),
    ],
}
