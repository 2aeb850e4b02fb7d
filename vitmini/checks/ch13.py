"""Checks of the exercises of chapter 13."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.checks import attempt, confirm, expect, expect_no_slip, expect_tensor, same
from vitmini.positions import resize_pos_embed


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _read(values: Tensor, x: Tensor) -> Tensor:
    """Linear between neighbours, and in the last piece beyond them if x is not clamped."""
    if len(values) == 1:
        return values.expand(len(x), -1)
    left = x.floor().long().clamp(0, len(values) - 2)
    share = (x - left)[:, None]
    return (1 - share) * values[left] + share * values[left + 1]


def resize_row(function: Callable[[Tensor, int], Any]) -> None:
    """Exercise 13.1: a row of vectors, linear, pixel centres."""
    slip = "the right neighbour of the last patch does not exist: clamp indices to n - 1"
    for n, new in ((4, 6), (8, 12), (8, 4), (5, 8), (6, 9), (7, 3), (3, 3), (1, 4), (4, 1)):
        values, i = _random(n, 3), torch.arange(new)
        target = F.interpolate(values.T[None], new, mode="linear", align_corners=False)[0].T
        hints = {
            (3, new): "a row a patch: transpose it back",
            (new,): "the vectors have D components",
            (n, 3): "that is the old number of patches",
        }
        got = expect_tensor(attempt(function, values, new, slip=slip), (new, 3), hints)
        x = (i + 0.5) * n / new - 0.5
        where = f"{n} to {new} patches"

        def inside(x: Tensor, values: Tensor = values) -> Tensor:
            return _read(values, x.clamp(0, len(values) - 1))

        wide = F.interpolate(values.T[None, :, None], (1, new), mode="bilinear", antialias=True)
        wrong = {
            "those are aligned corners: the picture keeps its borders, not its first centre": (
                inside(i * (n - 1) / max(new - 1, 1))
            ),
            "half a patch is missing: centres are at i + 1/2, and at 0 in old patches": (
                inside(i * n / new)
            ),
            "the second half is missing: subtract 1/2 to count from the first centre": (
                inside((i + 0.5) * n / new)
            ),
            "the ratio is turned round: an old patch is new/n new ones, so x grows by n/new": (
                inside((i + 0.5) * new / n - 0.5)
            ),
            "beyond the border, its value is repeated: clamp x": _read(values, x),
            "that is the nearest old patch, not a mixture of two": (
                values[((i + 0.5) * n / new).floor().long().clamp(max=n - 1)]
            ),
            "that is the nearest old patch, counted from the left, not a mixture of two": (
                values[i * n // new]
            ),
            "the shares are exchanged: x - floor(x) belongs to the right neighbour": (
                inside(2 * x.clamp(0, n - 1).floor() + 1 - x.clamp(0, n - 1))
            ),
            "that is antialiased: two neighbours, no more": wide[0, :, 0].T,
        }
        expect_no_slip(got, target, {f"{where}: {k}": v for k, v in wrong.items()})
        expect(
            same(got, target),
            f"{where}: expected {_row(target[:, 0])}, got {_row(got[:, 0])} (first component)",
        )
    confirm("13.1", "pixel centres, and the border's value beyond them")


def _row(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.2f}" for v in values.tolist()[:6]) + "]"


def resize_table(function: Callable[..., Any]) -> None:
    """Exercise 13.2: a table with any prefix, from any grid to any other."""
    slip = (
        "patches are (rows * columns, D): the prefix has to go, and (1, D, rows, columns) wants .T"
    )
    cases = ((2, (4, 4), (6, 6)), (1, (2, 6), (4, 9)), (0, (3, 5), (5, 3)), (3, (6, 4), (3, 2)))
    for prefix, old, new in cases:
        N, M, D = math.prod(old), math.prod(new), 5
        table = _random(prefix + N, D)

        def how(
            mode: str, antialias: bool = False, prefix: int = prefix, table: Tensor = table,
            old: tuple[int, int] = old, new: tuple[int, int] = new,
        ) -> Tensor:  # fmt: skip
            return resize_pos_embed(table[None], new, old, prefix, mode, antialias)[0]

        target = how("bicubic")
        hints: dict[tuple[int, ...], str] = {
            (M, D): "the prefix is missing in front",
            (D, prefix + M): "a row a token: transpose it back",
            (1, prefix + M, D): "a table has no batch: drop the first dimension",
            (D, *new): "lay the maps out row by row: flatten, transpose",
            (1, D, *new): "lay the maps out row by row: flatten, transpose",
        }
        given = attempt(function, table, prefix, old, new, slip=slip)
        got = expect_tensor(given, (prefix + M, D), hints)
        patches = table[prefix:]
        turned = resize_pos_embed(patches[None], new[::-1], old[::-1], 0, "bicubic", False)[0]
        unturned = F.interpolate(patches.reshape(1, D, *old), new, mode="bicubic")
        line = F.interpolate(table.T[None], prefix + M, mode="linear")[0].T
        first = table[: prefix + M] if M <= N else None
        own = target[prefix:]
        wrong: dict[str, Tensor] = {
            "those are maps of mixed-up numbers: (N, D) is not (D, N), transpose first": torch.cat(
                [table[:prefix], unturned.flatten(2)[0].T]
            ),
            "rows and columns are exchanged: a grid is (rows, columns)": torch.cat(
                [table[:prefix], turned]
            ),
            "those are aligned corners": how("torchvision"),
            "that is linear, not bicubic": how("bilinear"),
            "that is linear with aligned corners": how("google"),
            "that is antialiased, as timm does: DeiT's code does not": how("bicubic", True),
            "the prefix comes first, also in the result": torch.cat([own, table[:prefix]]),
            "that is one long sequence, the prefix mixed into the first patch": line,
            "the prefix passes through as it is": torch.cat([0 * table[:prefix], own]),
        }
        if first is not None:
            wrong = {"that is the table cut off, not resized": first} | wrong
        where = f"grid {old} to {new}, {prefix} prefix tokens"
        expect_no_slip(got, target, {f"{where}: {k}": v for k, v in wrong.items()})
        expect(
            not prefix or same(got[:prefix], target[:prefix], 0),
            f"{where}: the prefix has changed, and should pass through as it is",
        )
        expect(same(got, target), f"{where}: the patches are not those of a bicubic resize")
    confirm("13.2", "patches resized, the prefix as it was")


def one_too_few(function: Callable[[int, int], Any]) -> None:
    """Exercise 13.3: where a factor, multiplied back and rounded down, loses a patch."""
    for old, limit in ((14, 128), (7, 61), (37, 130), (16, 64), (23, 60), (14, 60)):
        result = attempt(function, old, limit)
        given = result.tolist() if isinstance(result, Tensor) else result
        expect(
            isinstance(given, (list, tuple)) and all(isinstance(n, int) for n in given),
            f"expected a list of whole numbers, got {str(result)[:60]}",
        )
        got, where = list(given), f"{old} patches, up to {limit}"
        target = [n for n in range(1, limit + 1) if math.floor(old * (n / old)) != n]
        slips = {
            "limit is included: range ends one before": target[:-1] if limit in target else None,
            "the factor is computed first, n / old, and multiplied then: in your order "
            "nothing is lost": [] if target else None,
            "those are pixels: n is in patches": [16 * n for n in target],
            "those are the sizes that come out: asked are the sizes that were wanted": (
                [n - 1 for n in target]
            ),
            "those are the sizes that work": [n for n in range(1, limit + 1) if n not in target],
            "rounded down, not to the nearest or with //": (
                [n for n in range(1, limit + 1) if old * (n / old) != n]
            ),
            "the factor is n / old, not rounded": (
                [n for n in range(1, limit + 1) if old * (n // old) != n]
            ),
            "the factor is n / old, not old / n": (
                [n for n in range(1, limit + 1) if math.floor(n * (old / n)) != old]
            ),
        }
        for message, wrong in slips.items():
            expect(wrong is None or wrong == target or got != wrong, f"{where}: {message}")
        expect(got == target, f"{where}: expected {target}, got {str(got)[:60]}")
    confirm("13.3", "computed as the computer does, 61 from 14 becomes 60")


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
