"""Multi-head self-attention: by hand, and on PyTorch's fused kernel.

Chapter: 3 (`notebooks/03-attention.ipynb`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitmini.patches import as_pair


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """How much each query takes from each key: the softmax of their scaled dot products.

    Shapes: `q` (..., T, d), `k` (..., S, d) -> (..., T, S), rows that sum to 1. `mask` broadcasts
        to (..., T, S): boolean, True where a query may look, or numbers that are added to the
        scores. `scale` defaults to 1/sqrt(d). The softmax is computed in float32 at least, the
        result has the type of the scores. A query that may look nowhere gets zeros.
    Raises: `ValueError` when the widths of `q` and `k` differ, or `mask` does not fit.
    Source: Vaswani et al. 2017, eq. 1; Dosovitskiy et al. 2021, eq. 6.
    Chapter: 3
    """
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q and k must have the same width, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = (q * scale) @ k.transpose(-2, -1)  # (..., T, S)
    check_mask(mask, scores.shape)
    wide = add_mask(scores.double() if scores.dtype.itemsize > 4 else scores.float(), mask)
    nowhere = (wide == -float("inf")).all(dim=-1, keepdim=True)  # (..., T, 1)
    weights = wide.masked_fill(nowhere, 0.0).softmax(dim=-1).masked_fill(nowhere, 0.0)
    return weights.to(scores.dtype)


def attention_by_hand(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention in the open: the weighted averages of the values, and the weights.

    Shapes: `q` (..., T, d), `k` (..., S, d), `v` (..., S, e) -> output (..., T, e) and weights
        (..., T, S); `mask` and `scale` as in `attention_weights`. The output equals
        `F.scaled_dot_product_attention(q, k, v, mask)` up to rounding.
    Raises: `ValueError` when the widths of `q` and `k` or the lengths of `k` and `v` differ, or
        `mask` does not fit.
    Source: Vaswani et al. 2017, eq. 1; Dosovitskiy et al. 2021, eq. 6 and 7.
    Chapter: 3
    """
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"k and v must have the same length, got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    weights = attention_weights(q, k, mask, scale)
    return weights @ v, weights


class Attention(nn.Module):
    """Every token looks at every token: multi-head self-attention on a fused kernel.

    Shapes: x (B, T, D) -> (B, T, D), with D = `dim` split into `num_heads` heads of equal width.
        `mask` broadcasts to (B, heads, T, T): boolean, True where a query may look, or numbers
        that are added to the scores; a ViT needs none. `rel_pos()` gives a bias (heads, T, T).
    Raises: `ValueError` when `num_heads` does not divide `dim`, `x` has another width, or `mask`
        does not fit.
    Source: Dosovitskiy et al. 2021, appendix A, eq. 5 to 8.
    Chapter: 3
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        rel_pos: nn.Module | None = None,
    ):
        super().__init__()
        as_pair((dim, num_heads), "(dim, num_heads)")
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim = {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.rel_pos = rel_pos

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.qkv.in_features:
            raise ValueError(
                f"x must be tokens (B, T, {self.qkv.in_features}), got {tuple(x.shape)}"
            )
        B, T, D = x.shape
        check_mask(mask, (B, self.num_heads, T, T))
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, heads, T, head_dim)
        if self.rel_pos is not None:
            mask = add_mask(self.rel_pos(), mask)  # (heads, T, T), or with B before it
        if mask is not None:
            mask = torch.atleast_2d(mask)  # the kernel does not know (T,)
            mask = mask.to(q.dtype) if mask.is_floating_point() else mask
        x = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale)
        x = x.transpose(1, 2).reshape(B, T, D)  # the heads side by side
        return self.proj_drop(self.proj(x))


def add_mask(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Forbid keys to queries, or favour some: what a mask does to the scores.

    Shapes: `scores` (..., T, S); `mask` broadcasts to it: boolean, where False becomes minus
        infinity, or numbers to add.
    Source: Vaswani et al. 2017, section 3.2.3.
    Chapter: 3
    """
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -float("inf")) if mask.dtype == torch.bool else scores + mask


def check_mask(mask: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse a mask that is neither boolean nor floating point, or does not broadcast to `shape`.

    Raises: `ValueError` that says what would fit.
    Chapter: 3
    """
    if mask is None:
        return
    fits = mask.ndim <= len(shape) and all(
        m in (1, s) for m, s in zip(reversed(mask.shape), reversed(shape), strict=False)
    )
    if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(
            f"mask must be boolean or floating point and broadcast to {tuple(shape)}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
