"""Checks of the exercises of chapter 13."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.checks import attempt, confirm, expect, expect_no_slip, expect_tensor, own_work, same


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor, a: float = -0.75) -> Tensor:
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros(())))


def _spread(x: Tensor, old: int, kernel: Callable[[Tensor], Tensor], beyond: int = 2) -> Tensor:
    """Weights (len(x), old) of a kernel at the places x, those beyond the borders at the border."""
    W = torch.zeros(len(x), old)
    for j in range(-beyond, old + beyond):
        W[:, min(max(j, 0), old - 1)] += kernel(x - j)
    return W


def kernel_weights(function: Callable[..., Any]) -> None:
    """Exercise 13.1: the weights of a row for any kernel, pixel centres."""

    def linear(x: Tensor) -> Tensor:
        return _linear(x)

    def cubic(x: Tensor) -> Tensor:
        return _cubic(x)

    def sharp(x: Tensor) -> Tensor:
        return _cubic(x, -0.5)

    slip = (
        "old patches beyond the border have no column: min(max(j, 0), old - 1) is the border's; "
        "and x is (new,), a matrix of distances wants x[:, None]"
    )
    sizes = ((4, 6), (8, 12), (8, 5), (7, 3), (5, 5), (3, 7))
    for (old, new), kernel in ((size, k) for size in sizes for k in (linear, cubic, sharp)):
        i, j = torch.arange(new), torch.arange(old)
        x = (i + 0.5) * old / new - 0.5
        target = _spread(x, old, kernel)
        hints = {(old, new): "a row for each new patch: transpose it", (new,): "W is a matrix"}
        with own_work("torch.nn.functional.interpolate", "positions.resize_pos_embed"):
            given = attempt(function, old, new, kernel, slip=slip)
        got = expect_tensor(given, (new, old), hints)
        where = f"{old} to {new} patches, a {kernel.__name__} kernel"
        lost, last, wrapped = kernel(x[:, None] - j), torch.zeros(new, old), torch.zeros(new, old)
        for k in range(-2, old + 2):
            taken = kernel(x - k)
            at = min(max(k, 0), old - 1)
            last[:, at] = torch.where(taken != 0, taken, last[:, at])
            wrapped[:, k % old] += taken
        wrong = {
            "those are aligned corners: the picture keeps its borders, not its first centre": (
                _spread(i * (old - 1) / max(new - 1, 1), old, kernel)
            ),
            "half a patch is missing: centres are at i + 1/2, and at 0 in old patches": (
                _spread(i * old / new, old, kernel)
            ),
            "the second half is missing: subtract 1/2 to count from the first centre": (
                _spread((i + 0.5) * old / new, old, kernel)
            ),
            "the ratio is turned round: an old patch is new/old new ones, so x grows by old/new": (
                _spread((i + 0.5) * new / old - 0.5, old, kernel)
            ),
            "the ratio is turned round: x grows by old/new, not by new/old": (
                _spread((i + 0.5) * new / old - 0.5, old, kernel, 3 * max(old, new))
            ),
            "what falls beyond a border is lost: its weight belongs to the border's patch": lost,
            "a row that sums to 1 is not enough: what falls beyond belongs to the border's patch, "
            "not to all in the row": lost / lost.sum(1, keepdim=True),
            "several weights meet in the border's column: add them, +=": last,
            "an index of -1 is the last column: beyond the left border is the first": wrapped,
            "do not clamp x: the distances stay, only the old patches end at the border": (
                _spread(x.clamp(0, old - 1), old, kernel)
            ),
            "those are the weights of a linear kernel: call the one that is given": (
                _spread(x, old, _linear)
            ),
        }
        expect_no_slip(got, target, {f"{where}: {k}": v for k, v in wrong.items()})
        expect(
            same(got, target),
            f"{where}: the first new patch expects {_row(target[0])}, got {_row(got[0])}"
            if not same(got[0], target[0])
            else f"{where}: the first row is right, another one is not; each sums to 1, "
            f"yours to {_row(got.sum(1))}",
        )
    confirm("13.1", "a matrix of weights for any kernel, the border's patch repeated")


def _row(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.2f}" for v in values.tolist()[:6]) + "]"


def resize_panorama(function: Callable[..., Any]) -> None:
    """Exercise 13.2: a table whose columns go round, with any prefix."""
    # each case crashes a slip of its own
    cases = (
        (1, (4, 4), (6, 6), "the prefix goes away before the reshape, and (D, N) wants .T before "
         "the prefix is put in front again"),
        (2, (4, 4), (6, 6), "the prefix may be more than 1: it is 2 here"),
        (1, (2, 6), (4, 9), "the grid is `old`, not the root of the number of patches"),
        (0, (3, 5), (5, 3), "the prefix may be 0"),
        (3, (6, 4), (3, 2), "the grid gets coarser here"),
    )  # fmt: skip
    for prefix, old, new, slip in cases:
        N, M, D = math.prod(old), math.prod(new), 5
        table = _random(prefix + N, D)
        maps = table[prefix:].T.reshape(1, D, *old)

        def end(maps: Tensor, prefix: int = prefix, table: Tensor = table) -> Tensor:
            return torch.cat([table[:prefix], maps.flatten(2)[0].T])

        def round_(
            maps: Tensor, high: int = 1, wide: int = 3, new: tuple[int, int] = new, **how: Any
        ) -> Tensor:  # the middle of copies side by side
            size = (high * new[0], wide * new[1])
            maps = F.interpolate(maps.repeat(1, 1, high, wide), size, **({"mode": "bicubic"} | how))
            y, x = high // 2 * new[0], wide // 2 * new[1]
            return maps[:, :, y : y + new[0], x : x + new[1]]

        target = end(round_(maps))
        hints: dict[tuple[int, ...], str] = {
            (M, D): "the prefix is missing in front",
            (D, prefix + M): "a row a token: transpose it back, .T",
            (1, prefix + M, D): "a table has no batch: drop the first dimension",
            (D, *new): "lay the maps out row by row: flatten, transpose",
            (1, D, *new): "lay the maps out row by row: flatten, transpose",
            (prefix + 3 * M, D): "those are three copies: keep the one in the middle",
            (prefix + N, D): "that is the old number of patches: mistake three is to cut the table "
            "off, not to resize it",
        }
        given = attempt(function, table, prefix, old, new, slip=slip)
        got = expect_tensor(given, (prefix + M, D), hints)
        mixed = table[prefix:].reshape(1, D, *old)
        line = F.interpolate(table.T[None], prefix + M, mode="linear")[0].T
        outer = F.interpolate(maps.repeat(1, 1, 1, 3), (new[0], 3 * new[1]), mode="bicubic")
        turned = table[prefix:].T.reshape(1, D, *old[::-1])
        turned = F.interpolate(turned.repeat(1, 1, 1, 3), (new[1], 3 * new[0]), mode="bicubic")
        own = target[prefix:]
        wrong: dict[str, Tensor] = {
            "those are maps of mixed-up numbers: (N, D) is not (D, N), transpose first": (
                end(round_(mixed))
            ),
            "rows and columns are exchanged: a grid is (rows, columns)": (
                end(turned[..., new[0] : 2 * new[0]])
            ),
            "the left and the right border do not meet: that is a picture, no panorama": (
                end(round_(maps, wide=1))
            ),
            "the top is no neighbour of the bottom: only the columns go round": (
                end(round_(maps, high=3))
            ),
            "the columns go round, not the rows": end(round_(maps, high=3, wide=1)),
            "that copy has no neighbour on the left: keep the one in the middle": (
                end(outer[..., : new[1]])
            ),
            "that copy has no neighbour on the right: keep the one in the middle": (
                end(outer[..., -new[1] :])
            ),
            "those are aligned corners, and the copies no longer fit": (
                end(round_(maps, align_corners=True))
            ),
            "that is linear, not bicubic": end(round_(maps, mode="bilinear")),
            "that is antialiased: asked is the plain kernel": end(round_(maps, antialias=True)),
            "the prefix comes first, also in the result": torch.cat([own, table[:prefix]]),
            "that is one long sequence, the prefix mixed into the first patch": line,
            "the prefix passes through as it is": torch.cat([0 * table[:prefix], own]),
        }
        if M <= N:
            cut = "that is the table cut off, not resized: mistake three of this chapter"
            wrong = {cut: table[: prefix + M]} | wrong
        where = f"grid {old} to {new}, {prefix} prefix tokens"
        expect_no_slip(got, target, {f"{where}: {k}": v for k, v in wrong.items()})
        expect(
            not prefix or same(got[:prefix], target[:prefix], 0),
            f"{where}: the prefix has changed, and should pass through as it is",
        )
        expect(same(got, target), f"{where}: the patches are not those of a bicubic resize")
    confirm("13.2", "the right border meets the left one, the prefix as it was")


def least_addition(function: Callable[[int, int], Any]) -> None:
    """Exercise 13.3: how little has to be added to n so that no patch is lost."""
    slip = "no k is left: the product is rounded down before you compare, math.floor"
    cases = (
        (14, 115, "in your computation not even that is needed: the code divides first, "
         "(n + 10**-k) / old, multiplies by old then, and rounds down; every n has to come out"),
        (14, 61, "limit is included: range ends one before"),
        (14, 128, "that is right for the limit alone: every n from 1 on has to come out"),
        (37, 130, ""), (16, 64, ""), (14, 2000, ""), (37, 1000, ""), (7, 2000, ""),
    )  # fmt: skip
    for old, limit, twenty in cases:
        result = attempt(function, old, limit, slip=slip)
        given = result.item() if isinstance(result, Tensor) and result.numel() == 1 else result
        where = f"{old} patches, up to {limit}"
        small = isinstance(given, float) and 0 < given < 1
        expect(not small, f"{where}: asked is k, a whole number, not 10**-k")
        expect(
            isinstance(given, int) and not isinstance(given, bool),
            f"expected one whole number k, got {str(result)[:60]}",
        )

        def largest(
            right: Callable[[int, int, float], bool], old: int = old, limit: int = limit
        ) -> int:
            works = (
                k for k in range(1, 21) if all(right(old, n, 10**-k) for n in range(1, limit + 1))
            )
            return max(works, default=0)

        target = largest(lambda old, n, e: math.floor(old * ((n + e) / old)) == n)
        slips = {
            "the first k that does it is 1, the tenth: asked is the largest": 1,
            "some k does it: the product is rounded down before you compare, math.floor": 0,
            f"{target + 1} loses a patch: asked is the last k that loses none, and 10**-k goes to "
            "n, before the division": target + 1,
            "the addition goes to n, before the division, not to the factor": (
                largest(lambda old, n, e: math.floor(old * (n / old + e)) == n)
            ),
        }
        if twenty:
            slips = {twenty: 20} | slips
        for message, wrong in slips.items():
            expect(wrong == target or given != wrong, f"{where}: {message}")
        expect(given == target, f"{where}: expected {target}, got {given}")
    confirm("13.3", "up to 128 patches, 10**-14 does what the tenth was for")


def photo_grid(function: Callable[[int, int, int], Any]) -> None:
    """Exercise 13.4: the nearest whole grid of patches."""
    cases = ((224, 224, 16), (240, 320, 16), (300, 451, 16), (40, 56, 16), (9, 100, 32))
    for height, width, patch in (*cases, (427, 640, 14), (8, 8, 16)):
        result = attempt(function, height, width, patch)
        given = result.tolist() if isinstance(result, Tensor) else result
        whole = isinstance(given, (list, tuple)) and len(given) == 2
        expect(
            whole and all(isinstance(n, int) for n in given),
            f"expected two whole numbers, (rows, columns), got {str(result)[:60]}",
        )
        where = f"{height} x {width} pixels, patches of {patch}"

        def grid(
            rule: Callable[[float], int], least: int = 1, h: int = height, w: int = width,
            p: int = patch,
        ) -> list[int]:  # fmt: skip
            return [max(least, rule(side / p)) for side in (h, w)]

        def up(x: float) -> int:
            return math.floor(x + 0.5)

        got, target = list(given), grid(up)
        slips = {
            "rows come first: the height": target[::-1],
            "rounded down, not to the nearest": grid(math.floor),
            "rounded up, not to the nearest": grid(math.ceil),
            "Python's round takes a half to the even neighbour": grid(round),
            "at least one patch": grid(up, 0),
            "those are pixels, not patches": [patch * n for n in target],
            "rounded down, and at least one patch": grid(math.floor, 0),
            "Python's round takes a half to the even neighbour, and at least one patch": (
                grid(round, 0)
            ),
        }
        for message, wrong in slips.items():
            expect(wrong == target or got != wrong, f"{where}: {message}")
        expect(got == target, f"{where}: expected {tuple(target)}, got {tuple(got)}")
    confirm("13.4", "rows and columns of the nearest grid")
