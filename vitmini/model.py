"""The Vision Transformer: one configuration, one class, and the presets by name.

Chapter: 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitmini.encoder import Block, drop_path_rates
from vitmini.initialisation import SCHEMES, init_weights
from vitmini.patches import PatchEmbed, as_pair, patch_grid
from vitmini.positions import LearnedPositions2D, RelativePositionBias, regrid, sincos_positions

CHOICES = {
    "pool": ("cls", "mean"),
    "pos_embed": ("learned", "learned2d", "sincos2d", "relative", "none"),
    "norm": ("pre", "post"),
    "gelu": ("exact", "tanh"),
    "init": tuple(SCHEMES),
}


@dataclass(frozen=True)
class ViTConfig:
    """Everything that decides the architecture of a `ViT`; the defaults are ViT-B/16.

    Units: `image_size` and `patch_size` in pixels, an int or (rows, columns); `dim`, `depth` and
        `num_heads` are the paper's D, L and number of heads; rates are probabilities.
    Raises: `ValueError` at construction for a combination that cannot be built.
    Source: Dosovitskiy et al. 2021, Table 1; Touvron et al. 2021, Table 1.
    Chapter: 6
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_channels: int = 3
    num_classes: int = 1000
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    pool: str = "cls"
    pos_embed: str = "learned"
    distilled: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    norm: str = "pre"
    norm_eps: float = 1e-6
    gelu: str = "exact"
    init: str = "deit"
    zero_head: bool = False

    def __post_init__(self) -> None:
        patch_grid(self.image_size, self.patch_size)
        for name in ("image_size", "patch_size"):  # one spelling of a size: JSON has lists
            rows, columns = as_pair(getattr(self, name), name)
            object.__setattr__(self, name, rows if rows == columns else (rows, columns))
        for name in ("in_channels", "num_classes", "dim", "depth", "num_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("qkv_bias", "distilled", "zero_head"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("mlp_ratio", "dropout", "drop_path", "norm_eps", "layer_scale"):
            value = getattr(self, name)
            if name == "layer_scale" and value is None:
                continue
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not real or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim = {self.dim}, got {self.num_heads}")
        if self.mlp_ratio * self.dim < 1:
            raise ValueError(f"mlp_ratio must give a hidden width >= 1, got {self.mlp_ratio!r}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be positive, got {self.norm_eps!r}")
        if self.pos_embed == "sincos2d" and (self.dim % 4 or self.dim < 8):
            raise ValueError(
                f"pos_embed='sincos2d' needs dim to be a multiple of 4, at least 8, got {self.dim}"
            )
        if self.pos_embed == "learned2d" and self.dim % 2:
            raise ValueError(f"pos_embed='learned2d' needs an even dim, got {self.dim}")
        if self.distilled and self.pool != "cls":
            raise ValueError("distilled=True reads class and distillation tokens: use pool='cls'")


class ViT(nn.Module):
    """A Vision Transformer; its `state_dict` has timm's keys and shapes.

    Shapes: images (B, C, H, W) -> logits (B, K). With `distilled`, training mode gives the pair
        (class logits, distillation logits), evaluation mode their mean.
    Raises: `ValueError` for images of another size or with other channels than configured.
    Source: Dosovitskiy et al. 2021, eq. 1 to 4; Touvron et al. 2021, section 4.
    Chapter: 6
    """

    pos_embed: Tensor | LearnedPositions2D

    def __init__(self, config: ViTConfig):
        super().__init__()
        if type(config).__name__ != "ViTConfig":  # by name: a notebook may define its own
            raise ValueError(f"config must be a ViTConfig, got {config!r}")
        c = self.config = config
        self.patch_embed = PatchEmbed(c.image_size, c.patch_size, c.in_channels, c.dim)
        self.grid = self.patch_embed.grid
        self.num_prefix_tokens = (c.pool == "cls") + c.distilled
        T = self.num_prefix_tokens + self.patch_embed.num_patches
        if c.pool == "cls":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        if c.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        if c.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, T, c.dim))
        elif c.pos_embed == "learned2d":
            self.pos_embed = LearnedPositions2D(self.grid, c.dim, self.num_prefix_tokens)
        elif c.pos_embed == "sincos2d":
            self.register_buffer("pos_embed", torch.zeros(1, T, c.dim))
        self.pos_drop = nn.Dropout(c.dropout)
        rest = (c.layer_scale, c.norm, c.norm_eps, c.gelu)
        self.blocks = nn.Sequential()
        for rate in drop_path_rates(c.drop_path, c.depth):
            bias = None
            if c.pos_embed == "relative":  # each layer has a table of its own
                bias = RelativePositionBias(self.grid, c.num_heads, self.num_prefix_tokens)
            own = (c.dim, c.num_heads, c.mlp_ratio, c.qkv_bias, c.dropout, rate)
            self.blocks.append(Block(*own, *rest, bias))
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps)
        self.head = nn.Linear(c.dim, c.num_classes)
        if c.distilled:
            self.head_dist = nn.Linear(c.dim, c.num_classes)
        init_weights(self, c.init, c.zero_head)

    def reset_parameters(self) -> None:
        """Fill in what is computed, not drawn: sin-cos positions. Chapter: 2."""
        if self.config.pos_embed == "sincos2d":
            table = self.get_buffer("pos_embed").zero_()
            table[0, self.num_prefix_tokens :] = sincos_positions(self.grid, self.config.dim)

    def positions(self) -> Tensor | None:
        """What is added to the tokens, (1, T, D), or None. Chapter: 2."""
        embed = getattr(self, "pos_embed", None)
        return embed() if isinstance(embed, LearnedPositions2D) else embed

    def embed(self, images: Tensor) -> Tensor:
        """What the first block gets: prefix and patches with positions, (B, T, D). Chapter: 6."""
        x = self.patch_embed(images)  # (B, N, D)
        B = x.shape[0]
        if self.config.distilled:
            x = torch.cat([self.dist_token.expand(B, -1, -1), x], dim=1)
        if self.config.pool == "cls":
            x = torch.cat([self.cls_token.expand(B, -1, -1), x], dim=1)  # (B, T, D)
        positions = self.positions()
        return self.pos_drop(x if positions is None else x + positions)

    def forward_features(self, images: Tensor) -> Tensor:
        """Everything but the head: the tokens (B, T, D) after the final norm. Chapter: 6."""
        return self.norm(self.blocks(self.embed(images)))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.forward_features(images)
        if self.config.distilled:
            logits, dist_logits = self.head(x[:, 0]), self.head_dist(x[:, 1])
            return (logits, dist_logits) if self.training else (logits + dist_logits) / 2
        read = x[:, 0] if self.config.pool == "cls" else x[:, self.num_prefix_tokens :].mean(dim=1)
        return self.head(read)  # (B, K)

    def resized(self, image_size: Any, mode: str = "bicubic", antialias: bool = True) -> Any:
        """A copy for images of another size; `mode` as for `resize_pos_embed`. Chapter: 13."""
        with torch.device("meta"):  # no weights of its own
            model = type(self)(replace(self.config, image_size=image_size))
        return regrid(self, model, mode, antialias)


_TINY = ViTConfig(dim=192, num_heads=3)
_SMALL = ViTConfig(dim=384, num_heads=6)
_BASE = ViTConfig()
PRESETS = {
    "vit_tiny_patch16_224": _TINY,
    "vit_small_patch16_224": _SMALL,
    "vit_base_patch16_224": _BASE,
    "vit_base_patch16_384": replace(_BASE, image_size=384),
    "vit_large_patch16_224": ViTConfig(dim=1024, depth=24, num_heads=16),
    "vit_huge_patch14_224": ViTConfig(patch_size=14, dim=1280, depth=32, num_heads=16),
    "deit_tiny_patch16_224": _TINY,
    "deit_small_patch16_224": _SMALL,
    "deit_base_patch16_224": _BASE,
    "deit_tiny_distilled_patch16_224": replace(_TINY, distilled=True),
    "deit_small_distilled_patch16_224": replace(_SMALL, distilled=True),
    "deit_base_distilled_patch16_224": replace(_BASE, distilled=True),
    "vit_cifar": ViTConfig(32, 4, num_classes=10, dim=384, depth=6, num_heads=6),
    "vit_cifar_tiny": ViTConfig(
        32, 4, num_classes=10, dim=192, depth=9, num_heads=12, mlp_ratio=2.0
    ),
    "vit_cifar_mini": ViTConfig(32, 4, 3, 10, 96, 4, 3, mlp_ratio=2.0, init="google"),
    "vit_digits": ViTConfig(8, 4, 1, 10, 64, 3, 4, mlp_ratio=2.0, init="google"),
}


def list_models() -> list[str]:
    """Name the presets that `create_model` knows: timm's names, then the course's own.

    Source: Dosovitskiy et al. 2021, Table 1; Touvron et al. 2021, Table 1.
    Chapter: 6
    """
    return list(PRESETS)


def get_config(name: str, **overrides: Any) -> ViTConfig:
    """Look up the configuration of a preset; `overrides` replace fields of it.

    Raises: `ValueError` for an unknown name or field, and for what `ViTConfig` refuses.
    Chapter: 6
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"name must be one of {', '.join(PRESETS)}; got {name!r}")
    known = [f.name for f in fields(ViTConfig)]
    for key in overrides:
        if key not in known:
            raise ValueError(f"{key!r} is not a field of ViTConfig: choose from {', '.join(known)}")
    return replace(PRESETS[name], **overrides)


def create_model(name: str, **overrides: Any) -> ViT:
    """Build a preset with fresh weights; `overrides` replace fields of its `ViTConfig`.

    Raises: `ValueError` for an unknown name or field, and for what `ViTConfig` refuses.
    Chapter: 6
    """
    return ViT(get_config(name, **overrides))
