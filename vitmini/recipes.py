"""Recipes: what to train, on what, and how, each a frozen dataclass under a name.

Chapter: 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from vitmini.augment import check_number
from vitmini.baselines import BASELINES, find_config
from vitmini.distill import KINDS
from vitmini.model import PRESETS, ViTConfig

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
_CHOICES = {
    "optimizer": ("adamw", "sgd", "muon"),
    "precision": PRECISIONS,
    "distill": ("none", *KINDS),
}
# The least and the largest of each whole number, and the largest of each other one.
_WHOLE = {
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "repeats", "save_every"), (1, math.inf)),
    **dict.fromkeys(("crop", "rand_ops"), (0, math.inf)),
    "rand_magnitude": (0, 30),
    "seed": (0, 2**32 - 1),
}
_NUMBERS = {
    **dict.fromkeys(
        ("learning_rate", "clip_norm", "weight_decay", "warmup", "distill_temperature"), math.inf
    ),
    **dict.fromkeys(("degrees", "translate", "shear", "jitter", "mixup", "cutmix"), math.inf),
    **dict.fromkeys(("label_smoothing", "val_share", "ema", "scale"), 1),
    **dict.fromkeys(("resized_crop", "erasing", "switch", "distill_weight"), 1),
}


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, and how; a recipe is one of these under a name.

    The model: `model` names a preset, a ViT's or one of `list_baselines()`; `model_options`
    replaces fields of its configuration.
    The data: a name or a folder, whose pictures are brought to `image_size`, in pixels (None: the
    size of the model's own).
    The length: `epochs`, `batch_size`; `epoch_images` is how many an epoch shows (None: all that
    are not held out, each once), of more a random part, of fewer all of them several times;
    `accumulate` computes a batch in that many parts, for cards with little memory.
    The steps: `optimizer` is "adamw", "sgd" or "muon", `learning_rate` its peak, `warmup` in
    epochs, `weight_decay` on matrices only (with "sgd" a part of the gradient, else apart from it),
    `clip_norm` the largest norm of the gradient. `ema`
    averages the weights with this decay, and the average is what is evaluated and saved.
    The images: `degrees`, `translate`, `scale` and `shear` bound `random_affine`; `crop` pads by so
    many pixels and crops; `resized_crop` is the smallest share of the area that is cut out (0:
    none); `flip` mirrors half of the images; `rand_ops` and `rand_magnitude` set RandAugment,
    `trivial` switches TrivialAugment on, `auto` AutoAugment (one of the three at most); `jitter`
    changes colours, `erasing` is a probability.
    `repeats` shows each image so often in a row, in an epoch of the same length.
    The labels: `label_smoothing`; `mixup` and `cutmix` are the alphas of `mix`, `switch` the
    probability of CutMix where both are on.
    The teacher, where `train` gets one: `distill` is "soft" or "hard" ("none" is for recipes
    without one), `distill_temperature` softens, `distill_weight` is the teacher's share of the
    loss.
    The machine: `precision` is "auto", "float32" (in which PyTorch lets a card round a
    convolution's factors to TF32), "bfloat16" or "float16"; `compile` uses `torch.compile` on a
    CUDA device, for the model and for the images (and drops an epoch's last batch where it is
    short, on any, as batch norm does); "blocks" compiles a ViT block by block, which starts sooner;
    `cpu_threads` is how many threads PyTorch may use on a CPU (None: as many as it likes);
    `stream` leaves the images where they are and moves batches to the device (None: where all of
    them would take more than half of its free memory; never on a CPU).
    `val_share` is the part of the training images that is held out and never trained on.
    `save_every` is how many epochs a run that is killed may lose.
    Raises: `ValueError` at construction for a value that makes no sense.
    Source: Touvron et al. 2021, Table 9, for which settings a recipe has.
    Chapter: 7
    """

    data: str = "digits"
    image_size: int | None = None
    model: str = "vit_digits"
    model_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 64
    epoch_images: int | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 5
    clip_norm: float = 1.0
    ema: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    crop: int = 0
    resized_crop: float = 0.0
    flip: bool = False
    rand_ops: int = 0
    rand_magnitude: int = 9
    trivial: bool = False
    auto: bool = False
    jitter: float = 0.0
    erasing: float = 0.0
    repeats: int = 1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    distill: str = "none"
    distill_temperature: float = 3.0
    distill_weight: float = 0.5
    precision: str = "auto"
    compile: bool | str = False
    val_share: float = 0.1
    save_every: int = 1
    cpu_threads: int | None = None
    stream: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (least, largest) in _WHOLE.items():
            check_number(name, getattr(self, name), least, largest, int)
        for name, largest in _NUMBERS.items():
            check_number(name, getattr(self, name), 0, largest)
        for name in ("learning_rate", "clip_norm", "distill_temperature"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0, got 0")
        for name in ("label_smoothing", "val_share", "ema", "scale"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} must be below 1, got 1")
        for name in ("flip", "trivial", "auto"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.compile, bool) and self.compile != "blocks":
            raise ValueError(f"compile must be True, False or 'blocks', got {self.compile!r}")
        policies = [name for name in ("rand_ops", "trivial", "auto") if getattr(self, name)]
        if len(policies) > 1:
            raise ValueError(
                f"{' and '.join(policies)} must not be on together: each is a policy of its own"
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate must not exceed batch_size, got {self.accumulate}")
        if not isinstance(self.data, str):
            raise ValueError(f"data must be a str, a name or a folder, got {self.data!r}")
        known = [*PRESETS, *BASELINES]
        if self.model not in known:
            raise ValueError(f"model must be one of {', '.join(known)}, got {self.model!r}")
        if not isinstance(self.model_options, dict):
            raise ValueError(f"model_options must be a dict, got {self.model_options!r}")
        for name in self.model_options:
            if name in ("image_size", "in_channels", "num_classes"):
                raise ValueError(f"model_options must not hold {name}: the data decides it")
            if self.model in PRESETS and name not in ViTConfig.__dataclass_fields__:
                raise ValueError(f"model_options must hold fields of ViTConfig, got {name!r}")
        size = {} if self.image_size is None else {"image_size": self.image_size}
        find_config(self.model, **size, **self.model_options)
        if not (self.stream is None or isinstance(self.stream, bool)):
            raise ValueError(f"stream must be True, False or None, got {self.stream!r}")
        for name in ("cpu_threads", "epoch_images"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1, kind=int)


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
    precision: str = "float32"
    cpu_threads: int | None = 1  # so small a model only makes more of them wait for each other


@dataclass(frozen=True)
class Cifar10Mini(TrainConfig):
    """CIFAR-10 on a CPU: 62.3% ± 0.3% of the test images after 10 epochs, 0.31 million parameters.

    Two seeds, on the JPEG copy, on one busy CPU thread: `book/results/siblings.json`.
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
    precision: str = "float32"
    cpu_threads: int | None = 1


@dataclass(frozen=True)
class Cifar10MiniMuon(Cifar10Mini):
    """CIFAR-10 on a CPU: 74.5% ± 0.2% of the test images after 10 epochs, 0.31 million parameters.

    Three seeds, on the JPEG copy, on one busy CPU thread: `book/results/train-cifar10-mini.json`.
    Images and steps are those of `cifar10-mini`; positions, start, pooling, optimizer with its
    rate, and the average are nearer to `cifar10`.
    Chapter: 7
    """

    model_options: dict[str, Any] = field(
        default_factory=lambda: {"pool": "mean", "pos_embed": "sincos2d", "init": "mimetic"}
    )
    optimizer: str = "muon"
    learning_rate: float = 5e-3
    ema: float = 0.99


@dataclass(frozen=True)
class Cifar10(TrainConfig):
    """CIFAR-10 on a GPU, a plain ViT from scratch. Not measured yet: it aims at 94%.

    What goes in is what measurements of others and of chapter 5 speak for: small patches, sin-cos
    positions with the mimetic start, the mean of the patches, Muon, CutMix, an average. By its
    FLOPs (4.2 G an image and step) an epoch takes a second at 200 TFLOP/s.
    Chapter: 7
    """

    data: str = "cifar10"
    model: str = "vit_cifar"
    model_options: dict[str, Any] = field(
        default_factory=lambda: {
            "pool": "mean",
            "pos_embed": "sincos2d",
            "init": "mimetic",
            "drop_path": 0.1,
        }
    )
    epochs: int = 200
    batch_size: int = 512
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    ema: float = 0.999
    crop: int = 4
    flip: bool = True
    rand_ops: int = 1
    label_smoothing: float = 0.1
    cutmix: float = 1.0
    compile: bool = True
    val_share: float = 0.02


@dataclass(frozen=True)
class Speedrun90(Cifar10):
    """The speed run to 90% on CIFAR-10. Not measured yet: the epochs are a guess.

    Short enough to leave out what pays off late: CutMix, DropPath, the average. A checkpoint takes
    about as long as an epoch on a fast card: it comes every 20 epochs.
    Chapter: 7
    """

    model_options: dict[str, Any] = field(
        default_factory=lambda: {"pool": "mean", "pos_embed": "sincos2d", "init": "mimetic"}
    )
    epochs: int = 40
    warmup: int = 3
    ema: float = 0.0
    cutmix: float = 0.0
    save_every: int = 20


@dataclass(frozen=True)
class Speedrun93(Cifar10):
    """The speed run to 93% on CIFAR-10. Not measured yet: `cifar10` with half of its epochs.

    Chapter: 7
    """

    epochs: int = 100
    save_every: int = 20


@dataclass(frozen=True)
class Cifar10ResNet(TrainConfig):
    """A ResNet-18 for CIFAR-10, to compare a ViT with, or to teach one. Not measured yet.

    Chapter: 8
    """

    data: str = "cifar10"
    model: str = "resnet18_cifar"
    epochs: int = 30
    batch_size: int = 512
    optimizer: str = "sgd"
    learning_rate: float = 0.2
    weight_decay: float = 5e-4
    crop: int = 4
    flip: bool = True
    label_smoothing: float = 0.1
    compile: bool = True
    val_share: float = 0.02
    save_every: int = 10


@dataclass(frozen=True)
class Cifar10Distilled(Cifar10):
    """The `cifar10` recipe with a distillation token, for a teacher. Not measured yet.

    Chapter: 10
    """

    model_options: dict[str, Any] = field(
        default_factory=lambda: {
            "distilled": True,
            "pos_embed": "sincos2d",
            "init": "mimetic",
            "drop_path": 0.1,
        }
    )
    distill: str = "hard"


@dataclass(frozen=True)
class Cifar10Tiny(Cifar10):
    """The small ViT to take apart in chapters 11 to 13, on a GPU. Not measured yet.

    It has what those chapters look at: a class token, learned positions, and a plain start, so
    that what is found in it was learned. By its FLOPs (1.1 G an image and step) it takes a
    quarter of the time of `cifar10`.
    Chapter: 11
    """

    model: str = "vit_cifar_tiny"
    model_options: dict[str, Any] = field(default_factory=lambda: {"drop_path": 0.1})


@dataclass(frozen=True)
class Cifar10TinyDistilled(Cifar10Tiny):
    """The recipe `cifar10-tiny` with a distillation token, for a teacher. Not measured yet.

    Chapter: 11
    """

    model_options: dict[str, Any] = field(
        default_factory=lambda: {"distilled": True, "drop_path": 0.1}
    )
    distill: str = "hard"


@dataclass(frozen=True)
class Cifar10ResNetMini(Cifar10Mini):
    """A small ResNet for CIFAR-10 on a CPU, the teacher of `cifar10-mini-distilled`: 74.7%.

    One seed, on the JPEG copy, on one CPU thread: `book/results/siblings.json`.
    Chapter: 10
    """

    model: str = "resnet_mini"


@dataclass(frozen=True)
class Cifar10MiniDistilled(Cifar10Mini):
    """The recipe `cifar10-mini` with a distillation token, for a teacher: 63.9% ± 0.1%.

    Two seeds, on the JPEG copy, on one CPU thread: `book/results/siblings.json`. Its
    teacher, `cifar10-resnet-mini`, is to be trained first.
    Chapter: 11
    """

    model_options: dict[str, Any] = field(default_factory=lambda: {"distilled": True})
    distill: str = "hard"


RECIPES: dict[str, TrainConfig] = {
    "digits": Digits(),
    "cifar10-mini": Cifar10Mini(),
    "cifar10-mini-muon": Cifar10MiniMuon(),
    "cifar10": Cifar10(),
    "speedrun-90": Speedrun90(),
    "speedrun-93": Speedrun93(),
    "cifar10-resnet": Cifar10ResNet(),
    "cifar10-distilled": Cifar10Distilled(),
    "cifar10-tiny": Cifar10Tiny(),
    "cifar10-tiny-distilled": Cifar10TinyDistilled(),
    "cifar10-resnet-mini": Cifar10ResNetMini(),
    "cifar10-mini-distilled": Cifar10MiniDistilled(),
}
