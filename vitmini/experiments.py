"""Recorded experiments: each runs by name and writes `book/results/NAME.json`.

Chapter: the one that plots the result.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vitmini.attention import Attention, attention_by_hand
from vitmini.benchmark import compare_models, measure_time, peak_memory
from vitmini.data import ImageData, describe_data, first_images, load_data
from vitmini.hunger import (
    data_hunger,
    data_hunger_compute,
    data_hunger_tuned,
    data_hunger_tuned_hybrid,
    data_hunger_whole,
)
from vitmini.initialisation import SCHEMES
from vitmini.inside import position_growth, resolution
from vitmini.model import create_model, get_config
from vitmini.optim import choose_precision
from vitmini.profiles import Profile
from vitmini.recipes import RECIPES, TrainConfig
from vitmini.records import code_version, new_result, summarize
from vitmini.siblings import siblings
from vitmini.speedrun import speedrun, startup, throughput, throughput_cpu, train_cifar10
from vitmini.students import (
    distillation,
    distillation_better_student,
    distillation_better_teacher,
    distillation_long,
    distillation_softer,
    distillation_softer_first,
    distillation_tuned,
)
from vitmini.train import split_validation, train

History = list[dict[str, float]]
DIGITS = "digits of scikit-learn: 1,437 training images (144 of them held out), 360 test images"


def train_digits(profile: Profile) -> dict[str, Any]:
    """Train the `digits` recipe over ten seeds, with and without augmentation. Chapter: 0."""
    seeds = profile.pick(ci=[0, 1], cpu=list(range(10)), gpu=list(range(10)))
    start = time.perf_counter()
    runs = [_run_digits(profile, seed) for seed in seeds]
    none = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0}
    bare = [_run_digits(profile, seed, recipe=none) for seed in seeds]
    metrics = {
        "test_accuracy": summarize([run[-1]["test_accuracy"] for run in runs]),
        "test_accuracy_unaugmented": summarize([run[-1]["test_accuracy"] for run in bare]),
        "val_accuracy": summarize([run[-1]["val_accuracy"] for run in runs]),
        "seconds": summarize([round(sum(r["seconds"] for r in run), 2) for run in runs]),
    }
    curves = {
        "val_accuracy": [[round(r["val_accuracy"], 4) for r in run] for run in runs],
        "train_loss": [[round(r["train_loss"], 4) for r in run] for run in runs],
    }
    return _digits_result("train-digits", profile, start, seeds, metrics, curves)


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
    return _digits_result("patch-size-digits", profile, start, seeds, metrics, {})


def positions_cifar10(profile: Profile) -> dict[str, Any]:
    """Train one small ViT with each kind of position embedding. Chapter: 2."""
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count, model = _small_cifar(profile)
    data = load_data(recipe.data)
    data, words = _first_images(data, count, recipe)
    kinds = ("none", "learned", "learned2d", "sincos2d", "relative")
    arms: dict[str, tuple[dict, dict]] = {kind: ({"pos_embed": kind}, {}) for kind in kinds}
    return _train_arms("positions-cifar10", profile, seeds, arms, recipe, model, data, words)


def initialisation_cifar10(profile: Profile) -> dict[str, Any]:
    """Train one small ViT from weights drawn by each scheme, all else equal. Chapter: 5."""
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count, model = _small_cifar(profile)
    data = load_data(recipe.data)
    data, words = _first_images(data, count, recipe)
    arms: dict[str, tuple[dict, dict]] = {scheme: ({"init": scheme}, {}) for scheme in SCHEMES}
    # The authors of the mimetic scheme use it with sines and cosines: the pair, and its twin.
    for scheme in ("deit", "mimetic"):
        arms[f"{scheme}_sincos2d"] = ({"init": scheme, "pos_embed": "sincos2d"}, {})
    return _train_arms("initialisation-cifar10", profile, seeds, arms, recipe, model, data, words)


def pooling_digits(profile: Profile) -> dict[str, Any]:
    """Read the class token or the mean of the patches, at three learning rates. Chapter: 2."""
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2, 3, 4])
    recipe = _digits_recipe(profile)
    arms: dict[str, tuple[dict, dict]] = {
        f"{pool}_{rate}": ({"pool": pool}, {"learning_rate": rate})
        for rate in (0.001, 0.003, 0.01)
        for pool in ("cls", "mean")
    }
    data = load_data("digits")
    return _train_arms("pooling-digits", profile, seeds, arms, recipe, {}, data, DIGITS)


def attention_digits(profile: Profile) -> dict[str, Any]:
    """Train the `digits` recipe with 1 to 16 heads, and without the scale 1/sqrt(d). Chapter: 3."""
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2, 3, 4])
    recipe = _digits_recipe(profile)
    arms: dict[str, tuple[dict, dict]] = {f"heads_{h}": ({"num_heads": h}, {}) for h in _HEADS}
    for h in (1, 4):
        arms[f"unscaled_{h}"] = ({"num_heads": h, "scale": 1.0}, {})
    data = load_data("digits")
    return _train_arms("attention-digits", profile, seeds, arms, recipe, {}, data, DIGITS)


def norm_digits(profile: Profile) -> dict[str, Any]:
    """Norm before or after, with warm-up and without, 3, 8 and 12 layers deep. Chapter: 4.

    An arm is norm_warmup_depth; "slow" has a third of the learning rate, "deit" starts
    with the smaller weights of that scheme.
    """
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe = dataclasses.replace(_digits_recipe(profile), epochs=profile.pick(ci=1, cpu=20, gpu=20))
    arms: dict[str, tuple[dict, dict]] = {
        f"{norm}_{warmup}_{depth}": ({"norm": norm, "depth": depth}, {"warmup": warmup})
        for depth in (3, 8, 12)
        for norm in ("pre", "post")
        for warmup in (0, 5)
    }
    post = {"norm": "post", "depth": 12}
    slow = {"warmup": 0, "learning_rate": recipe.learning_rate / 3}
    arms["post_0_12_slow"] = (post, slow)
    arms["post_0_12_deit"] = (post | {"init": "deit"}, {"warmup": 0})
    data, words = load_data("digits"), f"{DIGITS}, {recipe.epochs} epochs"
    return _train_arms("norm-digits", profile, seeds, arms, recipe, {}, data, words)


def patch_size_cifar10(profile: Profile) -> dict[str, Any]:
    """Train one small ViT with patches of 4, 8 and 16 pixels on the same images. Chapter: 7."""
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count, model = _small_cifar(profile)
    data, words = _first_images(load_data(recipe.data), count, recipe)
    sizes = profile.pick(ci=(2, 4), cpu=(4, 8, 16), gpu=(4, 8, 16))
    arms: dict[str, tuple[dict, dict]] = {f"patch_{p}": ({"patch_size": p}, {}) for p in sizes}
    return _train_arms("patch-size-cifar10", profile, seeds, arms, recipe, model, data, words)


def learning_rate_cifar10(profile: Profile) -> dict[str, Any]:
    """Train one small ViT with six learning rates, with warm-up and without. Chapter: 7.

    An arm is rate_warmup, the warm-up in epochs.
    """
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count, model = _small_cifar(profile)
    data, words = _first_images(load_data(recipe.data), count, recipe)
    arms: dict[str, tuple[dict, dict]] = {
        f"{rate}_{warmup}": ({}, {"learning_rate": rate, "warmup": warmup})
        for rate in profile.pick(ci=_RATES[:2], cpu=_RATES, gpu=_RATES)
        for warmup in (recipe.warmup, 0)
    }
    model = model | profile.pick(ci={}, cpu={"patch_size": 8}, gpu={"patch_size": 8})
    return _train_arms("learning-rate-cifar10", profile, seeds, arms, recipe, model, data, words)


def optimizer_cifar10(profile: Profile) -> dict[str, Any]:
    """Train one small ViT with AdamW, Muon and SGD, each with several learning rates. Chapter: 7.

    An arm is optimizer_rate. SGD's weight decay is part of its gradient, so it gets the weaker one
    of the recipe `cifar10-resnet`; the arm "decayed" has that of the others.
    """
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count, model = _small_cifar(profile)
    data, words = _first_images(load_data(recipe.data), count, recipe)
    few = {name: rates[:1] for name, rates in _RATES_OF.items()}
    decay = {"sgd": {"weight_decay": RECIPES["cifar10-resnet"].weight_decay}}
    arms: dict[str, tuple[dict, dict]] = {
        f"{name}_{rate}": ({}, {"optimizer": name, "learning_rate": rate} | decay.get(name, {}))
        for name, rates in profile.pick(ci=few, cpu=_RATES_OF, gpu=_RATES_OF).items()
        for rate in rates
    }
    rate = _RATES_OF["sgd"][profile.pick(ci=0, cpu=1, gpu=1)]
    arms[f"sgd_{rate}_decayed"] = {}, {"optimizer": "sgd", "learning_rate": rate}
    model = model | profile.pick(ci={}, cpu={"patch_size": 8}, gpu={"patch_size": 8})
    return _train_arms("optimizer-cifar10", profile, seeds, arms, recipe, model, data, words)


def ingredients_cifar10(profile: Profile) -> dict[str, Any]:
    """Go from a plain recipe to `cifar10`, in small, one ingredient after the other. Chapter: 7.

    Each arm has what those before it have. The average is a shorter one, for a shorter run.
    """
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count, model = _small_cifar(profile)
    goal = RECIPES["cifar10"]
    recipe = dataclasses.replace(recipe, epochs=profile.pick(ci=1, cpu=20, gpu=recipe.epochs))
    data, words = _first_images(load_data(recipe.data), count, recipe)
    still = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0}
    crop = profile.pick(ci=1, cpu=goal.crop, gpu=goal.crop)
    steps: dict[str, tuple[dict, dict]] = {
        "plain": ({}, {}),
        "sincos2d": ({"pos_embed": "sincos2d"}, {}),
        "mimetic": ({"init": "mimetic"}, {}),
        "mean": ({"pool": "mean"}, {}),
        "muon": ({}, {"optimizer": "muon"}),
        "average": ({}, {"ema": profile.pick(ci=0.9, cpu=0.99, gpu=0.995)}),
        "crop": ({}, still | {"crop": crop, "flip": goal.flip}),
        "rand_augment": ({}, {"rand_ops": goal.rand_ops}),
        "smoothing": ({}, {"label_smoothing": goal.label_smoothing}),
        "drop_path": ({"drop_path": goal.model_options["drop_path"]}, {}),
        "cutmix": ({}, {"cutmix": goal.cutmix}),
    }
    arms: dict[str, tuple[dict, dict]] = {}
    sizes: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for name, (more, settings) in steps.items():
        sizes, rates = sizes | more, rates | settings
        arms[name] = (sizes, rates)
    model = model | profile.pick(ci={}, cpu={"patch_size": 8}, gpu={})
    return _train_arms("ingredients-cifar10", profile, seeds, arms, recipe, model, data, words)


def train_cifar10_mini(profile: Profile) -> dict[str, Any]:
    """Train the recipe `cifar10-mini-muon` on all images: what helped in small. Chapter: 7."""
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count = RECIPES["cifar10-mini-muon"], 50_000
    model = dict(recipe.model_options)
    if profile.name == "ci":
        recipe, count, size = _small_cifar(profile)
        recipe, model = dataclasses.replace(recipe, optimizer="muon", ema=0.9), model | size
    data, words = _first_images(load_data(recipe.data), count, recipe)
    arms: dict[str, tuple[dict, dict]] = {"muon": ({}, {})}
    return _train_arms("train-cifar10-mini", profile, seeds, arms, recipe, model, data, words)


def augmentation_cifar10(profile: Profile) -> dict[str, Any]:
    """Train one small ViT long on few images, with more and more augmentation. Chapter: 7."""
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count, model = _small_cifar(profile)
    bare: dict[str, Any] = {"translate": 0.0, "flip": False}
    epochs = profile.pick(ci=1, cpu=60, gpu=100)
    recipe = dataclasses.replace(recipe, epochs=epochs, **bare)
    data, words = _first_images(load_data(recipe.data), count, recipe)
    crop = {"crop": profile.pick(ci=1, cpu=4, gpu=4), "flip": True}
    arms: dict[str, tuple[dict, dict]] = {
        "none": ({}, {}),
        "crop_flip": ({}, crop),
        "rand_augment": ({}, crop | {"rand_ops": 1}),
        "cutmix": ({}, crop | {"rand_ops": 1, "cutmix": 1.0, "label_smoothing": 0.1}),
    }
    model = model | profile.pick(ci={}, cpu={"patch_size": 8}, gpu={"patch_size": 8})
    return _train_arms("augmentation-cifar10", profile, seeds, arms, recipe, model, data, words)


def equal_images_cifar10(profile: Profile) -> dict[str, Any]:
    """What speed-ups that change the arithmetic do to the accuracy. Chapter: 7.

    An arm is precision_batch; "twice" has twice the learning rate. All see the same images.
    """
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    recipe, count, model = _small_cifar(profile)
    data, words = _first_images(load_data(recipe.data), count, recipe)
    small, large = profile.pick(ci=(32, 64), cpu=(128, 512), gpu=(128, 1024))
    large_batch: dict[str, Any] = {"batch_size": large, "precision": "float32"}
    arms: dict[str, tuple[dict, dict]] = {
        f"{precision}_{small}": ({}, {"batch_size": small, "precision": precision})
        for precision in profile.pick(
            ci=("float32",), cpu=("float32", "bfloat16"), gpu=("float32", "bfloat16", "float16")
        )
    }
    arms[f"float32_{large}"] = ({}, large_batch)
    twice = {"learning_rate": 2 * recipe.learning_rate}
    arms[f"float32_{large}_twice"] = ({}, large_batch | twice)
    model = model | profile.pick(ci={}, cpu={"patch_size": 8}, gpu={"patch_size": 8})
    return _train_arms("equal-images-cifar10", profile, seeds, arms, recipe, model, data, words)


def attention_cost_cpu(profile: Profile) -> dict[str, Any]:
    """Time and memory of attention by hand and fused, on a CPU in float32. Chapter: 3."""
    tokens = profile.pick(ci=[16, 64], cpu=_TOKENS[:7], gpu=_TOKENS[:7])
    return _attention_cost("attention-cost-cpu", "cpu", torch.float32, 1, tokens, profile)


def attention_cost_gpu(profile: Profile) -> dict[str, Any]:
    """Time and memory of attention by hand and fused, on a GPU in 16 bits. Chapter: 3."""
    if not torch.cuda.is_available():
        raise ValueError("attention-cost-gpu needs a CUDA device, PyTorch finds none")
    tokens = profile.pick(ci=[16, 64], cpu=_TOKENS, gpu=_TOKENS)
    dtype = choose_precision("auto", "cuda")
    return _attention_cost("attention-cost-gpu", "cuda", dtype, 8, tokens, profile)


def model_speed_cpu(profile: Profile) -> dict[str, Any]:
    """vitmini's forward pass and training step beside three libraries, on a CPU. Chapter: 6."""
    return _model_speed("model-speed-cpu", "cpu", torch.float32, 8, profile)


def model_speed_gpu(profile: Profile) -> dict[str, Any]:
    """vitmini's forward pass and training step beside three libraries, on a GPU. Chapter: 6."""
    if not torch.cuda.is_available():
        raise ValueError("model-speed-gpu needs a CUDA device, PyTorch finds none")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30  # GiB
    batch = 256 if memory > 20 else 64
    return _model_speed("model-speed-gpu", "cuda", choose_precision("auto", "cuda"), batch, profile)


def _model_speed(
    name: str, device: str, dtype: torch.dtype, batch: int, profile: Profile
) -> dict[str, Any]:
    repeats, batch = profile.pick(ci=(1, 1), cpu=(25, batch), gpu=(51, batch))
    names = profile.pick(ci=["vit_cifar_mini"], cpu=_SPEED_MODELS, gpu=_SPEED_MODELS)
    start, metrics = time.perf_counter(), {}
    for model in names:
        for peer, speed in compare_models(get_config(model), batch, device, repeats, dtype).items():
            for key, value in dataclasses.asdict(speed).items():
                metrics[f"{key}_{model}_{peer}"] = summarize([round(value, 4)])
            print(f"{model}, {peer}: {speed}", flush=True)
    precision = str(dtype).removeprefix("torch.")
    words = f"random images, batch {batch}, {precision}; medians of {repeats} turns"
    seconds = time.perf_counter() - start
    return new_result(name, profile, device, words, seconds, [0], metrics, {})


_SPEED_MODELS = ["vit_cifar", "vit_small_patch16_224"]
_TOKENS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]


def _attention_cost(
    name: str, device: str, dtype: torch.dtype, batch: int, tokens: list[int], profile: Profile
) -> dict[str, Any]:
    repeats = profile.pick(ci=1, cpu=5, gpu=21)
    start, rows, end = time.perf_counter(), [], ""
    for T in tokens:
        try:
            rows.append(_attention_row(device, dtype, batch, T, repeats))
        except torch.OutOfMemoryError:  # that of attention by hand grows with the square
            if not rows:
                raise
            end = f"; {T:,} tokens need more memory than there is"
            break
        print(f"{T} tokens: {rows[-1]}", flush=True)
    tokens = tokens[: len(rows)]
    curves = {"tokens": tokens, **{key: [row[key] for row in rows] for key in rows[0]}}
    metrics = {}
    for T, row in zip(tokens, rows, strict=True):
        for key in ("milliseconds", "bytes"):
            ratio = row[f"{key}_by_hand"] / max(row[f"{key}_fused"], 1e-9)
            metrics[f"{key}_by_hand_over_fused_{T}"] = summarize([round(ratio, 3)])
    precision = str(dtype).removeprefix("torch.")
    words = (
        f"random queries, keys and values, batch {batch}, 6 heads of 64, {precision}; "
        f"times are medians of {repeats} turns{end}"
    )
    seconds = time.perf_counter() - start
    return new_result(name, profile, device, words, seconds, [0], metrics, curves)


def _attention_row(
    device: str, dtype: torch.dtype, batch: int, T: int, repeats: int
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(T)
    q, k, v = torch.randn(3, batch, 6, T, 64, generator=generator).to(device, dtype)
    ways: dict[str, Callable[[], Any]] = {
        "by_hand": functools.partial(attention_by_hand, q, k, v),
        "fused": functools.partial(F.scaled_dot_product_attention, q, k, v),
    }
    with torch.no_grad():
        times = measure_time(ways, device, repeats)
        row: dict[str, float] = {f"milliseconds_{way}": round(ms, 3) for way, ms in times.items()}
        return row | {f"bytes_{way}": peak_memory(f, device) for way, f in ways.items()}


_HEADS = (1, 2, 4, 8, 16)
_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_RATES_OF = {
    "adamw": (1e-3, 3e-3, 1e-2),
    "muon": (1e-3, 3e-3, 1e-2, 3e-2),
    "sgd": (1e-2, 3e-2, 1e-1, 3e-1),
}


def _digits_recipe(profile: Profile) -> TrainConfig:
    if profile.name == "ci":
        return dataclasses.replace(RECIPES["digits"], epochs=1, epoch_images=200)
    return RECIPES["digits"]


def _small_cifar(profile: Profile) -> tuple[TrainConfig, int, dict[str, Any]]:
    """A recipe, how many training images, and the model's size, for comparisons on photographs."""
    recipe = dataclasses.replace(RECIPES["cifar10-mini"], epochs=10, warmup=2)
    if profile.name == "ci":
        return dataclasses.replace(RECIPES["digits"], epochs=1), 200, {"patch_size": 2}
    if profile.name == "gpu":  # there are some 170 runs: a minute each makes hours
        recipe = dataclasses.replace(recipe, model="vit_cifar_tiny", epochs=30, warmup=3)
        recipe = dataclasses.replace(recipe, batch_size=512, precision="auto", save_every=10)
        return dataclasses.replace(recipe, learning_rate=1e-3), 50_000, {}
    return recipe, 10_000, {"dim": 64, "num_heads": 4}


def _first_images(data: ImageData, count: int, recipe: TrainConfig) -> tuple[ImageData, str]:
    """Keep `count` training images, a random choice that is the same for every seed; say so."""
    data = first_images(data, min(count, len(data.train_labels)))
    _, val_ids = split_validation(len(data.train_labels), recipe)
    return data, (
        f"{describe_data(data.name)}: {len(data.train_labels):,} training images "
        f"({len(val_ids):,} of them held out), {len(data.test_labels):,} test images, "
        f"{recipe.epochs} epochs"
    )


def _train_arms(
    name: str,
    profile: Profile,
    seeds: Sequence[int],
    arms: dict[str, tuple[dict, dict]],
    recipe: TrainConfig,
    model: dict[str, Any],
    data: ImageData,
    words: str,
) -> dict[str, Any]:
    """Train every arm with every seed; each run is kept, so that a second call goes on.

    An arm is what it changes in the model (or `scale`, of every attention) and in the recipe.
    """
    runs: dict[str, list[History]] = {arm: [] for arm in arms}
    folder = Path("runs", "experiments", f"{name}-{code_version().replace(' ', '-')}")
    for seed in seeds:
        for arm, (changes, rates) in arms.items():
            config = dataclasses.replace(recipe, seed=seed, **rates)
            sizes = {k: v for k, v in changes.items() if k != "scale"}
            channels, rows, columns = data.train_images.shape[1:]
            torch.manual_seed(seed)
            vit = create_model(
                config.model,
                **{"image_size": (rows, columns), "in_channels": channels, **model, **sizes},
            ).to(profile.device)
            for module in vit.modules():
                if isinstance(module, Attention):
                    module.scale = changes.get("scale", module.scale)
            out = None if profile.name == "ci" else folder / f"{arm}-{seed}"
            history = train(vit, data, config, out, resume=True)
            runs[arm].append(history)
            print(f"{arm}, seed {seed}: test {history[-1]['test_accuracy']:.2%}", flush=True)
    spent = sum(r["seconds"] for done in runs.values() for run in done for r in run)
    metrics = {}
    for arm, done in runs.items():
        for key in ("test_accuracy", "train_loss"):
            metrics[f"{key}_{arm}"] = summarize([run[-1][key] for run in done])
    curves = {
        f"{key}_{arm}": [[round(r[key], 4) for r in run] for run in done]
        for arm, done in runs.items()
        for key in ("val_accuracy", "train_loss")
    }
    threads, seeds = recipe.cpu_threads, list(seeds)
    return new_result(name, profile, profile.device, words, spent, seeds, metrics, curves, threads)


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


def _digits_result(
    name: str,
    profile: Profile,
    start: float,
    seeds: list[int],
    metrics: dict[str, Any],
    curves: dict[str, Any],
) -> dict[str, Any]:
    seconds, threads = time.perf_counter() - start, RECIPES["digits"].cpu_threads
    device = profile.device
    return new_result(name, profile, device, DIGITS, seconds, seeds, metrics, curves, threads)


EXPERIMENTS: dict[str, Callable[[Profile], dict[str, Any]]] = {
    "train-digits": train_digits,
    "patch-size-digits": patch_size_digits,
    "positions-cifar10": positions_cifar10,
    "initialisation-cifar10": initialisation_cifar10,
    "patch-size-cifar10": patch_size_cifar10,
    "learning-rate-cifar10": learning_rate_cifar10,
    "optimizer-cifar10": optimizer_cifar10,
    "augmentation-cifar10": augmentation_cifar10,
    "equal-images-cifar10": equal_images_cifar10,
    "ingredients-cifar10": ingredients_cifar10,
    "train-cifar10-mini": train_cifar10_mini,
    "pooling-digits": pooling_digits,
    "attention-digits": attention_digits,
    "norm-digits": norm_digits,
    "attention-cost-cpu": attention_cost_cpu,
    "attention-cost-gpu": attention_cost_gpu,
    "model-speed-cpu": model_speed_cpu,
    "model-speed-gpu": model_speed_gpu,
    "throughput": throughput,
    "throughput-cpu": throughput_cpu,
    "train-cifar10": train_cifar10,
    "startup": startup,
    # Long ones in parts of minutes: each does what those before it do, and the last one all.
    **{f"speedrun-{n}": functools.partial(speedrun, rounds=n) for n in range(1, 4)},
    "speedrun": speedrun,
    **{f"data-hunger-{n}": functools.partial(data_hunger, rounds=n) for n in range(1, 5)},
    "data-hunger": data_hunger,
    "data-hunger-compute": data_hunger_compute,
    "data-hunger-whole": data_hunger_whole,
    "data-hunger-tuned": data_hunger_tuned,
    "data-hunger-tuned-hybrid": data_hunger_tuned_hybrid,
    "distillation-teachers": functools.partial(distillation, rounds=0),
    **{f"distillation-{n}": functools.partial(distillation, rounds=n) for n in range(1, 4)},
    "distillation": distillation,
    "distillation-long": distillation_long,
    "distillation-tuned": distillation_tuned,
    "distillation-better-teacher": distillation_better_teacher,
    "distillation-better-student": distillation_better_student,
    "distillation-softer": distillation_softer,
    "distillation-softer-first": distillation_softer_first,
    "position-growth": position_growth,
    "resolution": resolution,
    "siblings": siblings,
}
