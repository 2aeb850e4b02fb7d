"""Recorded experiments: positions that grow into a grid, and what another resolution costs.

Chapter: 12 and 13.
"""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.data import ImageData, describe_data, first_images, load_data
from vitmini.model import ViT
from vitmini.patches import patch_grid
from vitmini.positions import position_similarity
from vitmini.profiles import Profile
from vitmini.recipes import RECIPES, TrainConfig
from vitmini.records import experiment_folder, keep, new_result, summarize
from vitmini.runs import load_run, write_whole
from vitmini.train import build_model, evaluate, train

CONVENTIONS = ("bicubic", "google", "torchvision")


@dataclass(frozen=True)
class Plan:
    """The recipes of the ViT and of a ResNet, on `count` images; what is looked at when, and where.

    `epochs` are those whose whole similarity maps are kept; `sizes` are sides of images, in pixels.
    Chapter: 12
    """

    recipe: TrainConfig
    resnet: TrainConfig
    count: int
    epochs: tuple[int, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


def plan_inside(profile: Profile) -> Plan:
    """Choose models, lengths and sizes that a profile has time for. Chapter: 12."""
    if profile.name == "ci":
        small = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
        recipe = replace(RECIPES["digits"], model_options=small, epochs=2, warmup=1)
        resnet = replace(recipe, model="resnet_mini", model_options={"stages": (1,)})
        return Plan(recipe, resnet, 200, (0, 2), (6, 8, 12), (0,))
    sizes = (16, 24, 28, 32, 40, 48, 64)
    if profile.name == "cpu":
        recipe = replace(RECIPES["cifar10-mini"], translate=0.0, crop=4, epochs=30, warmup=2)
        resnet = replace(recipe, model="resnet_mini", epochs=7)
        return Plan(recipe, resnet, 10_000, (0, 1, 2, 3, 5, 8, 12, 20, 30), sizes)
    recipe = replace(RECIPES["speedrun-90"], model="vit_cifar_tiny", model_options={}, epochs=50)
    recipe = replace(recipe, save_every=10)
    resnet = replace(RECIPES["cifar10-resnet"], epochs=12, warmup=2)
    return Plan(recipe, resnet, 50_000, (0, 1, 2, 3, 5, 10, 20, 50), sizes)


# Positions that grow --------------------------------------------------------------------------


def position_growth(profile: Profile) -> dict[str, Any]:
    """Watch position embeddings epoch by epoch, from noise to a grid. Chapter: 12.

    Three kinds of positions, learned ones over all seeds; a ResNet's first kernels beside those of
    the patches. Similarity maps are those of the first seed, (N, N) for each of `epochs`, of
    2-D learned positions for the last one alone.
    """
    plan = plan_inside(profile)
    data = first_images(load_data(plan.recipe.data), plan.count).to(profile.device)
    metrics: dict[str, Any] = {}
    curves: dict[str, Any] = {"epochs": list(plan.epochs)}
    spent = 0.0
    with experiment_folder("inside", profile) as folder:
        for kind in ("learned", "learned2d", "relative"):
            seeds = plan.seeds if kind == "learned" else plan.seeds[:1]
            runs = [watch_positions(plan, kind, seed, folder, data) for seed in seeds]
            last = [run["history"][-1]["test_accuracy"] for run in runs]
            metrics[f"test_accuracy_{kind}"] = summarize(last)
            spent += sum(r["seconds"] for run in runs for r in run["history"])
            if kind == "relative":
                curves["relative_bias"] = runs[0]["bias"]
                continue
            for key in ("near", "row_column", "distance"):
                curves[f"{key}_{kind}"] = [[seen[key] for seen in run["seen"]] for run in runs]
            looks = runs[0]["seen"]
            chosen = plan.epochs if kind == "learned" else plan.epochs[-1:]
            curves[f"similarity_{kind}"] = [looks[epoch]["similarity"] for epoch in chosen]
        curves["patch_kernels"] = rounded(load_vit(plan, folder, data).patch_embed.proj.weight, 4)
        measure = functools.partial(_first_kernels, plan.resnet, data, folder / "resnet")
        resnet = keep(folder / "resnet.json", measure)
    metrics["test_accuracy_resnet"] = summarize([resnet["history"][-1]["test_accuracy"]])
    curves["resnet_kernels"] = resnet["kernels"]
    spent += sum(r["seconds"] for r in resnet["history"])
    words = _words(plan, data) + f"; the ResNet is {plan.resnet.model}, {plan.resnet.epochs} epochs"
    given = (profile, profile.device, words, spent, list(plan.seeds), metrics, curves)
    return new_result("position-growth", *given)


def watch_positions(
    plan: Plan, kind: str, seed: int, folder: Path, data: ImageData
) -> dict[str, Any]:
    """Train one ViT and look at its positions before the first epoch and after each. Chapter: 12.

    Cut off, it goes on; its folder stays, since `resolution` begins with what was learned here.
    """
    out, path = folder / f"{kind}-{seed}", folder / f"{kind}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    options = plan.recipe.model_options | {"pos_embed": kind}
    config = replace(plan.recipe, model_options=options, seed=seed)
    seen = [folder / f"{kind}-{seed}-{epoch}.json" for epoch in range(config.epochs + 1)]
    done = out / "metrics.jsonl"
    behind = len(done.read_text(encoding="utf-8").splitlines()) if done.exists() else 0
    if not all(p.exists() for p in seen[: behind + 1]):  # cut off between an epoch and the look
        shutil.rmtree(out, ignore_errors=True)
        behind = 0
    torch.manual_seed(seed)
    model = build_model(config, data).to(data.test_images.device)

    def look(record: dict[str, float]) -> None:
        positions = model.positions()
        found = {} if positions is None else describe_positions(model, positions)
        write_whole(seen[int(record["epoch"])], json.dumps(found))

    if not behind:
        out.parent.mkdir(parents=True, exist_ok=True)
        look({"epoch": 0})
    history = train(model, data, config, out, resume=True, on_epoch=look)
    looks = [json.loads(p.read_text(encoding="utf-8")) for p in seen]
    run: dict[str, Any] = {"history": history, "seen": looks}
    if kind == "relative":
        run["bias"] = [rounded(block.attn.rel_pos.offsets, 3) for block in model.blocks]
    write_whole(path, json.dumps(run))
    for p in seen:
        p.unlink()
    print(f"{kind}, seed {seed}: test {history[-1]['test_accuracy']:.2%}", flush=True)
    return run


def describe_positions(model: ViT, positions: Tensor) -> dict[str, Any]:
    """Say how much of a grid is in a position embedding: three numbers, and the maps themselves.

    `near` is by how much the cosine of neighbours is above that of all pairs; `row_column` by how
    much patches of one row or column, at least two apart, are more alike than other pairs at least
    two apart (which are further apart on average, so a disc scores above 0, too: about 0.15 in a
    grid of 8 x 8);
    `distance` is the correlation of the cosine with the distance.
    Shapes: `positions` (1, T, D); `similarity` is (N, N), rounded to two digits.
    Chapter: 12
    """
    rows, columns = model.grid
    maps = position_similarity(positions.detach().cpu(), model.grid, model.num_prefix_tokens)
    similarity = maps.reshape(rows * columns, -1)  # (N, N)
    at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    distance = torch.cdist(at, at)
    others, far = distance > 0, distance >= 2
    aligned = ((at[:, None] - at[None]) == 0).any(dim=2)
    near = similarity[distance == 1].mean() - similarity[others].mean()
    line = similarity[far & aligned].mean() - similarity[far & ~aligned].mean()
    pair = torch.stack([similarity[others], distance[others]])
    values = {"near": near, "row_column": line, "distance": torch.corrcoef(pair)[0, 1]}
    numbers: dict[str, Any] = {name: round(value.item(), 4) for name, value in values.items()}
    return numbers | {"similarity": rounded(similarity, 2)}


def load_vit(plan: Plan, folder: Path, data: ImageData, seed: int = 0) -> ViT:
    """Give a ViT with learned positions that `watch_positions` trained. Chapter: 13."""
    watch_positions(plan, "learned", seed, folder, data)
    model, _ = load_run(folder / f"learned-{seed}")
    return model.to(data.test_images.device)


def rounded(values: Tensor, digits: int) -> Any:
    """Nested lists of a tensor's numbers, rounded. Chapter: 12."""
    exact = values.detach().double().cpu()
    return torch.round(exact, decimals=digits).tolist()


def _first_kernels(config: TrainConfig, data: ImageData, out: Path) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    model = build_model(config, data).to(data.test_images.device)
    history = train(model, data, config, out, resume=True)
    return {"history": history, "kernels": rounded(model.conv1.weight, 4)}


# Another resolution ---------------------------------------------------------------------------


def resolution(profile: Profile) -> dict[str, Any]:
    """Show a trained ViT smaller and larger images, before and after an epoch of them. Chapter: 13.

    Keys: `before_{convention}_{size}`, with the positions interpolated by each of `CONVENTIONS`;
    `truncated_{size}`, with the first rows of the table, which some code takes for smaller images;
    `after_{size}`, after one epoch at that size with a tenth of the learning rate, the training's
    own size included, as the fair comparison.
    """
    plan = plan_inside(profile)
    data = first_images(load_data(plan.recipe.data), plan.count).to(profile.device)
    found: list[dict[str, float]] = []
    with experiment_folder("inside", profile) as folder:
        for seed in plan.seeds:
            model = load_vit(plan, folder, data, seed)
            row: dict[str, float] = {}
            for size in plan.sizes:
                measure = functools.partial(measure_size, plan, model, data, size, seed)
                row |= keep(folder / f"resolution-{seed}-{size}.json", measure)
                print(f"seed {seed}, {size} pixels: after {row[f'after_{size}']:.2%}", flush=True)
            found.append(row)
    metrics = {key: summarize([row[key] for row in found]) for key in found[0]}
    spent = sum(sum(value["values"]) for key, value in metrics.items() if "seconds" in key)
    words = _words(plan, data) + "; larger and smaller images are interpolated from the same"
    curves: dict[str, Any] = {"sizes": list(plan.sizes)}
    given = (profile, profile.device, words, spent, list(plan.seeds), metrics, curves)
    return new_result("resolution", *given)


def measure_size(plan: Plan, model: ViT, data: ImageData, size: int, seed: int) -> dict[str, float]:
    """Measure one size with one model, which stays as it was. Chapter: 13."""
    data = scaled(data, size)
    found: dict[str, float] = {}
    for mode in CONVENTIONS:
        accuracy = evaluate(model.resized(size, mode=mode), data)["accuracy"]
        found[f"before_{mode}_{size}"] = accuracy
    count = patch_grid(size, model.config.patch_size)
    if max(count) <= min(model.grid):
        wrong = model.resized(size)
        tokens = wrong.num_prefix_tokens + count[0] * count[1]
        table: Any = model.pos_embed
        wrong.pos_embed = torch.nn.Parameter(table.detach()[:, :tokens].clone())
        found[f"truncated_{size}"] = evaluate(wrong, data)["accuracy"]
    tuned = model.resized(size)
    config = replace(plan.recipe, epochs=1, warmup=0, seed=seed)
    config = replace(config, learning_rate=config.learning_rate / 10)
    history = train(tuned, data, config)
    return found | {
        f"after_{size}": history[-1]["test_accuracy"],
        f"seconds_{size}": round(history[-1]["seconds"], 2),
    }


def scaled(data: ImageData, size: int) -> ImageData:
    """Bring a data set's images to another size: bilinear, with antialiasing.

    Shapes: images uint8 (N, C, H, W) -> (N, C, size, size).
    Chapter: 13
    """
    if tuple(data.train_images.shape[2:]) == (size, size):
        return data

    def resize(images: Tensor) -> Tensor:
        parts = (
            F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
            for part in images.split(1000)
        )
        return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])

    return replace(
        data, train_images=resize(data.train_images), test_images=resize(data.test_images)
    )


def _words(plan: Plan, data: ImageData) -> str:
    return (
        f"{describe_data(plan.recipe.data)}: {len(data.train_labels):,} training images, "
        f"{len(data.test_labels):,} test images; {plan.recipe.model}, {plan.recipe.epochs} epochs"
    )
