"""Checks of the exercises of chapter 5."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitmini.checks import attempt, confirm, expect, expect_number, expect_tensor
from vitmini.model import ViT, ViTConfig


def leaky_factor(function: Callable[[float], Any]) -> None:
    """Exercise 5.1: the variance that keeps the length scale, for a leaky ReLU."""
    for slope in (0.0, 0.01, 0.2, 0.5, 1.0, -1.0, -0.3):
        got = expect_number(attempt(function, slope), "2.0 for slope 0")
        target = 2 / (1 + slope**2)
        slips = {
            "that is the deviation of the weights times the root of the fan-in; "
            "the factor is for the variance, so without the root": target**0.5,
            "that is what a layer keeps of the mean square at c = 1; c is one over it": 1 / target,
            "that is He's factor for slope 0; the negative half now contributes too": 2.0,
            "the mean square counts: the slope enters as its square": 2 / (1 + slope)
            if slope != -1
            else math.inf,
            "only half of the numbers are negative and half positive: the 2 is missing": target / 2,
        }
        for message, wrong in slips.items():
            expect(_close(wrong, target) or not _close(got, wrong), f"slope {slope}: {message}")
        expect(
            _close(got, target),
            f"slope {slope}: expected {target:.4f}, got {got:.4f}; half of the mean square passes, "
            "the other half is multiplied by slope squared",
        )
    confirm("5.1", "2 / (1 + slope²) keeps the length scale")


def xavier_qkv(function: Callable[[Tensor], Any]) -> None:
    """Exercise 5.2: Xavier for queries, keys and values each, in one fused matrix."""
    names = ("queries", "keys", "values")
    for D in (96, 192, 240):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(D)
            given = torch.full((3 * D, D), 0.5)
            crash = "weight.chunk(3) gives three (D, D) matrices; torch.cat joins them"
            answer = attempt(function, given, slip=crash)
        hints = {
            (D, D): "that is one of the three: join all of them",
            (D, 3 * D): "join the three along the rows, dimension 0",
            (3, D, D): "torch.cat joins along the rows that are there; torch.stack adds an axis",
        }
        got = expect_tensor(answer, (3 * D, D), hints).double()
        parts = got.chunk(3)
        for name, part in zip(names, parts, strict=True):
            expect(
                not torch.equal(part, torch.full_like(part, 0.5)),
                f"the {name} are as they were: all three matrices are drawn",
            )
        for i, j in ((0, 1), (0, 2), (1, 2)):
            expect(
                not torch.equal(parts[i], parts[j]),
                f"{names[i]} and {names[j]} are the same numbers: draw each of the three",
            )
        right = D**-0.5
        for name, part in zip(names, parts, strict=True):
            std = part.std().item()
            slips = {
                "that is Xavier for the fused shape (3D, D); fan-out is D for each of the three": (
                    2 / (4 * D)
                )
                ** 0.5,
                "that cuts the columns: chunk the rows, dimension 0": (2 / (3 * D + D / 3)) ** 0.5,
                "that is He's 2 / fan-in": (2 / D) ** 0.5,
                "a = sqrt(6 / (fan-in + fan-out)) bounds the numbers, it is not their deviation": (
                    (3 / D) ** 0.5
                ),
                "that is sqrt(2 / (fan-in + fan-out)) as the bound; uniform numbers need a "
                "bound of sqrt(6 / (fan-in + fan-out)) for that deviation": (1 / (3 * D)) ** 0.5,
            }
            for message, wrong in slips.items():
                expect(
                    abs(std / wrong - 1) > 0.04, f"D = {D}, {name}: deviation {std:.4f}: {message}"
                )
            expect(
                abs(std / right - 1) < 0.04,
                f"D = {D}, {name}: expected a deviation of 1 / sqrt(D) = {right:.4f}, "
                f"got {std:.4f}",
            )
            expect(
                part.abs().max().item() <= (3 / D) ** 0.5 * 1.001,
                f"D = {D}, {name}: a number lies beyond a = {(3 / D) ** 0.5:.4f}: "
                "uniform, not normal",
            )
            expect(
                abs(part.mean().item()) < 0.03 * right,
                f"D = {D}, {name}: the mean should be 0",
            )
    confirm("5.2", "each of the three is drawn for its own shape")


def shared_scale(function: Callable[[int, float], Any]) -> None:
    """Exercise 5.3: one scale for all branches, from the growth that is allowed."""
    for depth, growth in ((1, 2.0), (12, 3.0), (48, math.e), (10, 100.0), (7, 1.0)):
        got = expect_number(attempt(function, depth, growth), "0.24 for 12 layers and growth 2")
        root = growth ** (1 / depth)
        target = (root - 1) ** 0.5
        case = f"{depth} layer{'s' * (depth > 1)}, growth {growth:.3g}"
        slips = {
            "that is η squared: take the root": root - 1,
            "that holds for small η only: the layers multiply, they do not add": (
                (growth - 1) / depth
            )
            ** 0.5,
            "that uses exp(sum of η²), which is the bound; the product is smaller": (
                math.log(growth) / depth
            )
            ** 0.5,
            "that is for branches that end in a ReLU and all point one way, (1 + η)²; here the "
            "cross term vanishes: 1 + η² a layer": growth ** (1 / (2 * depth)) - 1,
            "that is the factor of a layer, 1 + η²: solve it for η": root,
            "that is the root of the factor of a layer: take 1 away before the root": root**0.5,
        }
        for message, wrong in slips.items():
            expect(_close(wrong, target) or not _close(got, wrong), f"{case}: {message}")
        expect(
            _close(got, target),
            f"{case}: expected {target:.4f}, got {got:.4f}; (1 + η²)^depth should be the growth",
        )
    confirm("5.3", "(1 + η²) to the power of the depth is the growth")


def quiet_writers(function: Callable[[nn.Module], Any]) -> None:
    """Exercise 5.4: what writes to the stream is divided by the root of 2L."""
    for depth, heads in ((3, 2), (2, 1), (5, 4)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(depth)
            model = ViT(ViTConfig(8, 4, 1, 10, 16, depth, heads, mlp_ratio=2.0))
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    nn.init.normal_(parameter, std=0.1)  # else a scaled bias could not be seen
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        answer = attempt(function, model, slip="inside torch.no_grad() weights may be changed")
        expect(
            isinstance(answer, nn.Module), f"return the model, got {type(answer).__name__} instead"
        )
        after = {name: p.detach() for name, p in answer.named_parameters()}
        expect(
            set(after) == set(before), "the model should keep its parameters: change them in place"
        )
        for name, old in before.items():
            _one_weight(name, old, after[name], depth)
    confirm("5.4", "attn.proj and mlp.fc2 divided by sqrt(2L), all else as it was")


def _one_weight(name: str, old: Tensor, new: Tensor, depth: int) -> None:
    expect(new.shape == old.shape, f"{name} changed its shape: {tuple(new.shape)}")
    writes = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
    wanted = (2 * depth) ** -0.5 if writes else 1.0
    ratio = _ratio(old, new)
    if not writes:
        kind = "a bias" if name.endswith("bias") else "a weight"
        expect(
            ratio is not None and _close(ratio, 1.0),
            f"{name} was changed, {kind} that should stay as it is: only the weights of attn.proj "
            "and mlp.fc2 write to the stream",
        )
        return
    expect(
        ratio is not None, f"{name} should be its old value times one factor, it is something else"
    )
    assert ratio is not None
    place = int(name.split(".")[1])
    slips = {
        "it was not changed: both attn.proj and mlp.fc2 of every block write": 1.0,
        "it was divided by sqrt(L): each block writes twice, so 2L": depth**-0.5,
        "it was divided by 2L: by the root, because variances add up": 1 / (2 * depth),
        "it was divided by L: by the root of 2L": 1 / depth,
        "it was multiplied by sqrt(2L): divide": (2 * depth) ** 0.5,
        "it was divided by sqrt(2(l + 1)), l the place of its block: here L counts all blocks": (
            (2 * place + 2) ** -0.5
        ),
    }
    for message, wrong in slips.items():
        expect(_close(wrong, wanted) or not _close(ratio, wrong), f"{name}: {message}")
    expect(
        _close(ratio, wanted),
        f"{name}, {depth} blocks: expected a factor of {wanted:.4f}, got {ratio:.4f}",
    )


def _ratio(old: Tensor, new: Tensor) -> float | None:
    """The one factor between two tensors, or None when there is not one."""
    if torch.equal(old, new):
        return 1.0
    if not old.any():
        return None
    factor = ((old * new).sum() / old.square().sum()).item()
    return factor if torch.allclose(new, factor * old, rtol=1e-4, atol=1e-7) else None


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)
