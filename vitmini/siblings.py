"""Recorded experiment: how far the heads of the embedded models look, and of their like.

Chapter: 11.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vitmini.data import ImageData, describe_data, first_images, load_data
from vitmini.inside import rounded
from vitmini.inspection import attention_maps, cls_attention, measure_attention_distance
from vitmini.model import ViT
from vitmini.pictures import load_photo
from vitmini.pretrained import load_card, load_pretrained
from vitmini.profiles import Profile
from vitmini.recipes import RECIPES, TrainConfig
from vitmini.records import experiment_folder, keep, new_result, summarize
from vitmini.runs import load_teacher
from vitmini.train import build_model, evaluate, train

IMAGES = 128  # as many as in Dosovitskiy et al. 2021, Figure 11


@dataclass(frozen=True)
class Plan:
    """Recipes of a `plain` ViT, of its `distilled` sibling, and of the `teacher` of the latter.

    `embedded` names the models that stand for seed 0, by what they are; it is empty where seed 0
    is trained like the others. `count` training images are used (None: all, in their order).
    Chapter: 11
    """

    teacher: TrainConfig
    models: dict[str, TrainConfig]
    embedded: dict[str, str]
    count: int | None
    seeds: tuple[int, ...] = (0, 1, 2)


def plan_siblings(profile: Profile) -> Plan:
    """Choose recipes that a profile has time for. Chapter: 11."""
    if profile.name == "ci":
        small = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
        plain = replace(RECIPES["digits"], model_options=small, epochs=1, warmup=0)
        teacher = replace(plain, model="resnet_mini", model_options={"stages": (1,)})
        token = replace(plain, model_options=small | {"distilled": True}, distill="hard")
        return Plan(teacher, {"plain": plain, "distilled": token}, {}, 200, (0, 1))
    size, teacher_name = profile.pick(
        ci=("", ""), cpu=("mini", "cifar10-resnet-mini"), gpu=("tiny", "cifar10-resnet")
    )
    names = {"plain": f"cifar10-{size}", "distilled": f"cifar10-{size}-distilled"}
    models = {kind: RECIPES[name] for kind, name in names.items()}
    embedded = {"plain": "vit_cifar_mini", "distilled": "vit_cifar_mini_distilled"}
    teacher = RECIPES[teacher_name]
    if profile.name == "cpu":
        return Plan(teacher, models, embedded, None, (0, 1))  # an hour a run
    rare = {kind: replace(recipe, save_every=20) for kind, recipe in models.items()}
    return Plan(teacher, rare, {}, None)


def siblings(profile: Profile) -> dict[str, Any]:
    """Train the embedded models anew with other seeds, and measure their heads. Chapter: 11.

    Distances are in pixels, (L, H) for each seed: on photographs' windows, those of the chapter,
    and on the first test images. `shared` is how much of the attention both tokens of a distilled
    model give to the same patches, by layer. The trained runs stay: `book/embed.py` takes the
    weights from there.
    """
    plan = plan_siblings(profile)
    data = load_data(plan.teacher.data)
    data = (data if plan.count is None else first_images(data, plan.count)).to(profile.device)
    found: dict[str, list[dict[str, Any]]] = {}
    with experiment_folder("siblings", profile) as folder:
        for seed in plan.seeds:
            for kind in plan.models:
                run = functools.partial(_measure, plan, kind, seed, folder, data)
                found.setdefault(kind, []).append(row := keep(folder / f"{kind}-{seed}.json", run))
                print(f"{kind}, seed {seed}: test {row['test_accuracy']:.2%}", flush=True)
        teacher = keep(folder / "teacher.json", functools.partial(_teacher, plan, folder, data))
    metrics: dict[str, Any] = {"test_accuracy_teacher": summarize([teacher["test_accuracy"]])}
    curves: dict[str, Any] = {}
    for kind, rows in found.items():
        metrics[f"test_accuracy_{kind}"] = summarize([row["test_accuracy"] for row in rows])
        for key in rows[0]:
            if key in ("test_accuracy", "seconds"):
                continue
            curves[f"{key}_{kind}"] = [row[key] for row in rows]
            if key.startswith("distance"):  # by layer, the mean of its heads
                for layer, means in enumerate(zip(*(_means(r[key]) for r in rows), strict=True), 1):
                    metrics[f"{key}_{kind}_{layer}"] = summarize(means)
    spent = teacher["seconds"] + sum(row["seconds"] for rows in found.values() for row in rows)
    words = (
        f"{describe_data(plan.teacher.data)}: {len(data.train_labels):,} training images, "
        f"{len(data.test_labels):,} test images; "
        + ", ".join(f"{kind}: {c.model}, {c.epochs} epochs" for kind, c in plan.models.items())
        + f"; teacher {plan.teacher.model}, {plan.teacher.epochs} epochs; distances on "
        f"{IMAGES} images each"
    )
    if plan.embedded:
        words += f"; seed {plan.seeds[0]} is {' and '.join(plan.embedded.values())}, as embedded"
    threads = plan.teacher.cpu_threads
    given = (profile, profile.device, words, spent, list(plan.seeds), metrics, curves, threads)
    return new_result("siblings", *given)


def measure_heads(model: ViT, images: Tensor) -> dict[str, Any]:
    """Say of each head how far it looks, and of two tokens how much they read of the same.

    Shapes: `images` (B, C, H, W), normalised -> `distance` (L, H) in pixels; for a distilled model
        `shared` (L,), in [0, 1].
    Chapter: 11
    """
    found = {"distance": rounded(measure_attention_distance(model, images), 3)}
    if model.config.distilled:
        maps = attention_maps(model, images)
        views = [cls_attention(maps, model.grid, 2, token).flatten(-2) for token in (0, 1)]
        views = [view / view.sum(-1, keepdim=True) for view in views]  # (L, B, H, N)
        found["shared"] = rounded(torch.minimum(*views).sum(-1).mean((1, 2)), 4)
    return found


def photo_windows(
    count: int, size: int, scales: Sequence[float] = (2, 3, 4, 5, 6), seed: int = 0
) -> Tensor:
    """Cut square windows of several scales out of the three photographs, in turn.

    Shapes: returns uint8 (count, 3, size, size); with a scale of 2, a window shows a quarter of
        the photograph.
    Raises: `ValueError` for a count or size that is not positive, no scales, or one below 1.
    Chapter: 11
    """
    for name, value in (("count", count), ("size", size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")
    if not len(scales) or not all(1 <= scale < float("inf") for scale in scales):
        raise ValueError(f"scales must be one or more numbers, 1 or larger, got {scales!r}")
    generator = torch.Generator().manual_seed(seed)
    windows = []
    for i in range(count):
        side = int(size * scales[i % len(scales)])
        photo = load_photo(("cat", "flower", "china")[i % 3], side)
        top, left = torch.randint(side - size + 1, (2,), generator=generator).tolist()
        windows.append(photo[:, top : top + size, left : left + size])
    return torch.stack(windows)


def _measure(plan: Plan, kind: str, seed: int, folder: Path, data: ImageData) -> dict[str, Any]:
    """Train a model, going on from where an earlier call was cut off, and look at its heads."""
    if plan.embedded and seed == plan.seeds[0]:
        name = plan.embedded[kind]
        model = load_pretrained(name).to(data.test_images.device)
        spent, accuracy = load_card(name)["seconds"], evaluate(model, data)["accuracy"]
    else:
        config = replace(plan.models[kind], seed=seed)
        teacher = None
        if config.distill != "none":
            _teacher(plan, folder, data)
            teacher = load_teacher(folder / "teacher").to(data.test_images.device)
        torch.manual_seed(seed)
        model = build_model(config, data).to(data.test_images.device)
        history = train(model, data, config, folder / f"{kind}-{seed}", True, teacher)
        spent, accuracy = sum(r["seconds"] for r in history), history[-1]["test_accuracy"]
    seen = {"test": data.normalize(data.test_images[:IMAGES])}
    C, H, W = data.test_images.shape[1:]
    if C == 3 and H == W:
        photos = photo_windows(IMAGES, H).to(data.test_images.device)
        seen["photos"] = data.normalize(photos)
    looks = {
        f"{key}_{where}": value
        for where, images in seen.items()
        for key, value in measure_heads(model, images).items()
    }
    return {"test_accuracy": round(accuracy, 4), "seconds": round(spent, 1)} | looks


def _means(layers: Sequence[Sequence[float]]) -> list[float]:
    return [round(fmean(heads), 3) for heads in layers]


def _teacher(plan: Plan, folder: Path, data: ImageData) -> dict[str, float]:
    """Train the teacher, once for all students; its folder stays."""
    torch.manual_seed(plan.teacher.seed)
    model = build_model(plan.teacher, data).to(data.test_images.device)
    history = train(model, data, plan.teacher, folder / "teacher", resume=True)
    seconds = sum(r["seconds"] for r in history)
    return {"test_accuracy": history[-1]["test_accuracy"], "seconds": round(seconds, 1)}
