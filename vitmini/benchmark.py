"""How long a computation takes and how much memory it needs, side by side with others.

Chapter: 3 (attention by hand and fused); 7.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

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
    if repeats < 1:
        raise ValueError(f"repeats must be positive, got {repeats}")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            _wait(device)
            start = time.perf_counter()
            way()
            _wait(device)
            if turn:  # the first turn warms up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(way: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Measure how much memory a computation needs on top of what is there before it.

    Shapes: returns bytes: the highest total of what PyTorch had allocated at one time.
    Chapter: 3
    """
    way()  # what is allocated once and kept, such as a workspace, does not count
    if torch.device(device).type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
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


def _wait(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
