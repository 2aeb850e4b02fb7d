"""Random changes that leave the label true, for a whole batch at once, on the batch's device.

Chapter: 7.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2, independently.

    Shapes: `images` (B, C, H, W) -> the same.
    Source: Touvron et al. 2021, section 6 (as in every recipe for photographs).
    Chapter: 7
    """
    u = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return torch.where(u < 0.5, images.flip(-1), images)


def random_affine(
    images: Tensor,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rotate, shift, scale and shear each image by its own random amounts; fill with zeros.

    Shapes: `images` float (B, C, H, W) -> the same. Each amount is uniform between minus and plus
        its bound: `degrees` of rotation, `translate` as a share of the image's side, `scale` as a
        relative change (0.1 is 0.9 to 1.1), `shear` in degrees.
    Raises: `ValueError` when a bound is negative, or `scale` is not below 1.
    Source: Simard, Steinkraus & Platt 2003, section 2 (affine distortions of digits).
    Chapter: 7
    """
    bounds = {"degrees": degrees, "translate": translate, "scale": scale, "shear": shear}
    for name, bound in bounds.items():
        if bound < 0:
            raise ValueError(f"{name} must not be negative, got {bound}")
    if scale >= 1:
        raise ValueError(f"scale must be below 1, got {scale}")
    B, _, H, W = images.shape
    u = torch.rand(6, B, generator=generator, device=images.device) * 2 - 1
    angle, skew = u[0] * math.radians(degrees), torch.tan(u[1] * math.radians(shear))
    zoom_x, zoom_y = 1 + u[2] * scale, 1 + u[3] * scale
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Rows of the inverse map, from output to input, in grid_sample's units: -1 to 1 is one side.
    row_x = torch.stack([cos / zoom_x, (skew * cos - sin) * H / W / zoom_y, u[4] * 2 * translate])
    row_y = torch.stack([sin * W / H / zoom_x, (skew * sin + cos) / zoom_y, u[5] * 2 * translate])
    theta = torch.stack([row_x, row_y]).permute(2, 0, 1)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
