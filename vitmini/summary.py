"""What a model is made of: its layers with shapes, parameters and FLOPs, by formula.

Chapter: 6 (`notebooks/06-vit.ipynb`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitmini.model import ViT, ViTConfig


@dataclass(frozen=True)
class Layer:
    """One row of `describe_layers`: where, what comes out of it for one image, and what it costs.

    `flops` are those of the forward pass: matrix products and convolutions alone, a multiply-add
    counted as two, as PyTorch's counter does. Papers often count it as one and say FLOPs too.
    Chapter: 6
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


def describe_layers(config: ViTConfig) -> list[Layer]:
    """List a model's layers as they stand in it, without building it in memory.

    Shapes: of the outputs for one image, without the batch: tokens (T, D), scores (heads, T, T).
    Source: Dosovitskiy et al. 2021, eq. 1 to 4, by hand.
    Chapter: 6
    """
    with torch.device("meta"):
        model = ViT(config)
    D, H, K = config.dim, config.num_heads, config.num_classes
    N = model.patch_embed.num_patches
    T = model.num_prefix_tokens + N
    rows: list[Layer] = []

    def add(name: str, shape: tuple[int, ...], flops: int, *owners: nn.Module) -> None:
        own = sum(p.numel() for owner in owners for p in owner.parameters())
        rows.append(Layer(name, shape, own, flops))

    conv = model.patch_embed.proj
    add("patch_embed.proj", (N, D), 2 * N * D * conv.weight[0].numel(), conv)
    for name in ("cls_token", "dist_token"):
        if hasattr(model, name):
            rows.append(Layer(name, (1, D), getattr(model, name).numel(), 0))
    if config.pos_embed in ("learned", "learned2d", "sincos2d"):
        held = [p for name, p in model.named_parameters() if name.startswith("pos_embed")]
        rows.append(Layer("pos_embed", (T, D), sum(p.numel() for p in held), 0))
    blocks: list[Any] = list(model.blocks)
    for i, block in enumerate(blocks):
        attn, mlp, hidden = block.attn, block.mlp, block.mlp.fc1.out_features
        add(f"blocks.{i}.norm1", (T, D), 0, block.norm1)
        add(f"blocks.{i}.attn.qkv", (T, 3 * D), 2 * T * D * 3 * D, attn.qkv)
        bias = [attn.rel_pos] if attn.rel_pos is not None else []
        add(f"blocks.{i}.attn: q k^T", (H, T, T), 2 * T * T * D, *bias)
        add(f"blocks.{i}.attn: weights v", (T, D), 2 * T * T * D)
        add(f"blocks.{i}.attn.proj", (T, D), 2 * T * D * D, attn.proj)
        add(f"blocks.{i}.norm2", (T, D), 0, block.norm2)
        add(f"blocks.{i}.mlp.fc1", (T, hidden), 2 * T * D * hidden, mlp.fc1)
        add(f"blocks.{i}.mlp.fc2", (T, D), 2 * T * D * hidden, mlp.fc2)
        if config.layer_scale is not None:
            add(f"blocks.{i}.ls1, ls2", (T, D), 0, block.ls1, block.ls2)
    add("norm", (T, D), 0, model.norm)
    add("head", (K,), 2 * D * K, model.head)
    if config.distilled:
        add("head_dist", (K,), 2 * D * K, model.head_dist)
    return rows


def count_flops(config: ViTConfig) -> int:
    """Count the FLOPs of one image's forward pass by formula; a multiply-add is two.

    A training step costs about three times as many: one forward, two backward.
    Chapter: 6
    """
    return sum(layer.flops for layer in describe_layers(config))


def summary_table(name: str, config: ViTConfig) -> str:
    """Write the layers as a table to print; blocks that are alike are shown once.

    Chapter: 6
    """
    layers = describe_layers(config)
    parameters, flops = (sum(getattr(r, k) for r in layers) for k in ("parameters", "flops"))
    first = [r for r in layers if r.name.startswith("blocks.0.")]
    shown = [r for r in layers if not r.name.startswith("blocks.") or r in first]
    if config.depth > 1:
        alike = f"blocks.1 to {config.depth - 1}" if config.depth > 2 else "blocks.1"
        rest = [r for r in layers if r.name.startswith("blocks.") and r not in first]
        both = (sum(getattr(r, k) for r in rest) for k in ("parameters", "flops"))
        shown.insert(shown.index(first[-1]) + 1, Layer(f"{alike}, alike", (), *both))
    lines = [f"{'layer':24} {'output':>16} {'parameters':>13} {'FLOPs':>17}"]
    for r in shown:
        shape = f"({', '.join(map(str, r.shape))})" if r.shape else ""
        lines.append(f"{r.name:24} {shape:>16} {r.parameters:>13,} {r.flops:>17,}")
    lines.append(f"{'total':24} {'':16} {parameters:>13,} {flops:>17,}")
    memory = f"{parameters * 4 / 2**20:,.1f} MiB in float32"
    lines.append(f"{name}: {parameters / 1e6:,.2f} M parameters, {memory},")
    lines.append(f"{flops / 1e9:,.3f} GFLOPs an image ({flops / 2e9:,.3f} G multiply-adds)")
    return "\n".join(lines)
