"""What training changes besides the weights: optimizers, learning rates, averaged weights.

Chapter: 7.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vitmini.recipes import PRECISIONS, TrainConfig

# What each optimizer remembers of a parameter; all but `step` have the parameter's shape.
_MEMORY = {
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "SGD": {"momentum_buffer"},
    "Muon": {"momentum_buffer"},
}
_ANEW = "begin another run, with a lower learning_rate"


def learning_rate_at(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Give the learning rate of a step: a straight warm-up, then half a cosine down to zero.

    Units: `step` from 0, over the whole run.
    Source: Dosovitskiy et al. 2021, Table 3; Touvron et al. 2021, Table 9.
    Chapter: 7
    """
    warmup, total = config.warmup * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Make what `config.optimizer` names, decaying matrices, and nothing else.

    "muon" gives Muon the matrices of the blocks, with its steps scaled to AdamW's size, and AdamW
    the rest: embeddings, tokens, positions, norms, biases, the head. It is two optimizers, with one
    learning rate.
    Raises: `ValueError` for "muon" and a model without blocks, a ResNet.
    Source: Touvron et al. 2021, section 6 (their code: no decay on bias, norm, tokens, positions);
        Jordan et al. 2024 (Muon); Liu et al. 2025, section 2.2 (its step scaled to AdamW's).
    Chapter: 7
    """
    named = list(model.named_parameters())
    hidden = [p for n, p in named if ".blocks." in f".{n}" and p.ndim == 2 and decays(n, p)]
    if config.optimizer != "muon":
        hidden = []
    elif not hidden:
        raise ValueError("optimizer must be adamw or sgd for a model without blocks, got 'muon'")
    taken = {id(p) for p in hidden}
    decay = [p for n, p in named if id(p) not in taken and decays(n, p)]
    rest = [p for n, p in named if id(p) not in taken and not decays(n, p)]
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": rest},
    ]
    groups = [group for group in groups if group["params"]]
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": 0.0}
    if config.optimizer == "sgd":
        return [torch.optim.SGD(groups, momentum=0.9, nesterov=True, **common)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, fused=True, **common)]
    if hidden:
        optimizers.append(Muon(hidden, config.learning_rate, config.weight_decay))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum, and a step with all singular values near 1, scaled to the size of AdamW's.

    It takes the steps of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, but takes all matrices
    of one shape together: a ViT has four shapes, so that its depth costs no more kernel launches.

    Shapes: parameters are matrices.
    Raises: `ValueError` for parameters of another shape.
    Source: Jordan et al. 2024; Liu et al. 2025, section 2.2.
    Chapter: 7
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, weight_decay: float = 0.05, momentum: float = 0.95
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim != 2:
                raise ValueError(f"params must be matrices, got a shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for alike in shapes.values():
                self._step_together(alike, **{k: v for k, v in group.items() if k != "params"})

    def _step_together(
        self, weights: list[Tensor], lr: float, weight_decay: float, momentum: float
    ) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averages = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov
        steps = orthogonalize(torch.stack(list(ahead)))
        # AdamW's steps have a root mean square of 0.2.
        size = 0.2 * math.sqrt(max(weights[0].shape))
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, list(steps.unbind()), alpha=-lr * size)


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values near 1 (0.7 to 1.2), and leave the singular vectors alone.

    Those below some 0.002 of the matrix's norm would need more iterations, and stay smaller.

    Newton and Schulz's iteration X <- a X + (b A + c A A) X with A = X X^T: it needs products of
    matrices and nothing else. It need not be exact, so a GPU does it in its 16-bit type.
    Shapes: (N, rows, columns) -> the same.
    Source: Jordan et al. 2024.
    Chapter: 7
    """
    tall = matrices.shape[1] > matrices.shape[2]
    X = matrices.mT if tall else matrices
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # first, or float16 could overflow
    X = X.to(choose_precision("auto", X.device))
    for _ in range(iterations):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=-4.775, alpha=2.0315), X, beta=3.4445)
    return (X.mT if tall else X).to(matrices.dtype)


def decays(name: str, parameter: Tensor) -> bool:
    """Say whether weight decay pulls at a parameter: at matrices, not at tokens and positions.

    Chapter: 7
    """
    tables = ("cls_token", "dist_token", "pos_embed")  # and all that lies in pos_embed or rel_pos
    tabled = name.endswith(tables) or "pos_embed." in name or "rel_pos." in name
    return parameter.ndim > 1 and not tabled


def choose_precision(precision: str, device: str | torch.device) -> torch.dtype:
    """Turn "auto" into the type that a device computes fastest in, safely.

    A card with tensor cores for bfloat16 (compute capability 8.0 or higher: A100, L4, H100) gets
    it; an older one, such as Colab's T4, float16 with loss scaling; a CPU float32. PyTorch's own
    `torch.cuda.is_bf16_supported()` also says yes where bfloat16 is emulated, and slow.
    Raises: `ValueError` for another name of a type.
    Chapter: 7
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision != "auto":
        return getattr(torch, precision)
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


@dataclass
class Trainer:
    """A model with all that its training changes; a checkpoint holds `state_dict()`.

    Chapter: 7
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    average: AveragedModel | None
    ema: float
    scaler: torch.amp.GradScaler
    dtype: torch.dtype
    forward: nn.Module  # the model, or its compiled twin
    clip_norm: float
    run_digest: str = ""  # of a run that has a folder

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def compiled(self) -> bool:
        return self.forward is not self.model

    @property
    def evaluated(self) -> nn.Module:
        """The model whose accuracy counts: the averaged one where there is one."""
        return self.model if self.average is None else self.average.module

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def set_learning_rate(self, rate: float) -> None:
        for group in self._groups():
            group["lr"] = rate

    def update(self) -> None:
        """Do one step with the gradients that have been collected, and forget them.

        With loss scaling, a gradient that is not finite makes each optimizer skip its step.
        """
        if self.scaler.is_enabled() and len(self.optimizers) > 1:  # each sees its own alone
            nn.utils.clip_grad_norm_(self.model.parameters(), math.inf)  # makes all of them NaN
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        if self.average is not None:
            _update_average(self.average, self.model, self.ema)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], begun: bool = True) -> None:
        """Take over a checkpoint's state, after a look at its shapes and settings.

        `begun` says that it has taken steps; those may all have been skipped by loss scaling.
        Raises: `ValueError` (or what PyTorch raises) when it is not that of such a training.
        """
        wanted = set(self.state_dict())
        if set(state) != wanted:
            raise ValueError(f"it must hold {', '.join(sorted(wanted))}")
        for optimizer, given in zip(self.optimizers, state["optimizers"], strict=True):
            if given["state"] and not begun:
                raise ValueError("its history is empty, but its optimizer has taken steps")
            stepped = bool(given["state"]) or (begun and not self.scaler.is_enabled())
            _check_optimizer(given, optimizer, stepped)
        modules = {"model": self.model, "average": self.average}
        for part in wanted & set(modules):
            _check_numbers(state[part], modules[part])
        if self.scaler.is_enabled():
            _check_scaler(state["scaler"], self.scaler)
        self.model.load_state_dict(state["model"])
        for optimizer, given in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(given)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def forgotten(self) -> list[Tensor]:
        """The parameters that an optimizer remembers nothing of, or not all: no step ended."""
        return [
            parameter
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
            and len(optimizer.state.get(parameter, {})) < len(_MEMORY[type(optimizer).__name__])
        ]

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimizer in self.optimizers for group in optimizer.param_groups)


def build_trainer(model: nn.Module, config: TrainConfig) -> Trainer:
    """Put together what training `model` by `config` needs, on the model's device.

    Where PyTorch cannot compile, it warns and leaves the model as it is.
    Chapter: 7
    """
    device = next(model.parameters()).device
    dtype = choose_precision(config.precision, device)
    compiled = config.compile and device.type == "cuda" and can_compile(device)
    return Trainer(
        model=model,
        optimizers=build_optimizers(model, config),
        average=AveragedModel(model) if config.ema else None,
        ema=config.ema,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        dtype=dtype,
        forward=compile_model(model, config.compile) if compiled else model,
        clip_norm=config.clip_norm,
    )


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Say whether PyTorch has what it compiles with for a CUDA device, and warn once if not.

    On Windows there is no Triton with PyTorch, a slim Linux has no C compiler or not what it needs
    for Python, and Triton wants a card of compute capability 7.0 or higher.
    Chapter: 7
    """
    # Both are looked for where Triton looks; a Debian's own Python has a scheme of its own.
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    if importlib.util.find_spec("triton") is None:
        lacks = "Triton"
    elif torch.cuda.get_device_capability(device) < (7, 0):
        lacks = "a newer card"
    elif sys.platform == "linux" and not any(map(shutil.which, compilers)):
        lacks = "a C compiler"
    elif sys.platform == "linux" and not header.exists():
        lacks = "Python.h, of the package python3-dev"
    else:
        return True
    warnings.warn(f"nothing is compiled, for lack of {lacks}: it is slower", stacklevel=3)
    return False


def compile_model(model: nn.Module, how: bool | str = True) -> nn.Module:
    """Give a compiled twin of `model`: one module more, with the very same weights and buffers.

    PyTorch compiles at the first call. "blocks" compiles each of `model.blocks` by itself: blocks
    of one shape share their code, so that a deep model starts sooner, but nothing is fused across
    their borders. Otherwise, and for a model without blocks, it is compiled whole. The twin of
    blocks has a mode of its own: `train()` and `eval()` of the one do not reach the other.
    Source: PyTorch's recipe "regional compilation".
    Chapter: 7
    """
    # Beyond this many models of one kind in a process, PyTorch would stop compiling: it has 8.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    blocks = getattr(model, "blocks", None)
    if how != "blocks" or not isinstance(blocks, (nn.Sequential, nn.ModuleList)):
        return torch.compile(model)  # type: ignore[return-value]
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin: Any = copy.deepcopy(model, shared)
    for block in twin.blocks:
        block.compile()
    return twin


@torch.no_grad()
def _update_average(average: AveragedModel, model: nn.Module, decay: float) -> None:
    """What `average.update_parameters` does, without its copy of a counter to the device.

    That copy waits, in every step, until the device has done all that it was told. Batch norm's
    statistics are averaged like the weights that they belong to; counters are copied.
    """
    rate = 1 - decay if average.n_averaged else 1.0  # the counter lives on the CPU
    own, new = ([*m.parameters(), *m.buffers()] for m in (average.module, model))
    real = [i for i, value in enumerate(new) if value.is_floating_point()]
    torch._foreach_lerp_([own[i] for i in real], [new[i] for i in real], rate)
    counters = [i for i in range(len(new)) if i not in real]
    if counters:
        torch._foreach_copy_([own[i] for i in counters], [new[i] for i in counters])
    average.n_averaged += 1


def _check_optimizer(
    given: dict[str, Any], optimizer: torch.optim.Optimizer, stepped: bool
) -> None:
    """Compare with the fresh optimizer, since a fused step writes wherever it is told to.

    Frozen parameters have no state, and none has before the first step.
    It trusts shapes, types, and that a tensor's memory holds all its elements.
    """
    fresh = optimizer.state_dict()["param_groups"]
    for ours, theirs in zip(fresh, given["param_groups"], strict=True):
        if {**ours, "lr": 0} != {**theirs, "lr": 0}:
            raise ValueError("its optimizer has other settings")
    kind = type(optimizer).__name__
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        if i not in given["state"] and not (stepped and parameter.requires_grad):
            continue
        state = given["state"][i]
        if set(state) != _MEMORY[kind]:
            raise ValueError(f"its optimizer state is not {kind}'s")
        for name, value in state.items():
            like = torch.zeros(()) if name == "step" else parameter
            if (value.shape, value.dtype) != (like.shape, like.dtype):
                raise ValueError(f"its {name} {i} has another shape or type than the parameter")
            if value.is_contiguous() != like.is_contiguous():
                raise ValueError(f"its {name} {i} lies in memory in another way")
            if not value.isfinite().all():
                raise ValueError(f"its {name} {i} is not finite: {_ANEW}")
            if name in ("step", "exp_avg_sq") and (value < 0).any():
                raise ValueError(f"its {name} {i} is below 0")


def _check_numbers(given: dict[str, Tensor], module: nn.Module | None) -> None:
    types = {} if module is None else {k: v.dtype for k, v in module.state_dict().items()}
    for name, value in given.items():
        if value.dtype != types.get(name, value.dtype):
            raise ValueError(f"its {name} is of another type")
        if not value.isfinite().all():
            raise ValueError(f"its {name} is not finite: {_ANEW}")


def _check_scaler(given: dict[str, Any], scaler: torch.amp.GradScaler) -> None:
    scale, count, fresh = given["scale"], given["_growth_tracker"], scaler.state_dict()
    same = {**given, "scale": fresh["scale"], "_growth_tracker": 0} == fresh
    known = type(scale) is float and type(count) is int
    if not (same and known and 0 < scale < math.inf and 0 <= count <= fresh["growth_interval"]):
        raise ValueError("its loss scaling has other settings")
