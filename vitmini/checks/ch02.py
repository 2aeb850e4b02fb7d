"""Checks of the exercises of chapter 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.checks import attempt, confirm, expect, expect_tensor, same
from vitmini.positions import position_similarity


def add_class_token(function: Callable[[Tensor, Tensor], Any]) -> None:
    """Exercise 2.1: the class token, in front of the patches of every image."""
    for B, N, D in ((3, 4, 6), (1, 9, 2), (5, 1, 8)):
        generator = torch.Generator().manual_seed(B)
        tokens = torch.randn(B, N, D, generator=generator)
        cls_token = torch.randn(1, 1, D, generator=generator)
        hints: dict[tuple[int, ...], str] = {
            (B, N, D): "the class token is one more token, it is not added to the others",
            (1, N + 1, D): "every image of the batch keeps its own patches",
            (B + 1, N, D): "join along dimension 1, the tokens; dimension 0 is the batch",
            (B, N, 2 * D): "join along dimension 1, the tokens; dimension 2 is the width",
        }
        crash = "torch.cat needs the same batch size everywhere: cls_token.expand(B, -1, -1)"
        answer = attempt(function, tokens, cls_token, slip=crash)
        got = expect_tensor(answer, (B, N + 1, D), hints)
        last = torch.cat([tokens, cls_token.expand(B, -1, -1)], dim=1)
        expect(not same(got, last), "the class token stands first, not last: here at index 0")
        expect(
            same(got[:, 1:], tokens),
            "the patches changed: from index 1 on, they should be as they were",
        )
        expect(
            same(got[:, :1], cls_token.expand(B, -1, -1)),
            "index 0 should hold the class token that was given, the same one in every image",
        )
    confirm("2.1", "one learned vector stands before the patches of every image")


def cosine_maps(function: Callable[[Tensor, tuple[int, int]], Any]) -> None:
    """Exercise 2.2: the similarity of positions, as in the paper's Figure 7."""
    for rows, columns, D in ((2, 3, 8), (3, 3, 5), (1, 4, 6)):
        N = rows * columns
        generator = torch.Generator().manual_seed(10 * rows + D)
        pos_embed = torch.randn(1, 1 + N, D, generator=generator) + 0.5
        target = position_similarity(pos_embed, (rows, columns))
        hints = {
            (N, N): "the numbers may be right, the shape is not: (rows, columns, rows, columns)",
            (N + 1, N + 1): "the class token has no place in the grid: leave it out, then reshape",
            (1, N, N): "take the batch dimension away with pos_embed[0]",
            (rows, columns): "that is the map of one patch, the check wants one for each",
        }
        crash = "pos_embed has 1 + rows * columns rows: without the class token they fill the grid"
        answer = attempt(function, pos_embed, (rows, columns), slip=crash)
        got = expect_tensor(answer, (rows, columns, rows, columns), hints)
        patches = pos_embed[0, 1:]
        dot = (patches @ patches.T).reshape(target.shape)
        expect(
            not same(got, dot),
            "that is the dot product, which long vectors win: divide by both lengths",
        )
        half = (patches @ F.normalize(patches, dim=-1).T).reshape(target.shape)
        expect(
            not same(got, half) and not same(got, half.permute(2, 3, 0, 1)),
            "only one of the two vectors was divided by its length",
        )
        wrong_end = position_similarity(pos_embed.roll(1, dims=1), (rows, columns))
        expect(
            not same(got, wrong_end),
            "the class token is the first row, pos_embed[0, 0]: the last row was left out instead",
        )
        across = F.normalize(patches, dim=0)
        expect(
            not same(got, (across @ across.T).reshape(target.shape)),
            "the length of a vector runs over its D components, dim=-1, not over the patches",
        )
        places = got.reshape(N, N)
        expect(
            same(places.diagonal(), torch.ones(N)),
            "each patch should resemble itself with a cosine of exactly 1",
        )
        expect(
            same(got, target),
            "the cosines are not those of the patches, row by row: map [i, j] belongs to the patch "
            "number i * columns + j",
        )
    confirm("2.2", "cosine similarity of every position with every other, without the class token")


def relative_offsets(function: Callable[[int, int], Any]) -> None:
    """Exercise 2.3: how far apart any two patches are, in rows and in columns."""
    for rows, columns in ((2, 3), (3, 2), (4, 4), (1, 5)):
        N = rows * columns
        place = torch.arange(N)
        where = torch.stack([place // columns, place % columns], dim=-1)  # (N, 2)
        target = where[:, None] - where[None]  # (N, N, 2), query minus key
        hints = {
            (2, N, N): "the pair (rows, columns) is the last dimension: (N, N, 2)",
            (N, N): "each pair of patches has two numbers: rows apart and columns apart",
            (N, 2): "that is where each patch is; the check wants the difference of each two",
            (rows, columns, rows, columns, 2): "number the patches row by row: (N, N, 2)",
        }
        got = expect_tensor(attempt(function, rows, columns), (N, N, 2), hints)
        expect(
            not same(got, -target) or same(target, -target),
            "that is key minus query: entry [i, j] is patch i, the query, minus patch j, the key",
        )
        expect(
            not same(got, target.flip(-1)) or same(target, target.flip(-1)),
            "rows come first, then columns",
        )
        expect(
            not same(got, target.abs()) or same(target, target.abs()),
            "the sign is missing: left of and right of are not the same",
        )
        swapped = torch.stack([place // rows, place % rows], dim=-1)
        expect(
            rows == columns or not same(got, swapped[:, None] - swapped[None]),
            "a row of the grid holds `columns` patches: divide by columns, not by rows",
        )
        expect(
            not got.is_floating_point(),
            f"offsets are whole numbers, got {got.dtype}: divide with //, not /",
        )
        expect(
            same(got, target),
            f"the offsets of a grid of {rows}x{columns} are wrong: patch 0 to patch {N - 1} should "
            f"be {target[0, N - 1].tolist()}, it is {got[0, N - 1].tolist()}",
        )
    confirm("2.3", "two patches are (rows, columns) apart, query minus key")


def is_equivariant(function: Callable[[Callable[[Tensor], Tensor], Tensor], Any]) -> None:
    """Exercise 2.4: a test that tells whether a layer treats its tokens as a set."""
    generator = torch.Generator().manual_seed(4)
    W = torch.randn(6, 6, generator=generator)
    table = torch.randn(8, 6, generator=generator)
    kernel = torch.randn(6, 6, 3, generator=generator)

    def attention(x: Tensor) -> Tensor:
        return (x @ W @ x.transpose(-2, -1)).softmax(-1) @ x

    layers: list[tuple[bool, str, Callable[[Tensor], Tensor], str]] = [
        (True, "2 * x", lambda x: 2 * x, "is layer(x[:, order]) compared with layer(x)[:, order]?"),
        (True, "attention", attention, "compare with torch.allclose: the sums are rounded"),
        (True, "x @ W", lambda x: x @ W, "rounding again?"),
        (True, "the mean", lambda x: x.mean(1, keepdim=True).expand_as(x), "rounding again?"),
        (
            False,
            "x + positions",
            lambda x: x + table,
            "is your order really another one? Try several",
        ),
        (False, "cumsum", lambda x: x.cumsum(1), "is your order really another one? Try several"),
        (False, "flip", lambda x: x.flip(1), "a flip commutes with a flip: take a random order"),
        (
            False,
            "roll",
            lambda x: x.roll(1, 1),
            "a shift commutes with shifts: use a random order",
        ),
        (
            False,
            "convolution",
            lambda x: F.conv1d(x.transpose(1, 2), kernel, padding=1).transpose(1, 2),
            "neighbours in the sequence matter to it",
        ),
        (
            False,
            "first token only",
            lambda x: torch.cat([2 * x[:, :1], x[:, 1:]], 1),
            "compare all tokens, and let the order move each one",
        ),
    ]
    tokens = torch.randn(2, 8, 6, generator=generator)
    for target, name, layer, hint in layers:
        layer.__name__ = name
        got = attempt(function, layer, tokens, slip="tokens are (B, T, D): x[:, order] moves them")
        if isinstance(got, Tensor) and got.numel() == 1:
            got = bool(got)
        expect(
            isinstance(got, bool),
            f"expected True or False, got {type(got).__name__}: torch.allclose gives one of them",
        )
        says = (
            "is equivariant, your test says that it is not"
            if target
            else ("is not equivariant, your test says that it is")
        )
        expect(got == target, f"the layer {name!r} {says}: {hint}")
    confirm("2.4", "layer(x[:, order]) equals layer(x)[:, order], up to rounding")
