"""Multi-head self-attention.

Chapter: 3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Every token looks at every token: multi-head self-attention on a fused kernel.

    Shapes: x (B, T, D) -> (B, T, D), with D = `dim` split into `num_heads` heads of equal width.
    Raises: `ValueError` when `num_heads` does not divide `dim`.
    Source: Dosovitskiy et al. 2021, appendix A, eq. 5 to 8.
    Chapter: 3
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim = {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head_dim)
        x = F.scaled_dot_product_attention(q, k, v)  # (B, heads, T, head_dim)
        x = x.transpose(1, 2).reshape(B, T, D)
        return self.proj_drop(self.proj(x))
