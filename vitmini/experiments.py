"""Recorded experiments: each runs by name and writes `book/results/NAME.json`.

Chapter: the one that plots the result.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from vitmini.data import load_data
from vitmini.model import create_model
from vitmini.profiles import Profile, device_name
from vitmini.records import provenance, summarize
from vitmini.train import RECIPES, train

History = list[dict[str, float]]
DIGITS = "digits of scikit-learn: 1,437 training images (144 of them held out), 360 test images"


def train_digits(profile: Profile) -> dict[str, Any]:
    """Train the `digits` recipe over ten seeds, with and without augmentation. Chapter: 0."""
    seeds = profile.pick(ci=[0, 1], cpu=list(range(10)), gpu=list(range(10)))
    start = time.perf_counter()
    runs = [_run_digits(profile, seed) for seed in seeds]
    none = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0}
    bare = [_run_digits(profile, seed, recipe=none) for seed in seeds]
    return _result("train-digits", profile, start, seeds) | {
        "metrics": {
            "test_accuracy": summarize([run[-1]["test_accuracy"] for run in runs]),
            "test_accuracy_unaugmented": summarize([run[-1]["test_accuracy"] for run in bare]),
            "val_accuracy": summarize([run[-1]["val_accuracy"] for run in runs]),
            "seconds": summarize([round(sum(r["seconds"] for r in run), 2) for run in runs]),
        },
        "curves": {
            "val_accuracy": [[round(r["val_accuracy"], 4) for r in run] for run in runs],
            "train_loss": [[round(r["train_loss"], 4) for r in run] for run in runs],
        },
    }


def patch_size_digits(profile: Profile) -> dict[str, Any]:
    """Train the `digits` recipe with patches of 2, 4 and 8 pixels, all else equal. Chapter: 1."""
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2, 3, 4], gpu=[0, 1, 2, 3, 4])
    start, metrics = time.perf_counter(), {}
    for patch_size in (2, 4, 8):
        runs = [_run_digits(profile, seed, model={"patch_size": patch_size}) for seed in seeds]
        seconds = [round(sum(r["seconds"] for r in run), 2) for run in runs]
        metrics[f"test_accuracy_{patch_size}"] = summarize([r[-1]["test_accuracy"] for r in runs])
        metrics[f"train_loss_{patch_size}"] = summarize([r[-1]["train_loss"] for r in runs])
        metrics[f"seconds_{patch_size}"] = summarize(seconds)
    return _result("patch-size-digits", profile, start, seeds) | {"metrics": metrics, "curves": {}}


def _run_digits(
    profile: Profile, seed: int, recipe: dict[str, Any] | None = None, model: dict | None = None
) -> History:
    config = dataclasses.replace(RECIPES["digits"], seed=seed, **(recipe or {}))
    if profile.name == "ci":
        config = dataclasses.replace(config, epochs=2)
    torch.manual_seed(seed)
    vit = create_model(config.model, **(model or {})).to(profile.device)
    history = train(vit, load_data(config.data), config)
    changed = ", ".join(f"{k} {v}" for k, v in ((recipe or {}) | (model or {})).items())
    print(f"seed {seed}, {changed}: test {history[-1]['test_accuracy']:.2%}", flush=True)
    return history


def _result(name: str, profile: Profile, start: float, seeds: list[int]) -> dict[str, Any]:
    return {
        "name": name,
        "device": device_name(profile.device, RECIPES["digits"].cpu_threads),
        **provenance(),
        "data": DIGITS,
        "profile": profile.name,
        "seconds": round(time.perf_counter() - start, 1),
        "seeds": seeds,
    }


EXPERIMENTS: dict[str, Callable[[Profile], dict[str, Any]]] = {
    "train-digits": train_digits,
    "patch-size-digits": patch_size_digits,
}
