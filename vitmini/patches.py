"""Images to patches and back, and the linear projection that turns a patch into a token.

Chapter: 1 (`notebooks/01-patches.ipynb`).
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


def as_pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """Read a size given as one number or as (rows, columns).

    Shapes: none; returns two positive integers (rows, columns).
    Raises: `ValueError` that names the argument `name` when it is anything else.
    Chapter: 1
    """
    pair = (value, value) if isinstance(value, int) else value
    if not (
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in pair)
    ):
        raise ValueError(f"{name} must be a positive int or a pair of them, got {value!r}")
    return pair[0], pair[1]


def patch_grid(
    image_size: int | tuple[int, int], patch_size: int | tuple[int, int]
) -> tuple[int, int]:
    """Count the patches of an image: (rows, columns) of the patch grid.

    Shapes: sizes in pixels, an int or (rows, columns); N = rows * columns patches.
    Raises: `ValueError` when a size is not positive or the image does not divide into patches.
    Source: Dosovitskiy et al. 2021, section 3.1, N = HW / P².
    Chapter: 1
    """
    H, W = as_pair(image_size, "image_size")
    P, Q = as_pair(patch_size, "patch_size")
    if H % P or W % Q:
        raise ValueError(
            f"image_size {H}x{W} does not divide into patches of {P}x{Q} pixels: "
            f"crop or resize to a multiple, such as {max(P, H // P * P)}x{max(Q, W // Q * Q)}"
        )
    return H // P, W // Q


def patchify(images: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Cut images into patches and flatten each: a picture becomes a sequence.

    Shapes: `images` (B, C, H, W), any dtype; returns (B, N, C*P*Q), row by row, each patch
        channel first (c, row, column). So `patchify(x, P) @ conv.weight.flatten(1).T` is the
        strided convolution without its bias.
    Raises: `ValueError` when `images` is not 4-D or does not divide into patches.
    Source: Dosovitskiy et al. 2021, section 3.1 and eq. 1.
    Chapter: 1
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = tuple(getattr(images, "shape", ()))
        raise ValueError(
            f"images must be a tensor (B, C, H, W), got {type(images).__name__} {shape}"
        )
    P, Q = as_pair(patch_size, "patch_size")
    patch_grid((images.shape[2], images.shape[3]), (P, Q))
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=P, q=Q)


def unpatchify(
    patches: Tensor,
    patch_size: int | tuple[int, int],
    image_size: int | tuple[int, int],
    channels: int = 3,
) -> Tensor:
    """Put patches back together: the exact inverse of `patchify`.

    Shapes: `patches` (B, N, C*P*Q); `image_size` in pixels; returns images (B, C, H, W).
    Raises: `ValueError` when N or the patch length does not fit the sizes that are given.
    Source: Dosovitskiy et al. 2021, section 3.1, read backwards.
    Chapter: 1
    """
    if not isinstance(patches, Tensor) or patches.ndim != 3:
        shape = tuple(getattr(patches, "shape", ()))
        raise ValueError(
            f"patches must be a tensor (B, N, C*P*Q), got {type(patches).__name__} {shape}"
        )
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise ValueError(f"channels must be a positive int, got {channels!r}")
    P, Q = as_pair(patch_size, "patch_size")
    h, w = patch_grid(image_size, (P, Q))
    if patches.shape[1:] != (h * w, channels * P * Q):
        raise ValueError(
            f"patches must be (B, {h * w}, {channels * P * Q}) for a {h}x{w} grid of "
            f"{channels}x{P}x{Q} patches, got {tuple(patches.shape)}"
        )
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, c=channels, p=P, q=Q)


class PatchEmbed(nn.Module):
    """Project each patch to a token: one linear map, written as a strided convolution.

    Shapes: images (B, C, H, W) -> tokens (B, N, D); `dim` is D, sizes in pixels.
    Raises: `ValueError` for images of another size or with other channels than it was made for.
    Source: Dosovitskiy et al. 2021, eq. 1 (the matrix E; the code adds a bias).
    Chapter: 1
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        dim: int = 768,
    ):
        super().__init__()
        self.image_size = as_pair(image_size, "image_size")
        self.patch_size = as_pair(patch_size, "patch_size")
        self.grid = patch_grid(self.image_size, self.patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        as_pair((in_channels, dim), "(in_channels, dim)")
        self.proj = nn.Conv2d(in_channels, dim, self.patch_size, stride=self.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        expected = (self.proj.in_channels, *self.image_size)
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1:] != expected:
            shape = tuple(getattr(images, "shape", ()))
            raise ValueError(
                f"images must be a tensor (B, {expected[0]}, {expected[1]}, {expected[2]}), "
                f"got {type(images).__name__} {shape}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point, got {images.dtype}: normalise first")
        x = self.proj(images)  # (B, D, rows, columns)
        return x.flatten(2).transpose(1, 2)  # (B, N, D)
