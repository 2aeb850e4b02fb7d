"""Where each patch was: position embeddings, added to the tokens or to the attention scores.

Chapter: 2 (`notebooks/02-positions.ipynb`); resizing: 13.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitmini.patches import as_pair

RESIZE_MODES = ("bicubic", "bilinear", "google", "torchvision", "dino")
PUBLISHED = {  # whose code resizes how: `mode` and `antialias` of `resize_pos_embed`
    "timm": ("bicubic", True),
    "DeiT, HF": ("bicubic", False),
    "Google": ("google", False),
    "torchvision": ("torchvision", False),
    "DINO": ("dino", False),
}


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
    rows, columns = as_pair(grid, "grid")
    if not isinstance(dim, int) or dim % 4 or dim < 8:
        raise ValueError(f"dim must be a multiple of 4 and at least 8, got {dim!r}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    rows_at, columns_at, steps = (
        torch.arange(count, dtype=torch.float32) for count in (rows, columns, dim // 4)
    )
    y, x = torch.meshgrid(rows_at, columns_at, indexing="ij")
    frequencies = temperature ** -(steps / (dim // 4 - 1))  # 1 down to 1/T
    angles = [p.flatten()[:, None] * frequencies for p in (x, y)]  # each (N, dim/4)
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


class LearnedPositions2D(nn.Module):
    """A learned vector for each row and one for each column; a patch gets both, side by side.

    Shapes: returns (1, prefix + N, D): D/2 numbers of the column, then D/2 of the row. Each
        prefix token has a vector of its own. Parameters: (rows + columns) * D/2 + prefix * D.
    Raises: `ValueError` when `grid` or `dim` is not positive, `dim` is odd, or
        `num_prefix_tokens` is negative.
    Source: Dosovitskiy et al. 2021, appendix D.4 ("2-dimensional positional embedding").
    Chapter: 2
    """

    def __init__(self, grid: tuple[int, int], dim: int, num_prefix_tokens: int = 1):
        super().__init__()
        self.grid = as_pair(grid, "grid")
        if not isinstance(dim, int) or dim < 2 or dim % 2:
            raise ValueError(f"dim must be even and positive, got {dim!r}")
        check_prefix(num_prefix_tokens)
        self.prefix = nn.Parameter(torch.zeros(num_prefix_tokens, dim))
        self.rows = nn.Parameter(torch.zeros(self.grid[0], dim // 2))
        self.columns = nn.Parameter(torch.zeros(self.grid[1], dim // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self) -> Tensor:
        rows, columns = self.grid
        x = self.columns.expand(rows, -1, -1)  # (rows, columns, D/2)
        y = self.rows[:, None].expand(-1, columns, -1)  # (rows, columns, D/2)
        patches = torch.cat([x, y], dim=-1).flatten(0, 1)  # (N, D)
        return torch.cat([self.prefix, patches])[None]  # (1, prefix + N, D)


class RelativePositionBias(nn.Module):
    """A learned number for each head and each offset between two patches, added to the scores.

    Nothing is added to the tokens: query and key meet with a bias that depends on how many rows
    and columns apart they are, and on nothing else. Pairs with a prefix token have no offset;
    they share three numbers a head: patch to prefix, prefix to patch, prefix to prefix.

    Shapes: returns (heads, T, T) with T = prefix + N, query first. Starts at zero.
        Parameters: heads * ((2 * rows - 1) * (2 * columns - 1) + 3).
    Raises: `ValueError` when a number is not positive (`num_prefix_tokens`: negative).
    Source: Bao et al. 2022, "BEiT", as in its code (a bias, as in T5 and Swin). The
        relative embedding of Dosovitskiy et al. 2021, appendix D.4, also depends on the query.
    Chapter: 2
    """

    def __init__(self, grid: tuple[int, int], num_heads: int, num_prefix_tokens: int = 1):
        super().__init__()
        self.grid = as_pair(grid, "grid")
        if not isinstance(num_heads, int) or num_heads < 1:
            raise ValueError(f"num_heads must be a positive int, got {num_heads!r}")
        check_prefix(num_prefix_tokens)
        self.num_prefix_tokens = num_prefix_tokens
        rows, columns = self.grid
        self.offsets = nn.Parameter(torch.zeros(num_heads, 2 * rows - 1, 2 * columns - 1))
        self.prefix = nn.Parameter(torch.zeros(num_heads, 3))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.offsets)
        nn.init.zeros_(self.prefix)

    def forward(self) -> Tensor:
        (rows, columns), P = self.grid, self.num_prefix_tokens
        # A query in row i sees the keys of rows 0, 1, ... at the offsets i, i - 1, ...: a window
        # of the table, read backwards. The same holds for columns.
        windows = self.offsets.unfold(1, rows, 1).unfold(2, columns, 1)  # (H, rows, cols, ...)
        patches = windows.flip(-2, -1).flatten(3).flatten(1, 2)  # (H, N, N)
        bias = F.pad(patches, (P, 0, P, 0))  # (H, T, T)
        bias[:, P:, :P] = self.prefix[:, 0, None, None]
        bias[:, :P, P:] = self.prefix[:, 1, None, None]
        bias[:, :P, :P] = self.prefix[:, 2, None, None]
        return bias


def position_similarity(
    pos_embed: Tensor, grid: tuple[int, int], num_prefix_tokens: int = 1
) -> Tensor:
    """Compare each patch's position embedding with every other one's, by the cosine.

    Shapes: `pos_embed` (1, T, D) or (T, D), prefix tokens first; returns float32
        (rows, columns, rows, columns) from -1 to 1: `[i, j]` is the map of the patch in row i,
        column j. A zero vector resembles nothing: 0.
    Raises: `ValueError` when T is not prefix + rows * columns.
    Source: Dosovitskiy et al. 2021, Figure 7, centre.
    Chapter: 2, 12
    """
    rows, columns = as_pair(grid, "grid")
    check_prefix(num_prefix_tokens)
    _, patches = split_prefix(pos_embed, (rows, columns), num_prefix_tokens)
    with torch.autocast(patches.device.type, enabled=False):
        unit = F.normalize(patches.float(), dim=-1)  # (N, D)
        similarity = unit @ unit.T  # (N, N)
    return similarity.reshape(rows, columns, rows, columns)


def resize_pos_embed(
    pos_embed: Tensor,
    new_grid: tuple[int, int],
    old_grid: tuple[int, int] | None = None,
    num_prefix_tokens: int = 1,
    mode: str = "bicubic",
    antialias: bool = True,
) -> Tensor:
    """Interpolate a learned position embedding to another grid, for images of another size.

    `mode` says whose convention: "bicubic" and "bilinear" keep pixel centres, with `antialias`
    as timm does, without as DeiT and Hugging Face do; "google" is bilinear and "torchvision"
    bicubic, both with aligned corners; "dino" is bicubic by a scale factor of (new + 0.1) / old.
    `antialias` matters to the first two only. The prefix passes through untouched, and so does
    everything when the grid stays as it is.

    Shapes: `pos_embed` (1, prefix + N, D); grids are (rows, columns) in patches; returns
        (1, prefix + rows * columns, D), computed in float32, in the type that was given.
    Raises: `ValueError` for an unknown mode, a grid that does not fit, or `old_grid=None` when
        the number of patches is not a perfect square.
    Source: Dosovitskiy et al. 2021, section 3.2; `resample_abs_pos_embed` (timm),
        `interpolate_posembed` (Google), `interpolate_embeddings` (torchvision),
        `interpolate_pos_encoding` (DINO).
    Chapter: 2, 13
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"mode must be one of {', '.join(RESIZE_MODES)}, got {mode!r}")
    check_prefix(num_prefix_tokens)
    rows, columns = new = as_pair(new_grid, "new_grid")
    if not isinstance(pos_embed, Tensor) or pos_embed.ndim != 3 or pos_embed.shape[0] != 1:
        shape = tuple(getattr(pos_embed, "shape", ()))
        raise ValueError(f"pos_embed must be a tensor (1, prefix + N, D), got {shape}")
    if old_grid is None:
        count = pos_embed.shape[1] - num_prefix_tokens
        side = math.isqrt(max(count, 0))
        if side < 1 or side * side != count:
            raise ValueError(f"old_grid must be given: {count} patches are not a square grid")
        old_grid = (side, side)
    old = as_pair(old_grid, "old_grid")
    prefix, patches = split_prefix(pos_embed, old, num_prefix_tokens)
    if new == old:
        return pos_embed
    maps = patches.float().T.reshape(1, -1, *old)  # (1, D, rows, columns)
    if mode == "google":
        maps = F.interpolate(maps, new, mode="bilinear", align_corners=True)
    elif mode == "torchvision":
        maps = F.interpolate(maps, new, mode="bicubic", align_corners=True)
    elif mode == "dino":
        factors = [(n + 0.1) / o for n, o in zip(new, old, strict=True)]
        maps = F.interpolate(maps, scale_factor=factors, mode="bicubic")
    elif columns == 1:  # on a CPU, PyTorch's antialiased kernel fills a single column with its top
        maps = F.interpolate(maps.mT, (1, rows), mode=mode, antialias=antialias).mT
    else:
        maps = F.interpolate(maps, new, mode=mode, antialias=antialias)
    patches = maps.reshape(-1, rows * columns).T.to(pos_embed.dtype)  # (N', D)
    return torch.cat([prefix, patches])[None]


def resize_positions(
    weights: Mapping[str, Tensor],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix_tokens: int = 1,
    mode: str = "bicubic",
    antialias: bool = True,
) -> dict[str, Tensor]:
    """Copy the weights of a `ViT` for another grid: all that depends on positions is resized.

    A place in the picture keeps its position: learned tables are resized, and so are those of rows
    and of columns. Relative offsets keep their distance, about. Everything else is copied
    as it is. (Sines and cosines need no resizing: `ViT.resized` computes them anew.)

    Shapes: `weights` as in `ViT.state_dict()`; grids are (rows, columns) in patches.
    Raises: `ValueError` as `resize_pos_embed` does.
    Source: Dosovitskiy et al. 2021, section 3.2; relative tables as in BEiT's and Swin's code.
    Chapter: 13
    """
    old, new = as_pair(old_grid, "old_grid"), as_pair(new_grid, "new_grid")

    def resize(table: Tensor, to: tuple[int, int], start: tuple[int, int], prefix: int) -> Tensor:
        return resize_pos_embed(table, to, start, prefix, mode, antialias)

    resized = {}
    for name, weight in weights.items():
        weight = weight.detach()
        if name == "pos_embed":
            weight = resize(weight, new, old, num_prefix_tokens)
        elif name == "pos_embed.rows":
            weight = resize(weight[None], (new[0], 1), (old[0], 1), 0)[0]
        elif name == "pos_embed.columns":
            weight = resize(weight[None], (1, new[1]), (1, old[1]), 0)[0]
        elif name.endswith("rel_pos.offsets"):  # (heads, 2 * rows - 1, 2 * columns - 1)
            start, to = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new))
            table = resize(weight.flatten(1).T[None], to, start, 0)  # (1, offsets, heads)
            weight = table[0].T.unflatten(1, to)
        resized[name] = weight.clone(memory_format=torch.contiguous_format)
    return resized


def regrid(source: Any, model: Any, mode: str = "bicubic", antialias: bool = True) -> Any:
    """Fill a `ViT` of another grid with copies of another one's weights: `ViT.resized` in full.

    `model` may be on the meta device; it takes over types, devices, modes and what learns. Sines
    and cosines are computed anew for its grid.
    Raises: `ValueError` as `resize_positions` does.
    Chapter: 13
    """
    count = source.num_prefix_tokens
    weights = resize_positions(source.state_dict(), source.grid, model.grid, count, mode, antialias)
    model.load_state_dict(weights, assign=True)
    for old, new in zip(source.parameters(), model.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    for old, new in zip(source.modules(), model.modules(), strict=True):
        new.training = old.training
    if model.grid != source.grid:  # of the ViT itself: sines and cosines, no learned weight
        model.reset_parameters()
    return model


def split_prefix(
    pos_embed: Tensor, grid: tuple[int, int], num_prefix: int
) -> tuple[Tensor, Tensor]:
    """Part an embedding into the rows of its prefix tokens and those of its patches.

    Shapes: `pos_embed` (1, T, D) or (T, D) -> (prefix, D) and (N, D).
    Raises: `ValueError` when T is not prefix + rows * columns, or it is not floating point.
    Chapter: 2
    """
    rows, columns = grid
    shape = tuple(getattr(pos_embed, "shape", ()))
    fits = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    if not isinstance(pos_embed, Tensor) or not fits or shape[-2] != num_prefix + rows * columns:
        raise ValueError(
            f"pos_embed must be a tensor (1, {num_prefix} + {rows * columns}, D) for a grid of "
            f"{rows}x{columns} patches and {num_prefix} prefix tokens, got {shape}"
        )
    if not pos_embed.is_floating_point():  # whole numbers would be cut off, imaginary parts lost
        raise ValueError(f"pos_embed must be floating point, got {pos_embed.dtype}")
    tokens = pos_embed.reshape(shape[-2], shape[-1])
    return tokens[:num_prefix], tokens[num_prefix:]


def check_prefix(count: int) -> None:
    """Refuse a number of prefix tokens that is not 0, 1, 2, ...

    Raises: `ValueError` when it is negative or no int.
    Chapter: 2
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"num_prefix_tokens must be 0 or a positive int, got {count!r}")
