"""Where each patch was: position embeddings.

Chapter: 2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_positions(grid: tuple[int, int], dim: int, temperature: float = 10000.0) -> Tensor:
    """Fixed 2-D position embedding: sines and cosines of the column, then of the row.

    Shapes: `grid` is (rows, columns) in patches; returns (N, dim) float32, row by row:
        dim/4 sines and dim/4 cosines of the column, then the same of the row.
    Raises: `ValueError` when `grid` is not positive, `dim` is not a multiple of 4 that is at
        least 8, or `temperature` is not positive.
    Source: Beyer, Zhai & Kolesnikov 2022, "Better plain ViT baselines", section 2
        (`posemb_sincos_2d` of big_vision).
    Chapter: 2
    """
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"grid must be a positive (rows, columns), got {grid!r}")
    if dim % 4 or dim < 8:
        raise ValueError(f"dim must be a multiple of 4 and at least 8, got {dim}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    frequencies = temperature ** -(torch.arange(dim // 4) / (dim // 4 - 1))  # 1 down to 1/T
    angles = [p.flatten()[:, None] * frequencies for p in (x, y)]  # each (N, dim/4)
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
