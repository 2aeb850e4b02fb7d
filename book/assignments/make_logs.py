"""Train the runs of assignment 3 on the digits, and write their logs into its text.

    python book/assignments/make_logs.py            # about four minutes on one CPU thread

Six runs are shown to students (`LOGS`), six more of another seed are in the hidden tests. Nothing
in them is invented.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitmini as vm

TEXT = Path(__file__).parent / "a3-training.md"
RUNS = {
    "A": "labels shuffled",
    "B": "evaluated in training mode",
    "C": "learning rate too high",
    "D": "healthy",
    "E": "post-norm without warm-up",
    "F": "validation images in the training set",
}
WHERE = (  # the variable that holds the logs, their runs, their seed
    ("LOGS", "ABCDEF", 0),
    ("_FRESH_ABC", "ABC", 1),
    ("_FRESH_DEF", "DEF", 1),
)
COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_acc",
    "val_loss",
    "val_acc",
    "val_again",
    "grad_norm",
)
EPOCHS, BATCH, PEAK, WARMUP = 14, 20, 3e-3, 3


def train_run(fault: str, seed: int) -> tuple[list[list[float]], float]:
    """Train a ViT of 8 layers on 400 digits, with one fault; a row an epoch, and the test."""
    torch.manual_seed(seed)
    data = vm.load_data("digits")
    order = torch.randperm(len(data.train_labels))
    images, labels = data.normalize(data.train_images[order]), data.train_labels[order]
    if fault == "labels shuffled":  # as when images are sorted and labels are not
        labels = labels[torch.randperm(len(labels))]
    train_ids, val_ids = torch.arange(400), torch.arange(400, 800)
    if fault == "validation images in the training set":
        val_ids = train_ids[torch.randint(400, (400,))]  # drawn from the wrong half
    post = fault == "post-norm without warm-up"
    high = fault == "learning rate too high"
    model = vm.create_model("vit_digits", depth=8, dropout=0.1, norm="post" if post else "pre")
    config = vm.TrainConfig(
        epochs=EPOCHS, warmup=0 if post else WARMUP, learning_rate=PEAK * (100 if high else 1)
    )
    optimizer = vm.optim.build_optimizers(model, config)[0]
    per_epoch, rows, lr = len(train_ids) // BATCH, [], 0.0
    for epoch in range(EPOCHS):
        losses, norms = [], []
        model.train()
        for i, ids in enumerate(train_ids[torch.randperm(len(train_ids))].split(BATCH)):
            lr = vm.optim.learning_rate_at(epoch * per_epoch + i, per_epoch, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = F.cross_entropy(model(images[ids]), labels[ids])
            optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
            optimizer.step()
            losses.append(loss.item())
        training = fault == "evaluated in training mode"
        own = measure(model, images[train_ids], labels[train_ids], training)
        val = measure(model, images[val_ids], labels[val_ids], training)
        again = measure(model, images[val_ids], labels[val_ids], training)[1]
        numbers = (statistics.mean(losses), own[1], *val, again, statistics.mean(norms))
        rows.append([epoch + 1, lr, *numbers])
    # The test is done by another program, in the right way, once.
    return rows, measure(model, data.normalize(data.test_images), data.test_labels)[1]


@torch.no_grad()
def measure(
    model: nn.Module, images: Tensor, labels: Tensor, training: bool = False
) -> tuple[float, float]:
    """Loss and accuracy; in training mode only where that is the fault."""
    logits = model.train(training)(images)
    return F.cross_entropy(logits, labels).item(), (
        logits.argmax(1) == labels
    ).float().mean().item()


def write_log(name: str, rows: list[list[float]], test: float) -> str:
    """One run as a table of text."""
    lines = [f"run {name}, test accuracy {test:.3f}", " ".join(COLUMNS)]
    for epoch, lr, *shares, norm in rows:
        lines.append(f"{epoch:2} {lr:.1e} {' '.join(f'{x:.3f}' for x in shares)} {norm:.2f}")
    assert all(math.isfinite(value) for row in rows for value in row)
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    text = TEXT.read_text()
    for variable, names, seed in WHERE:
        logs = []
        for name in names:
            logs.append(write_log(name, *train_run(RUNS[name], seed)))
            print(f"# {RUNS[name]}, seed {seed}\n{logs[-1]}", flush=True)
        text = put(text, variable, logs)
    TEXT.write_text(text)


def put(text: str, variable: str, logs: list[str]) -> str:
    """The assignment's text, with these logs in the place of the old ones."""
    block = f'{variable} = """\n' + "\n\n".join(logs) + '\n"""'
    text, count = re.subn(rf'^{variable} = """\n.*?^"""', block, text, flags=re.S | re.M)
    if count != 1:
        sys.exit(f"{TEXT.name} must hold one text {variable}, got {count}")
    return text


if __name__ == "__main__":
    main()
