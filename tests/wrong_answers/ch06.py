"""Chapter 6."""

import dataclasses

import torch


def parameters(c, cls=1, pos=1, qkv_bias=True, norms=2, last=True, head_bias=True, proj=True):
    P, Q = (c.patch_size, c.patch_size) if isinstance(c.patch_size, int) else c.patch_size
    H, W = (c.image_size, c.image_size) if isinstance(c.image_size, int) else c.image_size
    N, D, K, hidden = (H // P) * (W // Q), c.dim, c.num_classes, int(c.dim * c.mlp_ratio)
    block = norms * 2 * D + 3 * D * D + 3 * D * qkv_bias + (D * D + D) * proj
    block += 2 * D * hidden + D + hidden
    total = P * Q * c.in_channels * D + D + cls * D + (N + pos) * D + c.depth * block
    return total + 2 * D * last + K * D + K * head_bias


def no_class_token(c):
    return parameters(c, cls=0)


def no_class_position(c):
    return parameters(c, pos=0)


def no_qkv_bias(c):
    return parameters(c, qkv_bias=False)


def no_norms(c):
    return parameters(c, norms=0)


def no_last_norm(c):
    return parameters(c, last=False)


def no_head_bias(c):
    return parameters(c, head_bias=False)


def no_projection(c):
    return parameters(c, proj=False)


def always_four(c):
    return parameters(dataclasses.replace(c, mlp_ratio=4.0))


def always_colour(c):
    return parameters(dataclasses.replace(c, in_channels=3))


def known_by_heart(c):
    return 86567656


def flops(c, multiply_add=2, extra=1, pairs=4, head_tokens=1):
    P, Q = (c.patch_size, c.patch_size) if isinstance(c.patch_size, int) else c.patch_size
    H, W = (c.image_size, c.image_size) if isinstance(c.image_size, int) else c.image_size
    N, D, hidden = (H // P) * (W // Q), c.dim, int(c.dim * c.mlp_ratio)
    T = N + extra
    block = 8 * T * D * D + pairs * T * T * D + 4 * T * D * hidden
    total = 2 * N * D * c.in_channels * P * Q + c.depth * block
    return (total + 2 * D * c.num_classes * head_tokens) * multiply_add // 2


def multiply_adds(c):
    return flops(c, multiply_add=1)


def without_class_token(c):
    return flops(c, extra=0)


def without_pairs(c):
    return flops(c, pairs=0)


def pairs_once(c):
    return flops(c, pairs=2)


def without_head(c):
    return flops(c, head_tokens=0)


def flops_always_four(c):
    return flops(dataclasses.replace(c, mlp_ratio=4.0))


def class_token_projected(c):
    return flops(c) + 2 * c.dim * c.in_channels * c.patch_size**2


def rule_of_thumb(c):
    return 2 * 86567656 * 197


NAMES = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj.": "attn.proj.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
}


def renamed(state, names):
    out = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        out[key] = value
    return out


def norms_exchanged(state):
    return renamed(state, NAMES | {"ln_1.": "norm2.", "ln_2.": "norm1."})


def nothing_renamed(state):
    return state


def without_qkv(state):
    out = renamed(state, NAMES)
    return {k: v for k, v in out.items() if "qkv" not in k}


def transposed(state):
    out = renamed(state, NAMES)
    return {k: v.T if v.ndim == 2 else v for k, v in out.items()}


def keys_and_values_exchanged(state):
    out = renamed(state, NAMES)
    q, k, v = out["attn.qkv.weight"].chunk(3)
    return out | {"attn.qkv.weight": torch.cat([q, v, k])}


def a_list(state):
    return list(renamed(state, NAMES).items())


def reshaped(kernel, bias):
    D, H, d = kernel.shape
    return kernel.reshape(H * d, D), bias.reshape(-1)


def not_transposed(kernel, bias):
    return kernel.flatten(1), bias.flatten()


def heads_mixed(kernel, bias):
    return kernel.permute(2, 1, 0).flatten(0, 1), bias.T.flatten()


def bias_mixed(kernel, bias):
    return kernel.flatten(1).T, bias.T.flatten()


def bias_as_it_is(kernel, bias):
    return kernel.flatten(1).T, bias


def three_axes(kernel, bias):
    return kernel.permute(1, 2, 0), bias.flatten()


def weight_alone(kernel, bias):
    return kernel.flatten(1).T


WRONG = {
    "count_parameters": [
        (no_class_token, "the class token is missing"),
        (no_class_position, "N + 1 positions"),
        (no_qkv_bias, "biases of queries"),
        (no_norms, "two norms"),
        (no_last_norm, "the last norm"),
        (no_head_bias, "bias for each class"),
        (no_projection, "too few"),
        (always_four, "not always 4 D"),
        (always_colour, "not always 3"),
        (known_by_heart, "too many"),
    ],
    "forward_flops": [
        (multiply_adds, "a multiply-add is two"),
        (without_class_token, "the class token passes"),
        (without_pairs, "the pairs are missing"),
        (pairs_once, "multiplied twice"),
        (without_head, "the head is missing"),
        (flops_always_four, "is mlp_ratio used"),
        (class_token_projected, "not the class token"),
        (rule_of_thumb, "expected"),
    ],
    "rename_layer": [
        (norms_exchanged, "the norms are exchanged"),
        (nothing_renamed, "a Block has no ln_1"),
        (without_qkv, "attn.qkv.bias, attn.qkv.weight are missing"),
        (transposed, "attn.qkv.weight must be"),
        (keys_and_values_exchanged, "computes something else"),
        (a_list, "expected a dictionary"),
    ],
    "flax_to_linear": [
        (reshaped, "shuffles the numbers"),
        (not_transposed, "transpose"),
        (heads_mixed, "must stay together"),
        (bias_mixed, "bias goes head by head"),
        (bias_as_it_is, "the bias is flat"),
        (three_axes, "join the heads"),
        (weight_alone, "two tensors"),
    ],
}
