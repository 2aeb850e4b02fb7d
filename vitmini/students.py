"""Recorded experiment: students of two teachers, a ResNet and a ViT.

Chapter: 10.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitmini.data import ImageData, describe_data, first_images, load_data
from vitmini.distill import Teacher, disagreement, predict_heads, token_similarity
from vitmini.hunger import SETTINGS, VIT_OPTIONS, plan_hunger
from vitmini.hunger import configure as configure_hunger
from vitmini.profiles import Profile
from vitmini.recipes import RECIPES, TrainConfig
from vitmini.records import experiment_folder, first_rounds, keep, new_result, summarize
from vitmini.runs import load_teacher
from vitmini.train import build_model, prepare_batch, train

TOKEN = {"distilled": True, "pool": "cls"}
# The `arms` of each experiment; two are trained for long, too. Where a GPU does it, so is a token
# with soft answers, which on a CPU has an experiment of its own, `distillation_softer_first`.
EACH = ("none", "soft", "soft_of_deits_code", "hard", "token", "token_of_vit")
LONG = ("none", "token")
TUNED = ("none", "soft", "hard", "token", "soft_mean")
CROSSED = ("soft", "token")
SOFTER = ("soft_token", "soft_alone")
# Which of chapter 8's `SETTINGS` its held-out images chose, with as many images as here.
CHOSEN = {"vit": "muon_0.003", "resnet": "sgd_1"}


@dataclass(frozen=True)
class Arm:
    """One way to teach: whose, how, with a distillation token or without. Chapter: 10.

    `pool` is the student's own where None. `smoothing` is added to its recipe's.
    """

    teacher: str | None
    distill: str = "none"
    weight: float = 0.5
    token: bool = False
    pool: str | None = None
    smoothing: float = 0.0


def arms(num_classes: int) -> dict[str, Arm]:
    """What Touvron et al. 2021 compare in Tables 2 and 3, and what their code did for "soft".

    The code's soft term is K times smaller. Steps of Adam and Muon do not depend on the size of a
    loss, so that a smaller weight does the same: w' / (1 - w') = w / (1 - w) / K.
    Chapter: 10
    """
    return {
        "none": Arm(None),
        "soft": Arm("resnet", "soft"),
        "soft_of_deits_code": Arm("resnet", "soft", 1 / (1 + num_classes)),
        "hard": Arm("resnet", "hard"),
        "token": Arm("resnet", "hard", token=True),
        "token_of_vit": Arm("vit", "hard", token=True),
        "soft_mean": Arm("resnet", "soft", pool="mean"),
        "smoothed": Arm(None, smoothing=0.1),
        "soft_token": Arm("resnet", "soft", token=True),
        "soft_alone": Arm("resnet", "soft", 1.0),
    }


@dataclass(frozen=True)
class Plan:
    """Recipes of the two teachers and of a student; `count` training images for all of them.

    `long` is how many epochs a long schedule has; 0 where there is none. Chapter: 10
    """

    teachers: dict[str, TrainConfig]
    student: TrainConfig
    count: int
    long: int = 0


@dataclass(frozen=True)
class Round:
    """What is trained together: these arms, with one seed, for so many epochs. Chapter: 10."""

    seed: int
    names: tuple[str, ...]
    epochs: int


def plan_students(profile: Profile) -> Plan:
    """Choose models and schedules that a profile has time for. Chapter: 10."""
    if profile.name == "ci":
        small = {"dim": 16, "depth": 1, "num_heads": 2}
        student = replace(RECIPES["digits"], model_options=small, epochs=1, warmup=0)
        resnet = replace(student, model="resnet_mini", model_options={"stages": (1,)})
        return Plan({"resnet": resnet, "vit": student}, student, 200, 2)
    if profile.name == "cpu":  # lengths that make the two teachers about equally good
        mini = replace(RECIPES["cifar10-mini"], translate=0.0, crop=4)
        small = {"patch_size": 8, "dim": 64, "num_heads": 4}
        student = replace(mini, model_options=small, epochs=20)
        resnet = replace(mini, model="resnet_mini", epochs=7)
        return Plan({"resnet": resnet, "vit": replace(mini, epochs=25)}, student, 10_000, 60)
    resnet = replace(RECIPES["cifar10-resnet"], epochs=12, warmup=2)
    options = {"pool": "cls", "pos_embed": "sincos2d", "init": "mimetic", "drop_path": 0.1}
    student = replace(RECIPES["cifar10"], model_options=options, epochs=25, warmup=2, ema=0.0)
    student = replace(student, save_every=5)
    return Plan({"resnet": resnet, "vit": RECIPES["speedrun-93"]}, student, 50_000, 150)


def plan_tuned(profile: Profile) -> Plan:
    """Take chapter 8's models with the training that it found for each of them. Chapter: 10.

    The student has what the ViT has there, but for its class token; the ResNet is trained three
    times as long. The ViT of another seed teaches nobody: with it one compares.
    """
    small = profile.name == "ci"
    hunger = plan_hunger(profile if small else Profile("cpu", profile.device))

    def tune(model: str, seed: int, epochs: int) -> TrainConfig:
        config = configure_hunger(hunger, model, "weak", seed, epochs)
        return replace(config, **SETTINGS[model][CHOSEN[model]])

    epochs = 2 if small else 37  # the ViT's in chapter 8
    options = hunger.models["vit"][1] | VIT_OPTIONS | {"pool": "cls"}
    student = replace(tune("vit", 0, epochs), model_options=options)
    resnet = tune("resnet", 0, 3 * hunger.recipe.epochs)
    control = replace(student, seed=len(_seeds(profile)))
    return Plan({"resnet": resnet, "vit": control}, student, hunger.sizes[-1])


def plan_crossed(profile: Profile, better: str) -> Plan:
    """Take the "teacher" or the "student" of `plan_tuned`, the other of `plan_students`.

    A better student alone is trained for long, too: for about the time that it takes with a
    teacher. Raises: `ValueError` for another word. Chapter: 10
    """
    if better not in ("teacher", "student"):
        raise ValueError(f"better must be teacher or student; got {better!r}")
    small = profile.name == "ci"
    profile = profile if small else Profile("cpu", profile.device)
    first, tuned = plan_students(profile), plan_tuned(profile)
    if better == "teacher":
        return Plan({"resnet": tuned.teachers["resnet"]}, first.student, first.count)
    long = 3 if small else 83  # 37 epochs took 669 seconds with a teacher and 297 alone
    return Plan({"resnet": first.teachers["resnet"]}, tuned.student, tuned.count, long)


def distillation(profile: Profile, rounds: int | None = None) -> dict[str, Any]:
    """Teach a small ViT in six ways (on a GPU seven), two of them (three) for long. Chapter: 10.

    A long schedule's keys end in "_long". `rounds` does the first few alone, under a name of their
    own: a round is a seed of all arms, the last one the long schedule; with 0 there are the
    teachers alone. What was trained before is not trained again.
    """
    plan = plan_students(profile)
    each = [Round(seed, EACH + _more(profile), plan.student.epochs) for seed in _seeds(profile)]
    whole = [*each, Round(0, LONG + _more(profile), plan.long)]
    name, words, parts = first_rounds("distillation", whole, rounds, none="teachers")
    return _record(name, words, plan, profile, parts)


def distillation_long(profile: Profile) -> dict[str, Any]:
    """Train the student alone and the one with a token for long, over all seeds. Chapter: 10.

    Keys are those of `distillation`.
    """
    plan = plan_students(profile)
    rounds = [Round(seed, LONG + _more(profile), plan.long) for seed in _seeds(profile)]
    return _record("distillation-long", "; long schedules alone", plan, profile, rounds)


def distillation_tuned(profile: Profile) -> dict[str, Any]:
    """Teach a well trained ViT by a well trained ResNet, softly, hard, by a token. Chapter: 10.

    Does a teacher still help a student that is trained as well as we can? Students read their
    class token, and "soft_mean" the mean of the patches: `data_hunger_tuned` has its twin without
    a teacher. The CPU's plan on any device. Keys are those of `distillation`.
    """
    plan = plan_tuned(profile)
    rounds = [Round(seed, TUNED, plan.student.epochs) for seed in _seeds(profile)]
    words = "; each with its own training, the teacher vit teaches nobody"
    return _record("distillation-tuned", words, plan, profile, rounds, "distillation-tuned")


def distillation_better_teacher(profile: Profile) -> dict[str, Any]:
    """Teach the student of `distillation` by the ResNet of `distillation_tuned`. Chapter: 10.

    With the next one it takes apart what changes between those two. The CPU's plan on any device;
    their students without a teacher are its twins. Keys are those of `distillation`.
    """
    return _cross("teacher", profile, "; the teacher with its own training")


def distillation_better_student(profile: Profile) -> dict[str, Any]:
    """Teach the student of `distillation_tuned` by the ResNet of `distillation`. Chapter: 10.

    Alone it is trained for the time that a taught one takes, too, and once with smoothed labels,
    which are soft without a teacher. Else as the one before.
    """
    return _cross("student", profile, "; the student with its own training")


def distillation_softer(profile: Profile) -> dict[str, Any]:
    """Give the token of `distillation_tuned` soft answers, and a student no labels. Chapter: 10.

    Its runs are the twins of these. The CPU's plan on any device. Keys are those of `distillation`.
    """
    plan = plan_tuned(profile)
    return _soften("distillation-softer", SOFTER, plan, profile, "; each with its own training")


def distillation_softer_first(profile: Profile) -> dict[str, Any]:
    """Give the token of `distillation` soft answers; else as the one before. Chapter: 10."""
    small = profile.name == "ci"
    plan = plan_students(profile if small else Profile("cpu", profile.device))
    return _soften("distillation-softer-first", SOFTER[:1], plan, profile, "")


def _soften(
    name: str, names: tuple[str, ...], plan: Plan, profile: Profile, words: str
) -> dict[str, Any]:
    plan = replace(plan, teachers={"resnet": plan.teachers["resnet"]}, long=0)
    rounds = [Round(seed, names, plan.student.epochs) for seed in _seeds(profile)]
    return _record(name, words, plan, profile, rounds, name)


def _cross(better: str, profile: Profile, words: str) -> dict[str, Any]:
    plan = plan_crossed(profile, better)
    names = (*CROSSED, "smoothed") if plan.long else CROSSED
    rounds = [Round(seed, names, plan.student.epochs) for seed in _seeds(profile)]
    rounds += [Round(seed, ("none",), plan.long) for seed in _seeds(profile) if plan.long]
    name = f"distillation-better-{better}"
    return _record(name, words, plan, profile, rounds, name)


def _more(profile: Profile) -> tuple[str, ...]:
    return profile.pick(ci=(), cpu=(), gpu=("soft_token",))


def _seeds(profile: Profile) -> tuple[int, ...]:
    return profile.pick(ci=(0,), cpu=(0, 1, 2), gpu=(0, 1, 2))


def _record(
    name: str,
    more: str,
    plan: Plan,
    profile: Profile,
    parts: Sequence[Round],
    place: str = "distillation",
) -> dict[str, Any]:
    """Train what `parts` ask for and put together its result; `more` ends its words.

    `place` names the folder of the runs, which may serve several results.
    """
    data = first_images(load_data(plan.student.data), plan.count).to(profile.device)
    ways = arms(len(data.classes))
    runs: dict[str, list[dict[str, Any]]] = {}
    with experiment_folder(place, profile) as folder:
        teachers = {
            name: _teach_teacher(config, data, folder / name, profile.device)
            for name, config in plan.teachers.items()
        }
        taught = {name: _classify(teacher, data) for name, teacher in teachers.items()}
        repeats = {name: _repeat_labels(t, data, plan.student) for name, t in teachers.items()}
        lessons = {name: _read_history(folder / name) for name in teachers}
        for part in parts:
            for way in part.names:
                arm, key = ways[way], way + "_long" * (part.epochs == plan.long)
                config = configure(plan, arm, part.seed, part.epochs)
                teacher = None if arm.teacher is None else teachers[arm.teacher]
                path = folder / f"{key}-{part.seed}.json"
                measure = functools.partial(_measure, config, data, path, profile.device, teacher)
                runs.setdefault(key, []).append(found := keep(path, measure))
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                print(f"{key}, seed {part.seed}: test {found['accuracy']}", flush=True)
    labels = data.test_labels.cpu()
    metrics = {
        f"test_accuracy_teacher_{name}": summarize([_share(classes, labels)])
        for name, classes in taught.items()
    }
    metrics |= {f"train_accuracy_teacher_{k}": summarize([v]) for k, v in repeats.items()}
    curves: dict[str, Any] = {
        f"val_accuracy_teacher_{name}": [_curve(run, "val_accuracy")]
        for name, run in lessons.items()
        if "val_accuracy" in run["history"][0]
    }
    for key, done in runs.items():
        for head in done[0]["accuracy"]:
            values = [run["accuracy"][head] for run in done]
            metrics["_".join(filter(None, ("test_accuracy", key, head)))] = summarize(values)
        for what in ("val_accuracy", "train_loss"):
            if what in done[0]["history"][0]:
                curves[f"{what}_{key}"] = [_curve(run, what) for run in done]
        if "similarity" in done[0]:
            curves[f"token_similarity_{key}"] = [run["similarity"] for run in done]
        metrics[f"seconds_{key}"] = summarize([_seconds(run) for run in done])
    for long in ("", "_long"):
        if not {f"none{long}", f"token{long}"} <= runs.keys():
            continue
        pairs = zip(runs[f"none{long}"], runs[f"token{long}"], strict=True)
        tables = [_disagree(labels, taught, *pair) for pair in pairs]
        curves["disagreement_names"] = list(tables[0][0])
        curves[f"disagreement{long}"] = [table.tolist() for _, table in tables]
    words = (
        f"{describe_data(plan.student.data)}: {plan.count:,} training images, "
        f"{len(labels):,} test images; students {plan.student.model}, {plan.student.epochs}"
        f"{f' or {plan.long}' if plan.long else ''} epochs; teachers "
        + ", ".join(f"{c.model}, {c.epochs} epochs" for c in plan.teachers.values())
        + more
    )
    seconds = sum(_seconds(run) for done in (lessons.values(), *runs.values()) for run in done)
    seeds = sorted({part.seed for part in parts} | {c.seed for c in plan.teachers.values()})
    return new_result(name, profile, profile.device, words, seconds, seeds, metrics, curves)


def configure(plan: Plan, arm: Arm, seed: int, epochs: int) -> TrainConfig:
    """Give the recipe of one student. Chapter: 10."""
    options = plan.student.model_options | (TOKEN if arm.token else {})
    options |= {} if arm.pool is None else {"pool": arm.pool}
    smoothing = plan.student.label_smoothing + arm.smoothing
    student = replace(plan.student, distill=arm.distill, distill_weight=arm.weight)
    student = replace(student, model_options=options, label_smoothing=smoothing)
    return replace(student, seed=seed, epochs=epochs)


def _teach_teacher(config: TrainConfig, data: ImageData, out: Path, device: str) -> Teacher:
    """Train a teacher, once for all students; its folder stays."""
    if not (out / "model.safetensors").exists():
        torch.manual_seed(config.seed)
        history = train(build_model(config, data).to(device), data, config, out, resume=True)
        print(f"teacher {config.model}: test {history[-1]['test_accuracy']:.2%}", flush=True)
    return load_teacher(out).to(device)


def _read_history(folder: Path) -> dict[str, Any]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {"history": [json.loads(line) for line in lines]}


def _measure(
    config: TrainConfig, data: ImageData, path: Path, device: str, teacher: Teacher | None
) -> dict[str, Any]:
    """Train, going on from where an earlier call was cut off, and look at every head."""
    torch.manual_seed(config.seed)
    model = build_model(config, data).to(device)
    history = train(model, data, config, path.with_suffix(""), resume=True, teacher=teacher)
    if not config.model_options.get("distilled"):
        classes = {"": _classify(Teacher(model, data.mean, data.std), data)}
        found: dict[str, Any] = {}
    else:
        classes = predict_heads(model, data)
        some = data.normalize(data.test_images[:1000])
        found = {"similarity": [round(v, 4) for v in token_similarity(model, some).tolist()]}
    labels = data.test_labels.cpu()
    return found | {
        "history": history,
        "accuracy": {head: _share(own, labels) for head, own in classes.items()},
        "classes": {head: own.tolist() for head, own in classes.items()},
    }


def _classify(teacher: Teacher, data: ImageData) -> torch.Tensor:
    parts = data.test_images.split(1000)
    answers = (teacher(data.normalize(part), data.mean, data.std) for part in parts)
    return torch.cat([logits.argmax(dim=1).cpu() for logits in answers])


def _repeat_labels(teacher: Teacher, data: ImageData, config: TrainConfig) -> float:
    """How often a teacher decides as the label says, on training images as students see them.

    Each image once, changed as `config` says, but not mixed with others.
    """
    config = replace(config, mixup=0.0, cutmix=0.0)
    generator = torch.Generator(data.train_images.device).manual_seed(config.seed)
    same = 0
    for batch in zip(data.train_images.split(1000), data.train_labels.split(1000), strict=True):
        images, labels = prepare_batch(data, *batch, config, generator)
        decided = teacher(images, data.mean, data.std).argmax(dim=1)
        same += int((decided == labels).sum())
    return same / len(data.train_labels)


def _share(classes: torch.Tensor, labels: torch.Tensor) -> float:
    return (classes == labels).double().mean().item()


def _curve(run: dict[str, Any], what: str) -> list[float]:
    return [round(record[what], 4) for record in run["history"]]


def _seconds(run: dict[str, Any]) -> float:
    return round(sum(r["seconds"] for r in run["history"]), 1)


def _disagree(
    labels: torch.Tensor, taught: dict[str, torch.Tensor], plain: dict, token: dict
) -> tuple[list[str], torch.Tensor]:
    """As Touvron et al. 2021, Table 4: labels, teachers, the plain student, a student's heads."""
    own = {"none": torch.tensor(plain["classes"][""])}
    own |= {f"token_{head}": torch.tensor(found) for head, found in token["classes"].items()}
    everybody = {"labels": labels} | {f"teacher_{k}": v for k, v in taught.items()} | own
    return list(everybody), disagreement(everybody)
