"""What a ViT is compared with: ResNets, and the hybrid that puts a ViT on top of one.

Chapter: 8.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitmini.model import PRESETS, ViT, ViTConfig, get_config
from vitmini.patches import as_pair

_EXPANSION = {"basic": 1, "bottleneck": 4}  # how much wider a block's output is than its stage


@dataclass(frozen=True)
class ResNetConfig:
    """A torchvision ResNet whose stem keeps small images large: 3x3, no max pooling.

    Units: `image_size` in pixels, an int or (rows, columns); `stages` counts the blocks of each
        stage, one to four of them; the first is 64 channels wide, each next one twice as wide and
        half as large. `block` is "basic" or "bottleneck".
    Raises: `ValueError` at construction for a value that makes no sense.
    Source: He et al. 2016, Table 1; the stem is that of their section 4.2 (CIFAR-10).
    Chapter: 8
    """

    image_size: int | tuple[int, int] = 32
    in_channels: int = 3
    num_classes: int = 10
    block: str = "basic"
    stages: tuple[int, ...] = (2, 2, 2, 2)
    stem_stride: int = 1

    def __post_init__(self) -> None:
        rows, columns = as_pair(self.image_size, "image_size")
        object.__setattr__(self, "image_size", rows if rows == columns else (rows, columns))
        for name in ("in_channels", "num_classes", "stem_stride"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be a positive int, got {getattr(self, name)!r}")
        if self.stem_stride > 64:
            raise ValueError(f"stem_stride must be at most 64, got {self.stem_stride}")
        if self.block not in tuple(_EXPANSION):  # a list has no hash
            raise ValueError(f"block must be one of {', '.join(_EXPANSION)}, got {self.block!r}")
        listed = isinstance(self.stages, (tuple, list)) and 1 <= len(self.stages) <= 4
        if not listed or not all(_is_count(n) and n <= 100 for n in self.stages):
            raise ValueError(
                f"stages must be one to four numbers of blocks, 1 to 100 each, got {self.stages!r}"
            )
        object.__setattr__(self, "stages", tuple(self.stages))  # JSON has lists

    @property
    def width(self) -> int:
        """The channels of the last feature map. Chapter: 8."""
        return 64 * 2 ** (len(self.stages) - 1) * _EXPANSION[self.block]

    @property
    def grid(self) -> tuple[int, int]:
        """The size of the last feature map, (rows, columns). Chapter: 8."""
        stride = self.stem_stride
        rows, columns = (-(-n // stride) for n in as_pair(self.image_size, "image_size"))
        for _ in self.stages[1:]:
            rows, columns = -(-rows // 2), -(-columns // 2)
        return rows, columns


@dataclass(frozen=True)
class HybridConfig:
    """A ViT that reads a ResNet's last feature map: a token for each of its positions.

    `vit` is the transformer; its "image" is the map, its patches are 1x1.
    Raises: `ValueError` at construction when the two do not fit together.
    Source: Dosovitskiy et al. 2021, section 3.1, "Hybrid Architecture".
    Chapter: 8
    """

    cnn: ResNetConfig
    vit: ViTConfig

    def __post_init__(self) -> None:
        for name, kind in (("cnn", ResNetConfig), ("vit", ViTConfig)):
            given = getattr(self, name)
            if isinstance(given, dict):  # as JSON has it
                object.__setattr__(self, name, kind(**given))
            elif type(given).__name__ != kind.__name__:  # by name: a notebook may define its own
                raise ValueError(f"{name} must be a {kind.__name__}, got {given!r}")
        fits = _on_map(self.vit, self.cnn)
        if self.vit != fits or self.cnn.num_classes != self.vit.num_classes:
            raise ValueError(
                f"vit must read 1x1 patches of the cnn's map, {self.cnn.width} channels of "
                f"{self.cnn.grid}, with the cnn's num_classes, got {self.vit!r}"
            )

    @property
    def image_size(self) -> int | tuple[int, int]:
        return self.cnn.image_size

    @property
    def in_channels(self) -> int:
        return self.cnn.in_channels

    @property
    def num_classes(self) -> int:
        return self.vit.num_classes

    @property
    def distilled(self) -> bool:
        return self.vit.distilled


AnyConfig = ViTConfig | ResNetConfig | HybridConfig
_CONFIGS = ("ViTConfig", "ResNetConfig", "HybridConfig")  # a notebook may define its own
_KINDS: dict[str, Any] = {"resnet": ResNetConfig, "hybrid": HybridConfig}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _on_map(vit: ViTConfig, cnn: ResNetConfig) -> ViTConfig:
    return replace(vit, image_size=cnn.grid, patch_size=1, in_channels=cnn.width)


def build_resnet(config: ResNetConfig) -> nn.Module:
    """Build torchvision's ResNet with another stem; stages that `config` lacks pass all through.

    Shapes: images (B, C, H, W) -> logits (B, K). Keys of the `state_dict` are torchvision's.
    Source: He et al. 2016, Table 1 and section 4.2.
    Chapter: 8
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    stages = [*config.stages, 1, 1, 1][:4]
    block = BasicBlock if config.block == "basic" else Bottleneck
    model = ResNet(block, stages, num_classes=config.num_classes)
    stride = config.stem_stride
    model.conv1 = nn.Conv2d(config.in_channels, 64, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as theirs
    model.maxpool = nn.Identity()
    for missing in range(len(config.stages) + 1, 5):
        setattr(model, f"layer{missing}", nn.Identity())
    if model.fc.in_features != config.width:
        model.fc = nn.Linear(config.width, config.num_classes)
    model.config = config
    return model


def feature_map(resnet: nn.Module) -> nn.Sequential:
    """Take a ResNet's layers up to its last feature map, under their names.

    Shapes: the layers map images (B, C, H, W) to (B, width, rows, columns).
    Chapter: 8
    """
    names = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4")
    layers = [(name, getattr(resnet, name)) for name in names]
    return nn.Sequential(OrderedDict((n, m) for n, m in layers if not isinstance(m, nn.Identity)))


class Hybrid(nn.Module):
    """A ResNet's feature map, its positions as tokens, and a ViT: all trained together.

    Shapes: images (B, C, H, W) -> logits (B, K); with a distilled `vit`, pairs as it gives them.
    Raises: `ValueError` for images of another size or with other channels than configured.
    Source: Dosovitskiy et al. 2021, section 3.1, "Hybrid Architecture": the patch projection E is
        applied to patches of a CNN's feature map, here of 1x1.
    Chapter: 8
    """

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.config = config
        self.cnn = feature_map(build_resnet(config.cnn))
        self.vit = ViT(config.vit)

    def forward_features(self, images: Tensor) -> Tensor:
        """Everything but the head: the tokens (B, T, D) after the final norm. Chapter: 8."""
        return self.vit.forward_features(self._map(images))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.vit(self._map(images))

    def _map(self, images: Tensor) -> Tensor:
        wanted = (self.config.in_channels, *as_pair(self.config.image_size, "image_size"))
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images must be (B, {wanted[0]}, {wanted[1]}, {wanted[2]}), got "
                f"{tuple(images.shape)}"
            )
        return self.cnn(images)


def _hybrid(cnn: ResNetConfig, vit: ViTConfig) -> HybridConfig:
    return HybridConfig(cnn, _on_map(replace(vit, num_classes=cnn.num_classes), cnn))


_MINI = ResNetConfig(stages=(1, 1), stem_stride=2)
BASELINES: dict[str, ResNetConfig | HybridConfig] = {
    "resnet18_cifar": ResNetConfig(),
    "resnet50_cifar": ResNetConfig(block="bottleneck", stages=(3, 4, 6, 3)),
    "resnet_mini": _MINI,
    "hybrid_cifar": _hybrid(ResNetConfig(stages=(1, 1, 1)), replace(PRESETS["vit_cifar"], depth=4)),
    "hybrid_mini": _hybrid(replace(_MINI, stages=(1, 1)), PRESETS["vit_cifar_mini"]),
}


def list_baselines() -> list[str]:
    """Name the presets of `create_baseline`; `TrainConfig.model` takes them beside the ViTs'.

    Chapter: 8
    """
    return list(BASELINES)


def create_baseline(name: str, **overrides: Any) -> nn.Module:
    """Build a ResNet or a hybrid with fresh weights; `overrides` as in `find_config`.

    Raises: `ValueError` for an unknown name or field, and for what the configuration refuses.
    Chapter: 8
    """
    if not isinstance(name, str) or name not in BASELINES:
        raise ValueError(f"name must be one of {', '.join(BASELINES)}; got {name!r}")
    return build_network(find_config(name, **overrides))


def find_config(name: str, **overrides: Any) -> AnyConfig:
    """Look up a preset of any kind, ViT, ResNet or hybrid; `overrides` replace fields of it.

    Those of a hybrid are fields of its `ResNetConfig`, or else of its `ViTConfig`.
    Raises: `ValueError` for an unknown name or field, and for what the configuration refuses.
    Chapter: 8
    """
    if not isinstance(name, str) or name not in PRESETS | BASELINES:
        raise ValueError(f"name must be one of {', '.join(PRESETS | BASELINES)}; got {name!r}")
    if name in PRESETS:
        return get_config(name, **overrides)
    preset = BASELINES[name]
    cnn = preset if isinstance(preset, ResNetConfig) else preset.cnn
    outer = [f.name for f in fields(ResNetConfig)]
    inner = [] if preset is cnn else [f.name for f in fields(ViTConfig)]
    for key in overrides:
        if key not in outer + inner or key == "patch_size":
            known = dict.fromkeys(k for k in outer + inner if k != "patch_size")
            raise ValueError(f"{key!r} is not a field of {name}: choose from {', '.join(known)}")
    cnn = replace(cnn, **{k: v for k, v in overrides.items() if k in outer})
    if isinstance(preset, ResNetConfig):
        return cnn
    rest = {k: v for k, v in overrides.items() if k not in outer}
    return _hybrid(cnn, replace(preset.vit, **rest))


def build_network(config: AnyConfig) -> Any:
    """Build what a configuration of any kind describes, with fresh weights.

    Raises: `ValueError` when it is no configuration.
    Chapter: 8
    """
    kind = type(config).__name__  # by name: a notebook may define its own
    if kind == "ResNetConfig":
        return build_resnet(config)  # type: ignore[arg-type]
    return Hybrid(config) if kind == "HybridConfig" else ViT(config)  # type: ignore[arg-type]


def model_config(model: nn.Module) -> AnyConfig:
    """Give the configuration that a model was built from.

    Raises: `ValueError` when it was not built by vitmini.
    Chapter: 8
    """
    config: Any = getattr(model, "config", None)
    if type(config).__name__ not in _CONFIGS:
        raise ValueError(
            f"model must be one that vitmini built, to be kept in a folder; got "
            f"{type(model).__name__}: train it without out"
        )
    return config


def write_config(config: AnyConfig) -> dict[str, Any]:
    """Write a configuration as plain values; those of a ViT stand alone, others name their kind.

    Chapter: 8
    """
    kinds = {kind.__name__: name for name, kind in _KINDS.items()}
    name = kinds.get(type(config).__name__)
    return ({} if name is None else {"kind": name}) | asdict(config)


def read_config(values: dict[str, Any]) -> AnyConfig:
    """Read what `write_config` wrote.

    Raises: `ValueError` or `TypeError` for anything else.
    Chapter: 8
    """
    kind = values.get("kind")
    if kind is None:
        return ViTConfig(**values)
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    return _KINDS[kind](**{k: v for k, v in values.items() if k != "kind"})


def training_flops(config: AnyConfig) -> int:
    """Count the FLOPs of one image forward and backward, with PyTorch's counter.

    Units: matrix products and convolutions alone, a multiply-add counted as two, as `count_flops`.
        It is a little less than three times the forward pass: nothing asks for the gradient of
        the image.
    Raises: `ValueError` when it is no configuration.
    Chapter: 8
    """
    if type(config).__name__ not in _CONFIGS:
        raise ValueError(
            f"config must be one of {', '.join(_CONFIGS)}, got {type(config).__name__}"
        )
    rows, columns = as_pair(config.image_size, "image_size")
    with torch.device("meta"), torch.random.fork_rng([]):  # no memory, no time, no random numbers
        model = build_network(config).eval()  # one image has no batch statistics
        images = torch.zeros(1, config.in_channels, rows, columns)
        with FlopCounterMode(display=False) as counter:
            model(images).sum().backward()
    return counter.get_total_flops()
