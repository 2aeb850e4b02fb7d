"""Small trained models that come with the library, each with its card.

Chapter: 2 looks at one first; 11 to 13 take them apart.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from vitmini.model import PRESETS, ViT, ViTConfig


def list_pretrained() -> list[str]:
    """Name the models that `load_pretrained` has weights for.

    Chapter: 2
    """
    return sorted(p.name[:-5] for p in _folder().iterdir() if p.name.endswith(".json"))


def load_card(name: str) -> dict[str, Any]:
    """Read the card of an embedded model: what it is, how it was trained, what it can do.

    Shapes: returns a dictionary with `model` (the fields of its `ViTConfig`), `classes`, `mean`
        and `std` (for `normalize`), `data`, `recipe`, `test_accuracy` in [0, 1], `device`,
        `date`, `commit` and `limits`. Newer cards also have `test_accuracy_seeds` (`values`,
        `mean`, `stderr`) with their `seeds`, and those of distilled models
        `test_accuracy_heads` and `teacher`.
    Raises: `ValueError` for a name that has no weights, with those that have.
    Chapter: 2
    """
    if isinstance(name, str) and name in PRESETS and name not in list_pretrained():
        raise ValueError(
            f"no trained weights of {name} come with vitmini, only those of "
            f"{', '.join(list_pretrained())}: vm.create_model({name!r}) builds it with fresh ones, "
            "vm.from_pretrained fetches those of timm and torchvision"
        )
    if name not in list_pretrained():
        raise ValueError(f"name must be one of {', '.join(list_pretrained())}; got {name!r}")
    return json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))


def load_pretrained(name: str) -> ViT:
    """Build an embedded model with its trained weights, in evaluation mode, without a download.

    Shapes: a `ViT` in float32; the file holds float16. Normalise images with `mean` and `std` of
        its card.
    Raises: `ValueError` for a name that has no weights, with those that have.
    Chapter: 2
    """
    model = ViT(ViTConfig(**load_card(name)["model"]))
    weights = load_safetensors((_folder() / f"{name}.safetensors").read_bytes())
    model.load_state_dict({k: v.to(torch.float32) for k, v in weights.items()})
    return model.eval()


def _folder():
    return resources.files("vitmini") / "weights"
