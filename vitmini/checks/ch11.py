"""Checks of the exercises of chapter 11."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitmini.checks import (
    WrongAnswer,
    attempt,
    confirm,
    expect,
    expect_no_slip,
    expect_tensor,
    same,
)
from vitmini.inspection import attention_distance, attention_rollout, patch_distances


def _maps(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (2 * torch.randn(*shape, generator=generator)).softmax(dim=-1)


def _attempt_distances(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the answer; a crash in cdist has another usual cause than one anywhere else."""
    try:
        return attempt(function, *arguments)
    except WrongAnswer as wrong:
        if " stopped with " not in str(wrong):
            raise
        slip = "attn[..., prefix:, prefix:] has N queries and N keys, as the distances have"
        if "cdist" in str(wrong):
            slip = "cdist wants floating-point numbers: .float()"
        raise WrongAnswer(f"{wrong}\nA usual slip: {slip}") from wrong.__cause__


def head_distances(function: Callable[..., Any]) -> None:
    """Exercise 11.1: how far each head looks, in pixels."""
    for grid, size, prefix, heads in (((3, 3), 4, 1, 2), ((2, 5), 8, 2, 3), ((4, 2), 2, 0, 4)):
        N = grid[0] * grid[1]
        attn = _maps(2, heads, prefix + N, prefix + N)
        target = attention_distance(attn[None], grid, size, prefix)[0]
        where = f"grid {grid}, patches of {size} pixels, {prefix} prefix tokens"
        hints: dict[tuple[int, ...], str] = {
            (2, heads): "average over the images, too",
            (heads, N): "average over the queries, too",
            (2, heads, N): "average over images and queries",
            (): "one number a head: do not average over the heads",
        }
        given = _attempt_distances(function, attn, grid, size, prefix)
        got = expect_tensor(given, (heads,), hints)
        pixels = patch_distances(grid, size)
        patches = attn[..., prefix:, prefix:]
        mean = patches / patches.sum(-1, keepdim=True)
        last = attn[..., :N, :N]
        turned = patch_distances(grid[::-1], size)
        places = size * torch.cartesian_prod(*(torch.arange(n) for n in grid)).float()
        blocks = torch.cdist(places, places, p=1)
        slips = {
            "the rows without the prefix do not sum to 1: divide each by its sum": (
                patches * pixels
            )
            .sum(-1)
            .mean((0, 2)),
            "the prefix stands first: attn[..., prefix:, prefix:]": (
                last / last.sum(-1, keepdim=True) * pixels
            )
            .sum(-1)
            .mean((0, 2)),
            "a distance in patches: times size, it is one in pixels": target / size,
            "those are squared distances: take the root": (mean * pixels**2).sum(-1).mean((0, 2)),
            "straight-line distance, not rows plus columns": (mean * blocks).sum(-1).mean((0, 2)),
            "patches lie row by row: patch n is in row n // columns": (mean * turned)
            .sum(-1)
            .mean((0, 2)),
            "weights are (query, key): sum over the keys, the last dimension": (
                patches / patches.sum(-2, keepdim=True) * pixels
            )
            .sum(-2)
            .mean((0, 2)),
            "sum over the keys, do not average over them: the weights do that": target / N,
        }
        expect_no_slip(got, target, {f"{where}: {k}": v for k, v in slips.items()})
        shown, given = ([round(v, 2) for v in x.tolist()] for x in (target, got))
        expect(same(got, target), f"{where}: expected {shown}, got {given}")
    confirm("11.1", "prefix dropped, rows brought back to 1, weighted by pixels")


def rollout(function: Callable[[Tensor], Any]) -> None:
    """Exercise 11.2: attention through all layers."""
    for L, heads, T in ((3, 2, 4), (2, 3, 5), (1, 2, 3), (5, 1, 4)):
        attn = _maps(L, heads, T, T)
        target = attention_rollout(attn[:, None])[0]
        hints: dict[tuple[int, ...], str] = {
            (heads, T, T): "the heads are averaged first",
            (L, T, T): "multiply the layers to one matrix",
        }
        got = expect_tensor(attempt(function, attn), (T, T), hints)
        mean, eye = attn.mean(1), torch.eye(T)

        def product(layers: Tensor) -> Tensor:
            total = torch.eye(layers.shape[-1])
            for layer in layers:
                total = layer @ total
            return total

        plain, mixed = product(mean), (mean + eye) / 2
        sums = product(mean + eye)
        columns = product((mean + eye) / (mean + eye).sum(-2, keepdim=True))
        wrong = {
            "the identity is missing: the shortcut passes each token on": plain,
            "the order is turned round: a later layer stands further to the left": product(
                mixed.flip(0)
            ),
            "rows should sum to 1: divide by their sums in every layer": sums,
            "those are sums of columns: divide each row by its own, dim=-1": columns,
            "multiply matrices with @, not their entries with *": mixed.prod(0),
            "that is the mean of the layers, not their product": mixed.mean(0),
            "a softmax is no division: rows already hold shares": product((mean + eye).softmax(-1)),
            "that is transposed: row i is what token i of the last layer is mixed from": target.T,
        }
        expect_no_slip(got, target, {f"{L} layers: {k}": v for k, v in wrong.items()})
        expect(same(got, target), f"{L} layers: that is not the product of (mean + identity) / 2")
    confirm("11.2", "averaged over heads, half identity, multiplied from the first layer up")


def distance_spread(function: Callable[[Tensor, Tensor], Any]) -> None:
    """Exercise 11.3: how much the distance varies within what a query attends to."""
    for grid, size in (((3, 3), 4), ((2, 4), 8), ((1, 5), 2)):
        pixels = patch_distances(grid, size)
        N = len(pixels)
        weights = _maps(N, N)
        mean = (weights * pixels).sum(-1, keepdim=True)
        target = (weights * (pixels - mean) ** 2).sum(-1).sqrt()
        hints: dict[tuple[int, ...], str] = {
            (): "one number for each query",
            (N, N): "sum over the keys, the last dimension",
            (N, 1): "drop the last dimension: one number for each query",
        }
        got = expect_tensor(attempt(function, weights, pixels), (N,), hints)
        columns = (weights * pixels).sum(0)
        short = mean / N  # the mean of the products in place of their sum
        wrong = {
            "that is the mean, not the deviation from it": mean.squeeze(-1),
            "that is the variance: take the root": target**2,
            "the weights are not used": pixels.std(-1),
            "the weights are not used in the mean of the squares": pixels.std(-1, unbiased=False),
            "each query has its own mean: keep the dimension, keepdim=True": (
                (weights * (pixels - mean.squeeze(-1)) ** 2).sum(-1).sqrt()
            ),
            "the mean of the distances is weighted, too": (
                (weights * (pixels - pixels.mean(-1, keepdim=True)) ** 2).sum(-1).sqrt()
            ),
            "the weights do the averaging: .sum(-1), not .mean(-1), in the mean distance": (
                (weights * (pixels - short) ** 2).sum(-1).sqrt()
            ),
            "the weights do the averaging: .sum(-1), not .mean(-1), of the squares": (
                target / N**0.5
            ),
            "the weights do the averaging: .sum(-1), not .mean(-1), both times": (
                (weights * (pixels - short) ** 2).mean(-1).sqrt()
            ),
            "deviations from the mean, not from 0": (weights * pixels**2).sum(-1).sqrt(),
            "sum over the keys, the last dimension": (
                (weights * (pixels - columns) ** 2).sum(0).sqrt()
            ),
            "that is the deviation of the products, not of the distance": (weights * pixels).std(
                -1
            ),
            "an absolute deviation: square, average, take the root": (
                weights * (pixels - mean).abs()
            ).sum(-1),
        }
        expect_no_slip(got, target, wrong)
        expect(same(got, target), f"grid {grid}: that is not the weighted deviation")
    far = 10_000 + torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    got = expect_tensor(attempt(function, torch.full((2, 2), 0.5), far), (2,), {})
    expect(
        same(got, torch.full((2,), 0.5), 1e-3),
        "large distances lose their digits: subtract the mean before you square",
    )
    confirm("11.3", "the root of the weighted mean of squared deviations")
