"""Automatic checks of the exercises, a module a chapter, a function an exercise.

A check takes the reader's function. It prints one line when every test passes, and raises
`WrongAnswer` with a diagnosis otherwise: what was expected, what came, the likely slip.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class WrongAnswer(AssertionError):
    """What a check raises: the message says what is wrong."""


def attempt(function: Callable[..., Any], *arguments: Any, slip: str = "") -> Any:
    """Call the reader's function; turn an empty or crashing answer into a diagnosis.

    The function gets copies: an answer that changes its arguments is refused. `slip` says what
    usually makes it crash.
    """
    shown = ", ".join(_show(a) for a in arguments)
    call = f"{getattr(function, '__name__', function)}({shown})"
    try:
        copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        result = function(*copies)
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError) and str(error) in ("", "your code here"):
            raise WrongAnswer(
                f"{call} is not written yet: put your code where it says raise NotImplementedError"
            ) from None
        told = f"{type(error).__name__}: {error}" + (f"\nA usual slip: {slip}" if slip else "")
        raise WrongAnswer(f"{call} stopped with {told}") from error
    for given, copy in zip(arguments, copies, strict=True):
        if isinstance(given, Tensor) and not torch.equal(given, copy):
            raise WrongAnswer(f"{call} changed its argument in place: work on a copy, .clone()")
    if result is None:
        raise WrongAnswer(f"{call} returned None: is the return statement missing?")
    return result


def expect(condition: bool, message: str) -> None:
    """Raise `WrongAnswer` with the message unless the condition holds."""
    if not condition:
        raise WrongAnswer(message)


def expect_number(result: Any, example: str) -> float:
    """Require one real number, plain, NumPy's or in a tensor; `example` says what it looks like."""
    try:
        number = float(result)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise WrongAnswer(f"expected one number, such as {example}, got {_show(result)}") from None
    return number


def expect_tensor(result: Any, shape: tuple[int, ...], hints: dict[tuple[int, ...], str]) -> Tensor:
    """Require a tensor of a shape; `hints` explain shapes that a known slip would give."""
    expect(
        isinstance(result, Tensor),
        f"expected a tensor {shape}, got {type(result).__name__} {_show(result)}",
    )
    got = tuple(result.shape)
    slip = f": {hints[got]}" if got in hints else ""
    expect(got == shape, f"expected shape {shape}, got {got}{slip}")
    plain = result.layout == torch.strided and result.device.type == "cpu"
    expect(
        plain and not result.is_complex(),
        f"expected plain real numbers on the CPU, got {result.dtype} on {result.device}",
    )
    return result.detach()


def same(result: Tensor, target: Tensor, tolerance: float = 1e-5) -> bool:
    """Compare two tensors of one shape, in float64, up to a relative tolerance."""
    if result.shape != target.shape:
        return False
    difference = (result.double() - target.double()).abs().max().item()
    return difference <= tolerance * max(target.double().abs().max().item(), 1.0)


def expect_no_slip(result: Tensor, target: Tensor, wrong: dict[str, Tensor]) -> None:
    """Refuse a result that equals a usual wrong one; the key of each says what the slip is."""
    for message, value in wrong.items():
        expect(same(value, target) or not same(result, value), message)


@contextmanager
def own_work(*names: str) -> Iterator[None]:
    """Refuse, while it is open, answers that call what they should write themselves.

    `names` are functions or classes of vitmini ("patches.patchify"), or functions of PyTorch
    ("torch.nn.functional.cross_entropy", "torch.func.jacfwd"). It helps against a shortcut, not
    against ill will.
    Raises: `WrongAnswer` in the call, and again at the end where the answer's own `try` took the
        first one; `ValueError` for a name that does not exist.
    """
    refused: dict[Any, str] = {}
    before = len(_refusals)
    with ExitStack() as stack:
        for name in names:
            path, _, last = (name if name.startswith("torch.") else f"vitmini.{name}").rpartition(
                "."
            )
            try:
                found = getattr(importlib.import_module(path), last)
            except (ImportError, AttributeError):
                raise ValueError(f"own_work knows no {name}") from None
            if name.startswith("torch.") and path != "torch.func":  # those are plain Python
                refused[found] = name
            elif isinstance(found, type):
                stack.enter_context(mock.patch.object(found, "__init__", _refuse(name)))
            else:  # its code, so that every name that it has somewhere is covered
                found = inspect.unwrap(found)  # of decorators such as torch.no_grad
                stack.callback(setattr, found, "__code__", found.__code__)
                found.__code__ = _refuse(name).__code__
        stack.enter_context(_RefuseTorch(refused))
        try:
            yield
        except Exception as error:
            if isinstance(error, WrongAnswer) or len(_refusals) == before:
                raise
    if len(_refusals) > before:
        raise WrongAnswer(_refusals[before])


_refusals: list[str] = []  # what was refused so far, also when nobody was told


def _refuse(name: str) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    message = f"write this yourself: {name} is not to be used in this question"
    # a function without a closure, so that another one may take its code
    lines = ["from vitmini.checks import WrongAnswer, _refusals"]
    lines += [f"_refusals.append({message!r})", "raise WrongAnswer(_refusals[-1])"]
    exec("\n    ".join(["def refuse(*_, **__):", *lines]), names)
    return names["refuse"]


class _RefuseTorch(TorchFunctionMode):
    def __init__(self, refused: dict[Any, str]):
        super().__init__()
        self.refused = refused

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.refused:
            _refuse(self.refused[func])()
        return func(*args, **(kwargs or {}))


def confirm(exercise: str, what: str) -> None:
    """Print the one line that says the exercise is solved."""
    print(f"Exercise {exercise} solved: {what}.")


def _show(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    text = value.__name__ if hasattr(value, "__name__") else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


from vitmini.checks import (  # noqa: E402  (they use the functions above)
    ch00,
    ch01,
    ch02,
    ch03,
    ch04,
    ch05,
    ch06,
    ch07,
    ch08,
    ch10,
    ch11,
    ch12,
    ch13,
)

__all__ = [
    "WrongAnswer",
    "attempt",
    "ch00",
    "ch01",
    "ch02",
    "ch03",
    "ch04",
    "ch05",
    "ch06",
    "ch07",
    "ch08",
    "ch10",
    "ch11",
    "ch12",
    "ch13",
    "confirm",
    "expect",
    "expect_no_slip",
    "expect_number",
    "expect_tensor",
    "own_work",
    "same",
]
