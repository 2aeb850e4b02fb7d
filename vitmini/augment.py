"""Random changes that leave the label true, for a whole batch at once, on the batch's device.

Chapter: 7.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitmini.data import constants
from vitmini.patches import as_pair

Generator = torch.Generator | None


def _check_images(images: Tensor, channels: tuple[int, ...] = ()) -> None:
    shape = tuple(images.shape) if isinstance(images, Tensor) else images
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(f"images must be a batch, a tensor (B, C, H, W), got {shape}")
    if channels and images.shape[1] not in channels:
        raise ValueError(f"images must have 1 or 3 channels, (B, C, H, W), got {shape}")


def check_number(
    name: str, value: float, least: int = 0, largest: float = math.inf, kind: type = float
) -> None:
    """Refuse what is no finite number from `least` to `largest`, or no int with `kind=int`.

    Raises: `ValueError`, with `name`.
    Chapter: 7
    """
    plain = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not (plain and least <= value <= min(largest, sys.float_info.max)):
        span = f"from {least} to {largest}" if largest < math.inf else f"of {least} or more"
        words = "an int" if kind is int else "a number"
        raise ValueError(f"{name} must be {words} {span}, got {value!r}")


def _check_range(name: str, pair: tuple[float, float]) -> None:
    numbers = isinstance(pair, (tuple, list)) and all(isinstance(v, (int, float)) for v in pair)
    if not (numbers and len(pair) == 2 and 0 < pair[0] <= pair[1] < math.inf):
        raise ValueError(f"{name} must be two rising positive numbers, got {pair!r}")


def random_flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability 1/2, independently.

    Shapes: `images` (B, C, H, W) -> the same.
    Raises: `ValueError` when `images` are not such a batch.
    Source: Touvron et al. 2021, section 6 (as in every recipe for photographs).
    Chapter: 7
    """
    _check_images(images)
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

    Shapes: `images` uint8 or float (B, C, H, W) -> float32 of the same shape. Each amount is
        uniform between minus and plus its bound: `degrees` of rotation, `translate` as a share of
        the image's side, `scale` as a relative change (0.1 is 0.9 to 1.1), `shear` in degrees.
    Raises: `ValueError` when a bound is negative, or `scale` is not below 1.
    Source: Simard, Steinkraus & Platt 2003, section 2 (affine distortions of digits).
    Chapter: 7
    """
    _check_images(images)
    bounds = {"degrees": degrees, "translate": translate, "scale": scale, "shear": shear}
    for name, bound in bounds.items():
        check_number(name, bound)
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
    return _sample(images, grid)


def _sample(images: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Look up each output pixel at its place in `grid`, in float32 whatever the images are."""
    return F.grid_sample(images.to(grid.dtype), grid, mode=mode, align_corners=False)


def random_crop(
    images: Tensor, padding: int, mode: str = "constant", generator: Generator = None
) -> Tensor:
    """Pad each image on all sides, then cut a window of its own size out at a random place.

    Shapes: `images` (B, C, H, W) -> the same; `padding` in pixels. `mode` is "constant" (zeros)
        or "reflect".
    Raises: `ValueError` when `padding` is negative, `mode` is another one, or there are fewer
        pixels than "reflect" has to mirror.
    Source: torchvision's `RandomCrop(size, padding)`; He et al. 2016, section 4.2.
    Chapter: 7
    """
    _check_images(images)
    check_number("padding", padding, kind=int)
    if mode not in ("constant", "reflect"):
        raise ValueError(f"mode must be constant or reflect, got {mode!r}")
    if mode == "reflect" and padding >= min(images.shape[2:]):
        raise ValueError(
            f"padding must be below both sides of the image to reflect, got {padding} for "
            f"{tuple(images.shape[2:])}"
        )
    B = len(images)
    corners = torch.randint(2 * padding + 1, (2, B), generator=generator, device=images.device)
    return crop_at(images, corners[0], corners[1], padding, mode)


def crop_at(
    images: Tensor, top: Tensor, left: Tensor, padding: int, mode: str = "constant"
) -> Tensor:
    """What `random_crop` does, at given places: 0 to 2 * padding, int64 (B,). Chapter: 7."""
    B, _, H, W = images.shape
    wide = images if images.is_floating_point() else images.to(torch.float16)
    padded = F.pad(wide, (padding,) * 4, mode=mode).to(images.dtype) if padding else images
    rows = top[:, None] + torch.arange(H, device=images.device)  # (B, H)
    columns = left[:, None] + torch.arange(W, device=images.device)  # (B, W)
    image = torch.arange(B, device=images.device)[:, None, None]
    cut = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]]  # (B, H, W, C)
    return cut.permute(0, 3, 1, 2).contiguous()


def random_resized_crop(
    images: Tensor,
    size: int | tuple[int, int] | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    generator: Generator = None,
) -> Tensor:
    """Cut a random rectangle out of each image and resize it, bilinear.

    Shapes: `images` uint8 or float (B, C, H, W) -> float32 of the same shape, or of (B, C, rows,
        columns) with `size`. `scale` is the share of the area, `ratio` width over height, drawn
        evenly in its logarithm. A rectangle that is larger than the image is cut down to it.
    Raises: `ValueError` when a range is empty or not positive.
    Source: torchvision's `RandomResizedCrop`; Szegedy et al. 2015, section 6.
    Chapter: 7
    """
    _check_images(images)
    _check_range("scale", scale)
    _check_range("ratio", ratio)
    B, _, H, W = images.shape
    u = torch.rand(4, B, generator=generator, device=images.device)
    area = (scale[0] + u[0] * (scale[1] - scale[0])) * H * W
    shape = torch.exp(math.log(ratio[0]) + u[1] * math.log(ratio[1] / ratio[0]))
    width = (area * shape).sqrt().round().clamp(1, W)
    height = (area / shape).sqrt().round().clamp(1, H)
    top = (u[2] * (H - height + 1)).floor()
    left = (u[3] * (W - width + 1)).floor()
    new = (H, W) if size is None else as_pair(size, "size")
    return resized_crop(images, top, left, height, width, new)


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int]
) -> Tensor:
    """What `random_resized_crop` does, with given rectangles in pixels, each (B,). Chapter: 7."""
    _, _, H, W = images.shape
    device = images.device

    def sample(start: Tensor, length: Tensor, new: int, old: int) -> Tensor:
        at = (torch.arange(new, device=device) + 0.5) / new  # centres, in shares of the rectangle
        pixel = start[:, None] + at * length[:, None] - 0.5
        inside = torch.minimum(pixel, (start + length - 1)[:, None])
        inside = torch.maximum(inside, start[:, None])
        return (2 * inside + 1) / old - 1  # grid_sample's units

    y, x = sample(top, height, size[0], H), sample(left, width, size[1], W)
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[..., None].expand(-1, -1, size[1])])
    return _sample(images, grid.permute(1, 2, 3, 0))


# RandAugment, TrivialAugment and AutoAugment ----------------------------------------------

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)
_COMMON = 14  # RandAugment and TrivialAugment draw from all but Invert, which is AutoAugment's
_SIGNED = range(1, 10)  # ShearX to Sharpness go both ways


def rand_augment(
    images: Tensor,
    num_ops: int = 2,
    magnitude: int = 9,
    bilinear: bool = False,
    generator: Generator = None,
) -> Tensor:
    """Do `num_ops` random operations to each image, one after the other, of one strength.

    Shapes: `images` (B, 1 or 3, H, W) with values from 0 to 255, uint8 or float; returns float
        with whole values. `magnitude` from 0 to 30. What comes in from outside is black.
    Raises: `ValueError` when `num_ops` is negative or `magnitude` outside of its range.
    Source: Cubuk et al. 2020; the ranges are those of torchvision's `RandAugment`.
    Chapter: 7
    """
    _check_images(images, channels=(1, 3))
    check_number("num_ops", num_ops, kind=int)
    check_number("magnitude", magnitude, largest=30)
    B, _, H, W = images.shape
    share = magnitude / 30
    ranges = _learned_ranges(H, W)
    images = images.float()
    strengths = constants([_strength(r, share) for r in ranges], images)
    for _ in range(num_ops):
        ops = torch.randint(_COMMON, (B,), generator=generator, device=images.device)
        images = apply_operations(images, ops, _signed(strengths[ops], ops, generator), bilinear)
    return images


def trivial_augment(images: Tensor, bilinear: bool = False, generator: Generator = None) -> Tensor:
    """Do one random operation to each image, of a random strength.

    Shapes: `images` (B, 1 or 3, H, W) with values from 0 to 255, uint8 or float; returns float
        with whole values.
    Raises: `ValueError` when `images` are not such a batch.
    Source: Müller & Hutter 2021; the ranges are those of torchvision's `TrivialAugmentWide`.
    Chapter: 7
    """
    _check_images(images, channels=(1, 3))
    B = len(images)
    ops = torch.randint(_COMMON, (B,), generator=generator, device=images.device)
    bins = torch.randint(31, (B,), generator=generator, device=images.device)
    share = bins.float() / 30
    ranges = _ranges(32.0, 32.0, 0.99, 135.0, 0.99, 6)
    low = constants([low for low, _ in ranges], share)[ops]
    span = constants([high - low for low, high in ranges], share)[ops]
    strengths = low + share * span
    strengths = torch.where(low == 8, strengths.round(), strengths)  # bits are whole
    signed = _signed(strengths, ops, generator)
    return apply_operations(images.float(), ops, signed, bilinear)


# AutoAugment's policy for CIFAR-10: two operations, each with its probability and its strength in
# ten steps. Operations that have no strength carry a 0.
_POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


def auto_augment(images: Tensor, bilinear: bool = False, generator: Generator = None) -> Tensor:
    """Do one of the 25 pairs of operations that were found for CIFAR-10 to each image.

    Which pair, whether each of its two operations is done, and which way it goes are drawn for
    each image anew.

    Shapes: `images` (B, 1 or 3, H, W) with values from 0 to 255, uint8 or float; returns float
        with whole values. What comes in from outside is black.
    Raises: `ValueError` when `images` are not such a batch.
    Source: Cubuk et al. 2019, Table 7; the ranges are those of torchvision's `AutoAugment`.
    Chapter: 7
    """
    _check_images(images, channels=(1, 3))
    B, device = len(images), images.device
    ops, probabilities, strengths = _policy_table(images)
    pair = torch.randint(len(_POLICY), (B,), generator=generator, device=device)
    u = torch.rand(B, 2, generator=generator, device=device)
    ops = torch.where(u < probabilities[pair], ops[pair], 0)  # 0 is Identity
    images = images.float()
    for i in range(2):
        signed = _signed(strengths[pair, i], ops[:, i], generator)
        images = apply_operations(images, ops[:, i], signed, bilinear)
    return images


def _policy_table(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Operations, probabilities and strengths of `_POLICY` for these images, each (25, 2)."""
    ranges = _learned_ranges(*images.shape[2:])
    flat = [part for pair in _POLICY for part in pair]
    ops = [OPERATIONS.index(name) for name, _, _ in flat]
    probabilities = [p for _, p, _ in flat]
    strengths = [_strength(ranges[op], part[2] / 9) for op, part in zip(ops, flat, strict=True)]
    table = constants([*ops, *probabilities, *strengths], images.float())
    which, chances, how_much = table.view(3, len(_POLICY), 2)
    return which.long(), chances, how_much


def _learned_ranges(H: int, W: int) -> list[tuple[float, float]]:
    """AutoAugment's, which RandAugment took over: shifts go with the size of the image."""
    return _ranges(150 / 331 * W, 150 / 331 * H, 0.3, 30.0, 0.9, 4)


def _ranges(
    right: float, down: float, shear: float, degrees: float, color: float, bits: int
) -> list[tuple[float, float]]:
    """What the strengths 0 and 30 mean for each of `OPERATIONS`."""
    none, blend = (0.0, 0.0), (0.0, color)
    moves = [(0.0, shear)] * 2 + [(0.0, right), (0.0, down), (0.0, degrees)]
    return [none, *moves, *[blend] * 4, (8.0, 8.0 - bits), (255.0, 0.0), *[none] * 3]


def _strength(span: tuple[float, float], share: float) -> float:
    low, high = span
    value = low + share * (high - low)
    return float(round(value)) if low == 8.0 else value  # bits are whole


def _signed(strengths: Tensor, ops: Tensor, generator: Generator) -> Tensor:
    sign = torch.randint(2, ops.shape, generator=generator, device=ops.device) * 2 - 1
    both = (ops >= _SIGNED.start) & (ops < _SIGNED.stop)
    return torch.where(both, strengths * sign, strengths)


def apply_operations(
    images: Tensor, ops: Tensor, strengths: Tensor, bilinear: bool = False
) -> Tensor:
    """Do to each image the operation of `OPERATIONS` that `ops` names, with its own strength.

    Everything is computed for the whole batch and then chosen from, so that a GPU never waits to
    be told which images are which.

    Shapes: `images` float (B, 1 or 3, H, W), whole values from 0 to 255 -> the same; `ops` int64
        (B,), `strengths` float (B,) in the units of torchvision: pixels, degrees, a relative
        change, bits, a threshold.
    Source: torchvision, `transforms/autoaugment.py`, `_apply_op`.
    Chapter: 7
    """
    moved = _move(images, ops, strengths, bilinear)
    chosen = torch.where(_is(ops, 1, 5), moved, images)
    dull = _degenerate(images, ops)
    factor = (1 + strengths).view(-1, 1, 1, 1)
    blended = (dull + factor * (images - dull) + 1e-4).clamp(0, 255).floor()  # 1e-4: rounding
    chosen = torch.where(_is(ops, 6, 9), blended, chosen)
    step = torch.exp2(8 - strengths.view(-1, 1, 1, 1).clamp(0, 8))
    chosen = torch.where(_is(ops, 10, 10), (images / step).floor() * step, chosen)
    above = images >= strengths.view(-1, 1, 1, 1)
    chosen = torch.where(_is(ops, 11, 11) & above, 255 - images, chosen)
    chosen = torch.where(_is(ops, 12, 12), _autocontrast(images), chosen)
    chosen = torch.where(_is(ops, 13, 13), _equalize(images), chosen)
    return torch.where(_is(ops, 14, 14), 255 - images, chosen)


def _is(ops: Tensor, first: int, last: int) -> Tensor:
    return ((ops >= first) & (ops <= last)).view(-1, 1, 1, 1)


def _move(images: Tensor, ops: Tensor, strengths: Tensor, bilinear: bool) -> Tensor:
    """ShearX to Rotate: where each output pixel looks, in pixels from the centre."""
    B, _, H, W = images.shape
    zero, one = torch.zeros_like(strengths), torch.ones_like(strengths)
    shear_x, shear_y = (torch.where(ops == i, strengths, zero) for i in (1, 2))
    right, down = (torch.where(ops == i, strengths.trunc(), zero) for i in (3, 4))
    angle = torch.where(ops == 5, strengths, zero) * (math.pi / 180)
    cos, sin = torch.where(ops == 5, angle.cos(), one), torch.where(ops == 5, angle.sin(), zero)
    # Shears leave the upper left corner where it is, rotations the centre.
    row_x = torch.stack([cos, shear_x - sin, shear_x * (H / 2) - right])
    row_y = torch.stack([shear_y + sin, cos, shear_y * (W / 2) - down])
    y = torch.arange(H, device=images.device) + 0.5 - H / 2
    x = torch.arange(W, device=images.device) + 0.5 - W / 2
    points = torch.stack(
        [x.expand(H, W).flatten(), y[:, None].expand(H, W).flatten(), x.new_ones(H * W)]
    )
    at_x = (row_x.T @ points) * (2 / W)  # (B, H * W), in grid_sample's units
    at_y = (row_y.T @ points) * (2 / H)
    grid = torch.stack([at_x, at_y], dim=-1).view(B, H, W, 2)
    mode = "bilinear" if bilinear else "nearest"
    moved = _sample(images, grid, mode)
    return moved.round() if bilinear else moved


def _degenerate(images: Tensor, ops: Tensor) -> Tensor:
    """What Brightness, Color, Contrast and Sharpness blend with: black, grey, flat, blurred."""
    grey = _grey(images)
    flat = grey.mean(dim=(1, 2, 3), keepdim=True)
    dull = torch.zeros_like(images)
    dull = torch.where(_is(ops, 7, 7), grey, dull)
    dull = torch.where(_is(ops, 8, 8), flat, dull)
    return torch.where(_is(ops, 9, 9), _blur(images), dull)


def _grey(images: Tensor) -> Tensor:
    """Luminance, as whole numbers; of a grey image, itself."""
    if images.shape[1] == 1:
        return images
    weights = constants([0.2989, 0.587, 0.114], images).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).floor()


def _blur(images: Tensor) -> Tensor:
    C, H, W = images.shape[1:]
    if H <= 2 or W <= 2:
        return images
    kernel = images.new_ones(3, 3)
    kernel[1, 1].fill_(5)  # `= 5` copies a number to the device in some versions of PyTorch
    weights = (kernel / 13).expand(C, 1, 3, 3)
    blurred = images.clone()
    blurred[:, :, 1:-1, 1:-1] = F.conv2d(images, weights, groups=C).round()
    return blurred


def _autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel from its darkest and brightest pixel to 0 and 255."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    scale = 255 / (high - low)
    flat = ~scale.isfinite()
    low, scale = low.masked_fill(flat, 0), scale.masked_fill(flat, 1)
    return ((images - low) * scale).clamp(0, 255).floor()


def _equalize(images: Tensor) -> Tensor:
    """Map each channel's values so that all of them become about equally frequent."""
    B, C, H, W = images.shape
    values = images.long().reshape(B * C, H * W)
    histogram = images.new_zeros(B * C, 256)
    histogram.scatter_add_(1, values, torch.ones_like(values, dtype=histogram.dtype))
    brightest = histogram.gather(1, values.amax(dim=1, keepdim=True))
    step = ((H * W - brightest) / 255).floor()  # (B * C, 1)
    table = ((histogram.cumsum(1) + (step / 2).floor()) / step.clamp(min=1)).floor()
    table = F.pad(table, (1, 0))[:, :-1].clamp(0, 255)
    mapped = torch.where(step > 0, table.gather(1, values), values.to(table.dtype))
    return mapped.view(B, C, H, W)


# Colour, erasing, mixing --------------------------------------------------------------------


def color_jitter(
    images: Tensor,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    generator: Generator = None,
) -> Tensor:
    """Change brightness, contrast and saturation of each image, in this order, by random factors.

    Shapes: `images` float (B, 1 or 3, H, W) in [0, 255] -> the same. Each factor is uniform from
        1 - bound to 1 + bound, and not below 0. (torchvision also shuffles the order.)
    Raises: `ValueError` when a bound is negative.
    Source: torchvision's `ColorJitter`; Touvron et al. 2021, Table 9 (0.3 each, in their code).
    Chapter: 7
    """
    bounds = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    _check_images(images, channels=(1, 3))
    for name, bound in bounds.items():
        check_number(name, bound)
    u = torch.rand(3, len(images), generator=generator, device=images.device) * 2 - 1
    factors = (1 + u * constants(list(bounds.values()), u)[:, None]).clamp(min=0)
    return adjust_color(images, *factors)


def adjust_color(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor):
    """What `color_jitter` does, with given factors, each (B,). Chapter: 7."""

    def blend(image: Tensor, dull: Tensor | float, factor: Tensor) -> Tensor:
        factor = factor.view(-1, 1, 1, 1)
        return (factor * image + (1 - factor) * dull).clamp(0, 255)

    def grey(image: Tensor) -> Tensor:
        if image.shape[1] == 1:
            return image
        weights = constants([0.2989, 0.587, 0.114], image).view(1, 3, 1, 1)
        return (image * weights).sum(1, True)

    images = blend(images, 0.0, brightness)
    images = blend(images, grey(images).mean(dim=(1, 2, 3), keepdim=True), contrast)
    return blend(images, grey(images), saturation)


def random_erasing(
    images: Tensor,
    probability: float = 0.25,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    noise: bool = True,
    generator: Generator = None,
) -> Tensor:
    """Overwrite a random rectangle of some images, with noise or with zeros.

    Shapes: `images` float (B, C, H, W), normalised -> the same. `scale` is the rectangle's share
        of the area, `ratio` its height over its width, drawn evenly in its logarithm.
    Raises: `ValueError` when `images` are not float, `probability` is not in [0, 1], or a range is
        empty or not positive.
    Source: Zhong et al. 2020; timm's and DeiT's "pixel" mode is `noise=True`.
    Chapter: 7
    """
    _check_images(images)
    if not images.is_floating_point():
        raise ValueError(f"images must be float and normalised, got {images.dtype}")
    check_number("probability", probability, largest=1)
    _check_range("scale", scale)
    _check_range("ratio", ratio)
    B, _, H, W = images.shape
    device = images.device
    u = torch.rand(5, B, generator=generator, device=device)
    area = (scale[0] + u[0] * (scale[1] - scale[0])) * H * W
    shape = torch.exp(math.log(ratio[0]) + u[1] * math.log(ratio[1] / ratio[0]))
    height = (area * shape).sqrt().round().clamp(max=H)
    width = (area / shape).sqrt().round().clamp(max=W)
    top, left = (u[2] * (H - height + 1)).floor(), (u[3] * (W - width + 1)).floor()
    inside = _rectangles(top, left, height, width, H, W) & (u[4] < probability)[:, None, None]
    if noise:
        fill = torch.randn(images.shape, generator=generator, device=device, dtype=images.dtype)
    else:
        fill = torch.zeros_like(images)
    return torch.where(inside[:, None], fill, images)


def _rectangles(top: Tensor, left: Tensor, height: Tensor, width: Tensor, H: int, W: int) -> Tensor:
    """Booleans (B, H, W), True inside of each image's rectangle."""
    y, x = torch.arange(H, device=top.device), torch.arange(W, device=top.device)
    rows = (y >= top[:, None]) & (y < (top + height)[:, None])  # (B, H)
    columns = (x >= left[:, None]) & (x < (left + width)[:, None])  # (B, W)
    return rows[:, :, None] & columns[:, None]


@dataclass(frozen=True)
class Mixed:
    """A batch after mixing: images (B, C, H, W), targets (B, K) that sum to 1, the share kept."""

    images: Tensor
    targets: Tensor
    share: Tensor


def mix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
    smoothing: float = 0.0,
    generator: Generator = None,
) -> Mixed:
    """Mix each image with another one of the batch, and its label alike: mixup or CutMix.

    One of the two is chosen for the whole batch, CutMix with probability `switch`; one share is
    drawn from Beta(alpha, alpha); the partner of image i is image B - 1 - i. A CutMix share is
    corrected to the area that was really pasted.
    Shapes: `images` float (B, C, H, W), `labels` int64 (B,); targets (B, K) are soft, with
        `smoothing` already in them. An alpha of 0 switches that kind off.
    Raises: `ValueError` when a number is out of its range, or `labels` are not one for each image.
    Source: Zhang et al. 2018 (mixup); Yun et al. 2019 (CutMix); the switch, the partner and the
        correction are timm's `Mixup`, which DeiT uses (Touvron et al. 2021, Table 9).
    Chapter: 7
    """
    _check_images(images)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError("labels must be int64 (B,), the number of each image's class")
    if len(labels) != len(images):
        raise ValueError(f"labels must be one for each of {len(images)} images, got {len(labels)}")
    check_number("num_classes", num_classes, least=1, kind=int)
    check_number("mixup", mixup)
    check_number("cutmix", cutmix)
    check_number("switch", switch, largest=1)
    check_number("smoothing", smoothing, largest=1)
    if smoothing == 1:
        raise ValueError("smoothing must be below 1, got 1")
    device = images.device
    targets = one_hot(labels, num_classes, smoothing)
    if mixup == 0 and cutmix == 0:
        return Mixed(images, targets, torch.ones((), device=device))
    u = torch.rand(4, generator=generator, device=device)
    cut = (u[0] < switch) if mixup and cutmix else torch.full((), cutmix > 0, device=device)
    shares = [_beta(alpha, generator, device) if alpha else u[1] for alpha in (mixup, cutmix)]
    share = torch.where(cut, shares[1], shares[0])
    H, W = images.shape[2:]
    side = (1 - share).sqrt()
    top, left, bottom, right = _cut_box(u[2], u[3], side, H, W)
    pasted = _rectangles(top[None], left[None], (bottom - top)[None], (right - left)[None], H, W)
    exact = 1 - (bottom - top) * (right - left) / (H * W)
    share = torch.where(cut, exact, share)
    partner = images.flip(0)
    blended = images * share + partner * (1 - share)
    images = torch.where(cut, torch.where(pasted, partner, images), blended)
    return Mixed(images, targets * share + targets.flip(0) * (1 - share), share)


def one_hot(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Write labels (B,) as targets (B, K): 1 - smoothing + smoothing / K, and smoothing / K.

    Source: Szegedy et al. 2016, section 7.
    Chapter: 7
    """
    hot = (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
    return hot * (1 - smoothing) + smoothing / num_classes


def _cut_box(v: Tensor, h: Tensor, side: Tensor, H: int, W: int) -> tuple[Tensor, ...]:
    """A rectangle around a random point, cut off at the edges: top, left, bottom, right."""
    height, width = (H * side).floor(), (W * side).floor()
    y, x = (v * H).floor(), (h * W).floor()
    half_h, half_w = (height / 2).floor(), (width / 2).floor()
    return (
        (y - half_h).clamp(0, H),
        (x - half_w).clamp(0, W),
        (y + half_h).clamp(0, H),
        (x + half_w).clamp(0, W),
    )


def _beta(alpha: float, generator: Generator, device: torch.device) -> Tensor:
    """Draw from Beta(alpha, alpha) with a generator: the share of one of two Gamma draws."""
    concentration = torch.full((2,), float(alpha), device=device)
    gamma = torch._standard_gamma(concentration, generator=generator)
    return gamma[0] / gamma.sum()
