"""Checks of the exercises of chapter 8."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitmini.checks import WrongAnswer, attempt, confirm, expect, expect_number

Layers = Sequence[tuple[int, ...]]

_RESNET_STEM = [(7, 2, 3), (3, 2, 1)]
_CIFAR_RESNET = [(3, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 1), (3, 2, 1)]


def map_size(function: Callable[[int, Layers], Any]) -> None:
    """Exercise 8.1: the side of the last map of a ConvNet."""
    cases: list[tuple[int, Layers]] = [
        (30, [(9, 1, 3)]),
        (224, [(7, 2, 3), (3, 1, 0)]),
        (224, _RESNET_STEM),
        (32, _RESNET_STEM),
        (32, _CIFAR_RESNET),
        (15, [(3, 2, 0), (2, 1, 1)]),
        (32, [(4, 4, 0)]),
        (9, []),
    ]
    for size, layers in cases:
        got = _whole(attempt(function, size, list(layers)), "56")
        target = _map_size(size, layers)
        where = f"{size} pixels, layers {list(layers)}"
        slips = {
            "the padding is on both sides: n + 2p": _map_size(size, layers, padding=1),
            "the padding is missing": _map_size(size, layers, padding=0),
            "one is missing: the kernel's first place comes before any step": (
                _map_size(size, layers, last=0)
            ),
            "the division rounds down": _map_size(size, layers, up=True),
            "that is after the first layer alone": _map_size(size, layers[:1]),
            "every layer takes what the one before it gave, not the picture": (
                _map_size(size, layers[-1:])
            ),
        }
        _refuse(got, target, where, slips)
    confirm("8.1", "each layer takes the size that the one before it gave")


def _map_size(size: int, layers: Layers, padding: int = 2, last: int = 1, up: bool = False) -> int:
    for kernel, stride, pad in layers:
        room = size + padding * pad - kernel
        size = (-(-room // stride) if up else room // stride) + last
    return size


def receptive_field(function: Callable[[Layers], Any]) -> None:
    """Exercise 8.2: the square of the picture that can change a position of the last map."""
    cases: list[Layers] = [
        [],
        [(3, 1)],
        [(3, 1), (3, 1)],
        [(4, 4)],
        [(3, 2), (3, 1)],
        [(3, 1), (3, 1), (3, 1), (3, 2), (3, 1), (3, 2), (3, 1)],  # the hybrid
        [(7, 2), (3, 2), (3, 1), (1, 2), (5, 1)],
    ]
    for layers in cases:
        got = _whole(attempt(function, list(layers)), "25")
        target = _field(layers)
        product = math.prod(kernel for kernel, _ in layers)
        alone = 1 + sum(kernel - 1 for kernel, _ in layers)
        slips = {
            "the kernels do not multiply: each adds (k - 1) steps": product,
            "kernels overlap: each adds k - 1 steps, not k": 1 + _field(layers, one=0) - 1,
            "the strides are missing: after a stride of 2, neighbours lie 2 pixels apart": alone,
            "a stride acts on the layers after it, not on its own kernel": _field(layers, own=True),
            "strides multiply along the way, they do not add": _field(layers, add=True),
            (
                "a kernel of k adds k - 1 steps, and none more than that"
                if layers
                else "a position sees at least its own pixel: begin with 1"
            ): target - 1,
            "that is the product of the strides, the distance between two positions": math.prod(
                stride for _, stride in layers
            ),
        }
        _refuse(got, target, f"layers {list(layers)}", slips)
    confirm("8.2", "a position of the hybrid's map sees 25 pixels a side")


def _field(layers: Layers, one: int = 1, own: bool = False, add: bool = False) -> int:
    field, step = 1, 1
    for kernel, stride in layers:
        after = step + stride - 1 if add else step * stride
        field += (kernel - one) * (after if own else step)
        step = after
    return field


def balanced(function: Callable[[Tensor, int], Any]) -> None:
    """Exercise 8.3: equally many images of each class, at random, nested."""
    generator = torch.Generator().manual_seed(1)
    shuffled = torch.randint(5, (200,), generator=generator)
    in_order = torch.arange(4).repeat_interleave(torch.tensor([12, 30, 9, 20]))
    gap = torch.tensor([7, 2, 2, 9, 7, 9, 9, 2, 7, 2])  # no class 0: labels need not begin there
    for labels, counts in ((shuffled, (1, 4, 20)), (in_order, (3, 9)), (gap, (1, 3))):
        classes, found = labels.unique(), {}
        for per_class in counts:
            where = f"{len(labels)} labels of {len(classes)} classes, per_class {per_class}: "
            ids = _indices(attempt(function, labels, per_class), where, len(labels))
            wanted = len(classes) * per_class
            expect(
                len(ids) == len(ids.unique()),
                f"{where}an image was chosen twice: choose without putting back",
            )
            got = [int((labels[ids] == c).sum()) for c in classes]
            random = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
            again = _indices(attempt(function, labels, per_class), where, len(labels))
            expect(
                set(again.tolist()) == set(ids.tolist()),
                f"{where}two calls chose differently: seed the generator as the text says",
            )
            placed = set(random[ids].tolist()) == set(_balanced(labels, per_class).tolist())
            expect(
                not placed or set(ids.tolist()) == set(random[ids].tolist()),
                f"{where}these are places in the random order: return order[...], the images",
            )
            first_ones = set(random[:wanted].tolist()) == set(ids.tolist())
            expect(
                got == [per_class] * len(classes),
                f"{where}of each class came {got}"
                + (": that is the start of the random order, whatever the class" * first_ones),
            )
            chosen = set(ids.tolist())
            target = set(_balanced(labels, per_class).tolist())
            file_order = set(_balanced(labels, per_class, torch.arange(len(labels))).tolist())
            expect(
                chosen == target or chosen != file_order,
                f"{where}these are the first ones of the file: go through them in a random order",
            )
            last = set(_balanced(labels, per_class, random.flip(0)).tolist())
            expect(
                chosen == target or chosen != last,
                f"{where}these are the last ones in the random order, take the first",
            )
            found[per_class] = chosen
        few, *more = counts
        for per_class in more:
            expect(
                found[few] <= found[per_class],
                f"the choice of {per_class} a class does not hold that of {few}: the order must "
                "not depend on per_class",
            )
        for per_class in counts:
            expect(
                found[per_class] == set(_balanced(labels, per_class).tolist()),
                f"{len(labels)} labels, per_class {per_class}: take the first ones of each class "
                "in the order torch.randperm(N, generator=torch.Generator().manual_seed(0))",
            )
    _refuses_too_many(function, in_order)
    confirm("8.3", "equally many of each class, and the larger choice holds the smaller")


def _balanced(labels: Tensor, per_class: int, order: Tensor | None = None) -> Tensor:
    if order is None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.cat([order[labels[order] == c][:per_class] for c in labels.unique()])


def _indices(result: Any, where: str, total: int) -> Tensor:
    expect(
        isinstance(result, Tensor),
        f"{where}expected a tensor of indices, got {type(result).__name__}",
    )
    expect(
        result.dtype != torch.bool,
        f"{where}expected indices, got a mask: .nonzero() turns one into the other",
    )
    whole = result.dtype in (torch.int64, torch.int32) and result.ndim == 1
    expect(whole, f"{where}expected int64 (M,), got {result.dtype} {tuple(result.shape)}")
    inside = result.numel() > 0 and result.min() >= 0 and result.max() < total
    expect(bool(inside), f"{where}expected indices from 0 to {total - 1}")
    return result.long()


def _refuses_too_many(function: Callable[[Tensor, int], Any], labels: Tensor) -> None:
    try:
        function(labels.clone(), 10)
    except ValueError:
        return
    except Exception as error:
        expect(False, f"9 images of a class, per_class 10: {type(error).__name__}, not ValueError")
    expect(False, "9 images of a class, per_class 10: expected a ValueError, got an answer")


def images_needed(function: Callable[..., Any]) -> None:
    """Exercise 8.4: how many images an accuracy costs, straight over the logarithm."""
    cases = (
        ([1000, 4000], [0.4, 0.6], 0.5),
        ([500, 2000, 10000], [0.3, 0.45, 0.62], 0.4),
        ([500, 2000, 10000], [0.3, 0.45, 0.62], 0.55),
        ([10, 20, 80, 1000], [0.2, 0.5, 0.6, 0.9], 0.75),
        ([500, 2000, 10000], [0.3, 0.45, 0.62], 0.45),
        ([500, 2000, 10000], [0.3, 0.45, 0.62], 0.3),
        ([500, 2000, 10000], [0.3, 0.45, 0.62], 0.62),
    )
    for sizes, accuracies, goal in cases:
        target = _needed(sizes, accuracies, goal)
        given = attempt(lambda *a: (function(*a),), list(sizes), list(accuracies), goal)[0]
        expect(
            given is not None or goal not in accuracies,
            f"target {goal} is a measured accuracy: return its size, {target:.0f}, not None",
        )
        got = expect_number(given, "1400.0")
        where = f"sizes {sizes}, accuracies {accuracies}, target {goal}"
        ends = ([sizes[0], sizes[-1]], [accuracies[0], accuracies[-1]])
        slips = {
            "that is straight over the images, not over their logarithm": (
                _needed(sizes, accuracies, goal, straight=True)
            ),
            "take the two points around the target, not the first and the last": (
                _needed(*ends, goal)
            ),
            "do not round to a measured size": min(n for n in sizes if n >= target * 0.999999),
            "that is the logarithm: undo it at the end": math.log(target),
            "that is the logarithm to the base 10: undo it at the end": math.log10(target),
            "that is the measured size nearest below": max(
                n for n in sizes if n <= target * 1.000001
            ),
        }
        for message, wrong in slips.items():
            expect(_close(wrong, target) or not _close(got, wrong), f"{where}: {message}")
        expect(_close(got, target), f"{where}: expected {target:.1f}, got {got:.6g}")
    for goal in (0.25, 0.7):
        where = f"accuracies 0.3 to 0.62, target {goal}"
        got = _call(function, goal)
        expect(got is None, f"{where}: nobody measured that, return None, got {got!r}")
    confirm("8.4", "an accuracy, said in images")


def _call(function: Callable[..., Any], goal: float) -> Any:
    """What it gives for a target that was not measured, where None is the right answer."""
    try:
        return function([500, 2000, 10000], [0.3, 0.45, 0.62], goal)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise WrongAnswer(f"target {goal} was not measured: return None, got {told}") from error


def _needed(
    sizes: Sequence[int], accuracies: Sequence[float], goal: float, straight: bool = False
) -> float:
    points = list(zip(sizes, accuracies, strict=True))
    for (n0, a0), (n1, a1) in itertools.pairwise(points):
        if a0 <= goal <= a1:
            share = (goal - a0) / (a1 - a0)
            return n0 + share * (n1 - n0) if straight else n0 * (n1 / n0) ** share
    raise ValueError("the goal lies outside")


def _whole(result: Any, example: str) -> float:
    number = expect_number(result, example)
    expect(number == round(number), f"expected a whole number, such as {example}, got {number:g}")
    return number


def _refuse(got: float, target: float, where: str, slips: dict[str, int]) -> None:
    for message, wrong in slips.items():
        expect(wrong == target or got != wrong, f"{where}: {message}")
    expect(got == target, f"{where}: expected {target}, got {got:g}")


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
