"""Recorded experiments that time training: the loop's throughput, the ladder, the speed run.

Chapter: 7.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vitmini.data import describe_data, load_data
from vitmini.model import get_config
from vitmini.optim import can_compile, choose_precision
from vitmini.profiles import Profile
from vitmini.recipes import RECIPES, TrainConfig
from vitmini.records import experiment_folder, first_rounds, keep, new_result, summarize
from vitmini.throughput import (
    NO_COUNTERPART,
    compare_steps,
    ladder,
    matrix_rate,
    measure_loop,
    measure_pictures,
    measure_rung,
    median_ratio,
    model_share,
)
from vitmini.train import build_model

# The recipes of the speed run, and the test accuracy that each is meant to reach.
SPEEDRUN = {"speedrun-90": 0.90, "speedrun-93": 0.93, "cifar10": 0.94}


def speedrun(profile: Profile, rounds: int | None = None) -> dict[str, Any]:
    """How soon a plain ViT from scratch reaches 90, 93 and 94% on CIFAR-10. Chapter: 7.

    Each run is a process of its own with nothing compiled before; the clock starts before Python.
    A round is a recipe with a seed; `rounds` does the first few alone, under a name of their own.
    """
    recipes = profile.pick(ci=["digits"], cpu=list(SPEEDRUN), gpu=list(SPEEDRUN))
    return _timed_runs("speedrun", recipes, profile, rounds)


def train_cifar10(profile: Profile) -> dict[str, Any]:
    """Train the `cifar10` recipe from scratch, labels only, over three seeds. Chapter: 7.

    Runs are those of the speed run, where it has them.
    """
    recipes = profile.pick(ci=["digits"], cpu=["cifar10"], gpu=["cifar10"])
    return _timed_runs("train-cifar10", recipes, profile)


def _timed_runs(
    name: str, recipes: list[str], profile: Profile, rounds: int | None = None
) -> dict[str, Any]:
    _needs_gpu(name, profile)
    every = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    # A first look at every recipe comes before the second seed of any.
    name, part, chosen = first_rounds(name, list(itertools.product(every, recipes)), rounds)
    # On a fast card a checkpoint should take about as long as an epoch.
    more = profile.pick(ci=("--epochs", "2"), cpu=(), gpu=("--save-every", "20"))
    runs: dict[str, list[dict[str, Any]]] = {}
    with experiment_folder("speedrun", profile) as folder:
        for seed, recipe in chosen:
            out = folder / f"{recipe}-{seed}"
            measure = functools.partial(_warm_run, recipe, seed, out, profile, more)
            run = keep(folder / f"{recipe}-{seed}.json", measure)
            runs.setdefault(recipe, []).append(run)
            accuracy = run["history"][-1]["test_accuracy"]
            print(f"{recipe}, seed {seed}: {accuracy:.2%} in {run['seconds']} s", flush=True)
    metrics: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for recipe, done in runs.items():
        inside = [round(sum(r["seconds"] for r in run["history"]), 1) for run in done]
        tested = [run["history"][-1]["test_accuracy"] for run in done]
        metrics[f"test_accuracy_{recipe}"] = summarize(tested)
        metrics[f"seconds_{recipe}"] = summarize([run["seconds"] for run in done])
        metrics[f"seconds_in_epochs_{recipe}"] = summarize(inside)
        curves[f"elapsed_{recipe}"] = [run["elapsed"] for run in done]
        for key in ("val_accuracy", "train_loss"):
            histories = [[round(r[key], 4) for r in run["history"]] for run in done]
            curves[f"{key}_{recipe}"] = histories
    lengths = ", ".join(f"{len(done[0]['history'])} epochs of {r}" for r, done in runs.items())
    saved = "; a checkpoint every 20" if "--save-every" in more else ""
    words = f"{describe_data(RECIPES[recipes[0]].data)}; {lengths}{saved}; {_clock(profile)}{part}"
    spent = sum(run["seconds"] for done in runs.values() for run in done)
    seeds = sorted({seed for seed, _ in chosen})
    return new_result(name, profile, profile.device, words, spent, seeds, metrics, curves)


def startup(profile: Profile) -> dict[str, Any]:
    """What `torch.compile` costs at the start and gives after it, by blocks and whole. Chapter: 7.

    Each run is a process of its own with nothing compiled before, of the shortest recipe, a few
    epochs long. Its pace is that of the epochs between the first, which compiles, and the last,
    which saves and looks at the test images. The run and its missing epochs at that pace are
    seconds_of_all.
    """
    _needs_gpu("startup", profile)
    recipe = profile.pick(ci="digits", cpu="speedrun-90", gpu="speedrun-90")
    epochs, seeds = profile.pick(ci=3, cpu=5, gpu=5), profile.pick(ci=[0], cpu=[0, 1], gpu=[0, 1])
    total = RECIPES[recipe].epochs
    runs: dict[str, list[dict[str, Any]]] = {}
    with experiment_folder("startup", profile) as folder:
        for seed, how in itertools.product(seeds, ("no", "blocks", "whole")):
            path = folder / f"{how}-{seed}"
            more = ("--compile", how, "--epochs", str(epochs))
            measure = functools.partial(_warm_run, recipe, seed, path, profile, more)
            runs.setdefault(how, []).append(run := keep(path.with_suffix(".json"), measure))
            print(f"{how}: first epoch done after {run['elapsed'][0]} s", flush=True)
    metrics: dict[str, Any] = {}
    for how, done in runs.items():
        first = [run["elapsed"][0] for run in done]
        pace = [(run["elapsed"][-2] - run["elapsed"][0]) / (epochs - 2) for run in done]
        metrics[f"seconds_to_first_epoch_{how}"] = summarize(first)
        metrics[f"seconds_an_epoch_{how}"] = summarize([round(p, 3) for p in pace])
        whole = [run["seconds"] + (total - epochs) * p for run, p in zip(done, pace, strict=True)]
        metrics[f"seconds_of_all_{how}"] = summarize([round(seconds, 2) for seconds in whole])
    words = (
        f"{describe_data(RECIPES[recipe].data)}; {epochs} epochs of {recipe}, which has {total}; "
        f"{_clock(profile)}"
    )
    spent = sum(run["seconds"] for done in runs.values() for run in done)
    curves = {f"elapsed_{how}": [run["elapsed"] for run in done] for how, done in runs.items()}
    return new_result("startup", profile, profile.device, words, spent, seeds, metrics, curves)


def _clock(profile: Profile) -> str:
    warm = "; a small run came before, whose time does not count"
    return "the clock starts before Python" + warm * (profile.name == "gpu")


def _warm_run(
    recipe: str, seed: int, out: Path, profile: Profile, more: Sequence[str]
) -> dict[str, Any]:
    """Time a run on a machine that has read the data, PyTorch and CUDA from its disk before."""
    if profile.name == "gpu":
        _warm_up(profile.device)
    return timed_run(recipe, seed, out, profile.device, more)


@functools.cache
def _warm_up(device: str) -> None:
    """Do a small run whose time does not count, once."""
    with tempfile.TemporaryDirectory() as folder:
        more = ("--epochs", "3", "--compile", "blocks")
        timed_run("cifar10-mini", 0, Path(folder, "run"), device, more)


def timed_run(
    recipe: str, seed: int, out: Path, device: str, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Train a recipe in a new process that finds nothing compiled, and look at the clock.

    `more` are further words of the command line.
    Shapes: returns `seconds` of the whole process, start-up, data and compilation included;
        `elapsed`, the seconds until each epoch's end; `history`, the records of its epochs. A run
        that was cut off begins anew: half a run has no time. What is read from the disk for the
        first time counts; the experiments do a run before.
    Raises: `ValueError` when the training fails, with what it said.
    Chapter: 7
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "vitmini", "train", "--recipe", recipe, "--seed", str(seed)]
    command += ["--out", str(out), "--device", device]
    command += more
    library = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as empty:
        paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "TORCHINDUCTOR_CACHE_DIR": empty}
        env = os.environ | own | {"TRITON_CACHE_DIR": str(Path(empty, "triton"))}
        start, elapsed = time.perf_counter(), []
        log = out.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(log, "w", encoding="utf-8") as errors,
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("epoch "):
                    elapsed.append(round(time.perf_counter() - start, 2))
        seconds = round(time.perf_counter() - start, 2)
    if process.returncode:
        said = log.read_text(encoding="utf-8").strip().splitlines()
        raise ValueError(f"the run {out} failed: {said[-1] if said else 'no word of why'}")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (out / "checkpoint.pt").unlink()  # it is done: the weights stay
    return {"seconds": seconds, "elapsed": elapsed, "history": [json.loads(x) for x in lines]}


# Throughput --------------------------------------------------------------------------------------


def throughput(profile: Profile) -> dict[str, Any]:
    """The training loop beside its own step, torchvision's pictures, timm and the card's limit.

    Chapter: 7.
    """
    _needs_gpu("throughput", profile)
    return _throughput("throughput", profile, profile.device)


def throughput_cpu(profile: Profile) -> dict[str, Any]:
    """The training loop beside its own step and torchvision's pictures, on a CPU. Chapter: 7."""
    return _throughput("throughput-cpu", profile, "cpu")


@dataclasses.dataclass(frozen=True)
class _Effort:
    """How much `_throughput` measures: `raced` models with their batch sizes, `sizes` of a rung."""

    recipe: str
    matrix: int
    raced: tuple[tuple[str, int], ...]
    batches: int
    repeats: int
    seconds: float
    workers: int
    sizes: tuple[int, int]


def _effort(profile: Profile, device: str) -> _Effort:
    if profile.name == "ci":
        return _Effort("digits", 256, (), 2, 1, 0.05, 1, (256, 512))
    workers = os.cpu_count() or 1
    if device == "cpu":
        return _Effort(
            "cifar10-mini", 2048, (("vit_cifar_mini", 128),), 10, 5, 8.0, workers, (128, 512)
        )
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30  # GiB
    large = 256 if memory > 60 else 64 if memory > 20 else 32
    raced = (("vit_cifar", 512), ("vit_base_patch16_224", large))
    return _Effort("cifar10", 8192, raced, 40, 7, 8.0, workers, (128, 1024))


def _throughput(name: str, profile: Profile, device: str) -> dict[str, Any]:
    start, effort = time.perf_counter(), _effort(profile, device)
    recipe = dataclasses.replace(RECIPES[effort.recipe], precision="auto", cpu_threads=None)
    data = load_data(recipe.data)
    plain = dataclasses.replace(  # what has a counterpart among PIL's pictures
        recipe,
        **{name: getattr(TrainConfig(), name) for name in NO_COUNTERPART},
        crop=data.train_images.shape[-1] // 8,
        flip=True,
        rand_ops=1,
    )
    dtype = choose_precision("auto", device)
    metrics: dict[str, float] = {}
    rates: list[float] = []
    part: Callable[[], Any]
    with experiment_folder(name, profile) as folder:
        part = functools.partial(matrix_rate, device, dtype, effort.matrix)
        limit = metrics["matrix_rate"] = keep(folder / "matrix.json", part)
        for model, batch in effort.raced:
            config = TrainConfig(batch_size=batch, compile=True)
            part = functools.partial(
                compare_steps, get_config(model), config, device, 5, effort.repeats
            )
            found = keep(folder / f"step-{model}.json", part)
            metrics |= _step_metrics(model, found, limit)
        for key, config in (("recipe", recipe), ("plain", plain)):
            part = functools.partial(
                measure_loop, data, config, device, effort.batches, effort.repeats
            )
            found = keep(folder / f"loop-{key}.json", part)
            metrics |= {f"{what}_{key}": value for what, value in found.items()}
        part = functools.partial(
            measure_pictures, data, plain, device, effort.workers, effort.seconds
        )
        pictures = metrics["images_torchvision"] = keep(folder / "pictures.json", part)
        metrics["images_over_torchvision"] = metrics["images_plain"] / pictures
        rungs = ladder(device, effort.workers, *effort.sizes)
        for i, rung in enumerate(rungs):
            part = functools.partial(measure_rung, rung, data, plain, device, effort.seconds)
            rates.append(keep(folder / f"rung-{i}.json", part))
            print(f"{rung.name}: {rates[-1]:,.0f} images/s", flush=True)
    model_config = build_model(recipe, data).config
    shares = [model_share(model_config, r, limit) for r in rates]
    naive, with_workers = rates[:2]
    metrics["loop_over_naive"] = max(rates[2:]) / naive
    metrics["loop_over_workers"] = max(rates[2:]) / with_workers
    curves = {
        "rung": [rung.name for rung in rungs],
        "images_per_second": [round(r, 1) for r in rates],
        "share": [round(s, 5) for s in shares],
    }
    words = (
        f"{describe_data(recipe.data)}; {recipe.model}, {effort.workers} worker processes, "
        f"{str(dtype).removeprefix('torch.')} where a rung does not say; images a second, "
        "and shares of the measured rate of a large matrix product, in FLOP/s"
    )
    summaries = {key: summarize([float(f"{value:.5g}")]) for key, value in metrics.items()}
    spent = time.perf_counter() - start
    return new_result(name, profile, device, words, spent, [recipe.seed], summaries, curves)


def _step_metrics(model: str, found: dict[str, list[float]], limit: float) -> dict[str, float]:
    """Images a second of each library, vitmini's share of the limit, and its lead over timm."""
    rates = {f"step_{model}_{peer}": statistics.median(v) for peer, v in found.items()}
    share = model_share(get_config(model), rates[f"step_{model}_vitmini"], limit)
    rates[f"share_of_matrix_rate_{model}"] = share
    if "timm" in found:
        rates[f"step_over_timm_{model}"] = median_ratio(found, "vitmini", "timm")
    return rates


def _needs_gpu(name: str, profile: Profile) -> None:
    if profile.name == "cpu":
        raise ValueError(f"{name} needs a CUDA device: its profile is cpu")
    device = torch.device(profile.device)
    if profile.name == "gpu" and device.type == "cuda" and not can_compile(device):
        raise ValueError(f"{name} times what is compiled, and nothing can be compiled here")
