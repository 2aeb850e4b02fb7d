"""Checks of the exercises of chapter 12."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
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
from vitmini.positions import position_similarity, sincos_positions

GRIDS = ((3, 3), (2, 4), (4, 3))


def _maps(grid: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(10 * grid[0] + grid[1])
    table = torch.randn(grid[0] * grid[1], 8, generator=generator)
    return position_similarity(table, grid, num_prefix_tokens=0)


def _offsets(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the cosines of each offset, and how many they are: (2 * rows - 1, 2 * cols - 1)."""
    rows, columns = maps.shape[:2]
    sums = torch.zeros(2 * rows - 1, 2 * columns - 1, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for i in range(rows):
        for j in range(columns):
            top, left = rows - 1 - i, columns - 1 - j
            window = (slice(top, top + rows), slice(left, left + columns))
            sums[window] += maps[i, j]
            counts[window] += 1
    return sums, counts


def by_offset(function: Callable[[Tensor], Any]) -> None:
    """Exercise 12.1: the mean similarity of all pairs of one offset."""
    for grid in GRIDS:  # any numbers, not alike both ways, so that a wrong sign shows
        rows, columns = grid
        generator = torch.Generator().manual_seed(rows + columns)
        maps = torch.rand(rows, columns, rows, columns, generator=generator)
        sums, counts = _offsets(maps)
        target = (sums / counts).float()
        hints: dict[tuple[int, ...], str] = {
            (2 * columns - 1, 2 * rows - 1): "rows come first",
            (rows, columns): "offsets go from -(rows - 1) to rows - 1, negative ones included",
            (rows, columns, rows, columns): "average over the patches: one number an offset",
            (2 * rows, 2 * columns): "from -(rows - 1) to rows - 1 there are 2 * rows - 1 offsets",
        }
        slip = "the window of patch (i, j) begins at row rows - 1 - i, column columns - 1 - j"
        given = attempt(function, maps, slip=slip)
        got = expect_tensor(given, tuple(target.shape), hints)
        empty = bool(got.isnan().any())
        expect(not empty, "there is a NaN: every offset has at least one pair, count them")
        slips = {
            "those are sums: divide each by the number of its pairs": sums,
            "divide by the number of pairs of this offset, not by all N patches": sums
            / (rows * columns),
            "turned round: an entry's offset is the other patch minus the first": target.flip(0, 1),
            "the rows are turned round: row 0 holds dy = -(rows - 1)": target.flip(0),
            "the columns are turned round: column 0 holds dx = -(columns - 1)": target.flip(1),
            "that treats offsets without their sign: dy and -dy are different entries": (
                target + target.flip(0) + target.flip(1) + target.flip(0, 1)
            )
            / 4,
        }
        if rows == columns:
            slips["rows and columns are exchanged: dy comes first, then dx"] = target.T
        expect_no_slip(got, target, {f"grid {grid}: {k}": v for k, v in slips.items()})
        shown, told = (round(x[rows - 1, columns].item(), 3) for x in (target, got))
        expect(
            same(got, target),
            f"grid {grid}: that is not the mean of each offset. For dy = 0, dx = 1, expected "
            f"{shown}, got {told}",
        )
    confirm("12.1", "the mean of all pairs of one offset, negative ones included")


def offset_share(function: Callable[[Tensor], Any]) -> None:
    """Exercise 12.2: how much of the similarity the offset explains."""
    for grid in GRIDS:
        maps = _maps(grid)
        target = _explained(maps, others=True)
        got = _number(function, maps)
        rows, columns = grid
        cosines = maps.double().reshape(rows * columns, -1)
        other = ~torch.eye(rows * columns, dtype=torch.bool)
        zero = _explained(maps, others=True, mean=False)
        slips = {
            "pairs of a patch with itself are in: their cosine is always 1, leave them out": (
                _explained(maps, others=False)
            ),
            "that is the share that is left: 1 minus it": 1 - target,
            "that is the root, a correlation: the share is its square": max(target, 0.0) ** 0.5,
            "measure from the mean cosine of all pairs, not from 0": zero,
            "that is the variance that is left, not a share of the whole": (1 - target)
            * cosines[other].var(unbiased=False).item(),
            "divide by the variance: roots were taken before": 1 - max(1 - target, 0.0) ** 0.5,
            "that is the distance's share: one mean for each offset (dy, dx)": (
                _explained(maps, others=True, kind="distance")
            ),
            "that takes dy and -dy for the same: one mean for each offset, with its sign": (
                _explained(maps, others=True, kind="unsigned")
            ),
            "in percent it is, but a share is asked for: from 0 to 1": 100 * target,
        }
        for words, value in slips.items():
            wrong = abs(got - value) < 1e-4 and abs(value - target) > 1e-3
            expect(not wrong, f"grid {grid}: {words}")
        expect(
            abs(got - target) < 1e-4,
            f"grid {grid}: expected {target:.4f}, got {got:.4f}",
        )
    maps = position_similarity(sincos_positions((3, 4), 16), (3, 4), num_prefix_tokens=0)
    got = _number(function, maps)
    expect(abs(got - 1) < 1e-3, f"sines and cosines: the offset says everything, got {got:.4f}")
    confirm("12.2", "the share of the variance that the offset explains; 1 for sines and cosines")


def _number(function: Callable[[Tensor], Any], maps: Tensor) -> float:
    slip = "maps has four dimensions; maps.reshape(N, N) has a row and a column for each patch"
    got = expect_number(attempt(function, maps, slip=slip), "0.31")
    expect(got == got, "that is NaN: is one of the offsets without any pair, or a sum 0?")
    return got


def _explained(maps: Tensor, others: bool, mean: bool = True, kind: str = "offset") -> float:
    rows, columns = maps.shape[:2]
    at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    apart = (at[None] - at[:, None]).reshape(-1, 2)
    number = apart[:, 0] * 100 + apart[:, 1]
    if kind == "distance":
        number = apart.square().sum(1)
    if kind == "unsigned":
        number = apart[:, 0].abs() * 100 + apart[:, 1].abs()
    cosines = maps.flatten().double()
    if others:
        kept = (apart != 0).any(1)
        number, cosines = number[kept], cosines[kept]
    left = cosines.clone()
    for value in number.unique():
        left[number == value] -= cosines[number == value].mean()
    middle = cosines.mean() if mean else 0.0
    return (1 - left.square().sum() / (cosines - middle).square().sum()).item()


def components_needed(function: Callable[[Tensor, float], Any]) -> None:
    """Exercise 12.3: how many components it takes to explain a share of the variance."""
    hand = torch.tensor([[2.0, 1], [1, 2], [-1, -2], [-2, -1]]).reshape(4, 2, 1, 1)
    cases = [(hand, 0.85), (hand, 0.95)]
    for shape in ((24, 3, 2, 2), (8, 1, 4, 3), (30, 2, 2, 3)):
        generator = torch.Generator().manual_seed(shape[0])
        scale = 0.75 ** torch.arange(shape[1] * shape[2] * shape[3])  # some directions are louder
        noise = torch.randn(shape[0], len(scale), generator=generator) * scale
        apart = torch.randn(shape[0], 1, generator=generator)  # and filters have other means
        weight = (noise + 0.5 * apart + 0.8 * torch.randn(len(scale), generator=generator)).reshape(
            shape
        )
        cases += [(weight, share) for share in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)]
    slip = "svdvals wants a matrix (D, C*P*P): weight.flatten(1)"
    got = []
    for weight, share in cases:
        given = attempt(function, weight, share, slip=slip)
        number = expect_number(given, "12")
        expect(number == number and number == round(number), f"expected a whole number: {number}")
        whole = isinstance(given, Integral) and not isinstance(given, bool)
        kind = type(given).__name__
        expect(whole, f"expected a whole number, not one in a {kind}: int(...) makes it one")
        got.append(int(number))

    def answers(centre: Callable[[Tensor], Tensor], power: int = 2, more: int = 0) -> list[int]:
        found = []
        for weight, share in cases:
            values = torch.linalg.svdvals(centre(weight.flatten(1)).double()) ** power
            found.append(int((values.cumsum(0) / values.sum() < share).sum()) + 1 + more)
        return found

    def mean_away(x: Tensor) -> Tensor:
        return x - x.mean(0)

    target = answers(mean_away)
    slips = {
        "take the mean filter away first: filters - filters.mean(0)": answers(lambda x: x),
        "that takes away each filter's own mean: the mean *over* the filters is dim 0": answers(
            lambda x: x - x.mean(1, keepdim=True)
        ),
        "that takes away one mean of all numbers: each number has its own, dim 0": answers(
            lambda x: x - x.mean()
        ),
        "variance is the square of a singular value": answers(mean_away, power=1),
        "one too few: those explain less than the share": answers(mean_away, more=-1),
        "one too many: one less already explains the share": answers(mean_away, more=1),
        "that is how many are left: count those that are needed": [
            min(len(w), w[0].numel()) - n for (w, _), n in zip(cases, target, strict=True)
        ],
    }
    for words, value in slips.items():
        expect(got != value or value == target, words)
    for (weight, share), number, right in zip(cases, got, target, strict=True):
        where = f"{len(weight)} filters of {weight[0].numel()} numbers, share {share}"
        expect(number == right, f"{where}: expected {right} components, got {number}")
    confirm("12.3", "squares from the mean filter, summed until the share is reached")
