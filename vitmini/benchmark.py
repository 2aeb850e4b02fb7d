"""How long a computation takes and how much memory it needs, side by side with others.

Chapter: 3 (attention by hand and fused), 6 (whole models).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from vitmini.model import ViT, ViTConfig
from vitmini.patches import as_pair

Ways = Mapping[str, Callable[[], Any]]


def measure_time(
    ways: Ways, device: str | torch.device = "cpu", repeats: int = 9
) -> dict[str, float]:
    """Time several ways to compute, in turns, so that a busy machine slows all of them alike.

    Shapes: `ways` maps a name to a function without arguments; returns milliseconds, the median
        of `repeats` turns after one turn to warm up. A GPU is waited for.
    Raises: `ValueError` when `repeats` is not positive.
    Chapter: 3
    """
    turns = measure_turns(ways, device, repeats)
    return {name: statistics.median(values) for name, values in turns.items()}


def measure_turns(
    ways: Ways, device: str | torch.device = "cpu", repeats: int = 9
) -> dict[str, list[float]]:
    """Time several ways in turns: each turn runs every way once, and begins with another one.

    Shapes: as `measure_time`, but returns the milliseconds of every turn.
    Raises: `ValueError` when `repeats` is not positive.
    Chapter: 6
    """
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be a positive int, got {repeats!r}")
    if not ways:
        raise ValueError("ways must hold at least one function")
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wait(device)
            start = time.perf_counter()
            ways[name]()
            wait(device)
            if turn:  # the first turn warms up
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def peak_memory(way: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Measure how much memory a computation needs on top of what is there before it.

    Shapes: returns bytes: the highest total of what PyTorch had allocated at one time, on a CUDA
        device or a CPU; 0 on another device, where PyTorch does not tell.
    Chapter: 3
    """
    way()  # what is allocated once and kept, such as a workspace, does not count
    if torch.device(device).type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    if torch.device(device).type != "cpu":
        return 0
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler talks on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        way()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak


@dataclass(frozen=True)
class Speed:
    """One model's part in a comparison: medians, and vitmini's time over its own, turn by turn.

    Units: milliseconds for a batch, bytes for the training step; the ratios are medians of the
        ratios within a turn, so that a busy minute does not count for one side only. Below 1
        vitmini is the faster one.
    Chapter: 6
    """

    forward: float
    step: float
    memory: int
    forward_ratio: float
    step_ratio: float


def compare_models(
    config: ViTConfig,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    repeats: int = 15,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Speed]:
    """Run vitmini and those of timm, torchvision and Hugging Face that are installed, in turns.

    A training step is a forward pass, the cross-entropy, the backward
    pass and AdamW's step. `dtype` other than float32 means autocast.
    Raises: `ValueError` for a model that the others do not have (anything but a plain ViT), for
        a `batch_size` or `repeats` below 1, and for another `dtype`.
    Chapter: 6
    """
    check_plain(config)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16 of torch, got {dtype!r}")
    models = {name: model.to(device) for name, model in build_all(config).items()}
    H, W = as_pair(config.image_size, "image_size")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, config.in_channels, H, W, generator=generator).to(device)
    labels = torch.randint(config.num_classes, (batch_size,), generator=generator).to(device)
    kind = torch.device(device).type
    mixed = functools.partial(torch.autocast, kind, dtype, enabled=dtype != torch.float32)

    def forward(model: nn.Module) -> Tensor:
        with mixed():
            return model(images)

    def infer(model: nn.Module) -> None:
        with torch.no_grad():
            forward(model)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        F.cross_entropy(forward(model).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    timed: dict[str, dict[str, list[float]]] = {}
    for model in models.values():
        model.eval()
    ways: Ways = {name: functools.partial(infer, model) for name, model in models.items()}
    timed["forward"] = measure_turns(ways, device, repeats)
    steps = {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, fused=True)
        steps[name] = functools.partial(step, model, optimizer)
    timed["step"] = measure_turns(steps, device, repeats)
    memory = {name: peak_memory(way, device) for name, way in steps.items()}

    def ratio(what: str, name: str) -> float:
        pairs = zip(timed[what]["vitmini"], timed[what][name], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    return {
        name: Speed(
            statistics.median(timed["forward"][name]),
            statistics.median(timed["step"][name]),
            memory[name],
            ratio("forward", name),
            ratio("step", name),
        )
        for name in models
    }


def check_plain(config: ViTConfig) -> None:
    """Refuse a configuration that timm, torchvision and Hugging Face do not all have.

    Raises: `ValueError` for anything but a plain ViT.
    Chapter: 6
    """
    if type(config).__name__ != "ViTConfig":  # by name: a notebook may define its own
        raise ValueError(f"config must be a ViTConfig, got {config!r}")
    c = replace(config, init="deit", zero_head=False)
    wanted = ViTConfig(
        c.image_size, c.patch_size, 3, c.num_classes, c.dim, c.depth, c.num_heads, c.mlp_ratio
    )
    if c != wanted or not isinstance(c.image_size, int) or not isinstance(c.patch_size, int):
        raise ValueError("a comparison needs a plain ViT: square RGB images, all else default")


def build_all(config: ViTConfig) -> dict[str, nn.Module]:
    """Build the same model in each library that is installed, vitmini's first. Chapter: 6."""
    size, dim, depth, heads = config.image_size, config.dim, config.depth, config.num_heads
    hidden, classes = int(dim * config.mlp_ratio), config.num_classes
    built: dict[str, nn.Module] = {"vitmini": ViT(replace(config, init="deit", zero_head=False))}
    if importlib.util.find_spec("timm"):
        from timm.models.vision_transformer import VisionTransformer as TimmViT

        built["timm"] = TimmViT(
            size,
            config.patch_size,
            num_classes=classes,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=config.mlp_ratio,
        )
    from torchvision.models import VisionTransformer as TorchvisionViT

    built["torchvision"] = TorchvisionViT(
        size, config.patch_size, depth, heads, dim, hidden, num_classes=classes
    )
    if importlib.util.find_spec("transformers"):
        from transformers import ViTConfig as HuggingFaceConfig
        from transformers import ViTForImageClassification

        sizes: dict[str, Any] = {
            "image_size": size,
            "patch_size": config.patch_size,
            "hidden_size": dim,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": hidden,
            "num_labels": classes,
            "layer_norm_eps": config.norm_eps,
        }
        built["Hugging Face"] = _Logits(ViTForImageClassification(HuggingFaceConfig(**sizes)))
    return built


class _Logits(nn.Module):
    """Hugging Face wraps its logits; unwrapping them costs nothing that one could measure."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def wait(device: str | torch.device) -> None:
    """Wait until a device has done all that it was told. Chapter: 7."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
