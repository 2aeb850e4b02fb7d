"""Put a trained run into the package: weights in float16, and a card that says where from.

    python book/embed.py runs/cifar10-tiny vit_cifar_tiny
    python book/embed.py runs/tiny-0 vit_cifar_tiny --seeds runs/tiny-1 runs/tiny-2
    python book/embed.py --card vit_cifar_tiny --seeds runs/tiny-3
    python book/embed.py --siblings runs/experiments/siblings-gpu-COMMIT --out weights

Only finished runs of a ViT, of at most 6 MB in float16, whose accuracy the rounding leaves as it
was. The card takes everything from the runs' own files; `--seeds` names runs that differ from the
first in nothing but their seed, so that it can say how much luck there is in the number. With
`--card`, the weights stay, and the card of a model that travels already learns of more seeds.
`--siblings` takes both models of the recorded experiment of that name, with all of their seeds, and
names each after its preset.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vitmini.data import ImageData, describe_data, load_data  # noqa: E402
from vitmini.distill import evaluate_heads  # noqa: E402
from vitmini.model import ViT  # noqa: E402
from vitmini.profiles import device_name  # noqa: E402
from vitmini.recipes import TrainConfig  # noqa: E402
from vitmini.records import provenance, summarize  # noqa: E402
from vitmini.runs import data_digest, load_run, write_whole  # noqa: E402
from vitmini.train import evaluate  # noqa: E402

WEIGHTS = ROOT / "vitmini" / "weights"
LARGEST = 6_000_000  # bytes
ROUNDING = 0.001  # how much accuracy float16 may change: a tenth of a point


def embed(
    run: Path,
    name: str,
    limits: str,
    seeds: Sequence[Path] = (),
    device: str | None = None,
    folder: Path = WEIGHTS,
    data: ImageData | None = None,
) -> dict[str, Any]:
    """Write `NAME.safetensors` and `NAME.json` to `folder`; return the card.

    `device` says in words what the run was trained on (default: this machine); `data` is what it
    was trained on, where `load_data` does not find it under its name.
    Raises: `ValueError` for a name that is no identifier, a run that is not finished, not a ViT's,
        too large, not of `data`, or worse when it is rounded; for `seeds` that are other runs.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name must be lower-case letters, digits and _, got {name!r}")
    model, description, history = _read(run)
    if not isinstance(model, ViT):
        raise ValueError(f"{run} holds a {type(model).__name__}: only a ViT travels")
    others = [_read(other) for other in seeds]
    for other, (_, theirs, _) in zip(seeds, others, strict=True):
        if _but_seed(theirs) != _but_seed(description):
            raise ValueError(f"{other} is another run than {run}: more than its seed differs")
    numbers = [d["train"]["seed"] for d in (description, *(d for _, d, _ in others))]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must all differ, got {numbers}")
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    for key, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{run} has numbers in {key} that are too large for float16")
    content = save(weights)
    if len(content) > LARGEST:
        raise ValueError(f"{run} has {len(content):,} bytes in float16, at most {LARGEST:,} travel")
    recipe = description["train"]
    data = load_data(recipe["data"]) if data is None else data
    if data_digest(data) != description["data"]["sha256"]:
        raise ValueError(f"data {data.name} is not what {run} was trained on")
    exact = evaluate(model, data)["accuracy"]
    model.load_state_dict({k: v.float() for k, v in weights.items()})  # as readers will have it
    rounded = evaluate(model, data)["accuracy"]
    if abs(rounded - exact) > ROUNDING:
        raise ValueError(
            f"{run} has {exact:.2%} of the test images right, {rounded:.2%} in float16"
        )
    card = {
        "name": name,
        "model": dataclasses.asdict(model.config),
        **{key: description["data"][key] for key in ("classes", "mean", "std")},
        "data": describe_data(data.name),
        "recipe": recipe,
        "test_accuracy": round(rounded, 4),
        "test_accuracy_seeds": summarize(
            [round(h[-1]["test_accuracy"], 4) for h in (history, *(h for _, _, h in others))]
        ),
        "seeds": numbers,
        "seconds": round(sum(r["seconds"] for r in history)),
        "device": device or _this_device(),
        **provenance(),
        "limits": limits,
    }
    if model.config.distilled:
        heads = evaluate_heads(model, data)
        card["test_accuracy_heads"] = {k: round(v, 4) for k, v in heads.items()}
    if "teacher" in description:
        card["teacher"] = description["teacher"]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}.safetensors", content)
    write_whole(folder / f"{name}.json", json.dumps(card, indent=1) + "\n")
    return card


def add_seeds(
    name: str, seeds: Sequence[Path], device: str | None = None, folder: Path = WEIGHTS
) -> dict[str, Any]:
    """Write to the card of an embedded model what more runs of its recipe reached; return it.

    `seeds_added` says what the new ones ran on. A student whose teacher is another model than the
    embedded one's, trained anew, is counted, and its teacher named in `other_teachers`.
    Raises: `ValueError` for a name without a card, and for runs that are not finished, of another
        recipe or data, or of a seed that the card has.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise ValueError(f"name must be that of a card in {folder}, got {name!r}")
    card = json.loads(path.read_text(encoding="utf-8"))
    before = card.get("test_accuracy_seeds", {"values": [card["test_accuracy"]]})
    numbers = list(card.get("seeds", [card["recipe"]["seed"]]))
    values, teachers = list(before["values"]), list(card.get("other_teachers", []))
    for run in seeds:
        _, theirs, history = _read(run)
        if _recipe_of(theirs["train"]) != _recipe_of(card["recipe"]):
            raise ValueError(f"{run} is another run than that of {name}: its recipe differs")
        if any(theirs["data"][key] != card[key] for key in ("classes", "mean", "std")):
            raise ValueError(f"{run} was trained on other data than {name}")
        numbers.append(theirs["train"]["seed"])
        values.append(round(history[-1]["test_accuracy"], 4))
        teacher = theirs.get("teacher")
        if teacher != card.get("teacher") and teacher not in teachers:
            teachers.append(teacher)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must all differ, got {numbers}")
    card |= {"test_accuracy_seeds": summarize(values), "seeds": numbers}
    if teachers:
        card["other_teachers"] = teachers
    added = {"seeds": numbers[-len(seeds) :], "device": device or _this_device()}
    card.setdefault("seeds_added", []).append(added | provenance())
    write_whole(path, json.dumps(card, indent=1) + "\n")
    return card


def embed_siblings(
    folder: Path, limits: str, device: str | None = None, out: Path = WEIGHTS, **more: Any
) -> list[dict[str, Any]]:
    """Embed the plain and the distilled model that the experiment `siblings` left in `folder`.

    Raises: `ValueError` as `embed` does, and when there are no such runs.
    """
    cards = []
    for kind, ending in (("plain", ""), ("distilled", "_distilled")):
        runs = sorted(path for path in folder.glob(f"{kind}-*") if path.is_dir())
        if not runs:
            raise ValueError(f"{folder} holds no run {kind}-SEED of the experiment siblings")
        name = _read(runs[0])[1]["train"]["model"] + ending
        cards.append(embed(runs[0], name, limits, runs[1:], device, folder=out, **more))
    return cards


def _this_device() -> str:
    return device_name("cuda" if torch.cuda.is_available() else "cpu", 1)


def _recipe_of(train: dict[str, Any]) -> dict[str, Any]:
    """A recipe but for its seed. Cards older than the option `precision` are of a CPU."""
    return dataclasses.asdict(TrainConfig(**{"precision": "float32", **train})) | {"seed": None}


def _read(run: Path) -> tuple[Any, dict[str, Any], list[dict[str, float]]]:
    """A finished run: its model, what `config.json` says, and its epochs."""
    model, description = load_run(run)
    path = run / "metrics.jsonl"
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        done = [record["epoch"] for record in history]
        whole = done == list(range(1, description["train"]["epochs"] + 1))
        finished = whole and 0 <= history[-1]["test_accuracy"] <= 1
    except (OSError, ValueError, KeyError, TypeError):
        finished = False
    if not finished:
        raise ValueError(f"{path} does not hold all epochs and a test accuracy: resume the run")
    return model, description, history


def _but_seed(description: dict[str, Any]) -> dict[str, Any]:
    return {**description, "train": {**description["train"], "seed": None}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Put a trained run into the package.")
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run")
    parser.add_argument("name", nargs="?", help="such as vit_cifar_tiny")
    parser.add_argument("--card", metavar="NAME", help="only tell this card of more --seeds")
    parser.add_argument("--siblings", type=Path, metavar="DIR", help="both of that experiment")
    parser.add_argument("--limits", default="Small images; ten classes only.")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="default: the package")
    parser.add_argument("--seeds", type=Path, nargs="*", default=[], help="the same, other seeds")
    parser.add_argument("--device", help="what trained it, in words (default: this machine)")
    args = parser.parse_args(arguments)
    if sum(map(bool, (args.run, args.card, args.siblings))) != 1 or (args.run and not args.name):
        parser.error("give a run and a name, or --card NAME, or --siblings DIR")
    if args.card and not args.seeds:
        parser.error("--card needs --seeds")
    try:
        if args.card:
            cards = [add_seeds(args.card, args.seeds, args.device, args.out)]
        elif args.siblings:
            cards = embed_siblings(args.siblings, args.limits, args.device, args.out)
        else:
            given = (args.run, args.name, args.limits, args.seeds, args.device, args.out)
            cards = [embed(*given)]
    except (ValueError, OSError) as error:
        print(f"embed: {error}", file=sys.stderr)
        return 2
    for card in cards:
        seen = card["test_accuracy_seeds"]
        spread = f"{seen['mean']:.2%} ± {seen['stderr']:.2%} over {len(card['seeds'])} seeds"
        print(f"{card['name']}: {card['test_accuracy']:.2%} on the test images, {spread}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
