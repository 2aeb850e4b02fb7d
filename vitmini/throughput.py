"""How many images a second the training loop takes, what of it is waiting, and what the card can.

Chapter: 7.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from vitmini.benchmark import build_all, check_plain, measure_time, measure_turns, wait
from vitmini.data import ImageData
from vitmini.model import ViT, ViTConfig
from vitmini.optim import Trainer, build_trainer
from vitmini.patches import as_pair
from vitmini.recipes import TrainConfig
from vitmini.summary import count_flops
from vitmini.train import batch_maker, build_model, train_epoch, train_step


def matrix_rate(
    device: str | torch.device, dtype: torch.dtype = torch.float32, size: int = 8192
) -> float:
    """Measure how fast a device multiplies large square matrices: no model can be faster.

    Units: FLOP/s, a multiply-add is two; random numbers, since zeros are faster than real data.
    Raises: `ValueError` when `size` is not a positive int, or `dtype` no type of real numbers.
    Chapter: 7
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive int, got {size!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type of torch, got {dtype!r}")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator).to(device, dtype)
    milliseconds = measure_time({"product": lambda: a @ b}, device, repeats=9)["product"]
    if torch.device(device).type == "cuda":  # a tenth of a second a turn: training does not pause
        count = math.ceil(100 / milliseconds)

        def multiply() -> None:
            for _ in range(count):
                a @ b

        milliseconds = measure_time({"product": multiply}, device, repeats=9)["product"] / count
    return 2 * size**3 / (milliseconds / 1000)


def measure_rate(
    step: Callable[[], int], device: str | torch.device, seconds: float = 5.0, warmup: int = 3
) -> float:
    """Repeat a step for some seconds, after `warmup` of them; `step` returns its images.

    Units: images a second. The device is waited for at the beginning and at the end alone.
    Raises: `ValueError` when `seconds` is not positive.
    Chapter: 7
    """
    if not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
        raise ValueError(f"seconds must be positive, got {seconds!r}")
    for _ in range(warmup):
        step()
    wait(device)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += step()
    wait(device)
    return images / (time.perf_counter() - start)


# The loop and its parts ------------------------------------------------------------------------


@dataclass(frozen=True)
class LoopSpeed:
    """The training loop beside its own step on one batch that is there already.

    Units: images a second, medians over turns; `share` is the median over turns of the loop's
        rate over the fixed batch's, 1 where images come for free.
    Chapter: 7
    """

    loop: float
    fixed: float
    images: float
    share: float


def measure_loop(
    data: ImageData,
    config: TrainConfig,
    device: str | torch.device = "cpu",
    batches: int = 20,
    repeats: int = 5,
) -> LoopSpeed:
    """Time `train_epoch`, the same steps on one fixed batch, and the making of batches, in turns.

    Raises: `ValueError` when the training images do not fill so many batches, or a number is not
        positive.
    Chapter: 7
    """
    if not isinstance(data, ImageData):
        raise ValueError(f"data must be an ImageData, as load_data gives it, got {data!r}")
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config must be a TrainConfig, got {config!r}")
    count = batches * config.batch_size if isinstance(batches, int) else 0
    if not 1 <= count <= len(data.train_labels):
        raise ValueError(
            f"batches must be from 1 to {len(data.train_labels) // config.batch_size} of "
            f"{config.batch_size} images, got {batches!r}"
        )
    trainer, data = _set_up(data, config, device)
    generator = torch.Generator(device).manual_seed(config.seed)
    ids = torch.arange(count, device=device)
    make = batch_maker(trainer)
    pixels, labels = data.train_images, data.train_labels

    def changed(part: Tensor) -> tuple[Tensor, Tensor]:
        return make(data, pixels[part], labels[part], config, generator)

    images, targets = changed(ids[: config.batch_size])

    def fixed() -> None:
        for _ in range(batches):
            train_step(trainer, images, targets, config)

    def prepare() -> None:
        for part in ids.split(config.batch_size):
            changed(part)

    ways: dict[str, Callable[[], Any]] = {
        "loop": lambda: train_epoch(trainer, data, ids, config, 1, generator),
        "fixed": fixed,
        "images": prepare,
    }
    turns = measure_turns(ways, device, repeats)
    rates = {k: 1000 * count / statistics.median(v) for k, v in turns.items()}
    pairs = zip(turns["fixed"], turns["loop"], strict=True)
    return LoopSpeed(**rates, share=statistics.median(f / whole for f, whole in pairs))


def _set_up(
    data: ImageData, config: TrainConfig, device: str | torch.device
) -> tuple[Trainer, ImageData]:
    torch.manual_seed(config.seed)
    trainer = build_trainer(build_model(config, data).to(device), config)
    trainer.model.train()
    return trainer, data.to(device)


# Others' ways --------------------------------------------------------------------------------


NO_COUNTERPART = (
    *("degrees", "translate", "scale", "shear", "resized_crop", "trivial", "auto", "jitter"),
    *("erasing", "mixup", "cutmix"),
)


class Pictures(Dataset):
    """Images as PIL pictures, changed one by one: what most training code starts from. Chapter: 7.

    torchvision's transforms do what `config` asks `prepare_batch` for.
    Raises: `ValueError` when `config` asks for more than crops, flips and RandAugment.
    """

    def __init__(self, data: ImageData, config: TrainConfig):
        from torchvision import transforms

        for name in NO_COUNTERPART:
            if getattr(config, name):
                raise ValueError(f"{name} has no counterpart here: use crop, flip and rand_ops")
        size = tuple(data.train_images.shape[2:])
        steps: list[Any] = [transforms.RandomCrop(size, config.crop)] if config.crop else []
        steps += [transforms.RandomHorizontalFlip()] if config.flip else []
        if config.rand_ops:
            steps.append(transforms.RandAugment(config.rand_ops, config.rand_magnitude))
        steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        self.transform = transforms.Compose(steps)
        pixels = data.train_images.cpu().permute(0, 2, 3, 1)  # (N, H, W, C)
        self.pixels = (pixels[..., 0] if pixels.shape[-1] == 1 else pixels).contiguous().numpy()
        self.labels = data.train_labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def picture_batches(
    data: ImageData, config: TrainConfig, device: str | torch.device, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give batches without an end from a `DataLoader` over `Pictures`, on the device.

    Chapter: 7
    """
    pictures, gpu = Pictures(data, config), torch.device(device).type == "cuda"
    loader = DataLoader(
        pictures,
        config.batch_size,
        sampler=RandomSampler(pictures, replacement=True, num_samples=2**40 // config.batch_size),
        num_workers=workers,
        pin_memory=gpu,
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=gpu), labels.to(device, non_blocking=gpu)


def measure_pictures(
    data: ImageData,
    config: TrainConfig,
    device: str | torch.device = "cpu",
    workers: int = 0,
    seconds: float = 5.0,
    trainer: Trainer | None = None,
) -> float:
    """Measure how fast `picture_batches` come; with a `trainer`, each is also trained on.

    Units: images a second, after the batches that workers had prepared are gone.
    Chapter: 7
    """
    batches = picture_batches(data, config, device, workers)

    def step() -> int:
        images, labels = next(batches)
        if trainer is not None:
            train_step(trainer, images, labels, config)
        return len(images)

    return measure_rate(step, device, seconds, warmup=2 * workers + 3)


def compare_steps(
    config: ViTConfig,
    train_config: TrainConfig,
    device: str | torch.device = "cpu",
    steps: int = 10,
    repeats: int = 7,
    names: tuple[str, ...] = ("vitmini", "timm"),
) -> dict[str, list[float]]:
    """Time the training step of vitmini's model and of others', with one loop and one batch.

    All get the same precision, optimizer and `torch.compile`, by `train_config`.
    Shapes: returns the images a second of each turn, by name; those not installed are left out.
    Raises: `ValueError` for a model that the others do not have.
    Chapter: 7
    """
    check_plain(config)
    H, W = as_pair(config.image_size, "image_size")
    B, generator = train_config.batch_size, torch.Generator().manual_seed(0)
    images = torch.randn(B, config.in_channels, H, W, generator=generator).to(device)
    labels = torch.randint(config.num_classes, (B,), generator=generator).to(device)

    def run(trainer: Trainer) -> None:
        for _ in range(steps):
            train_step(trainer, images, labels, train_config)

    ways: dict[str, Callable[[], None]] = {}
    for name, model in build_all(config).items():
        if name in names:
            trainer = build_trainer(model.to(device).train(), train_config)
            ways[name] = functools.partial(run, trainer)
    turns = measure_turns(ways, device, repeats)
    return {name: [1000 * B * steps / ms for ms in times] for name, times in turns.items()}


def median_ratio(rates: Mapping[str, list[float]], first: str, second: str) -> float:
    """The median over turns of one rate over another: a busy minute slows both. Chapter: 7."""
    pairs = zip(rates[first], rates[second], strict=True)
    return statistics.median(a / b for a, b in pairs)


# From the naive loop to the fast one -------------------------------------------------------------


@dataclass(frozen=True)
class Rung:
    """One speed-up on top of those before it.

    `workers` load PIL pictures (None: the whole set is on the device); the rest are switches.
    Chapter: 7
    """

    name: str
    workers: int | None = None
    tf32: bool = False
    precision: str = "float32"
    fused: bool = False
    compile: bool = False
    batch_size: int = 128


def ladder(
    device: str | torch.device, workers: int, batch_size: int = 128, larger: int = 1024
) -> list[Rung]:
    """The rungs from the naive loop to the fast one, each on top of the one before.

    On a CPU those that make no sense are left out: TF32, 16 bits and compilation.
    Chapter: 7
    """
    gpu = torch.device(device).type == "cuda"
    rungs = [Rung("PIL pictures in one process", 0, batch_size=batch_size)]

    def climb(name: str, **changes: Any) -> None:
        rungs.append(replace(rungs[-1], name=name, **changes))

    climb(f"{workers} worker processes", workers=workers)
    climb("all images on the device", workers=None)
    if gpu:
        climb("TF32", tf32=True)
        climb("16 bits", precision="auto")
    climb("fused AdamW", fused=True)
    if gpu:
        climb("torch.compile", compile=True)
    climb(f"batches of {larger}", batch_size=larger)
    return rungs


def measure_rung(
    rung: Rung,
    data: ImageData,
    config: TrainConfig,
    device: str | torch.device = "cpu",
    seconds: float = 5.0,
) -> float:
    """Measure the images a second of a rung; model and augmentation are those of `config`.

    Raises: `ValueError` as `Pictures` does.
    Chapter: 7
    """
    config = replace(
        config,
        precision=rung.precision,
        compile=rung.compile,
        batch_size=rung.batch_size,
        optimizer="adamw",
    )
    torch.compiler.reset()  # what an earlier rung compiled must not count
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if rung.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = rung.tf32  # PyTorch's own choice for convolutions is True
    try:
        trainer, on_device = _set_up(data, config, device)
        if not rung.fused:
            trainer.optimizers = [_unfused(trainer.optimizers[0])]
        if rung.workers is not None:
            return measure_pictures(data, config, device, rung.workers, seconds, trainer)
        generator = torch.Generator(device).manual_seed(config.seed)
        # An epoch's end waits for the device, so it must not come much oftener than it does.
        most = 100 if trainer.device.type == "cuda" else 10
        batches = min(most, len(data.train_labels) // rung.batch_size)
        ids = torch.arange(batches * rung.batch_size, device=device)

        def step() -> int:
            train_epoch(trainer, on_device, ids, config, 1, generator)
            return len(ids)

        return measure_rate(step, device, seconds, warmup=1)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _unfused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """AdamW as it comes when nothing is said: several kernels for each kind of operation."""
    groups = [
        {"params": g["params"], "weight_decay": g["weight_decay"]} for g in optimizer.param_groups
    ]
    return torch.optim.AdamW(groups, lr=optimizer.param_groups[0]["lr"])


def model_share(model: ViT | ViTConfig, images_per_second: float, rate: float) -> float:
    """The share of the card's matrix rate that training uses (MFU): 1 would be perfect.

    The way back counts as two passes forward.
    Units: `rate` in FLOP/s, as `matrix_rate` measures it.
    Raises: `ValueError` when `model` is no ViT, or a number is not positive.
    Source: Chowdhery et al. 2022, section 4.1; Kaplan et al. 2020, section 2.1.
    Chapter: 7
    """
    config = model.config if isinstance(model, ViT) else model
    if not isinstance(config, ViTConfig):
        raise ValueError(f"model must be a ViT or a ViTConfig, got {type(model).__name__}")
    for name, value in (("images_per_second", images_per_second), ("rate", rate)):
        if not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    return images_per_second * 3 * count_flops(config) / rate
