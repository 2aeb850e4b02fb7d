"""Train seven classifiers for assignment 4 on 200 digits, and write their answers into its text.

    python book/assignments/make_predictions.py     # about two minutes on one CPU thread

Teachers, students and settings are those of chapter 10's live section (seed 0), with a ViT teacher
besides. The answers are those to the 360 test digits, a character a digit.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vitmini as vm
from vitmini.data import first_images
from vitmini.distill import predict_heads
from vitmini.train import build_model

TEXT = Path(__file__).parent / "a4-distillation.md"


def train_all() -> dict[str, torch.Tensor]:
    """The classes that each classifier gives to the test images, and the labels."""
    data = first_images(vm.load_data("digits"), 200)
    recipe = dataclasses.replace(vm.RECIPES["digits"], val_share=0.0)

    def learn(teacher: nn.Module | None = None, **changes: Any) -> nn.Module:
        config = dataclasses.replace(recipe, **changes)
        torch.manual_seed(config.seed)
        model = build_model(config, data)
        vm.train(model, data, config, teacher=teacher)
        print(config.model, config.model_options, vm.evaluate(model, data), flush=True)
        return model

    small = {"stages": (1,), "stem_stride": 1}
    resnet = learn(model="resnet_mini", model_options=small, warmup=1, epochs=80)
    vit = learn(model_options={"dim": 96, "patch_size": 2}, epochs=200)
    alone = learn(epochs=100)
    token = learn(resnet, model_options={"distilled": True}, epochs=100, distill="hard")
    heads = predict_heads(token, data)
    answers = {"labels": data.test_labels}
    for name, model in (("resnet", resnet), ("vit", vit), ("alone", alone)):
        with torch.no_grad():
            answers[name] = model.eval()(data.normalize(data.test_images)).argmax(1)
    return answers | {f"token_{name}": heads[name] for name in ("class", "distil", "both")}


def main() -> None:
    torch.set_num_threads(1)
    lines = ['ANSWERS = """']
    for name, given in train_all().items():
        digits = "".join(map(str, given.tolist()))
        lines += [f"{name}", *textwrap.wrap(digits, 90)]
    block = "\n".join([*lines, '"""'])
    text = TEXT.read_text() if TEXT.exists() else ""
    found = re.compile(r'^ANSWERS = """\n.*?^"""', re.S | re.M)
    text, count = found.subn(lambda _: block, text)
    if count != 1:
        print(block)
        sys.exit(f"{TEXT.name} must hold one text ANSWERS, got {count}")
    TEXT.write_text(text)


if __name__ == "__main__":
    main()
