"""The encoder block: attention and an MLP, each behind a norm and around a shortcut.

Chapter: 4.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitmini.attention import Attention
from vitmini.patches import as_pair


class MLP(nn.Module):
    """Two linear layers with a GELU between them, applied to each token alone.

    Shapes: x (B, T, D) -> (B, T, D), through a hidden width `hidden_dim`. `gelu="tanh"` is the
        approximation that Google's weights were trained with.
    Raises: `ValueError` when a width is not positive, or `gelu` is neither "exact" nor "tanh".
    Source: Dosovitskiy et al. 2021, section 3.1; Hendrycks & Gimpel 2016 (GELU).
    Chapter: 4
    """

    def __init__(self, dim: int, hidden_dim: int, gelu: str = "exact", dropout: float = 0.0):
        super().__init__()
        if gelu not in ("exact", "tanh"):
            raise ValueError(f"gelu must be exact or tanh, got {gelu!r}")
        as_pair((dim, hidden_dim), "(dim, hidden_dim)")
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate="tanh" if gelu == "tanh" else "none")
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth: drop a whole residual branch, independently for each image.

    Shapes: x (B, ...) -> the same; kept samples are divided by the keep rate in training,
        nothing happens in evaluation.
    Raises: `ValueError` when `rate` is outside [0, 1).
    Source: Huang et al. 2016, section 3; Touvron et al. 2021, Table 9 (with their code: each
        image draws for itself).
    Chapter: 4
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (keep.to(x.dtype) / (1 - self.rate))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """The linear rule: 0 in the first of `depth` blocks, `rate` in the last, even steps between.

    Raises: `ValueError` when `rate` is outside [0, 1) or `depth` is below 1.
    Source: Huang et al. 2016, eq. 4, which starts at rate / depth; Touvron et al. 2021, Table 9
        (their code starts at 0, as here).
    Chapter: 4
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class LayerScale(nn.Module):
    """Multiply each channel of a residual branch by a learned factor that starts small.

    Shapes: x (B, T, D) -> the same; `init` is the first value of all D factors.
    Source: Touvron et al. 2021, "Going deeper with image transformers", section 2.
    Chapter: 4
    """

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.init)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """One encoder layer: attention, then an MLP, each added to the residual stream.

    Shapes: x (B, T, D) -> (B, T, D). `norm="pre"` normalises the branch's input, as the ViT
        does; `norm="post"` normalises after the sum, as the first transformer did.
    Raises: `ValueError` for another `norm`, and from `Attention`, `MLP` and `DropPath`.
    Source: Dosovitskiy et al. 2021, eq. 2 and 3; Vaswani et al. 2017, section 3.1 (post-norm).
    Chapter: 4
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm: str = "pre",
        norm_eps: float = 1e-6,
        gelu: str = "exact",
        rel_pos: nn.Module | None = None,
    ):
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be pre or post, got {norm!r}")
        self.pre_norm = norm == "pre"
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, dropout, rel_pos)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, int(dim * mlp_ratio), gelu, dropout)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))  # (B, T, D)
            return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        x = self.norm1(x + self.drop_path(self.ls1(self.attn(x))))
        return self.norm2(x + self.drop_path(self.ls2(self.mlp(x))))


def residual_stream(blocks: Iterable[Block], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Run tokens through blocks, and keep the stream at every stop and all that is added to it.

    Shapes: x (B, T, D) and L blocks -> 1 + 2L states, the first of them x and the last what the
        blocks give, and 2L branches, attention and MLP in turn; each (B, T, D).
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits" (the stream).
    Chapter: 4
    """
    states, branches = [x], []
    for block in blocks:
        for norm, layer, scale in (
            (block.norm1, block.attn, block.ls1),
            (block.norm2, block.mlp, block.ls2),
        ):
            x = states[-1]
            branch = block.drop_path(scale(layer(norm(x) if block.pre_norm else x)))
            branches.append(branch)
            states.append(x + branch if block.pre_norm else norm(x + branch))
    return states, branches
