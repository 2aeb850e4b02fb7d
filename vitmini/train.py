"""The training loop: recipes, schedule, checkpoints, evaluation.

Chapter: 7.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from vitmini.augment import random_affine, random_flip
from vitmini.data import ImageData
from vitmini.model import ViT, ViTConfig, create_model


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, and how; a recipe is one of these under a name.

    Units: `warmup` in epochs; `learning_rate` is the peak; `weight_decay` is AdamW's, on matrices
        only; `degrees`, `translate`, `scale` and `shear` bound `random_affine`; `flip` mirrors
        half of the images; `val_share` is the part of the training images that is held out and
        never trained on; `cpu_threads` is how many threads PyTorch may use on a CPU (None: as
        many as it likes).
    Raises: `ValueError` at construction for a value that makes no sense.
    Source: Touvron et al. 2021, Table 9, for which settings a recipe has.
    Chapter: 7
    """

    data: str = "digits"
    model: str = "vit_digits"
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 5
    label_smoothing: float = 0.0
    clip_norm: float = 1.0
    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    flip: bool = False
    val_share: float = 0.1
    cpu_threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        for name in ("weight_decay", "warmup", "degrees", "translate", "scale", "shear"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        for name in ("label_smoothing", "val_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError(f"cpu_threads must be positive or None, got {self.cpu_threads!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be an int from 0 to 2**32 - 1, got {self.seed!r}")


@dataclass(frozen=True)
class Digits(TrainConfig):
    """Scikit-learn's digits: 99.1% ± 0.1% of the 360 test images in 80 epochs and 19 seconds.

    Mean and standard error over 10 seeds, on a CPU (1 thread): `book/results/train-digits.json`.
    Chapter: 0
    """

    data: str = "digits"
    model: str = "vit_digits"
    epochs: int = 80
    learning_rate: float = 3e-3
    degrees: float = 15.0
    translate: float = 0.125
    scale: float = 0.15
    shear: float = 15.0
    cpu_threads: int | None = 1  # so small a model only makes more of them wait for each other


@dataclass(frozen=True)
class Cifar10Mini(TrainConfig):
    """CIFAR-10 on a CPU: 62.6% of the test images after 10 epochs, with 0.31 million parameters.

    One seed, on the JPEG copy, on one busy CPU thread: `vitmini/weights/vit_cifar_mini.json`.
    Chapter: 7
    """

    data: str = "cifar10"
    model: str = "vit_cifar_mini"
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 1
    translate: float = 0.125
    flip: bool = True
    cpu_threads: int | None = 1


RECIPES: dict[str, TrainConfig] = {"digits": Digits(), "cifar10-mini": Cifar10Mini()}


def train(
    model: ViT,
    data: ImageData,
    config: TrainConfig,
    out: str | Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place on `data`, on the model's device; return one record an epoch.

    A record holds `epoch` (from 1), `train_loss`, `lr`, `val_accuracy` on the held-out training
    images and `seconds`; the last one adds `test_accuracy` and `test_loss`. `on_epoch` is called
    with each. With `out`, the folder gets `config.json`, `metrics.jsonl` and `checkpoint.pt`
    after every epoch and `model.safetensors` at the end, each written whole or not at all;
    `resume` goes on from there.

    Shapes: accuracies in [0, 1]; `lr` is the epoch's last; `seconds` is the epoch's wall time.
    Raises: `ValueError` when the model is distilled, when `out` holds a run already (without
        `resume`) or another run (with it), or when the checkpoint is damaged;
        `FloatingPointError` when the loss is not finite.
    Source: Touvron et al. 2021, section 6 and Table 9.
    Chapter: 7
    """
    if model.config.distilled:
        raise ValueError("model must have one head: distilled=True needs a teacher to learn from")
    device = next(model.parameters()).device
    optimizer = adamw(model, config)
    history: list[dict[str, float]] = []
    if out is not None:
        folder = check_run(out, config, resume)
        history = _open_run(folder, config, model, data, optimizer)
    data = data.to(device)
    train_ids, val_ids = split_validation(len(data.train_labels), config)
    train_ids = train_ids.to(device)
    steps = -(-len(train_ids) // config.batch_size)  # in an epoch, the last batch may be short

    for epoch in range(len(history) + 1, config.epochs + 1):
        start = time.perf_counter()
        lr, train_loss = 0.0, torch.zeros((), device=device)
        with _epoch_randomness(config.seed, epoch, device) as generator, _threads(config):
            model.train()
            order = train_ids[torch.randperm(len(train_ids), generator=generator, device=device)]
            for i, ids in enumerate(order.split(config.batch_size)):
                lr = learning_rate_at((epoch - 1) * steps + i, steps, config)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                images = random_affine(
                    data.train_images[ids].float(),
                    config.degrees,
                    config.translate,
                    config.scale,
                    config.shear,
                    generator,
                )
                if config.flip:
                    images = random_flip(images, generator)
                logits = model(data.normalize(images))
                loss = F.cross_entropy(
                    logits, data.train_labels[ids], label_smoothing=config.label_smoothing
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                optimizer.step()
                train_loss += loss.detach() * len(ids)
        record: dict[str, float] = {
            "epoch": epoch,
            "train_loss": train_loss.item() / len(train_ids),
            "lr": lr,
        }
        if not math.isfinite(record["train_loss"]):
            raise FloatingPointError(
                f"the loss is {record['train_loss']} in epoch {epoch}: try a learning_rate below "
                f"{config.learning_rate:g} or a warmup over {config.warmup} epochs"
            )
        with _threads(config):
            if len(val_ids):
                val = _measure(model, data, data.train_images[val_ids], data.train_labels[val_ids])
                record["val_accuracy"] = val["accuracy"]
            record["seconds"] = time.perf_counter() - start
            if epoch == config.epochs:  # the test set is looked at once, after the last epoch
                test = evaluate(model, data)
                record |= {"test_accuracy": test["accuracy"], "test_loss": test["loss"]}
        history.append(record)
        if out is not None:
            _save_epoch(folder, model, optimizer, history)
        if on_epoch is not None:
            on_epoch(record)
    if out is not None:
        _write(folder / "model.safetensors", save_safetensors(_state_on_cpu(model)))
    return history


def build_model(config: TrainConfig, data: ImageData) -> ViT:
    """Build a recipe's model with fresh weights, for the size, channels and classes of `data`.

    Raises: `ValueError` when the images do not divide into the model's patches.
    Chapter: 7
    """
    channels, rows, columns = data.train_images.shape[1:]
    return create_model(
        config.model,
        image_size=(rows, columns),
        in_channels=channels,
        num_classes=len(data.classes),
    )


def learning_rate_at(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Give the learning rate of a step: a straight warm-up, then half a cosine down to zero.

    Units: `step` from 0, over the whole run.
    Source: Dosovitskiy et al. 2021, Table 3; Touvron et al. 2021, Table 9.
    Chapter: 7
    """
    warmup, total = config.warmup * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Make AdamW that decays matrices, and leaves biases, norms, tokens and positions alone.

    Source: Touvron et al. 2021, section 6 (their code: no decay on bias, norm, tokens, positions).
    Chapter: 7
    """
    decay = [p for n, p in model.named_parameters() if _decays(n, p)]
    rest = [p for n, p in model.named_parameters() if not _decays(n, p)]
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": rest},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0, fused=True)


def _decays(name: str, parameter: Tensor) -> bool:
    tables = ("cls_token", "dist_token", "pos_embed")  # and all that lies in pos_embed or rel_pos
    tabled = name.endswith(tables) or "pos_embed." in name or "rel_pos." in name
    return parameter.ndim > 1 and not tabled


def split_validation(count: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Hold out a random part of the training images, the same one for every seed.

    Shapes: returns the indices to train on and those to validate on, int64, on the CPU.
    Raises: `ValueError` when nothing would be left to train on.
    Chapter: 7
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held_out = round(count * config.val_share)
    if held_out >= count:
        raise ValueError(f"val_share {config.val_share} of {count} images leaves none to train on")
    return order[held_out:], order[:held_out]


def evaluate(model: nn.Module, data: ImageData, batch_size: int = 1000) -> dict[str, float]:
    """Measure a model on the test images, in evaluation mode.

    Shapes: returns `accuracy` in [0, 1] and `loss`, the mean cross-entropy in nats.
    Chapter: 7
    """
    return _measure(model, data, data.test_images, data.test_labels, batch_size)


@torch.no_grad()
def _measure(
    model: nn.Module, data: ImageData, images: Tensor, labels: Tensor, batch_size: int = 1000
) -> dict[str, float]:
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    correct, loss = torch.zeros(2, device=device)
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        y = y.to(device)
        logits = model(data.normalize(x.to(device)))
        correct += (logits.argmax(1) == y).sum()
        loss += F.cross_entropy(logits, y, reduction="sum")
    model.train(was_training)
    return {"accuracy": correct.item() / len(labels), "loss": loss.item() / len(labels)}


@contextmanager
def _threads(config: TrainConfig) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(config.cpu_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _epoch_randomness(seed: int, epoch: int, device: torch.device) -> Iterator[torch.Generator]:
    """Give every epoch its own randomness, so that a resumed run draws what an unbroken one does.

    The caller's own random state is as it was afterwards.
    """
    own = seed * 100_003 + epoch
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(own)  # dropout draws from the global state
        yield torch.Generator(device).manual_seed(own)


_DAMAGE = (
    AttributeError,
    KeyError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


# A run's folder -----------------------------------------------------------------------------


def check_run(out: str | Path, config: TrainConfig, resume: bool = False) -> Path:
    """Refuse a folder that a run must not be written to, before any data is read.

    Raises: `ValueError` when `out` is a file, holds a run already (without `resume`), or holds
        the run of another configuration (with it).
    Chapter: 7
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; out must be a folder")
    names = ("config.json", "checkpoint.pt", "metrics.jsonl", "model.safetensors")
    if not any((folder / name).exists() for name in names):
        return folder
    if not resume:
        raise ValueError(f"{folder} already holds a run: choose another folder, or resume it")
    theirs = _read_config(folder)["train"]
    ours = dataclasses.asdict(config)
    changed = [k for k in sorted(ours | theirs) if ours.get(k) != theirs.get(k)]
    if changed:
        k = changed[0]
        raise ValueError(
            f"{folder} holds another run: its {k} is {theirs.get(k)!r}, not {ours.get(k)!r}"
        )
    return folder


def data_digest(data: ImageData) -> str:
    """Hash all images and labels, so that a run knows its data again. Chapter: 7."""
    digest = hashlib.sha256()
    for tensor in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _open_run(
    folder: Path, config: TrainConfig, model: ViT, data: ImageData, optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    description = {
        "train": dataclasses.asdict(config),
        "model": dataclasses.asdict(model.config),
        "data": {
            "name": data.name,
            "classes": data.classes,
            "mean": data.mean,
            "std": data.std,
            "sha256": data_digest(data),
        },
    }
    description = json.loads(json.dumps(description))  # as it reads back: tuples become lists
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "config.json", json.dumps(description, indent=2) + "\n")
        return []
    theirs = _read_config(folder)
    for part in ("model", "data"):
        if theirs[part] != description[part]:
            raise ValueError(f"{folder} holds another run: its {part} is not the one given")
    if not (folder / "checkpoint.pt").exists():
        return []
    checkpoint = _read_checkpoint(folder / "checkpoint.pt")
    try:
        history = _check_history(checkpoint["history"], config.epochs)
        _check_optimizer(checkpoint["optimizer"], optimizer)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'checkpoint.pt'} does not fit this run: {_one_line(error)}"
        ) from None
    _write_metrics(folder, history)
    return history


def _check_history(history: Any, epochs: int) -> list[dict[str, float]]:
    keys = {"epoch", "train_loss", "lr", "seconds"}
    if not isinstance(history, list) or not 1 <= len(history) <= epochs:
        raise ValueError("its history is not that of this run's epochs")
    for i, record in enumerate(history, start=1):
        if not isinstance(record, dict):
            raise ValueError("its history holds more than records")
        if not all(type(value) in (int, float) for value in record.values()):
            raise ValueError("its history holds more than numbers")
        wanted = keys | ({"test_accuracy", "test_loss"} if i == epochs else set())
        if set(record) - {"val_accuracy"} != wanted or record["epoch"] != i:
            raise ValueError(f"its record of epoch {i} is incomplete")
    return history


def _check_optimizer(given: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Compare with the fresh optimizer: the fused step trusts shapes and would crash on others."""
    fresh = optimizer.state_dict()["param_groups"]
    for ours, theirs in zip(fresh, given["param_groups"], strict=True):
        if {**ours, "lr": 0} != {**theirs, "lr": 0}:
            raise ValueError("its optimizer has other settings")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        state = given["state"][i]
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != parameter.shape or state[name].dtype != parameter.dtype:
                raise ValueError(f"its {name} {i} has another shape or type than the parameter")
        if state["step"].shape != () or set(state) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError("its optimizer state is not AdamW's")


def _write_metrics(folder: Path, history: list[dict[str, float]]) -> None:
    _write(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in history))


def _save_epoch(folder: Path, model: nn.Module, optimizer, history: list) -> None:
    buffer = io.BytesIO()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    torch.save(state, buffer)
    _write(folder / "checkpoint.pt", buffer.getvalue())
    _write_metrics(folder, history)


def load_run(folder: str | Path) -> tuple[ViT, dict[str, Any]]:
    """Load the model of a finished run, in evaluation mode, and what its `config.json` says.

    Raises: `ValueError` when the folder holds no finished run, or a damaged one.
    Chapter: 7
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder that holds a run")
    description = _read_config(folder)
    path = folder / "model.safetensors"
    if not path.exists():
        raise ValueError(f"{folder} holds no finished run: {path.name} is missing, resume it first")
    try:
        fields: dict[str, Any] = description["model"]
        vit_config = ViTConfig(**fields)
        _check_data(description, vit_config)
        weights = load_safetensors(path.read_bytes())
        with torch.device("meta"):  # no memory yet: the shapes may be anything
            shapes = {k: (v.shape, v.dtype) for k, v in ViT(vit_config).state_dict().items()}
        if {k: (v.shape, v.dtype) for k, v in weights.items()} != shapes:
            raise ValueError("names, shapes or types of the weights are not those of config.json")
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError("the weights are not finite")
        model = ViT(vit_config)
        model.load_state_dict(weights)
    except (SafetensorError, MemoryError, *_DAMAGE) as error:
        raise ValueError(f"{path} is damaged or not this run's: {_one_line(error)}") from None
    return model.eval(), description


def _check_data(description: dict[str, Any], config: ViTConfig) -> None:
    data, name = description["data"], description["train"]["data"]
    classes, mean, std = data["classes"], data["mean"], data["std"]
    if not isinstance(name, str) or not isinstance(data["sha256"], str):
        raise ValueError("config.json does not name the data")
    if not isinstance(classes, list) or len(classes) != config.num_classes:
        raise ValueError("config.json must name one class for each logit")
    if not all(isinstance(c, str) and c.isprintable() for c in classes):
        raise ValueError("config.json must name classes in printable words")
    for values in (mean, std):
        numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
        if not numbers or len(values) != config.in_channels or not all(map(math.isfinite, values)):
            raise ValueError("config.json must hold a mean and a std for each channel")
    if min(std) <= 0:
        raise ValueError("config.json must hold a positive std for each channel")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        description = json.loads(path.read_text())
        if not all(isinstance(description[part], dict) for part in ("train", "model", "data")):
            raise ValueError("a part is missing")
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run: config.json is missing") from None
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged: {_one_line(error)}") from None
    return description


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about formats that it then refuses
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError("it holds no dictionary")
    except Exception:  # torch, pickle and zipfile each have their own
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values: nothing was run"
        ) from None
    return checkpoint


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _state_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}


def _write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, also when the machine stops half-way."""
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
