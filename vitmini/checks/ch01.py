"""Checks of the exercises of chapter 1."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.checks import attempt, confirm, expect, expect_number, expect_tensor, same
from vitmini.patches import patchify, unpatchify


def count_tokens(function: Callable[[tuple[int, int], tuple[int, int]], Any]) -> None:
    """Exercise 1.1: the number of patches of an image."""
    cases = [
        ((224, 224), (16, 16)),
        ((32, 32), (4, 4)),
        ((224, 320), (16, 16)),
        ((12, 10), (4, 5)),
    ]
    for (H, W), (P, Q) in cases:
        got, target = attempt(function, (H, W), (P, Q)), (H // P) * (W // Q)
        number = expect_number(got, "196")
        slips: dict[float, str] = {
            H // P: "that is one row of the grid, multiply by the other",
            H // P + W // Q: "that is rows plus columns, a grid has rows times columns",
            H // P * (W // Q) + 1: "the class token is not a patch",
            (H // P) ** 2: "the image need not be square: rows and columns differ",
            (W // Q) ** 2: "the image need not be square: rows and columns differ",
            H * W: "that is the number of pixels",
            (H * W) // (P * P): "a patch need not be square: it has P rows and Q columns",
            (H // Q) * (W // P): "rows of the patch divide rows of the image, not columns",
        }
        expect(
            number == target,
            f"expected {target} patches for {H}x{W} pixels cut into {P}x{Q}, got {got}: "
            + slips.get(number, "count the rows of the grid, then its columns"),
        )
        expect(
            isinstance(got, Integral),
            f"expected the int {target}, got {got!r}: divide with //, not /",
        )
    confirm("1.1", "an image of HxW pixels has (H/P) * (W/Q) patches")


def patchify_by_hand(function: Callable[[Tensor, int], Any]) -> None:
    """Exercise 1.2: `patchify` from reshape and permute."""
    for B, C, H, W, P in ((2, 3, 8, 12, 4), (1, 1, 6, 4, 2), (3, 2, 10, 5, 5)):
        images = torch.rand(B, C, H, W, generator=torch.Generator().manual_seed(H))
        target = patchify(images, P)
        h, w = H // P, W // P
        hints = {
            (B, C, h, w, P, P): "flatten the grid to N and the patch to C*P*P at the end",
            (B, h, w, C, P, P): "flatten the grid to N and the patch to C*P*P at the end",
            (B, h * w, C, P, P): "flatten each patch to one vector of C*P*P numbers",
            (B, C, h * w, P * P): "the channels belong to the patch: C*P*P numbers each",
            (B, C * P * P, h * w): "tokens come first: (B, N, C*P*P), as in F.unfold transposed",
        }
        shape = (B, h * w, C * P * P)
        got = expect_tensor(attempt(function, images, P), shape, hints)
        wrong = {
            "a reshape alone does not cut patches, it cuts rows of pixels: "
            "split H into (h, P) and W into (w, P), then permute": images.reshape(shape),
            "each patch is flattened channel last, it should be channel first (c, row, column)": (
                target.view(B, h * w, C, P * P).transpose(2, 3).reshape(shape)
            ),
            "the patches come column by column, the check wants row by row": (
                target.view(B, h, w, -1).transpose(1, 2).reshape(shape)
            ),
            "rows and columns inside each patch are swapped": (
                target.view(B, h * w, C, P, P).transpose(3, 4).reshape(shape)
            ),
        }
        if not same(got, target):
            for message, slip in wrong.items():
                expect(not same(got, slip) or same(slip, target), message)
        expect(
            same(got, target),
            f"the shape {shape} is right, the numbers are not: patch 0 should begin with "
            f"{_first(target)}, it begins with {_first(got)}",
        )
    confirm("1.2", "reshape and permute cut the same patches as einops")


def kernel_from_matrix(function: Callable[[Tensor, int, int], Any]) -> None:
    """Exercise 1.3: the convolution kernel that does what the matrix E does."""
    for C, P, D in ((3, 4, 10), (1, 2, 4), (2, 3, 18)):
        generator = torch.Generator().manual_seed(D)
        matrix = torch.randn(C * P * P, D, generator=generator)
        images = torch.randn(2, C, 3 * P, 2 * P, generator=generator)
        hints = {
            (C * P * P, D): "a kernel has four dimensions: (D, C, P, P)",
            (D, C * P * P): "a kernel has four dimensions: split C*P*P into (C, P, P)",
            (D, P, P, C): "PyTorch wants the channel before the rows and columns",
            (C, P, P, D): "PyTorch wants the output channel D first",
            (P, P, C, D): "that is TensorFlow's order, PyTorch wants (D, C, P, P)",
        }
        kernel = expect_tensor(attempt(function, matrix, C, P), (D, C, P, P), hints)
        kernel = kernel.to(matrix.dtype)
        expect(
            not same(kernel, matrix.reshape(D, C, P, P)) or same(matrix, matrix.T.reshape(-1, D)),
            "reshape does not transpose: each column of E is one filter, so transpose E first",
        )
        wrong = matrix.T.reshape(D, P, P, C).permute(0, 3, 1, 2)
        expect(
            C == 1 or not same(kernel, wrong),
            "the columns of E are flattened channel first (c, row, column), not channel last",
        )
        tokens = F.conv2d(images, kernel, stride=P).flatten(2).transpose(1, 2)
        expect(
            same(tokens, patchify(images, P) @ matrix),
            f"a convolution with this kernel differs from patchify(images, {P}) @ E: "
            "each column of E, read as (c, row, column), is one filter",
        )
    confirm("1.3", "the kernel is E transposed, each row read as (c, row, column)")


def shuffle_patches(function: Callable[[Tensor, int, Tensor], Any]) -> None:
    """Exercise 1.4: an image whose patches change places."""
    for C, H, W, P in ((3, 8, 12, 4), (1, 6, 6, 2)):
        generator = torch.Generator().manual_seed(1000 * H + W)
        images = torch.rand(2, C, H, W, generator=generator)
        order = torch.randperm((H // P) * (W // P), generator=generator)
        patches = patchify(images, P)
        target = unpatchify(patches[:, order], P, (H, W), C)
        hints = {tuple(patches.shape): "put the patches together again with unpatchify"}
        crash = "order indexes the patches, dimension 1; dimension 0 is the batch"
        answer = attempt(function, images, P, order, slip=crash)
        got = expect_tensor(answer, tuple(images.shape), hints)
        expect(not same(got, images), "nothing moved: use order to index the patches, dimension 1")
        inverse = unpatchify(patches[:, order.argsort()], P, (H, W), C)
        expect(
            not same(got, inverse),
            "that is the inverse order: place i gets the patch that was at place order[i]",
        )
        expect(
            same(got, target),
            "the patches are not where they should be: place i gets the patch from place order[i], "
            "in every image of the batch",
        )
    confirm("1.4", "patches change places, their pixels stay together")


def _first(patches: Tensor) -> str:
    return "[" + ", ".join(f"{v:.2f}" for v in patches[0, 0, :4].tolist()) + "]"
