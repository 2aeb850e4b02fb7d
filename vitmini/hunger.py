"""Recorded experiment: how much data, and how much computing, a ViT, a hybrid and a ResNet need.

Chapter: 8.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vitmini.baselines import training_flops
from vitmini.data import ImageData, describe_data, first_images, load_data
from vitmini.profiles import Profile
from vitmini.recipes import RECIPES, TrainConfig
from vitmini.records import experiment_folder, first_rounds, keep, new_result, summarize
from vitmini.train import build_model, evaluate, train

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "weak": {"flip": True},
    "strong": {"flip": True, "rand_ops": 1, "cutmix": 1.0, "label_smoothing": 0.1},
}

EQUAL = "; each for about as many FLOPs as the ResNet's"

# What `data_hunger_tuned` tries, one after the other. The ViT, and that of the hybrid, have chapter
# 7's positions, start and pooling in all of them; SGD's decay is the recipe `cifar10-resnet`'s.
VIT_OPTIONS = {"pool": "mean", "pos_embed": "sincos2d", "init": "mimetic"}
_TRANSFORMER: dict[str, dict[str, Any]] = {
    "adamw_0.002": {"learning_rate": 2e-3},
    "muon_0.001": {"optimizer": "muon", "learning_rate": 1e-3},
    "muon_0.003": {"optimizer": "muon", "learning_rate": 3e-3},
    "muon_0.006": {"optimizer": "muon", "learning_rate": 6e-3},
    "muon_0.012": {"optimizer": "muon", "learning_rate": 1.2e-2},
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "vit": _TRANSFORMER,
    "hybrid": _TRANSFORMER,
    "resnet": {
        "adamw_0.002": {"learning_rate": 2e-3},
        "sgd_0.03": {"optimizer": "sgd", "learning_rate": 0.03, "weight_decay": 5e-4},
        "sgd_0.1": {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4},
        "sgd_0.3": {"optimizer": "sgd", "learning_rate": 0.3, "weight_decay": 5e-4},
        "sgd_1": {"optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 5e-4},
        "sgd_3": {"optimizer": "sgd", "learning_rate": 3.0, "weight_decay": 5e-4},
    },
}


@dataclass(frozen=True)
class Plan:
    """`models` are presets with options; an epoch shows the largest of `sizes`, whatever the size.

    The batch divides an epoch: batch norm would drop what is left. `lengths` are epochs of the
    runs that measure what computing gives, beside `recipe.epochs`. `main` is the augmentation that
    all seeds are trained with; the other one gets a single seed. `own` is what a model's training
    has for itself.
    Chapter: 8
    """

    recipe: TrainConfig
    models: dict[str, tuple[str, dict[str, Any]]]
    sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    main: str = "strong"
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What is trained together: on these `sizes`, each model for its `lengths`. Chapter: 8."""

    augmentation: str
    seed: int
    sizes: tuple[int, ...]
    lengths: Mapping[str, tuple[int, ...]]


def plan_hunger(profile: Profile) -> Plan:
    """Choose models and sizes that a profile has time for. Chapter: 8.

    On a CPU one optimizer does for all, as in Dosovitskiy et al. 2021, section 4.1, which trains
    ResNets with Adam, too; `data_hunger_tuned` shows what that costs. So on a GPU each has that of
    its recipe, `cifar10` or `cifar10-resnet`.
    """
    if profile.name == "ci":
        recipe = TrainConfig(epochs=2, batch_size=30, warmup=1, val_share=0.0, crop=1)
        small = {
            "dim": 48,
            "depth": 1,
            "num_heads": 2,
        }  # not so small that its equal epochs are many
        models: dict[str, tuple[str, dict[str, Any]]] = {
            "vit": ("vit_digits", small),
            "hybrid": ("hybrid_mini", small | {"stages": (1,)}),
            "resnet": ("resnet_mini", {"stages": (1,)}),
        }
        return Plan(recipe, models, (40, 120), (1,))
    recipe = TrainConfig(data="cifar10", model="vit_cifar", val_share=0.0, crop=4)
    if profile.name == "cpu":
        models = {
            "vit": ("vit_cifar_mini", {"patch_size": 8}),
            "hybrid": ("hybrid_mini", {"depth": 2}),
            "resnet": ("resnet_mini", {}),
        }
        # Strong augmentation pays off in long training, for which a CPU has no time.
        recipe = replace(recipe, epochs=6, batch_size=125, learning_rate=2e-3, warmup=1)
        recipe = replace(recipe, precision="float32", cpu_threads=1)
        return Plan(recipe, models, (500, 2_000, 10_000), (1, 3), "weak")
    models = {
        "vit": ("vit_cifar", {}),
        "hybrid": ("hybrid_cifar", {}),
        "resnet": ("resnet18_cifar", {}),
    }
    recipe = replace(recipe, epochs=25, batch_size=500, warmup=2, save_every=5, compile=True)
    vit = _training_of(RECIPES["cifar10"]) | {"model_options": VIT_OPTIONS}
    own = {"vit": vit, "hybrid": vit, "resnet": _training_of(RECIPES["cifar10-resnet"])}
    return Plan(recipe, models, (1_000, 5_000, 20_000, 50_000), (5, 10, 50), own=own)


def _training_of(recipe: TrainConfig) -> dict[str, Any]:
    names = ("optimizer", "learning_rate", "weight_decay")
    return {name: getattr(recipe, name) for name in names}


def rounds_of(plan: Plan, profile: Profile) -> list[Round]:
    """Order what is to be trained by its worth: a first look, more seeds, the other changes."""
    whole = dict.fromkeys(plan.models, (plan.recipe.epochs,))
    other = other_augmentation(plan)
    more = profile.pick(ci=0, cpu=2, gpu=2)
    return [
        Round(plan.main, 0, plan.sizes, whole),
        Round(plan.main, 0, plan.sizes[-1:], dict.fromkeys(plan.models, plan.lengths)),
        *[Round(plan.main, seed, plan.sizes, whole) for seed in range(1, 1 + more)],
        Round(other, 0, plan.sizes, whole),
    ]


def other_augmentation(plan: Plan) -> str:
    """Name the augmentation that is not the main one. Chapter: 8."""
    (other,) = set(AUGMENTATIONS) - {plan.main}
    return other


def equal_rounds(plan: Plan, profile: Profile, flops: dict[str, int]) -> list[Round]:
    """Give each model the epochs that cost what the ResNet's cost, at `flops` an image. Chapter: 8.

    The other augmentation comes after the main one, and without the hybrid. The ResNet has its own
    epochs, which `data_hunger` measures with the main augmentation.
    """
    own = {name: _equal_epochs(plan, flops, name) for name in ("vit", "hybrid")}
    others = {"vit": own["vit"], "resnet": (plan.recipe.epochs,)}
    seeds = profile.pick(ci=(0,), cpu=(0, 1, 2), gpu=(0,))  # a GPU's models cost nearly the same
    return [
        *[Round(plan.main, seed, plan.sizes, own) for seed in seeds],
        *[Round(other_augmentation(plan), seed, plan.sizes, others) for seed in seeds],
    ]


def data_hunger(profile: Profile, rounds: int | None = None) -> dict[str, Any]:
    """Train a ViT, a hybrid and a ResNet on more and more images, all for as long. Chapter: 8.

    A model's keys are augmentation_model_images_epochs. `rounds` does the first few alone, under a
    name of their own: a part must not lie where the whole is. What was trained before is not
    trained again.
    """
    plan = plan_hunger(profile)
    name, words, parts = first_rounds("data-hunger", rounds_of(plan, profile), rounds)
    return _record(name, words, plan, profile, parts)


def data_hunger_compute(profile: Profile) -> dict[str, Any]:
    """Train the ViT and the hybrid for as many FLOPs as the ResNet, at every size. Chapter: 8.

    Is a ViT behind because it lacks images, or because its epochs are cheap? Keys are those of
    `data_hunger`.
    """
    plan = plan_hunger(profile)
    rounds = equal_rounds(plan, profile, _flops_of(plan))
    return _record("data-hunger-compute", EQUAL, plan, profile, rounds)


def data_hunger_whole(profile: Profile) -> dict[str, Any]:
    """Train the ViT and the ResNet for those FLOPs on up to all images. Chapter: 8.

    It goes on where `data_hunger_compute` ends, with epochs that show a part of the images. The
    CPU's plan on any device, since a GPU's own has epochs of all images; the other augmentation at
    the largest size only. Keys are those of `data_hunger`.
    """
    small = profile.name == "ci"
    plan = plan_hunger(profile if small else Profile("cpu", profile.device))
    plan = replace(plan, models={name: plan.models[name] for name in ("vit", "resnet")})
    larger = (180, 240) if small else (20_000, 50_000)
    flops = _flops_of(plan)
    lengths = {name: _equal_epochs(plan, flops, name) for name in plan.models}
    rounds = [
        Round(augmentation, seed, sizes, lengths)
        for augmentation, sizes in ((plan.main, larger), (other_augmentation(plan), larger[-1:]))
        for seed in profile.pick(ci=(0,), cpu=(0, 1, 2), gpu=(0, 1, 2))
    ]
    words = f"{EQUAL}; of a larger set, an epoch shows a random part"
    return _record("data-hunger-whole", words, plan, profile, rounds)


def data_hunger_tuned(
    profile: Profile,
    models: Sequence[str] = ("vit", "resnet"),
    name: str = "data-hunger-tuned",
) -> dict[str, Any]:
    """Give the ViT and the ResNet a training of their own at each size, at equal FLOPs. Chapter: 8.

    With the first seed, each of the model's `SETTINGS` is trained, and images that are in no set
    choose one (of equals the first); more seeds follow with that. The whole set leaves no images
    to choose with, and takes what the size before it chose. The CPU's plan on any device, with the
    epochs of `data_hunger_compute`; the FLOPs leave out the optimizer's own. `models` may name one
    alone, so that two processes can share the work; `name` is the result's. Keys end in
    model_images, those of held_out_accuracy in model_images_setting; the curves hold what was
    chosen, size by size.
    """
    small = profile.name == "ci"
    plan = plan_hunger(profile if small else Profile("cpu", profile.device))
    flops, shown = _flops_of(plan), plan.sizes[-1]
    sizes = [*plan.sizes, 240 if small else 50_000]
    seeds = profile.pick(ci=[0], cpu=[0, 1, 2], gpu=[0, 1, 2])
    whole = load_data(plan.recipe.data)
    ordered = first_images(whole, len(whole.train_labels))  # as the sets are drawn
    rest = slice(-100 if small else -5_000, None)
    held = replace(
        whole, test_images=ordered.train_images[rest], test_labels=ordered.train_labels[rest]
    ).to(profile.device)
    tried: dict[str, float] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, list[str]] = {model: [] for model in models}
    with experiment_folder("data-hunger-tuned", profile) as folder:
        for model, size in itertools.product(models, sizes):
            data = first_images(whole, size, max(size, shown)).to(profile.device)
            config = configure(plan, model, "weak", seeds[0], *_equal_epochs(plan, flops, model))
            config = replace(config, epoch_images=shown if size > shown else None)
            if model != "resnet":
                config = replace(config, model_options=config.model_options | VIT_OPTIONS)
            start = folder / f"{model}_{size}"
            if size in plan.sizes:
                found = {
                    setting: _train_setting(config, setting, data, start, held)["held_out"]
                    for setting in SETTINGS[model]
                }
                tried |= {f"{start.name}_{setting}": value for setting, value in found.items()}
                chosen[model].append(max(found, key=lambda setting: found[setting]))
            else:
                chosen[model].append(chosen[model][-1])
            runs[start.name] = [
                _train_setting(replace(config, seed=seed), chosen[model][-1], data, start, held)
                for seed in seeds
            ]
    metrics, losses = _summarize_runs(runs)
    metrics |= {f"held_out_accuracy_{key}": summarize([value]) for key, value in tried.items()}
    curves = {"sizes": sizes, "chosen": chosen} | losses
    seconds = sum(sum(metrics[f"seconds_{key}"]["values"]) for key in runs)
    words = (
        f"{describe_data(plan.recipe.data)}; an epoch shows {shown:,} images; "
        f"{len(held.test_labels):,} training images that are in no set but the whole one choose "
        f"the settings; {len(whole.test_labels):,} test images{EQUAL}"
    )
    return new_result(name, profile, profile.device, words, seconds, seeds, metrics, curves)


def data_hunger_tuned_hybrid(profile: Profile) -> dict[str, Any]:
    """Do for the hybrid what `data_hunger_tuned` does for the other two. Chapter: 8.

    It chooses among the ViT's settings. Muon takes its blocks; its convolutions, two thirds of the
    weights, have AdamW in all of them.
    """
    return data_hunger_tuned(profile, ("hybrid",), "data-hunger-tuned-hybrid")


def _flops_of(plan: Plan) -> dict[str, int]:
    """Count what training costs each model, per image."""
    data = load_data(plan.recipe.data)
    return {
        name: training_flops(build_model(configure(plan, name, "weak", 0, 1), data).config)
        for name in plan.models
    }


def _equal_epochs(plan: Plan, flops: dict[str, int], model: str) -> tuple[int]:
    return (max(1, round(plan.recipe.epochs * flops["resnet"] / flops[model])),)


def _record(
    name: str, more: str, plan: Plan, profile: Profile, parts: Sequence[Round]
) -> dict[str, Any]:
    """Train what `parts` ask for and put together its result; `more` ends its words.

    An epoch shows as many images as the largest of the plan's sizes has, whatever the set.
    """
    shown = plan.sizes[-1]
    whole = load_data(plan.recipe.data)
    runs: dict[str, list[dict[str, Any]]] = {}
    with experiment_folder("data-hunger", profile) as folder:
        for part in parts:
            for size in part.sizes:
                data = first_images(whole, size, max(size, shown)).to(profile.device)
                for model, epochs in ((m, n) for m, many in part.lengths.items() for n in many):
                    config = configure(plan, model, part.augmentation, part.seed, epochs)
                    config = replace(config, epoch_images=shown if size > shown else None)
                    key = f"{part.augmentation}_{model}_{size}_{epochs}"
                    path = folder / f"{key}-{part.seed}.json"
                    runs.setdefault(key, []).append(found := _train_kept(config, data, path))
                    accuracy = found["history"][-1]["test_accuracy"]
                    print(f"{key}, seed {part.seed}: test {accuracy:.2%}", flush=True)
    curves: dict[str, Any] = {"sizes": sorted({size for part in parts for size in part.sizes})}
    metrics, losses = _summarize_runs(runs)
    for model in plan.models:
        network = build_model(configure(plan, model, "weak", 0, 1), whole)
        count = sum(p.numel() for p in network.parameters())
        metrics[f"parameters_{model}"] = summarize([count])
    seeds = sorted({part.seed for part in parts})
    seconds = sum(sum(metrics[f"seconds_{key}"]["values"]) for key in runs)
    curves |= losses
    words = (
        f"{describe_data(plan.recipe.data)}; an epoch shows {shown:,} images, those of a "
        f"smaller set several times; none held out; {len(whole.test_labels):,} test images; "
        + ", ".join(f"{key}: {preset}" for key, (preset, _) in plan.models.items())
        + ("; each with its own optimizer, positions, start and pooling" if plan.own else "")
        + more
    )
    return new_result(name, profile, profile.device, words, seconds, seeds, metrics, curves)


def configure(plan: Plan, model: str, augmentation: str, seed: int, epochs: int) -> TrainConfig:
    """Give the recipe of one run. Chapter: 8."""
    preset, options = plan.models[model]
    own = dict(plan.own.get(model, {}))
    options = options | own.pop("model_options", {})
    chosen = own | {"model": preset, "model_options": options} | AUGMENTATIONS[augmentation]
    warmup = min(plan.recipe.warmup, epochs - 1)
    return replace(plan.recipe, **chosen, seed=seed, epochs=epochs, warmup=warmup)


def _train_kept(
    config: TrainConfig, data: ImageData, path: Path, held: ImageData | None = None
) -> dict[str, Any]:
    """Train once, and read what was found from `path` after that; the numbers are enough."""
    run = keep(path, functools.partial(_measure, config, data, path, held))
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    return run


def _measure(
    config: TrainConfig, data: ImageData, path: Path, held: ImageData | None
) -> dict[str, Any]:
    """Train, going on from where an earlier call was cut off; evaluate on `held`, if there is one.

    It all happens where the images are.
    """
    torch.manual_seed(config.seed)
    model = build_model(config, data).to(data.train_images.device)
    history = train(model, data, config, path.with_suffix(""), resume=True)
    images = config.epochs * (config.epoch_images or len(data.train_labels))
    found = {"history": history, "flops": images * training_flops(model.config)}
    return found if held is None else found | {"held_out": evaluate(model, held)["accuracy"]}


def _train_setting(
    config: TrainConfig, setting: str, data: ImageData, start: Path, held: ImageData
) -> dict[str, Any]:
    """Train a model with one of its settings; the path of what is found begins with `start`."""
    model = start.name.split("_")[0]
    path = start.with_name(f"{start.name}_{setting}-{config.seed}.json")
    run = _train_kept(replace(config, **SETTINGS[model][setting]), data, path, held)
    print(f"{path.stem}: held-out images {run['held_out']:.2%}", flush=True)
    return run


def _summarize_runs(
    runs: Mapping[str, Sequence[dict[str, Any]]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put the runs under each key together: the metrics, and the curves of the training loss."""
    metrics, curves = {}, {}
    for key, done in runs.items():
        last = [run["history"][-1] for run in done]
        metrics[f"test_accuracy_{key}"] = summarize([r["test_accuracy"] for r in last])
        metrics[f"test_loss_{key}"] = summarize([round(r["test_loss"], 4) for r in last])
        metrics[f"training_flops_{key}"] = summarize([run["flops"] for run in done])
        spent = [round(sum(r["seconds"] for r in run["history"]), 1) for run in done]
        metrics[f"seconds_{key}"] = summarize(spent)
        losses = [[round(r["train_loss"], 4) for r in run["history"]] for run in done]
        curves[f"train_loss_{key}"] = losses
    return metrics, curves
