"""Chapter 3."""

import torch


def over_the_queries(scores, values):
    return scores.softmax(0) @ values


def without_softmax(scores, values):
    return scores @ values


def without_the_sum(scores, values):
    return scores.exp() @ values


def winner_takes_all(scores, values):
    return values[scores.argmax(-1)]


def weights_only(scores, values):
    return scores.softmax(-1)


def overflowing(scores, values):
    exp = scores.exp()
    return exp / exp.sum(-1, keepdim=True) @ values


def largest_of_all_subtracted(scores, values):
    exp = (scores - scores.max()).exp()
    return exp / exp.sum(-1, keepdim=True) @ values


def without_transpose(x, heads):
    B, T, D = x.shape
    return x.view(B, T, heads, D // heads)


def reshaped_at_once(x, heads):
    B, T, D = x.shape
    return x.reshape(B, heads, T, D // heads)


def every_so_manyth(x, heads):
    B, T, D = x.shape
    return x.view(B, T, D // heads, heads).permute(0, 3, 1, 2)


def width_before_tokens(x, heads):
    return without_transpose(x, heads).permute(0, 2, 3, 1)


def heads_in_the_batch(x, heads):
    return without_transpose(x, heads).transpose(1, 2).flatten(0, 1)


def attention(x, weight, heads, scale=None, order=(0, 1, 2), dim=-1, join=True):
    B, T, D = x.shape
    d = D // heads
    parts = (x @ weight.T).view(B, T, 3, heads, d).permute(2, 0, 3, 1, 4)
    q, k, v = (parts[i] for i in order)
    scores = q @ k.transpose(-2, -1) * (d**-0.5 if scale is None else scale)
    out = scores.softmax(dim) @ v
    return (out.transpose(1, 2) if join else out).reshape(B, T, D)


def unscaled(x, weight, heads):
    return attention(x, weight, heads, scale=1.0)


def scaled_by_the_whole_width(x, weight, heads):
    return attention(x, weight, heads, scale=x.shape[2] ** -0.5)


def scaled_by_d_itself(x, weight, heads):
    return attention(x, weight, heads, scale=heads / x.shape[2])


def values_first(x, weight, heads):
    return attention(x, weight, heads, order=(2, 1, 0))


def softmax_over_queries(x, weight, heads):
    return attention(x, weight, heads, dim=-2)


def one_wide_head(x, weight, heads):
    return attention(x, weight, 1)


def joined_without_transpose(x, weight, heads):
    return attention(x, weight, heads, join=False)


def heads_before_the_three(x, weight, heads):
    B, T, D = x.shape
    q, k, v = (x @ weight.T).view(B, T, heads, 3, D // heads).permute(3, 0, 2, 1, 4)
    out = (q @ k.transpose(-2, -1) / (D // heads) ** 0.5).softmax(-1) @ v
    return out.transpose(1, 2).reshape(B, T, D)


def left_apart(x, weight, heads):
    B, T, _ = x.shape
    return attention(x, weight, heads).view(B, T, heads, -1).transpose(1, 2)


def matrix_not_transposed(x, weight, heads):
    return attention(x, weight.reshape(3, -1, x.shape[2]).transpose(1, 2).flatten(0, 1), heads)


def real(lengths, T):
    return torch.arange(T) < lengths[:, None]


WRONG = {
    "weighted_average": [
        (over_the_queries, "runs over the keys, the last dimension"),
        (without_softmax, "the softmax is missing"),
        (without_the_sum, "do not sum to 1"),
        (winner_takes_all, "softmax, not argmax"),
        (weights_only, "those are the weights"),
        (overflowing, "exp overflows"),
        (largest_of_all_subtracted, "not the largest of all"),
    ],
    "split_heads": [
        (without_transpose, "transpose dimensions 1 and 2"),
        (reshaped_at_once, "mixes the tokens"),
        (every_so_manyth, "not every so-manyth"),
        (width_before_tokens, "the tokens before the width"),
        (heads_in_the_batch, "four dimensions"),
    ],
    "self_attention": [
        (unscaled, "the scale is missing"),
        (scaled_by_the_whole_width, "the width of a head, not D"),
        (scaled_by_d_itself, "not 1/d"),
        (values_first, "yours are mixed up"),
        (softmax_over_queries, "the softmax runs over the keys"),
        (one_wide_head, "one head of width D"),
        (joined_without_transpose, "the heads are joined wrongly"),
        (left_apart, "side by side again"),
        (heads_before_the_three, "split queries, keys and values first"),
        (matrix_not_transposed, "head by head"),
    ],
    "padding_mask": [
        (lambda lengths, T: ~real(lengths, T)[:, None, None], "True and False are exchanged"),
        (lambda lengths, T: real(lengths, T), "it must broadcast to"),
        (lambda lengths, T: real(lengths, T)[:, None, :, None], "that masks queries"),
        (lambda lengths, T: real(lengths, T)[:, None, None].float(), "expected booleans"),
        (lambda lengths, T: real(lengths + 1, T)[:, None, None], "one too many"),
        (lambda lengths, T: torch.arange(T) < lengths.max(), "each image has its own length"),
    ],
}
