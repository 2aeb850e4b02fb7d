"""Checks of the exercises of chapter 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.checks import attempt, confirm, expect, expect_no_slip, expect_tensor, same


def weighted_average(function: Callable[[Tensor, Tensor], Any]) -> None:
    """Exercise 3.1: from scores to weights to averages."""
    for T, S, d in ((3, 3, 2), (2, 5, 4), (4, 1, 3), (1, 6, 6)):
        generator = torch.Generator().manual_seed(10 * T + S)
        scores = 2 * torch.randn(T, S, generator=generator)
        values = torch.randn(S, d, generator=generator)
        target = scores.softmax(-1) @ values
        hints: dict[tuple[int, ...], str] = {
            (T, S): "those are the weights; the averages of the values are still to be taken",
            (S, d): "one average for each query, a row of scores, not for each key",
        }
        crash = "weights (T, S) times values (S, d) gives (T, d)"
        got = expect_tensor(attempt(function, scores, values, slip=crash), (T, d), hints)
        expect(
            not same(got, scores.softmax(0) @ values) or T == 1,
            "the softmax runs over the keys, the last dimension: each row of weights sums to 1",
        )
        expect(not same(got, scores @ values), "the softmax is missing: scores are not weights")
        expect(
            not same(got, scores.exp() @ values),
            "the weights are positive but do not sum to 1: divide by the sum of each row",
        )
        hard = F.one_hot(scores.argmax(-1), S).float() @ values
        expect(
            S == 1 or not same(got, hard),
            "that takes the value with the largest score and no other: softmax, not argmax",
        )
        expect(same(got, target), "the averages are not softmax(scores) @ values")
    huge = torch.tensor([[1000.0, 0.0, 999.0]])
    got = expect_tensor(attempt(function, huge, torch.eye(3)), (1, 3), {})
    expect(
        bool(got.isfinite().all()),
        "a score of 1000 gives nan: exp overflows; subtract the row's largest score first, "
        "or use torch.softmax, which does",
    )
    far = torch.tensor([[1000.0, 1000.0], [0.0, 0.0]])
    got = expect_tensor(attempt(function, far, torch.eye(2)), (2, 2), {})
    expect(
        bool(got.isfinite().all()) and same(got, torch.full((2, 2), 0.5)),
        "rows that lie far apart go wrong: subtract the largest score of each row, "
        "not the largest of all",
    )
    confirm("3.1", "softmax over the keys, then a weighted average of the values")


def split_heads(function: Callable[[Tensor, int], Any]) -> None:
    """Exercise 3.2: one width D becomes several heads of width d."""
    for B, T, heads, d in ((2, 5, 3, 4), (1, 4, 2, 2), (3, 6, 1, 8), (2, 3, 4, 1)):
        D = heads * d
        x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(D + T))
        target = x.view(B, T, heads, d).transpose(1, 2)
        hints = {
            (B, T, heads, d): "the heads come before the tokens: transpose dimensions 1 and 2",
            (heads, B, T, d): "the batch comes first: (B, heads, T, d)",
            (B, heads, d, T): "each head holds (T, d): the tokens before the width",
            (B * heads, T, d): "keep the batch and the heads apart: four dimensions",
        }
        got = expect_tensor(attempt(function, x, heads), (B, heads, T, d), hints)
        expect(
            heads == 1 or not same(got, x.reshape(B, heads, T, d)),
            "a reshape to (B, heads, T, d) mixes the tokens: split D first, "
            "(B, T, heads, d), then transpose",
        )
        strided = x.view(B, T, d, heads).permute(0, 3, 1, 2)
        expect(
            heads == 1 or d == 1 or not same(got, strided),
            "head 0 is the first d numbers of each token, one after the other, not every so-manyth",
        )
        expect(same(got, target), "head h should hold the numbers h*d to (h+1)*d of each token")
    confirm("3.2", "head h is the part h*d to (h+1)*d of every token")


def self_attention(function: Callable[[Tensor, Tensor, int], Any]) -> None:
    """Exercise 3.3: multi-head self-attention from one fused matrix."""
    for B, T, heads, d in ((2, 5, 2, 3), (1, 4, 3, 4), (3, 6, 1, 5)):
        D = heads * d
        generator = torch.Generator().manual_seed(100 * heads + d)
        x = torch.randn(B, T, D, generator=generator)
        weight = torch.randn(3 * D, D, generator=generator) / D**0.5
        hints = {
            (B, heads, T, d): "put the heads side by side again: (B, T, heads * d)",
            (B, T, 3 * D): "those are queries, keys and values; the attention is missing",
            (B, T, d): "put all heads side by side, not only one",
            (B, T, T): "those are weights; average the values with them",
        }
        crash = "x @ qkv_weight.T gives (B, T, 3 * D): first queries, then keys, then values"
        answer = attempt(function, x, weight, heads, slip=crash)
        got = expect_tensor(answer, (B, T, D), hints)
        slips = {
            "the scale is missing: divide the scores by the square root of d": dict(scale=1.0),
            "the scale is 1/sqrt(d) with d = D / heads, the width of a head, not D": dict(
                scale=D**-0.5
            ),
            "the scale is 1/sqrt(d), not 1/d": dict(scale=1 / d),
            "the rows of the matrix are queries, then keys, then values: not in this order": dict(
                order=(1, 0, 2)
            ),
            "the rows of qkv_weight are queries, then keys, then values; yours are mixed up": dict(
                order=(2, 1, 0)
            ),
            "the softmax runs over the keys, the last dimension": dict(dim=-2),
            "split queries, keys and values first, then each into heads: (B, T, 3, heads, d)": dict(
                heads_first=True
            ),
            "that is one head of width D: split queries, keys and values into heads": dict(heads=1),
            "the heads are joined wrongly: transpose back to (B, T, heads, d) before the reshape": (
                dict(join=False)
            ),
        }
        target = _attention(x, weight, heads)
        wrong = {m: _attention(x, weight, **{"heads": heads, **c}) for m, c in slips.items()}
        expect_no_slip(got, target, wrong)
        expect(same(got, target), "the result is not softmax(q k^T / sqrt(d)) v, head by head")
    confirm("3.3", "multi-head attention, from one matrix for queries, keys and values")


def _attention(
    x: Tensor,
    weight: Tensor,
    heads: int,
    scale: float | None = None,
    order: tuple[int, int, int] = (0, 1, 2),
    dim: int = -1,
    join: bool = True,
    heads_first: bool = False,
) -> Tensor:
    """The right answer, and with other arguments the usual wrong ones."""
    B, T, D = x.shape
    if heads_first:
        parts = (x @ weight.T).view(B, T, heads, 3, D // heads).permute(3, 0, 2, 1, 4)
    else:
        parts = (x @ weight.T).view(B, T, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    q, k, v = (parts[i] for i in order)
    scores = q @ k.transpose(-2, -1) * ((D // heads) ** -0.5 if scale is None else scale)
    out = scores.softmax(dim) @ v  # (B, heads, T, d)
    return (out.transpose(1, 2) if join else out).reshape(B, T, D)


def padding_mask(function: Callable[[Tensor, int], Any]) -> None:
    """Exercise 3.4: which keys are tokens, and which only fill the batch up."""
    for counts, T in (([3, 5, 1], 5), ([4], 4), ([2, 2], 6)):
        lengths, B = torch.tensor(counts), len(counts)
        target = (torch.arange(T) < lengths[:, None]).view(B, 1, 1, T)
        hints = {
            (B, T): "it must broadcast to (B, heads, T, T): the shape is (B, 1, 1, T)",
            (B, 1, T): "it must broadcast to (B, heads, T, T): the shape is (B, 1, 1, T)",
            (B, 1, T, 1): "that masks queries; the padding must not be looked at, so mask keys",
            (B, 1, T, T): "one row is enough: (B, 1, 1, T) broadcasts over the queries",
            (T,): "each image has its own length: (B, 1, 1, T)",
        }
        got = expect_tensor(attempt(function, lengths, T), (B, 1, 1, T), hints)
        expect(
            got.dtype == torch.bool,
            f"expected booleans, True where a query may look, got {got.dtype}: "
            "PyTorch would add numbers to the scores",
        )
        expect(
            not torch.equal(got, ~target),
            "True and False are exchanged: True means that a query may look there",
        )
        inclusive = (torch.arange(T) <= lengths[:, None]).view(B, 1, 1, T)
        expect(
            torch.equal(target, inclusive) or not torch.equal(got, inclusive),
            "one too many: an image of length 3 has the tokens 0, 1 and 2",
        )
        expect(torch.equal(got, target), "image b may look at its first lengths[b] keys, no others")
    confirm("3.4", "no query looks at padding")
