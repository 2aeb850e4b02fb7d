"""Checks of the exercises of chapter 7."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from vitmini.model import ViT, ViTConfig
from vitmini.summary import count_flops


def trapezoid(function: Callable[..., Any]) -> None:
    """Exercise 7.1: a learning rate that rises, stays, and falls in straight lines."""
    for total, warmup, cooldown, peak in ((20, 4, 5, 1e-3), (12, 0, 12, 0.5), (9, 3, 0, 2.0)):
        for step in range(total):
            got = expect_number(attempt(function, step, total, warmup, cooldown, peak), "0.001")
            target = _trapezoid(step, total, warmup, cooldown, peak)
            where = f"step {step} of {total}, warmup {warmup}, cooldown {cooldown}, peak {peak:g}"
            slips = {
                "the first step should already have a rate above 0: (step + 1) / warmup": (
                    peak * step / warmup if step < warmup else math.nan
                ),
                "the fall should end above 0: total - step steps are left, this one counted": (
                    peak * (total - 1 - step) / cooldown if total - step <= cooldown else math.nan
                ),
                "that is half a cosine: here the rate falls in a straight line": _cosine(
                    step, total, warmup, peak
                ),
                "the cooldown is missing": _trapezoid(step, total, warmup, 0, peak),
                "it should stay at the peak until `cooldown` steps are left": (
                    peak * (total - step) / (total - warmup) if step >= warmup else math.nan
                ),
                "is peak used?": target / peak,
            }
            for message, wrong in slips.items():
                expect(_close(wrong, target) or not _close(got, wrong), f"{where}: {message}")
            expect(_close(got, target), f"{where}: expected {target:g}, got {got:g}")
    confirm("7.1", "up, along and down, with a rate above 0 at every step")


def _trapezoid(step: int, total: int, warmup: int, cooldown: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    if total - step <= cooldown:
        return peak * (total - step) / cooldown
    return peak


def _cosine(step: int, total: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def layer_rates(function: Callable[[ViT, float], Any]) -> None:
    """Exercise 7.2: a smaller learning rate the nearer a layer is to the pixels."""
    cases = (
        (ViTConfig(8, 4, 3, 5, 16, 3, 2, 2.0), 0.5),
        (ViTConfig(8, 4, 3, 5, 16, 11, 2, 2.0, distilled=True), 0.75),
        (ViTConfig(8, 4, 3, 5, 16, 2, 2, 2.0, pool="mean", pos_embed="learned2d"), 0.9),
    )
    for config, decay in cases:
        model, last = ViT(config), config.depth + 1
        rates = attempt(function, model, decay)
        expect(isinstance(rates, dict), f"expected a dictionary, got {type(rates).__name__}")
        names = [name for name, _ in model.named_parameters()]
        missing = [name for name in names if name not in rates]
        expect(not missing, f"{missing[0] if missing else ''} is missing")
        extra = [name for name in rates if name not in names]
        expect(not extra, f"{extra[0] if extra else ''} is no parameter of the model")
        got = {name: expect_number(rates[name], "0.25") for name in names}
        layers = {name: _layer(name, last) for name in names}
        target = {name: decay ** (last - layer) for name, layer in layers.items()}
        slips = {
            "the powers count from the end: the head has 1, the embedding the smallest": {
                name: decay**layer for name, layer in layers.items()
            },
            "all of them have the rate of the head": dict.fromkeys(names, 1.0),
            "patches, tokens and positions are layer 0, the farthest from the head": {
                name: decay ** (last - (layer or last)) for name, layer in layers.items()
            },
            "the head and the last norm are a layer of their own, after the last block": {
                name: decay ** (last - min(layer, last - 1)) for name, layer in layers.items()
            },
            "the first block is layer 1: patches, tokens and positions are layer 0": {
                name: decay ** (last - (layer - 1 if 0 < layer < last else layer))
                for name, layer in layers.items()
            },
        }
        for message, wrong in slips.items():
            expect(not all(_close(got[n], wrong[n]) for n in names), message)
        for name in names:
            digit = name.startswith("blocks.1") and config.depth > 10
            inner = ".norm" in name and _close(got[name], 1.0)
            expect(
                _close(got[name], target[name]),
                f"depth {config.depth}, decay {decay}: {name} should have {target[name]:.4g}, "
                f"got {got[name]:.4g}"
                + (": block 10 is not block 1, take the whole number" if digit else "")
                + (": only the last norm, `norm.`, is layer L + 1" if inner else ""),
            )
    confirm("7.2", "every parameter has the rate of its layer")


def _layer(name: str, last: int) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return last if name.startswith(("norm.", "head")) else 0


def clip_gradients(function: Callable[[list[Tensor], float], Any]) -> None:
    """Exercise 7.3: all gradients shortened by one factor."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (5,), (2, 3, 2))
    for scale, bound in ((1.0, 1.0), (10.0, 2.5), (0.01, 1.0), (0.2, 1.0)):
        gradients = [scale * torch.randn(s, generator=generator) for s in shapes]
        copies = [g.clone() for g in gradients]  # `attempt` looks at tensors, not into lists
        result = attempt(function, copies, bound)
        expect(
            all(torch.equal(a, b) for a, b in zip(copies, gradients, strict=True)),
            "the gradients were changed in place: return new ones",
        )
        expect(
            isinstance(result, (list, tuple)) and len(result) == len(gradients),
            f"expected a list of {len(gradients)} tensors",
        )
        got = torch.cat(
            [expect_tensor(r, s, {}).flatten() for r, s in zip(result, shapes, strict=True)]
        )
        whole = torch.cat([g.flatten() for g in gradients])
        norm = whole.norm()
        target = whole * min(1.0, bound / norm.item())
        each = torch.cat([(g * min(1.0, bound / g.norm().item())).flatten() for g in gradients])
        largest = max(g.norm().item() for g in gradients)
        where = f"norm {norm:.3f}, max_norm {bound:g}: "
        slips = {
            "each tensor was cut by its own norm; the norm is that of all of them": each,
            "short gradients stay as they are, they are not made longer": whole * (bound / norm),
            "each number was cut off by itself; one factor for all keeps the direction": (
                whole.clamp(-bound, bound)
            ),
            "norms add up by their squares, not by themselves": (
                whole * min(1.0, bound / sum(g.norm().item() for g in gradients))
            ),
            "the norm is that of all numbers, not the largest of the tensors' norms": (
                whole * min(1.0, bound / largest)
            ),
            "nothing was cut": whole,
        }
        expect_no_slip(got, target, {where + message: wrong for message, wrong in slips.items()})
        expect(same(got, target), f"{where}the result is not the gradients times one factor")
    confirm("7.3", "one factor for all, and none above 1")


def cutmix(function: Callable[..., Any]) -> None:
    """Exercise 7.4: a rectangle of each image's partner, and the labels to go with it."""
    generator = torch.Generator().manual_seed(0)
    for shape, box in (((4, 3, 8, 8), (2, 1, 6, 7)), ((5, 1, 6, 10), (0, 3, 6, 10))):
        B, _, H, W = shape
        images = torch.rand(shape, generator=generator)
        targets = torch.eye(6)[torch.randint(6, (B,), generator=generator)]
        targets[0] = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
        result = attempt(function, images, targets, box)
        expect(
            isinstance(result, tuple) and len(result) == 2,
            "expected a pair, the mixed images and the mixed targets",
        )
        mixed = expect_tensor(result[0], shape, {})
        soft = expect_tensor(result[1], (B, 6), {})
        top, left, bottom, right = box
        share = 1 - (bottom - top) * (right - left) / (H * W)
        expect_no_slip(
            mixed,
            _pasted(images, box),
            {
                "the images are as they were": images,
                "the partner of image i is image B - 1 - i: flip(0) turns the batch round": _pasted(
                    images, box, images.roll(1, 0)
                ),
                "the inside of the box is the partner's, the outside the image's own": torch.where(
                    _inside(box, H, W), images, images.flip(0)
                ),
                "rows come first: images[:, :, top:bottom, left:right]": _pasted(
                    images, (min(left, H), min(top, W), min(right, H), min(bottom, W))
                ),
                "images.flip(0) turns the batch round; flip(-1) mirrors each image": _pasted(
                    images, box, images.flip(-1)
                ),
            },
        )
        expect(
            same(mixed, _pasted(images, box)),
            "the images are not pasted as the box says: bottom and right are not included",
        )
        target = targets * share + targets.flip(0) * (1 - share)
        expect_no_slip(
            soft,
            target,
            {
                "the targets are as they were": targets,
                "an image's own share is what was not pasted: 1 - area / (H W)": (
                    targets * (1 - share) + targets.flip(0) * share
                ),
                "the share is the box's part of the area, not one half": (
                    (targets + targets.flip(0)) / 2
                ),
                "the targets need the same partners as the images": (
                    targets * share + targets.roll(1, 0) * (1 - share)
                ),
            },
        )
        expect(same(soft, target), "the targets are not mixed by the area that was pasted")
    confirm("7.4", "pixels and labels, mixed by the same area")


def _inside(box: tuple[int, int, int, int], H: int, W: int) -> Tensor:
    top, left, bottom, right = box
    inside = torch.zeros(H, W, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside


def _pasted(
    images: Tensor, box: tuple[int, int, int, int], partner: Tensor | None = None
) -> Tensor:
    partner = images.flip(0) if partner is None else partner
    return torch.where(_inside(box, *images.shape[2:]), partner, images)


def utilisation(function: Callable[..., Any]) -> None:
    """Exercise 7.5: which share of a card's matrix rate a training uses."""
    cases = (
        (ViTConfig(), 1500.0, 790e12),
        (ViTConfig(32, 4, num_classes=10, dim=384, depth=6, num_heads=6), 9000.0, 65e12),
    )
    for config, rate, peak in cases:
        flops = count_flops(config)
        target = 3 * flops * rate / peak
        got = expect_number(attempt(function, flops, rate, peak), "0.35")
        where = f"{flops / 1e9:.1f} GFLOPs forward, {rate:g} images/s, peak {peak:g}"
        slips = {
            "that is the forward pass alone: the backward pass costs twice as much again": (
                target / 3
            ),
            "the backward pass costs twice the forward pass, not as much as it": target * 2 / 3,
            "a multiply-add is two FLOPs already": target * 2,
            "a multiply-add counts as two FLOPs in both, do not halve": target / 2,
            "it is a share, not percent": target * 100,
            "the share is what is used over what there is": 1 / target,
        }
        for message, wrong in slips.items():
            expect(not _close(got, wrong), f"{where}: {message}")
        expect(_close(got, target), f"{where}: expected {target:.4f}, got {got:.4g}")
    confirm("7.5", "forward and backward, three times the FLOPs of the forward pass")


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-12)
