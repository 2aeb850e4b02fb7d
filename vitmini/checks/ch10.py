"""Checks of the exercises of chapter 10."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.checks import attempt, confirm, expect, expect_number, expect_tensor


def soft_loss(function: Callable[..., Any]) -> None:
    """Exercise 10.1: the temperature's KL, in logarithms."""
    for seed, (B, K, t) in enumerate(((6, 4, 3.0), (9, 10, 2.0), (3, 7, 0.5), (5, 3, 8.0))):
        generator = torch.Generator().manual_seed(seed)
        draw = 2 * torch.randn(2, B, K, generator=generator, dtype=torch.float64)
        student, teacher = draw.unbind()
        result = expect_tensor(
            attempt(function, student, teacher, t, slip="log_softmax takes the dimension, 1"),
            (),
            {(B,): "one number for each image: take the mean over the batch"},
        )
        got, target = result.item(), _soft(student, teacher, t)
        p, q = (teacher / t).softmax(1), (student / t).softmax(1)
        slips = {
            "the KL is not divided by the classes: sum over them, mean over the batch": target / K,
            "take the mean over the batch, not its sum": target * B,
            "the temperature counts twice: times τ², not τ": target / t,
            "the factor τ² is missing": target / t**2,
            "the two are swapped: the weights p before the logarithm are the teacher's": _soft(
                teacher, student, t
            ),
            "softmax goes over the classes, dim=1, not over the batch": _soft(
                student.T, teacher.T, t
            ),
            "the same along dim 0, divided by the batch: softmax goes over the classes, dim=1": (
                _soft(student.T, teacher.T, t) * K / B
            ),
            "the teacher is not softened: divide its logits by τ, too": (
                _kl(teacher.softmax(1), q) * t**2
            ),
            "the student is not softened: divide its logits by τ, too": (
                _kl(p, student.softmax(1)) * t**2
            ),
            "that is the cross-entropy with the teacher: its own entropy is missing": (
                -(p * q.log()).sum(1).mean().item() * t**2
            ),
            "the sign is turned round: a KL is never negative": -target,
            "the temperature is not used": _soft(student, teacher, 1.0),
        }
        where = f"B = {B}, K = {K}, τ = {t:g}: "
        _expect_value(got, target, slips, where)
    student = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[-1000.0, 0.0, 1000.0], [0.0, 500.0, 0.0]])
    got = expect_tensor(attempt(function, student, teacher, 1.0), (), {}).item()
    target = _soft(student.double(), teacher.double(), 1.0)
    expect(
        math.isfinite(got),
        f"with logits of ±1000 the result is {got}: a softmax became exactly 0 and its logarithm "
        "infinite; log_softmax never does",
    )
    _expect_value(got, target, {}, "logits of ±1000: ")
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(9)).unbind()
    student.requires_grad_()
    teacher.requires_grad_()
    loss = attempt(function, student, teacher, 2.0)
    expect(
        isinstance(loss, Tensor) and loss.requires_grad,
        "the student gets no gradient: keep the result a tensor, without .item() or no_grad()",
    )
    loss.backward()
    expect(student.grad is not None, "the student gets no gradient: detach the teacher alone")
    expect(teacher.grad is None, "the teacher gets a gradient: use teacher.detach()")
    confirm("10.1", "the true KL, at every temperature, finite for every logit")


def _kl(p: Tensor, q: Tensor) -> float:
    return (p * (p.log() - q.log())).sum(1).mean().item()


def _soft(student: Tensor, teacher: Tensor, t: float) -> float:
    q, p = (student / t).log_softmax(1), (teacher / t).log_softmax(1)
    return t**2 * (p.exp() * (p - q)).sum(1).mean().item()


def hard_loss(function: Callable[..., Any]) -> None:
    """Exercise 10.2: labels for the class head, the teacher's decisions for the other."""
    for seed, (B, K, pair, mixed) in enumerate(
        ((6, 4, True, False), (5, 10, False, False), (8, 3, True, True), (7, 5, False, True))
    ):
        generator = torch.Generator().manual_seed(seed)
        draw = 2 * torch.randn(3, B, K, generator=generator, dtype=torch.float64)
        own, distil, teacher = draw.unbind()
        labels = torch.randint(K, (B,), generator=generator)
        if mixed:
            labels = (F.one_hot(labels, K) + F.one_hot(labels.flip(0), K)).double() / 2
        student = (own.clone(), distil.clone()) if pair else own
        distil = distil if pair else own
        result = expect_tensor(
            attempt(
                function,
                student,
                teacher,
                labels,
                slip="a student with a token gives a pair of logits, one without a tensor",
            ),
            (),
            {(B,): "one number for each image: take the mean over the batch"},
        )
        decided = teacher.argmax(1)

        def ce(logits: Tensor, target: Tensor) -> float:
            return F.cross_entropy(logits, target).item()

        a, b = ce(own, labels), ce(distil, decided)
        slips = {
            "the teacher's part is that of the distillation head, here it came from the class "
            "head": (a + ce(own, decided)) / 2,
            "the labels' part is that of the class head, here it came from the other one": (
                (ce(distil, labels) + b) / 2
            ),
            "the heads are swapped: the class head learns from the labels": (
                (ce(own, decided) + ce(distil, labels)) / 2
            ),
            "the answers of the two heads were mixed first: in training each has its own loss": (
                (ce((own + distil) / 2, labels) + ce((own + distil) / 2, decided)) / 2
            ),
            "the teacher's chances were used, not its decision: argmax": (
                (a + ce(distil, teacher.softmax(1))) / 2
            ),
            "each part counts half": a + b,
            "the teacher's part is missing": a,
            "half of the teacher's part is missing": a / 2,
            "the labels' part is missing": b,
            "half of the labels' part is missing": b / 2,
        }
        if B <= K:  # along the batch: K decisions, the first B of them fit
            slips["argmax over the classes, dim=1"] = (
                a + ce(distil, teacher.argmax(0)[:B] % K)
            ) / 2
        kind = "a pair" if pair else "one tensor"
        where = f"{kind} of logits, B = {B}, K = {K}{', mixed labels' * mixed}: "
        _expect_value(result.item(), (a + b) / 2, slips, where)
    confirm("10.2", "each head hears its own master")


def inherited_mistakes(function: Callable[..., Any]) -> None:
    """Exercise 10.3: which of the student's mistakes are the teacher's."""
    for seed, (N, K, copied) in enumerate(((200, 5, 0.5), (300, 10, 0.2), (90, 3, 0.9))):
        generator = torch.Generator().manual_seed(seed)
        labels, noise, other = torch.randint(K, (3, N), generator=generator).unbind()
        luck = torch.rand(3, N, generator=generator)
        teacher = torch.where(luck[0] < 0.6, labels, noise)
        student = torch.where(luck[1] < 0.4, labels, other)
        student = torch.where(luck[2] < copied, teacher, student)
        got = expect_number(attempt(function, student, teacher, labels), "0.42")
        wrong, missed = student != labels, teacher != labels
        same = student == teacher
        both = (wrong & same).sum().item()
        target = both / wrong.sum().item()
        slips = {
            "that is the share of all pictures: divide by the student's mistakes": both / N,
            "that is the share of the teacher's mistakes: divide by the student's": (
                both / missed.sum().item()
            ),
            "both are wrong there, but the answers must be the same, too": (
                (wrong & missed).sum().item() / wrong.sum().item()
            ),
            "that is how often the two agree at all: look at the student's mistakes alone": (
                same.double().mean().item()
            ),
            "of the mistakes, that is the share on which the two differ": 1 - target,
            "that is the share of the agreements: divide by the student's mistakes": (
                both / same.sum().item()
            ),
            "that is the number of pictures, not their share": float(both),
            "it is a share, not percent": 100 * target,
        }
        _expect_value(got, target, slips, f"{N} pictures of {K} classes: ")
    labels = torch.tensor([0, 1, 2])
    none = attempt(
        function, labels, labels.flip(0), labels, slip="a student may make no mistake at all"
    )
    expect(
        expect_number(none, "0.0") == 0.0,
        f"a student without mistakes inherits none: expected 0, got {none}",
    )
    confirm("10.3", "of the student's mistakes, those that are its teacher's")


def weight_for_the_code(function: Callable[..., Any]) -> None:
    """Exercise 10.4: the weight that makes DeiT's code do what its equation says."""
    for weight, classes in ((0.1, 1000), (0.5, 10), (0.9, 2), (0.25, 100), (0.0, 10), (1.0, 10)):
        got = expect_number(
            attempt(
                function, weight, classes, slip="at λ = 1 the labels have no part: no division"
            ),
            "0.9",
        )
        w, K = weight, classes
        target = K * w / (K * w + 1 - w)
        slips = {
            "a weight above 1 makes the labels' part negative": K * w if K * w > 1 else math.nan,
            "that is the other way round, what the code's λ means in the equation": (
                w / (w + K * (1 - w))
            ),
            "that is the ratio of the two parts, not yet the weight x of x / (1 - x)": (
                K * w / (1 - w) if w < 1 else math.nan
            ),
            "that is K times the ratio's inverse: the labels' weight, not the teacher's": 1
            - target,
            "unchanged, the teacher of the code is K times too quiet": w,
            "that is the answer for λ = 0.5 alone": K / (K + 1),
        }
        _expect_value(got, target, slips, f"λ = {w:g}, K = {K}: ")
    confirm("10.4", "the code with this weight trains as the equation does")


def _expect_value(got: float, target: float, slips: dict[str, float], where: str) -> None:
    """Compare two numbers, and name the slip that explains a wrong one."""
    for message, wrong in slips.items():
        expect(_close(wrong, target) or not _close(got, wrong), where + message)
    expect(_close(got, target), f"{where}expected {target:.6g}, got {got:.6g}")


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-9)
