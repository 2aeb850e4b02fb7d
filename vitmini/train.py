"""The training loop and the evaluation.

Chapter: 7.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitmini.augment import (
    auto_augment,
    color_jitter,
    mix,
    one_hot,
    rand_augment,
    random_affine,
    random_crop,
    random_erasing,
    random_flip,
    random_resized_crop,
    trivial_augment,
)
from vitmini.baselines import build_network, find_config, model_config
from vitmini.convert import one_line
from vitmini.data import ImageData, fits_on, take_batches
from vitmini.distill import Teacher, distillation_loss
from vitmini.optim import Trainer, build_trainer, learning_rate_at
from vitmini.patches import as_pair
from vitmini.recipes import TrainConfig
from vitmini.runs import check_run, lock_run, open_run, save_epoch, save_weights

Teach = Callable[[Tensor], Tensor]  # the student's images (B, C, H, W) -> logits (B, K)


def train(
    model: Any,
    data: ImageData,
    config: TrainConfig,
    out: str | Path | None = None,
    resume: bool = False,
    teacher: Teacher | nn.Module | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place on `data`, on the model's device; return one record an epoch.

    A record holds `epoch` (from 1), `train_loss`, `lr`, `val_accuracy` on the held-out training
    images and `seconds`; the last one adds `test_accuracy` and `test_loss`. `on_epoch` is called
    with each. With `out`, the folder gets `config.json`, `metrics.jsonl` after every epoch,
    `checkpoint.pt` at the start and after every `config.save_every` epochs, and `model.safetensors`
    at the end, each written whole or not at all; `resume` goes on from there. With `config.ema`,
    accuracies are those of the averaged weights, and at the end `model` has them.

    `model` is a `ViT`, what `create_baseline` gives, or, without `out`, any module. With a
    `teacher`, the loss is `distillation_loss` by `config.distill`, where "none" then means "hard";
    a distilled model's class head learns from the labels, its distillation head from the teacher.
    A module that is no `Teacher` sees images normalised as the student does. The teacher stays as
    it is; the run knows it by a hash in `config.json`.

    Shapes: accuracies in [0, 1]; `lr` is the epoch's last; `seconds` is the epoch's wall time.
    Raises: `ValueError` when the model is not for such data, has two heads without a teacher, or
        `config` wants one and there is none, when the teacher knows other classes, when `out` holds
        a run already (without `resume`) or another run or another teacher's (with it) or is being
        written to by another process, or when the checkpoint is damaged; `FloatingPointError` when
        the loss or a weight is not finite; `MemoryError` when the device's memory does not hold a
        batch, with a size that does; `OSError` when `out` cannot be written to any more.
    Source: Touvron et al. 2021, section 6 and Table 9.
    Chapter: 7
    """
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config must be a TrainConfig, such as RECIPES['digits'], got {config!r}")
    if on_epoch is not None and not callable(on_epoch):
        raise ValueError(f"on_epoch must be a function of a record, got {on_epoch!r}")
    _check_data(model, data)
    if other := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise ValueError(
            f"model must have weights of float32, got {other.pop()}: call model.float(); "
            "precision chooses what it computes in"
        )
    known = getattr(getattr(model, "config", None), "num_classes", len(data.classes))
    if len(data.classes) != known:
        raise ValueError(
            f"model must have a class for each of the data's {len(data.classes)}, got "
            f"num_classes={known}"
        )
    _check_size(model, data)
    if teacher is None and getattr(getattr(model, "config", None), "distilled", False):
        raise ValueError("model must have one head: distilled=True needs a teacher to learn from")
    if teacher is None and config.distill != "none":
        raise ValueError(f"teacher must be given: the recipe's distill is {config.distill!r}")
    if teacher is not None:
        config = distilling(config)
        if type(teacher).__name__ != "Teacher":  # by name: a notebook may define its own
            teacher = Teacher(teacher, data.mean, data.std)
    taught_by = cast("Teacher | None", teacher)
    if out is None:
        return _train(model, data, config, None, taught_by, on_epoch)
    model_config(model)
    folder = check_run(out, config, resume, taught_by)
    with lock_run(folder):
        return _train(model, data, config, folder, taught_by, on_epoch)


def distilling(config: TrainConfig) -> TrainConfig:
    """What a recipe becomes with a teacher: one that says nothing of it distils hard, as DeiT.

    Chapter: 10
    """
    return dataclasses.replace(config, distill="hard") if config.distill == "none" else config


def _check_data(model: nn.Module, data: ImageData) -> None:
    """Refuse what would fail late, or be learned from without a word."""
    if not isinstance(data, ImageData):
        raise ValueError(f"data must be an ImageData, as load_data gives it, got {data!r}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a ViT or another module, got {type(model).__name__}")
    classes = len(data.classes)
    for part in ("train", "test"):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"{part}_images must be uint8 (N, C, H, W), got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{part}_labels must be int64 ({len(images)},), one for each image, got "
                f"{labels.dtype} {tuple(labels.shape)}"
            )
        if not len(images):
            raise ValueError(f"{part}_images must hold at least one image")
        least, largest = labels.aminmax()
        if least < 0 or largest >= classes:
            raise ValueError(
                f"{part}_labels must be from 0 to {classes - 1}, got {int(least)} to {int(largest)}"
            )


def _check_size(model: nn.Module, data: ImageData) -> None:
    """Refuse pictures of another size: a ResNet takes them, and its folder would say the wrong."""
    config: Any = getattr(model, "config", None)
    if not (hasattr(config, "image_size") and hasattr(config, "in_channels")):
        return
    wanted = (config.in_channels, *as_pair(config.image_size, "image_size"))
    given = tuple(data.train_images.shape[1:])
    if given != wanted:
        raise ValueError(
            f"model must take the data's images, {'x'.join(map(str, given))}, got one for "
            f"{'x'.join(map(str, wanted))}"
        )


def _train(
    model: Any,
    data: ImageData,
    config: TrainConfig,
    folder: Path | None,
    teacher: Teacher | None,
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> list[dict[str, float]]:
    """What `train` does once the folder is its own."""
    device = next(model.parameters()).device
    trainer = build_trainer(model, config)
    teach = None if teacher is None else build_teach(teacher, data, trainer)
    history: list[dict[str, float]] = []
    if folder is not None:
        history = open_run(folder, config, model_config(model), data, trainer, teacher)
    stream = not fits_on(device, data) if config.stream is None else config.stream
    if not stream:
        data = _move(data, device)
    train_ids, val_ids = split_validation(len(data.train_labels), config)
    train_ids = train_ids.to(device)

    for epoch in range(len(history) + 1, config.epochs + 1):
        start = time.perf_counter()
        with _epoch_randomness(config.seed, epoch, device) as generator, _threads(config):
            record = {"epoch": epoch} | train_epoch(
                trainer, data, train_ids, config, epoch, generator, stream, teach
            )
        with _threads(config):
            if len(val_ids):
                own = data.train_images, data.train_labels
                val = _measure(trainer.evaluated, data, *own, val_ids, autocast=trainer.autocast())
                _check_loss(val["loss"], f"validation loss of epoch {epoch}", config)
                record["val_accuracy"] = val["accuracy"]
            record["seconds"] = time.perf_counter() - start
            if epoch == config.epochs:  # the test set is looked at once, after the last epoch
                test = evaluate(trainer.evaluated, data)
                _check_loss(test["loss"], "test loss", config)
                record |= {"test_accuracy": test["accuracy"], "test_loss": test["loss"]}
        history.append(record)
        if folder is not None:
            keep = epoch % config.save_every == 0 or epoch == config.epochs
            save_epoch(folder, trainer if keep else None, history)
        if on_epoch is not None:
            on_epoch(dict(record))  # a copy: the checkpoint holds the record
    if trainer.average is not None:
        model.load_state_dict(trainer.evaluated.state_dict())
    if folder is not None:
        save_weights(folder, model)
    return history


def _check_loss(loss: float, name: str, config: TrainConfig) -> None:
    """Stop a model that its last step broke, before it is saved. Chapter: 7."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the {name} is not finite: {_steadier(config)}")


def _move(data: ImageData, device: torch.device) -> ImageData:
    try:
        return data.to(device)
    except torch.OutOfMemoryError:
        size = data.train_images.nbytes + data.test_images.nbytes
        raise MemoryError(
            f"the images take {size / 2**30:.1f} GiB, more than the device's memory has left: set "
            "stream=True"
        ) from None


def train_epoch(
    trainer: Trainer,
    data: ImageData,
    train_ids: Tensor,
    config: TrainConfig,
    epoch: int,
    generator: torch.Generator,
    stream: bool = False,
    teach: Teach | None = None,
) -> dict[str, float]:
    """Train once on the images `train_ids` of `data`; return `train_loss` and the last `lr`.

    Nothing in here waits for the device before its end: a GPU is told what to do far ahead. (With
    loss scaling, "muon" and "sgd" do: PyTorch looks whether a step is to be skipped.)
    Raises: `FloatingPointError` and `MemoryError` as `train` does.
    Chapter: 7
    """
    prepare = batch_maker(trainer)
    order = epoch_order(train_ids, config, generator)
    batches = order.split(config.batch_size)
    whole = config.compile or has_batch_norm(trainer.model)
    if whole and len(batches) > 1 and len(batches[-1]) < config.batch_size:
        batches = batches[:-1]  # another shape is compiled anew; few images are poor statistics
    trainer.model.train()
    trainer.forward.train()  # a twin has its own mode
    lr, seen = 0.0, sum(map(len, batches))
    total = torch.zeros((), device=trainer.device)
    bad = torch.full((), -1, device=trainer.device)  # the first step whose loss was not finite
    for i, (images, labels) in enumerate(take_batches(data, batches, trainer.device, stream)):
        lr = learning_rate_at((epoch - 1) * len(batches) + i, len(batches), config)
        trainer.set_learning_rate(lr)
        images, targets = prepare(data, images, labels, config, generator)
        loss = train_step(trainer, images, targets, config, teach)
        bad = torch.where((bad < 0) & ~loss.isfinite(), i, bad)
        total += loss * len(images)
    if bad >= 0:
        raise FloatingPointError(
            f"the loss is not finite from step {int(bad) + 1} of epoch {epoch} on: "
            f"{_steadier(config)}"
        )
    numbers = [v for v in trainer.model.state_dict().values() if v.is_floating_point()]
    if not torch.stack([v.isfinite().all() for v in numbers]).all():  # its loss comes too late
        raise FloatingPointError(
            f"the weights are not finite at the end of epoch {epoch}: {_steadier(config)}"
        )
    return {"train_loss": total.item() / seen, "lr": lr}


def _steadier(config: TrainConfig) -> str:
    """Say what makes a training steadier that has diverged."""
    return (
        f"try a learning_rate below {config.learning_rate:g}, a warmup over {config.warmup} "
        "epochs, or precision='float32'"
    )


def has_batch_norm(model: nn.Module) -> bool:
    """Say whether an image's logits depend on the others of its batch. Chapter: 8."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def build_teach(teacher: Teacher, data: ImageData, trainer: Trainer) -> Teach:
    """Let a teacher answer in the student's way: its device, its precision, compiled or not.

    Raises: `ValueError` when it knows other classes, or takes no such images.
    Chapter: 10
    """
    teacher = copy.deepcopy(teacher).to(trainer.device)
    C, H, W = data.train_images.shape[1:]
    blank = torch.zeros(1, C, H, W, device=trainer.device)
    try:
        given = tuple(teacher(blank, data.mean, data.std).shape)
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:  # timm asserts sizes
        raise ValueError(
            f"teacher must take images of {C}x{H}x{W}, or be a Teacher(model, mean, std, "
            f"image_size) that converts them: {one_line(error)}"
        ) from None
    if given != (1, len(data.classes)):
        raise ValueError(f"teacher must know {len(data.classes)} classes, not {given[-1]}")
    theirs = getattr(teacher, "classes", None) or data.classes
    for name, other in zip(data.classes, theirs, strict=True):  # as many may be others
        if name != other:
            raise ValueError(f"teacher must know the data's classes: {name!r} is its {other!r}")
    forward: Any = torch.compile(teacher) if trainer.compiled else teacher

    def teach(images: Tensor) -> Tensor:
        with trainer.autocast():
            return forward(images, data.mean, data.std)

    return teach


def train_step(
    trainer: Trainer,
    images: Tensor,
    targets: Tensor,
    config: TrainConfig,
    teach: Teach | None = None,
) -> Tensor:
    """Compute the loss of a batch in `config.accumulate` parts, and do one step.

    Shapes: images (B, C, H, W), targets (B,) or (B, K) as `prepare_batch` gives them -> ().
    Raises: `MemoryError` as `train` does.
    Chapter: 7
    """
    loss = _try_step(trainer, images, targets, config, teach)
    if loss is None:
        raise MemoryError(_advice(trainer, images, targets, config, teach))
    return loss


def _try_step(
    trainer: Trainer, images: Tensor, targets: Tensor, config: TrainConfig, teach: Teach | None
) -> Tensor | None:
    """Do a step; None where memory is short. What it held is free then: no frame is left."""
    loss = torch.zeros((), device=images.device)
    parts = zip(images.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True)
    try:
        for x, y in parts:
            part = _loss(trainer, x, y, config, teach)
            part = part * (len(x) / len(images)) if config.accumulate > 1 else part
            trainer.scaler.scale(part).backward()
            loss += part.detach()
        trainer.update()
    except torch.OutOfMemoryError:
        return None
    return loss


def _loss(
    trainer: Trainer, images: Tensor, targets: Tensor, config: TrainConfig, teach: Teach | None
) -> Tensor:
    with trainer.autocast():
        logits = trainer.forward(images)
    smoothing = config.label_smoothing if targets.ndim == 1 else 0.0  # mixed ones have it already
    if teach is None:
        if not isinstance(logits, Tensor):
            raise ValueError(
                "model must give one tensor of logits (B, K) in training; a second head needs a "
                f"teacher, got {type(logits).__name__}"
            )
        return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
    taught = teach(images)
    if smoothing:
        targets = one_hot(targets, taught.shape[1], smoothing)
    pair = isinstance(logits, tuple)
    logits = (logits[0].float(), logits[1].float()) if pair else logits.float()
    how = config.distill, config.distill_temperature, config.distill_weight
    return distillation_loss(logits, taught, targets, *how)


def _advice(
    trainer: Trainer, images: Tensor, targets: Tensor, config: TrainConfig, teach: Teach | None
) -> str:
    """Find a size that fits, by trying: halve the part of a batch until it does."""
    tried = -(-len(images) // config.accumulate)
    size = tried // 2
    trainer = dataclasses.replace(trainer, forward=trainer.model)  # nothing to compile again
    while size >= 1 and not _fits(trainer, images[:size], targets[:size], config, teach):
        size //= 2
    if size < 1:
        return f"not even one image of {tuple(images.shape[1:])} fits into the device's memory"
    parts = -(-len(images) // size)
    return (
        f"{tried} images at a time do not fit into the device's memory, {size} do: set "
        f"accumulate={parts} for the same training, or batch_size={size} for another one"
    )


def _fits(
    trainer: Trainer, images: Tensor, targets: Tensor, config: TrainConfig, teach: Teach | None
) -> bool:
    """Go forward and back, with room for what AdamW will remember of each weight."""
    for parameter in trainer.model.parameters():
        parameter.grad = None
    if images.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        room = [torch.empty_like(weight) for weight in trainer.forgotten() for _ in range(2)]
        for _ in range(2):  # a batch's second part meets the first one's gradients
            _loss(trainer, images, targets, config, teach).backward()
        del room
    except torch.OutOfMemoryError:
        return False
    return True


def epoch_order(train_ids: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Choose and shuffle an epoch's images; with `config.repeats`, each comes so often in a row.

    Repeats do not make the epoch longer: with 3, a third of the images comes in it. Neighbours get
    different random changes, so that a batch sees an image in several forms. An epoch of
    `config.epoch_images` draws them without replacement, and begins again when all have come.

    Shapes: indices (N,) -> (N,), or (epoch_images,), int64.
    Source: Hoffer et al. 2020; Touvron et al. 2021, Table 9. DeiT's sampler is written for
        several processes; this one does not care how many there are.
    Chapter: 7
    """
    count, device = config.epoch_images or len(train_ids), train_ids.device
    order = torch.cat(
        [
            train_ids[torch.randperm(len(train_ids), generator=generator, device=device)]
            for _ in range(-(-count // len(train_ids)))
        ]
    )
    return order.repeat_interleave(config.repeats)[:count] if config.repeats > 1 else order[:count]


def prepare_batch(
    data: ImageData,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Change a batch of `data` as `config` says, on the batch's device.

    In DeiT's order: geometry, flip, RandAugment or another policy, colours, normalisation,
    erasing, mixing.

    Shapes: `images` uint8 (B, C, H, W), `labels` (B,) -> images float, normalised; labels (B,),
        or targets (B, K) after mixing.
    Chapter: 7
    """
    c = config
    images = images.float()
    if c.degrees or c.translate or c.scale or c.shear:
        images = random_affine(images, c.degrees, c.translate, c.scale, c.shear, generator)
    if c.resized_crop:
        images = random_resized_crop(images, scale=(c.resized_crop, 1.0), generator=generator)
    if c.crop:
        images = random_crop(images, c.crop, generator=generator)
    if c.flip:
        images = random_flip(images, generator)
    if c.rand_ops or c.trivial or c.auto:
        images = images.round().clamp(0, 255)
    if c.rand_ops:
        images = rand_augment(images, c.rand_ops, c.rand_magnitude, generator=generator)
    if c.trivial:
        images = trivial_augment(images, generator=generator)
    if c.auto:
        images = auto_augment(images, generator=generator)
    if c.jitter:
        images = color_jitter(images, c.jitter, c.jitter, c.jitter, generator)
    images = data.normalize(images)
    if c.erasing:
        images = random_erasing(images, c.erasing, generator=generator)
    if not (c.mixup or c.cutmix):
        return images, labels
    classes = len(data.classes)
    mixed = mix(images, labels, classes, c.mixup, c.cutmix, c.switch, c.label_smoothing, generator)
    return mixed.images, mixed.targets


def batch_maker(trainer: Trainer) -> Callable[..., tuple[Tensor, Tensor]]:
    """Give `prepare_batch`, compiled where the model is.

    It has 250 small kernels with RandAugment. PyTorch compiles the stretches between the random
    draws, which stay as they are, and so do the images.
    Chapter: 7
    """
    return _compiled_prepare() if trainer.compiled else prepare_batch


@functools.cache
def _compiled_prepare() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(prepare_batch, dynamic=False)


def build_model(config: TrainConfig, data: ImageData) -> Any:
    """Build a recipe's model with fresh weights, for the size, channels and classes of `data`.

    Shapes: a `ViT`, or what `create_baseline` gives.
    Raises: `ValueError` when the images do not divide into the model's patches.
    Chapter: 7
    """
    channels, rows, columns = data.train_images.shape[1:]
    sizes: dict[str, Any] = {"image_size": (rows, columns), "in_channels": channels}
    sizes["num_classes"] = len(data.classes)
    return build_network(find_config(config.model, **sizes, **config.model_options))


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
    """Measure a model on the test images, in evaluation mode and float32.

    Shapes: returns `accuracy` in [0, 1] and `loss`, the mean cross-entropy in nats.
    Raises: `ValueError` for data without test images, and a `batch_size` below 1.
    Chapter: 7
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a model of PyTorch, got {model!r}")
    if not isinstance(data, ImageData):
        raise ValueError(f"data must be an ImageData, as load_data gives it, got {data!r}")
    if not len(data.test_labels):
        raise ValueError("data must hold test images, these have none")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
    ids = torch.arange(len(data.test_labels))
    return _measure(model, data, data.test_images, data.test_labels, ids, batch_size)


@torch.no_grad()
def _measure(
    model: nn.Module,
    data: ImageData,
    images: Tensor,
    labels: Tensor,
    ids: Tensor,
    batch_size: int = 1000,
    autocast: AbstractContextManager | None = None,
) -> dict[str, float]:
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    correct, loss = torch.zeros(2, device=device)
    for some in ids.to(images.device).split(batch_size):  # from elsewhere, each would be waited for
        x, y = images[some].to(device), labels[some].to(device)
        with autocast or nullcontext():
            logits = model(data.normalize(x)).float()
        correct += (logits.argmax(1) == y).sum()
        loss += F.cross_entropy(logits, y, reduction="sum")
    model.train(was_training)
    return {"accuracy": correct.item() / len(ids), "loss": loss.item() / len(ids)}


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
