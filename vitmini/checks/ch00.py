"""Checks of the exercises of chapter 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitmini.checks import attempt, confirm, expect, expect_number, expect_tensor, same


def accuracy(function: Callable[[Tensor, Tensor], Any]) -> None:
    """Exercise 0.1: the share of images whose largest logit is at the label."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.5, 0.2, 0.1], [9.0, 8.0, 7.0]])
    labels = torch.tensor([0, 2, 1, 0])  # right, right, wrong, right
    crash = "the argmax is over the classes, dimension 1, and a mean of booleans needs .float()"
    got = expect_number(attempt(function, logits, labels, slip=crash), "0.75")
    slips = {
        3.0: "that is the number of right answers, divide it by the number of images",
        75.0: "that is in percent, the check wants a share between 0 and 1",
        0.25: "that is the share of wrong answers",
        1.0: "that is right only when every image is, or your division is an integer one",
        0.0: "is the argmax taken over the classes, dimension 1, and compared with the labels?",
    }
    slip = slips.get(round(got, 4), "take the argmax over the classes, dimension 1")
    expect(math.isclose(got, 0.75, abs_tol=1e-6), f"expected 0.75, got {got:g}: {slip}")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 7, generator=generator)
    labels = torch.randint(7, (30,), generator=generator)
    target = (logits.argmax(1) == labels).sum().item() / 30
    got = expect_number(attempt(function, logits, labels), "0.75")
    expect(
        math.isclose(got, target, abs_tol=1e-6),
        f"expected {target:.4f} on 30 images of 7 classes, got {got:.4f}: "
        "does your code depend on the number of images or classes?",
    )
    confirm("0.1", "accuracy counts the images whose largest logit is at the label")


def chance_loss(function: Callable[[int], Any]) -> None:
    """Exercise 0.2: the cross-entropy of a model that gives every class the same chance."""
    for classes in (10, 2, 1000):
        got, target = expect_number(attempt(function, classes), "1.6094"), math.log(classes)
        slips = {
            round(-target, 4): "the sign is missing: a loss is minus the logarithm",
            round(math.log2(classes), 4): "that is in bits, PyTorch's cross-entropy is in nats",
            round(math.log10(classes), 4): "that is the logarithm to base 10, take the natural one",
            round(1 / classes, 4): "that is the probability, the loss is minus its logarithm",
            round(1 - 1 / classes, 4): "that is the error rate, not the loss",
            round(math.log(10), 4): "that is the loss for 10 classes, use num_classes",
        }
        slip = slips.get(round(got, 4), "each class has the probability 1 / num_classes")
        expect(
            math.isclose(got, target, abs_tol=1e-4),
            f"expected {target:.4f} for {classes} classes, got {got:.4f}: {slip}",
        )
    confirm("0.2", "a model that knows nothing starts at log(num_classes)")


def confusion_matrix(function: Callable[[Tensor, Tensor, int], Any]) -> None:
    """Exercise 0.3: count how often class i was taken for class j."""
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    predictions = torch.tensor([0, 1, 1, 0, 2, 2])
    target = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]])
    hints: dict[tuple[int, ...], str] = {
        (3, 3): "count all num_classes, also one that no image has",
        (4, 4): "the shape follows num_classes, not a fixed number or the labels",
    }
    crash = "bincount needs minlength=num_classes**2, or it stops at the last pair that occurs"
    answer = attempt(function, labels, predictions, 4, slip=crash)
    got = expect_tensor(answer, (4, 4), hints)
    expect(
        not same(got, target.T),
        "rows and columns are swapped: row i is the true class, column j the prediction",
    )
    total = float(got.sum())
    expect(
        abs(total - 1) > 1e-6 and abs(total - 3) > 1e-6,
        f"expected counts that add up to 6 images, got {total:g}: do not divide",
    )
    expect(
        bool((got <= target).all()) or total >= 6,
        f"expected counts that add up to 6 images, got {total:g}",
    )
    expect(
        total == 6,
        f"expected counts that add up to 6 images, got {total:g}: when a pair occurs twice, "
        "matrix[labels, predictions] += 1 adds only one of them",
    )
    expect(same(got, target), f"expected\n{target}, got\n{got}")
    generator = torch.Generator().manual_seed(1)
    labels, predictions = torch.randint(3, (2, 50), generator=generator)
    target = torch.zeros(6, 6, dtype=torch.long)
    for i, j in zip(labels.tolist(), predictions.tolist(), strict=True):
        target[i, j] += 1
    got = expect_tensor(attempt(function, labels, predictions, 6, slip=crash), (6, 6), hints)
    expect(same(got, target), f"on 50 images and 6 classes, expected\n{target}, got\n{got}")
    confirm("0.3", "row i, column j counts the images of class i that were taken for class j")
