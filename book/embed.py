"""Put a trained run into the package: weights in float16, and a card that says where from.

    python book/embed.py runs/cifar10-mini vit_cifar_mini

Only runs of at most 6 MB. The card takes everything from the run's own files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vitmini.data import describe_data, load_data  # noqa: E402
from vitmini.profiles import device_name  # noqa: E402
from vitmini.records import provenance  # noqa: E402
from vitmini.runs import data_digest, load_run  # noqa: E402
from vitmini.train import evaluate  # noqa: E402


def embed(run: Path, name: str, limits: str) -> dict:
    """Write `vitmini/weights/NAME.safetensors` and `NAME.json`; return the card."""
    model, description = load_run(run)
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    content = save(weights)
    if len(content) > 6_000_000:
        raise ValueError(f"{run} has {len(content):,} bytes in float16, at most 6,000,000 travel")
    model.load_state_dict({k: v.float() for k, v in weights.items()})  # as readers will have it
    recipe = description["train"]
    data = load_data(recipe["data"])
    if data_digest(data) != description["data"]["sha256"]:
        raise ValueError(f"data {data.name} is not what {run} was trained on")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    card = {
        "name": name,
        "model": dataclasses.asdict(model.config),
        **{key: description["data"][key] for key in ("classes", "mean", "std")},
        "data": describe_data(data.name),
        "recipe": recipe,
        "test_accuracy": round(evaluate(model, data)["accuracy"], 4),
        "seconds": round(sum(r["seconds"] for r in history)),
        "device": device_name("cpu" if not torch.cuda.is_available() else "cuda", 1),
        **provenance(),
        "limits": limits,
    }
    folder = ROOT / "vitmini" / "weights"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(content)
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def main() -> int:
    parser = argparse.ArgumentParser(description="Put a trained run into the package.")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="such as vit_cifar_mini")
    parser.add_argument("--limits", default="One seed; small images; ten classes only.")
    args = parser.parse_args()
    try:
        card = embed(args.run, args.name, args.limits)
    except ValueError as error:
        print(f"embed: {error}", file=sys.stderr)
        return 2
    print(f"{args.name}: {card['test_accuracy']:.2%} on the test images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
