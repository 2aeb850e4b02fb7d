"""Checks of the exercises of chapter 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.checks import (
    attempt,
    confirm,
    expect,
    expect_no_slip,
    expect_number,
    expect_tensor,
    same,
)
from vitmini.encoder import Block


def layer_norm(function: Callable[[Tensor, Tensor, Tensor, float], Any]) -> None:
    """Exercise 4.1: mean and variance of each token, over its own components."""
    for shape, eps in (((2, 5, 8), 1e-6), ((3, 4), 1e-5), ((1, 6), 0.5), ((2, 3, 2, 7), 1e-6)):
        D = shape[-1]
        generator = torch.Generator().manual_seed(10 * D)
        x = 3 * torch.randn(shape, generator=generator) + 1
        weight, bias = torch.rand(2, D, generator=generator) + 0.5
        crash = "keepdim=True keeps the mean ready for broadcasting: (..., 1)"
        got = expect_tensor(attempt(function, x, weight, bias, eps, slip=crash), shape, {})

        def done(value: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return value * weight + bias

        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        slips = {
            "the mean and the variance run over the D components of one token, the last dimension":
                _normalised(x, (len(shape) - 2,), eps),
            "each token has its own mean and variance: not one for the whole image":
                _normalised(x, tuple(range(1, len(shape))), eps),
            "each token has its own mean and variance: not one for the whole batch":
                _normalised(x, tuple(range(len(shape))), eps),
            "the variance divides by D, not by D - 1: correction=0":
                centred / (x.var(-1, keepdim=True) + eps).sqrt(),
            "divide by the root of the variance, not by the variance": centred / (variance + eps),
            "eps belongs under the root, beside the variance": centred / (variance.sqrt() + eps),
            "the mean is not taken away": x / (variance + eps).sqrt(),
            "that is RMS norm: take the mean away before you square": x
            / (x.square().mean(-1, keepdim=True) + eps).sqrt(),
        }  # fmt: skip
        target = done(centred / (variance + eps).sqrt())
        expect(
            not same(got, centred / (variance + eps).sqrt()),
            "the tokens are normalised; weight and bias are still missing",
        )
        half = centred / (variance + eps).sqrt()
        expect(not same(got, half * weight), "the bias is still missing: add it at the end")
        expect(not same(got, half + bias), "the weight is still missing: multiply before the bias")
        for message, wrong in slips.items():
            known = same(done(wrong), target)
            expect(known or not (same(got, done(wrong)) or same(got, wrong)), message)
        swapped = (centred / (variance + eps).sqrt() + bias) * weight
        expect(not same(got, swapped), "weight first, then bias: normalised * weight + bias")
        no_eps = done(centred / variance.sqrt())
        if same(got, no_eps) and not same(no_eps, target):
            flat = attempt(function, torch.ones(1, D), weight, bias, eps)
            fixed = isinstance(flat, Tensor) and bool(flat.isfinite().all())
            expect(not fixed, f"eps is {eps:g} here: use the argument, not a fixed number")
            expect(False, "eps is missing: it stands under the root")
        expect(same(got, target), "the result is not (x - mean) / sqrt(var + eps) * weight + bias")
    flat = torch.full((2, 4), 5.0)
    got = expect_tensor(attempt(function, flat, torch.ones(4), torch.zeros(4), 1e-6), (2, 4), {})
    expect(
        bool(got.isfinite().all()),
        "a token of equal components gives nan: add eps before you divide",
    )
    confirm("4.1", "each token has mean 0 and variance 1 before weight and bias")


def _normalised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()


def block_parameters(function: Callable[[int, float, bool], Any]) -> None:
    """Exercise 4.2: attention, MLP and two norms."""
    for D, ratio, bias in (
        (64, 2.5, True),  # first, since here no two slips have the same gap
        (768, 4.0, True),
        (192, 2.0, True),
        (384, 4.0, False),
        (64, 8 / 3, False),
    ):
        with torch.device("meta"):
            block = Block(D, 1, ratio, bias)
        target = sum(p.numel() for p in block.parameters())
        H = int(D * ratio)
        got = expect_number(attempt(function, D, ratio, bias), "7087872")
        slips: dict[float, str] = {
            H: "the MLP's first layer has a bias of H numbers",
            H - D: "the MLP's first layer has H outputs, and so H biases, not D",
            4 * D: "the two norms are missing: a weight and a bias for each component",
            2 * D: "there are two norms, each with a weight and a bias of D numbers",
            H + D: "the MLP has biases too: H and D of them",
            H + 2 * D: "the biases of the MLP and of attention's last matrix are missing",
            D: "one bias of D numbers is missing: attention's last matrix and fc2 have one each",
            D * D + D: "attention's last matrix is missing: D times D, and a bias",
            D * D: "attention's last matrix is missing: D times D",
        }
        if bias:
            slips[3 * D] = "queries, keys and values have biases here: 3 D of them"
        else:
            slips[-3 * D] = "qkv_bias is False: then queries, keys and values have no biases"
        missing = target - got
        if missing in slips:
            expect(False, f"for D = {D}, ratio {ratio:g}, qkv_bias {bias}: {slips[missing]}")
        with torch.device("meta"):
            four = sum(p.numel() for p in Block(D, 1, 4.0, bias).parameters())
        expect(
            target == four or got != four,
            f"for D = {D} and ratio {ratio:g}: the MLP's hidden width is int(D * ratio), not 4 D",
        )
        for width in (D * ratio, round(D * ratio)):
            expect(
                width == H or abs(got - target - (2 * D + 1) * (width - H)) > 1e-3,
                f"for D = {D} and ratio {ratio:g}: the hidden width is int(D * ratio), {H}, "
                f"not {width:.6g}",
            )
        expect(
            got == target,
            f"for D = {D}, ratio {ratio:g}, qkv_bias {bias}: expected {target:,}, got {got:,.0f}",
        )
    confirm("4.2", "12 D² + 13 D for ratio 4 with all biases, and for every other ratio too")


def drop_path(function: Callable[[Tensor, float, bool], Any]) -> None:
    """Exercise 4.3: a coin for each image, divided by the keep rate, in training only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for shape, rate in (((6000, 3, 2), 0.25), ((6000, 4), 0.5), ((6000, 2, 1, 2), 0.1)):
            x = 1 + torch.rand(shape)
            crash = f"the coins need the shape {(shape[0], *[1] * (len(shape) - 1))}"
            still = expect_tensor(attempt(function, x, rate, False, slip=crash), shape, {})
            expect(
                not same(still, x * (1 - rate)),
                "in evaluation nothing happens: the factor belongs to training, 1 / (1 - rate)",
            )
            expect(same(still, x), "in evaluation (training=False) x must come out as it was")
            y = expect_tensor(attempt(function, x, rate, True, slip=crash), shape, {})
            expect(bool(y.isfinite().all()), "dividing by zero? kept images are x / (1 - rate)")
            kept = (y != 0).flatten(1)
            expect(
                bool(kept.any() and not kept.all()) or not _one_coin(function),
                "all images are kept or all are dropped: one coin for each image, "
                "not one for the batch",
            )
            expect(not bool(kept.all()), "in training some images must be dropped: set to zero")
            expect(bool(kept.any()), "in training nothing is left: keep with probability 1 - rate")
            expect(
                bool((kept.all(1) == kept.any(1)).all()),
                "single numbers or tokens are dropped: one coin for each image, "
                f"of the shape {(shape[0], *[1] * (len(shape) - 1))}",
            )
            share = kept[:, 0].float().mean().item()
            near = 4 * (rate * (1 - rate) / shape[0]) ** 0.5
            expect(
                rate == 0.5 or abs(share - rate) > near,
                f"rate {rate}: {share:.0%} are kept; rate is the share that is dropped",
            )
            expect(
                abs(share - (1 - rate)) < near,
                f"rate {rate}: {share:.0%} of the images are kept, expected {1 - rate:.0%}",
            )
            factor = (y / x).flatten(1)[kept[:, 0]].mean().item()
            expect(
                abs(factor - 1) > 1e-4,
                f"kept images are multiplied by 1, so the mean falls to {1 - rate:g} x: "
                "divide by 1 - rate",
            )
            expect(
                abs(factor - (1 - rate)) > 1e-4,
                "kept images are multiplied by 1 - rate: divide, so that the mean stays",
            )
            expect(
                rate == 0.5 or abs(factor - 1 / rate) > 1e-3,
                "kept images are divided by rate: divide by the share that is kept, 1 - rate",
            )
            expect(
                same(y[kept[:, 0]], x[kept[:, 0]] / (1 - rate)),
                f"kept images should be x / {1 - rate:g}; yours are {factor:.3g} x on average",
            )
        x = torch.rand(16, 3)
        first, second = (attempt(function, x, 0.5, True) for _ in range(2))
        expect(not same(first, second), "two calls drop the same images: draw new coins each time")
        calm = expect_tensor(attempt(function, x, 0.0, True), (16, 3), {})
        expect(same(calm, x), "with rate 0 nothing may change, in training either")
    confirm("4.3", "whole images are dropped, and the mean stays")


def _one_coin(function: Callable[[Tensor, float, bool], Any]) -> bool:
    """Whether small batches are sometimes kept whole, sometimes dropped whole, and never mixed."""
    seen = set()
    for _ in range(40):
        kept = attempt(function, torch.ones(8, 3), 0.5, True) != 0
        seen.add(kept.float().mean().item())
    return seen == {0.0, 1.0}


def post_norm(function: Callable[..., Any]) -> None:
    """Exercise 4.4: the sum first, then the norm."""
    for B, T, D in ((2, 3, 8), (1, 5, 4), (4, 1, 6)):
        generator = torch.Generator().manual_seed(D)
        x = torch.randn(B, T, D, generator=generator)
        w1, w2 = torch.randn(2, D, D, generator=generator)
        g1, g2 = 0.5 + torch.rand(2, D, generator=generator)

        def attn(t: Tensor, w: Tensor = w1) -> Tensor:
            return (t + t.mean(1, keepdim=True)) @ w

        def mlp(t: Tensor, w: Tensor = w2) -> Tensor:
            return F.gelu(t @ w)

        def norm1(t: Tensor, g: Tensor = g1) -> Tensor:
            return g * F.layer_norm(t, (t.shape[-1],))

        def norm2(t: Tensor, g: Tensor = g2) -> Tensor:
            return g * F.layer_norm(t, (t.shape[-1],))

        got = expect_tensor(attempt(function, x, attn, mlp, norm1, norm2), (B, T, D), {})
        pre = x + attn(norm1(x))
        inside = x + norm1(attn(x))
        first = norm1(x + attn(x))
        both = norm1(x + attn(norm1(x)))
        slips = {
            "that is the pre-norm block: here the norm comes after the sum": pre + mlp(norm2(pre)),
            "the norm goes around the sum, not around the branch alone": inside
            + norm2(mlp(inside)),
            "the shortcuts are missing: norm(x + branch)": norm2(mlp(norm1(attn(x)))),
            "the second norm is missing, or stands before the MLP": first + mlp(norm2(first)),
            "the last norm, norm2 after the second sum, is missing": first + mlp(first),
            "norm1 belongs to attention and norm2 to the MLP; each is used once": norm1(
                first + mlp(first)
            ),
            "norm1 belongs after attention, norm2 after the MLP; yours are exchanged": (
                lambda t: norm1(t + mlp(t))
            )(norm2(x + attn(x))),
            "branches read the stream as it is; the norm comes after the sum only": norm2(
                both + mlp(norm2(both))
            ),
            "attention comes first, then the MLP": (lambda t: norm2(t + attn(t)))(
                norm1(x + mlp(x))
            ),
            "the MLP reads what came out of norm1, not the x from the start": norm2(first + mlp(x)),
            "the second shortcut starts at what came out of norm1, not at the x from the start": (
                norm2(x + mlp(first))
            ),
        }
        for message, wrong in slips.items():
            expect(not same(got, wrong), message)
        expect(same(got, norm2(first + mlp(first))), "the result is not norm(x + branch), twice")
    confirm("4.4", "add, then normalise, twice")


def parallel_block(function: Callable[[Tensor, Tensor, Tensor, int], Any]) -> None:
    """Exercise 4.5: both branches from one norm, with one matrix in and one out."""
    for B, T, heads, d, H in ((2, 5, 2, 4, 32), (1, 3, 3, 2, 10), (3, 4, 1, 8, 8)):
        D = heads * d
        generator = torch.Generator().manual_seed(100 * heads + H)
        x = 2 * torch.randn(B, T, D, generator=generator) + 1
        w_in = torch.randn(3 * D + H, D, generator=generator) / D**0.5
        w_out = torch.randn(D, D + H, generator=generator) / D**0.5
        hints = {
            (B, T, D + H): "those are both branches before the last matrix: times w_out.T",
            (B, heads, T, d): "put the heads side by side, and add the MLP",
        }
        crash = "w_in gives (B, T, 3D + H): split it into [D, D, D, H]; w_out takes D + H"
        answer = attempt(function, x, w_in, w_out, heads, slip=crash)
        got = expect_tensor(answer, (B, T, D), hints)
        target = _parallel(x, w_in, w_out, heads)
        slips: dict[str, dict[str, Any]] = {
            "the norm is missing: both branches read LN(x)": dict(norm=False),
            "the shortcut is missing: x is added at the end": dict(shortcut="none"),
            "the shortcut adds x as it came, not LN(x)": dict(shortcut="normed"),
            "the GELU of the hidden layer is missing": dict(act=None),
            "the GELU is the exact one here": dict(act="tanh"),
            "the scores are divided by the root of the head width d, not of D": dict(scale=D**-0.5),
            "the scores are not scaled: divide them by the root of the head width d": dict(
                scale=1.0
            ),
            "the scores are divided by the root of the head width d, not by d": dict(scale=1 / d),
            "reshape(B, heads, T, d) mixes tokens and heads: view as (B, T, heads, d), "
            "then transpose": dict(split=False),
            "reshape(B, heads, T, d) and back mixes tokens and heads: view as (B, T, heads, d), "
            "then transpose": dict(split=False, join=False),
            "that is one head of width D: split queries, keys and values into heads": dict(heads=1),
            "the MLP's branch is missing": dict(keep=(1, 0)),
            "the attention's branch is missing": dict(keep=(0, 1)),
            "the columns of w_out are for attention first, then for the hidden layer": dict(
                swap=True
            ),
            "the heads are joined wrongly: (B, heads, T, d), transpose, then reshape": dict(
                join=False
            ),
            "the MLP reads the same LN(x) as attention, not attention's output": dict(
                sequential=True
            ),
        }
        wrong = {m: _parallel(x, w_in, w_out, **{"heads": heads, **c}) for m, c in slips.items()}
        expect_no_slip(got, target, wrong)
        expect(same(got, target), "the result is not x + attention(LN(x)) + MLP(LN(x))")
    confirm("4.5", "two branches, one matrix in and one matrix out")


def _parallel(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    heads: int,
    norm: bool = True,
    shortcut: str = "x",
    act: str | None = "none",
    keep: tuple[int, int] = (1, 1),
    swap: bool = False,
    split: bool = True,
    join: bool = True,
    sequential: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The right answer, and with other arguments the usual wrong ones."""
    B, T, D = x.shape
    H = w_in.shape[0] - 3 * D
    h = F.layer_norm(x, (D,)) if norm else x
    q, k, v, hidden = (h @ w_in.T).split([D, D, D, H], dim=-1)
    d = D // heads
    q, k, v = (
        t.reshape(B, T, heads, d).transpose(1, 2) if split else t.reshape(B, heads, T, d)
        for t in (q, k, v)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
    mixed = (mixed.transpose(1, 2) if join else mixed).reshape(B, T, D)
    if sequential:
        middle = x + mixed @ w_out[:, :D].T
        hidden = F.layer_norm(middle, (D,)) @ w_in[3 * D :].T
    hidden = hidden if act is None else F.gelu(hidden, approximate=act)
    parts = [keep[0] * mixed, keep[1] * hidden]
    out = torch.cat(parts[::-1] if swap else parts, dim=-1) @ w_out.T
    return out + {"x": x, "none": torch.zeros_like(x), "normed": h}[shortcut]
