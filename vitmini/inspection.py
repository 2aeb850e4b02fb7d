"""Looking inside a trained ViT: attention maps and their distance, filters, representations.

Chapter: 11 and 12.
"""

from __future__ import annotations

import functools
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vitmini.patches import as_pair
from vitmini.positions import check_prefix

Reduce = Callable[[Tensor], Tensor]

# How far a layer's own output may be from that of the recomputed weights, relative to its length:
# far more than rounding on any kernel, far less than a mask or a rotation that we do not know of.
_ROUNDING = {torch.float64: 1e-3, torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


# Attention out of a fused model ---------------------------------------------------------------


@torch.no_grad()
def attention_maps(
    model: nn.Module,
    images: Tensor,
    layers: int | Sequence[int] | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """Compute what a model's layers attend to: the softmax that its fused kernel never shows.

    A hook on each `qkv` sees the queries and keys, softmax(q k^T * scale + bias) is computed from
    them in float32, and what it makes of the values is compared with what the layer itself made.
    So it works for the models of vitmini and timm, compiled, frozen or in half precision. They run
    in evaluation mode and stay as they were, gradients and random numbers included.

    A map has T² entries a head: of ViT-L at 384 pixels 21 MB an image and layer. Only the `layers`
    that are asked for are kept, and of each one only what `reduce` makes of its maps.

    Shapes: `images` (B, C, H, W), normalised; they are moved to the model's device and type.
        `layers` counts from 0, or from the end with negative numbers (None: all). Returns
        (L, B, heads, T, T), query before key, on the model's device; rows sum to 1. With `reduce`,
        a function of one layer's (B, heads, T, T), its results are stacked: (L, ...). Layers are
        those that have an attention: where some blocks have none, they are not counted.
    Raises: `ValueError` when the model has no attention with a `qkv`, a layer does not exist, or
        one does more than this formula (a mask, rotated queries).
    Source: Dosovitskiy et al. 2021, appendix A, eq. 6.
    Chapter: 11
    """
    attentions = _find_attentions(model)
    stack = _Stack(layers, len(attentions), reduce)
    hooks = []
    try:
        for i in stack.missing:
            name, attn = attentions[i]
            hooks += _watch(attn, f"layer {i} ({name})", functools.partial(stack.add, i))
        with _as_it_is(model):
            model(_fit(images, model))
    finally:
        for hook in hooks:
            hook.remove()
    if stack.missing:
        i = stack.missing[0]
        raise ValueError(f"layer {i} ({attentions[i][0]}) was not called with its qkv")
    return stack.whole


def recompute_attention(attn: Any, qkv: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention does with what its `qkv` gave: the weights, and the values they mix.

    It uses what it finds in `attn`: `num_heads`, and if they are there `scale`, norms of queries
    and keys (`q_norm`, `k_norm`), a relative position bias (`rel_pos`) and a `norm` of the output.

    Shapes: `qkv` (B, T, 3D) -> weights (B, heads, T, T), and what `attn.proj` gets, (B, T, D), both
        in float32 at least.
    Raises: `ValueError` when `qkv` does not divide into queries, keys and values of heads.
    Source: Dosovitskiy et al. 2021, appendix A, eq. 5 to 7.
    Chapter: 11
    """
    heads = getattr(attn, "num_heads", None)
    if not isinstance(qkv, Tensor) or qkv.ndim != 3 or not isinstance(heads, int):
        raise ValueError("it is no attention over tokens (B, T, D) with num_heads")
    B, T, width = qkv.shape
    if width % (3 * heads):
        raise ValueError(f"its qkv has a width of {width}, not 3 * {heads} heads")
    q, k, v = qkv.reshape(B, T, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    q, k = _part(attn, "q_norm", q), _part(attn, "k_norm", k)  # (B, heads, T, head_dim)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    with torch.autocast(qkv.device.type, enabled=False):
        scores = (q * getattr(attn, "scale", q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
        rel_pos = getattr(attn, "rel_pos", None)
        if rel_pos is not None:  # (heads, T, T); timm's has another name for it
            bias = rel_pos.get_bias() if hasattr(rel_pos, "get_bias") else rel_pos()
            scores += bias.to(qkv.dtype)  # as the kernel has it
        weights = scores.softmax(dim=-1)
        out = (weights @ v).transpose(1, 2).flatten(2)
    return weights, _part(attn, "norm", out.to(qkv.dtype)).to(wide)


def _part(attn: Any, name: str, x: Tensor) -> Tensor:
    part = getattr(attn, name, None)
    return part(x) if isinstance(part, nn.Module) else x


def _watch(attn: Any, who: str, keep: Callable[[Tensor], None]) -> list[Any]:
    """Hook one attention: keep its weights, and compare what they give with what it gives."""
    expected: list[Tensor] = []

    def see_qkv(_: nn.Module, __: Any, qkv: Tensor) -> None:
        try:
            weights, ours = recompute_attention(attn, qkv)
        except ValueError as error:
            raise ValueError(f"{who}: {error}") from None
        if not ours.isfinite().all():
            raise ValueError(f"{who} is not finite: do the images or the weights hold NaN?")
        expected.append(ours)
        keep(weights)

    def see_output(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        theirs, ours = inputs[0], expected.pop() if expected else inputs[0].new_empty(0)
        if ours.shape == theirs.shape:
            error = (theirs.to(ours.dtype) - ours).norm()
            if error <= _ROUNDING.get(theirs.dtype, 2e-3) * ours.norm():
                return
        raise ValueError(
            f"{who} does more than softmax(q k^T * scale) with its own bias (a mask, a rotation, a "
            "gate?): its weights cannot be recomputed from qkv"
        )

    hooks = [attn.qkv.register_forward_hook(see_qkv)]
    if isinstance(getattr(attn, "proj", None), nn.Module):
        hooks.append(attn.proj.register_forward_pre_hook(see_output))
    return hooks


class _Stack:
    """What comes of each of the chosen layers, copied to its place in one tensor."""

    whole: Tensor

    def __init__(self, layers: Any, count: int, reduce: Reduce | None):
        if reduce is not None and not callable(reduce):
            raise ValueError(f"reduce must be a function of a layer's tensor, got {reduce!r}")
        self.wanted, self.reduce = _choose(layers, count), reduce
        self.missing = list(dict.fromkeys(self.wanted))

    def add(self, i: int, x: Tensor) -> None:
        if i not in self.missing:
            raise ValueError(f"layer {i} is used more than once: which time do you mean?")
        part = x if self.reduce is None else self.reduce(x)
        if not isinstance(part, Tensor):
            raise ValueError(f"reduce must return a tensor, got {type(part).__name__}")
        if not hasattr(self, "whole"):
            self.whole = part.new_empty(len(self.wanted), *part.shape)
        if part.shape != self.whole.shape[1:]:
            raise ValueError(
                f"layers must all give one shape to be stacked, got {tuple(self.whole.shape[1:])} "
                f"and {tuple(part.shape)}: ask for one layer at a time"
            )
        for place, layer in enumerate(self.wanted):
            if layer == i:
                self.whole[place] = part
        self.missing.remove(i)


@torch.no_grad()
def layer_tokens(
    model: nn.Module,
    images: Tensor,
    layers: int | Sequence[int] | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """Collect the tokens after each block of a model: its representations, layer by layer.

    The model runs in evaluation mode and stays as it was.
    Shapes: `images` and `layers` as for `attention_maps`; returns (L, B, T, D). With `reduce`, a
        function of one block's (B, T, D) such as `lambda x: x[:, 0]`, its results are stacked.
    Raises: `ValueError` when the model has no `blocks`, or a layer does not exist.
    Source: Dosovitskiy et al. 2021, eq. 3 (z of layer l).
    Chapter: 12
    """
    kinds = (nn.Sequential, nn.ModuleList)
    named = (getattr(m, "blocks", None) for m in _modules(model))
    blocks: Any = next((b for b in named if isinstance(b, kinds) and len(b)), None)
    if blocks is None:
        raise ValueError(f"model must have blocks, {type(model).__name__} has none")
    stack = _Stack(layers, len(blocks), reduce)

    def watch(i: int) -> Any:
        return blocks[i].register_forward_hook(lambda _, __, tokens: stack.add(i, tokens))

    hooks = []
    try:
        hooks += [watch(i) for i in stack.missing]
        with _as_it_is(model):
            model(_fit(images, model))
    finally:
        for hook in hooks:
            hook.remove()
    if stack.missing:
        raise ValueError(f"layer {stack.missing[0]} was not called by the model")
    return stack.whole


def _modules(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return list(model.modules())


def _find_attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All attentions of a model with their names; they are known by their `qkv`."""
    _modules(model)
    found = [
        (name.replace("_orig_mod.", ""), m)
        for name, m in model.named_modules()
        if not isinstance(m, torch.jit.ScriptModule) and "qkv" in dict(m.named_children())
    ]
    if not found:
        raise ValueError(
            f"model must have attention with a qkv layer, {type(model).__name__} has none: convert "
            "torchvision's ViT with vm.from_torchvision(model), Hugging Face's with "
            "vm.from_huggingface(model)"
        )
    return found


def _choose(layers: Any, count: int) -> list[int]:
    """Read a choice of layers as numbers from 0 to count - 1."""
    if layers is None:
        return list(range(count))
    try:  # NumPy's ints are ints too
        given = list(layers) if hasattr(layers, "__iter__") else [layers]
        numbers = [operator.index(i) for i in given]
    except TypeError:
        given = numbers = []
    unordered = isinstance(layers, (str, set, dict)) or any(isinstance(i, bool) for i in given)
    if not numbers or unordered:
        raise ValueError(f"layers must be an int, several of them, or None for all, got {layers!r}")
    for i in numbers:
        if not -count <= i < count:
            raise ValueError(f"layers must be from {-count} to {count - 1}, got {i}")
    return [i % count for i in numbers]


def _fit(images: Tensor, model: nn.Module) -> Tensor:
    """Bring images to the device and the floating type of the model."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = tuple(getattr(images, "shape", ()))
        raise ValueError(
            f"images must be a tensor (B, C, H, W), got {type(images).__name__} {shape}"
        )
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point, got {images.dtype}: normalise first")
    first = next((p for p in model.parameters() if p.is_floating_point()), images)
    if first.device.type == "meta":
        raise ValueError("model must have weights, this one was built without (on the meta device)")
    return images.detach().to(first.device, first.dtype)


@contextmanager
def _as_it_is(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without compiled code; then each module's mode, and the random numbers."""
    modes = [(m, m.training) for m in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    # Hooks that come after torch.compile are not seen by it. Who compiled has imported _dynamo.
    eager: Any = nullcontext()
    if "torch._dynamo" in sys.modules:
        eager = torch.compiler.set_stance("force_eager")
    try:
        for module, _ in modes:
            module.training = False  # not eval(): a module may do more there than to set this
        with eager, torch.random.fork_rng(sorted(devices, key=str)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# How far, and where to ------------------------------------------------------------------------


def patch_distances(grid: tuple[int, int], patch_size: int | tuple[int, int]) -> Tensor:
    """The distance between the centres of each two patches.

    Shapes: `grid` is (rows, columns) in patches, `patch_size` pixels, an int or (rows, columns)
        -> (N, N) float32, in pixels.
    Raises: `ValueError` when a number is not positive.
    Chapter: 11
    """
    return _distances(as_pair(grid, "grid"), as_pair(patch_size, "patch_size"))


def _distances(grid: tuple[int, int], pitch: tuple[float, float]) -> Tensor:
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    centres = torch.stack([y * pitch[0], x * pitch[1]], dim=-1).flatten(0, 1)  # (N, 2)
    return (centres[:, None] - centres).norm(dim=-1).float()


def attention_distance(
    attn: Tensor,
    grid: tuple[int, int],
    patch_size: int | tuple[int, int],
    num_prefix_tokens: int = 1,
    renormalize: bool = True,
) -> Tensor:
    """Measure how far each head looks: the mean distance from a patch to what it attends to.

    Prefix tokens have no place in the picture, so they are dropped as queries and as keys. What
    is left of a row sums to less than 1. `renormalize` makes it 1 again; without it, a head that
    looks at the class token seems to look less far, as in the code that others use. A query that
    gives nothing to any patch has no distance when rows are renormalised, and is left out of the
    mean. A head that has only such queries gets NaN, and a warning says so.

    Shapes: `attn` (L, B, heads, T, T), query before key; `grid` (rows, columns) in patches;
        `patch_size` in pixels, an int or (rows, columns) -> (L, heads) in pixels: the mean over
        images and queries. Computed in float32 at least.
    Raises: `ValueError` when T is not prefix + rows * columns, there is no image, or an entry is
        negative or NaN.
    Source: Dosovitskiy et al. 2021, Figures 7 (right) and 11; the authors' code is not public.
        `renormalize=False` is Simon Kornblith's reading of it.
    Chapter: 11
    """
    check_prefix(num_prefix_tokens)
    _check_attention(attn, as_pair(grid, "grid"), num_prefix_tokens)
    distances = patch_distances(grid, patch_size)
    sums = [_sum_distances(layer, distances, num_prefix_tokens, renormalize) for layer in attn]
    return _mean_distances(torch.stack(sums))


@torch.no_grad()
def measure_attention_distance(
    model: nn.Module, images: Tensor, renormalize: bool = True, batch_size: int = 32
) -> Tensor:
    """Measure how far each head of a model looks, without keeping any map.

    It is `attention_distance` of the model's `attention_maps`, batch by batch and layer by layer:
    memory holds one layer's maps of one batch. A hybrid's patches are the places of its feature
    map.

    Shapes: `images` (B, C, H, W), normalised -> (L, heads) in pixels.
    Raises: `ValueError` as `attention_maps` does, and when the model does not say its grid.
    Source: Dosovitskiy et al. 2021, Figures 7 (right) and 11.
    Chapter: 11
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
    _find_attentions(model)
    vit: Any = next((m for m in _modules(model) if hasattr(m, "num_prefix_tokens")), None)
    embed: Any = getattr(vit, "patch_embed", None)
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
        shape = tuple(getattr(images, "shape", ()))
        raise ValueError(f"images must be a tensor (B, C, H, W) of one or more, got {shape}")
    size = images.shape[2:]
    if hasattr(embed, "dynamic_feat_size"):  # timm's
        grid = embed.dynamic_feat_size(tuple(size))
    elif hasattr(embed, "grid"):
        grid = embed.grid
    else:
        raise ValueError(
            f"model must say its grid of patches, {type(model).__name__} does not: use "
            "attention_distance"
        )
    distances = _distances(grid, (size[0] / grid[0], size[1] / grid[1]))

    def reduce(maps: Tensor) -> Tensor:
        _check_attention(maps[None], grid, vit.num_prefix_tokens)
        return _sum_distances(maps, distances, vit.num_prefix_tokens, renormalize)

    parts = [attention_maps(model, some, reduce=reduce) for some in images.split(batch_size)]
    return _mean_distances(torch.stack(parts).sum(dim=0))


def _sum_distances(maps: Tensor, distances: Tensor, prefix: int, renormalize: bool) -> Tensor:
    """One layer's distances, summed over images and queries, and how many: (2, heads), float64."""
    patches = maps[..., prefix:, prefix:]  # (B, heads, N, N)
    if not (patches >= 0).all():
        raise ValueError("attn must hold weights from 0 to 1, got a negative number or NaN")
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    with torch.autocast(patches.device.type, enabled=False):
        far = torch.einsum("bhqk,qk->bhq", patches, distances.to(patches))
    counted = torch.ones_like(far)
    if renormalize:
        mass = patches.sum(dim=-1)  # (B, heads, N)
        counted = (mass > 0).to(far)
        far = torch.where(mass > 0, far / mass, 0.0)
    return torch.stack([x.sum(dim=(0, 2), dtype=torch.float64) for x in (far, counted)])


def _mean_distances(sums: Tensor) -> Tensor:
    """(L, 2, heads) -> (L, heads) in float32."""
    far, counted = sums.unbind(dim=1)
    if (counted == 0).any():
        layer, head = (counted == 0).nonzero()[0].tolist()
        warnings.warn(
            f"head {head} of layer {layer} attends to no patch at all: its distance is NaN",
            RuntimeWarning,
            stacklevel=3,
        )
    return (far / counted).float()


def cls_attention(
    attn: Tensor, grid: tuple[int, int], num_prefix_tokens: int = 1, token: int = 0
) -> Tensor:
    """Cut out what a prefix token attends to: a picture of the patches that it reads.

    Shapes: `attn` (..., T, T), query before key, such as maps (L, B, heads, T, T) or a rollout
        (B, T, T); `token` 0 is the class token, 1 the distillation token -> (..., rows, columns).
        It sums to 1 less what the token gives to the prefix tokens.
    Raises: `ValueError` when T is not prefix + rows * columns, or there is no such token.
    Source: Caron et al. 2021 (DINO), Figure 1; Dosovitskiy et al. 2021, Figure 6.
    Chapter: 11
    """
    rows, columns = as_pair(grid, "grid")
    check_prefix(num_prefix_tokens)
    if type(token) is not int or not 0 <= token < num_prefix_tokens:
        raise ValueError(
            f"token must be from 0 to {num_prefix_tokens - 1}, one of the {num_prefix_tokens} "
            f"prefix tokens, got {token!r}"
            if num_prefix_tokens
            else "token must be a prefix token, and there is none (num_prefix_tokens=0)"
        )
    _check_attention(attn, (rows, columns), num_prefix_tokens, dims=None)
    return attn[..., token, num_prefix_tokens:].unflatten(-1, (rows, columns))


def attention_rollout(attn: Tensor) -> Tensor:
    """Follow attention through the layers, shortcuts included: what a token is mixed from.

    Heads are averaged, the identity is added for the shortcut, rows are brought back to 1, and the
    matrices are multiplied from the first layer up.
    Shapes: `attn` (L, B, heads, T, T) -> (B, T, T), rows that sum to 1, in float32 at least: row i
        says how much of each input token the last layer's token i holds.
    Raises: `ValueError` when `attn` has another shape, or an entry is negative or not finite.
    Source: Abnar & Zuidema 2020, section 3; Dosovitskiy et al. 2021, Figure 6 and appendix D.8.
    Chapter: 11
    """
    _check_attention(attn)
    if not (attn.isfinite().all() and attn.min() >= 0):
        raise ValueError("attn must hold weights: an entry is negative, NaN or infinite")
    wide = torch.promote_types(attn.dtype, torch.float32)
    T = attn.shape[-1]
    eye = torch.eye(T, dtype=wide, device=attn.device)
    rollout = eye.expand(attn.shape[1], T, T)
    with torch.autocast(attn.device.type, enabled=False):
        for layer in attn:
            mixed = layer.mean(dim=1, dtype=wide) + eye  # (B, T, T)
            rollout = (mixed / mixed.sum(dim=-1, keepdim=True)) @ rollout
    return rollout


def _check_attention(
    attn: Any, grid: tuple[int, int] | None = None, prefix: int = 0, dims: int | None = 5
) -> None:
    """Refuse what is no stack of attention maps, or does not fit a grid."""
    names = "(L, B, heads, T, T)" if dims else "(..., T, T)"
    shape = tuple(getattr(attn, "shape", ()))
    fits = isinstance(attn, Tensor) and attn.is_floating_point()
    fits = fits and (attn.ndim == dims if dims else attn.ndim >= 2)
    if not fits or shape[-1] != shape[-2]:
        raise ValueError(
            f"attn must be a floating-point tensor {names}, got {type(attn).__name__} {shape}"
        )
    if dims and 0 in shape:
        raise ValueError(f"attn must hold one image and one token at least, got {shape}")
    if grid is not None and shape[-1] != prefix + grid[0] * grid[1]:
        raise ValueError(
            f"attn must have T = {prefix} + {grid[0] * grid[1]} tokens, for {prefix} prefix tokens "
            f"and a grid of {grid[0]}x{grid[1]} patches, got T = {shape[-1]}"
        )


# Filters and representations ------------------------------------------------------------------


@torch.no_grad()
def patch_filters(weight: Tensor, k: int = 28) -> Tensor:
    """Find the patterns that a patch projection is made of: its principal components.

    The D filters are points in a space of C * P * Q numbers; the components are the directions in
    which they differ most, the first one most of all. The mean filter is taken away first. A
    component has length 1 and no sign of its own: here its largest number is positive.

    Shapes: `weight` (D, C, P, Q), such as `model.patch_embed.proj.weight` -> (k, C, P, Q) float32.
    Raises: `ValueError` when `weight` has another shape, is not finite, or does not have as many as
        `k` components: min(D - 1, C * P * Q).
    Source: Dosovitskiy et al. 2021, Figure 7, left (28 components).
    Chapter: 12
    """
    shape = tuple(getattr(weight, "shape", ()))
    if not isinstance(weight, Tensor) or weight.ndim != 4 or not weight.is_floating_point():
        raise ValueError(f"weight must be a patch kernel (D, C, P, P), got {shape}")
    D, length = weight.shape[0], weight[:1].numel()
    if type(k) is not int or not 1 <= k <= min(D - 1, length):
        raise ValueError(
            f"k must be from 1 to {min(D - 1, length)} for {D} filters of {length} numbers, "
            f"got {k!r}"
        )
    filters = weight.detach().double().flatten(1)  # (D, C*P*Q)
    if not filters.isfinite().all():
        raise ValueError("weight must be finite, it holds NaN or infinity")
    components = torch.linalg.svd(filters - filters.mean(dim=0), full_matrices=False).Vh[:k]
    largest = components.abs().argmax(dim=1, keepdim=True)
    components = components * components.gather(1, largest).sign()
    return components.reshape(k, *weight.shape[1:]).float()


def cka(x: Tensor, y: Tensor) -> float:
    """Compare two representations of the same images: linear centred kernel alignment.

    1: the same up to rotation, reflection, shift and one factor for all; 0: what one knows of the
    images, linearly, the other does not know at all. The widths may differ, so layers and models
    of any kind can be compared. With few images for the width it is close to 1 for anything: take
    many more images than either has dimensions.

    Shapes: `x` (n, d1) and `y` (n, d2), a row an image -> from 0 to 1, computed in float64.
    Raises: `ValueError` when a shape does not fit, a number is not finite, or one representation is
        the same for all images.
    Source: Kornblith et al. 2019, "Similarity of neural network representations revisited",
        section 3.
    Chapter: 12
    """
    centred = []
    for name, given in (("x", x), ("y", y)):
        if not isinstance(given, Tensor) or given.ndim != 2 or len(given) < 2:
            shape = tuple(getattr(given, "shape", ()))
            raise ValueError(f"{name} must be a tensor (n, d) with a row an image, got {shape}")
        wide = given.detach().double()
        if not wide.isfinite().all():
            raise ValueError(f"{name} must be finite, it holds NaN or infinity")
        shifted = wide - wide.mean(dim=0)
        length = shifted.norm()
        if not length > 1e-12 * wide.norm():
            raise ValueError(f"{name} must differ between images, it is the same for all of them")
        centred.append(shifted / length)
    if len(x) != len(y):
        raise ValueError(f"x and y must have a row an image, got {len(x)} and {len(y)} rows")
    a, b = centred
    if len(a) <= max(a.shape[1], b.shape[1]):  # n x n kernels are smaller than d1 x d2
        a, b = a @ a.T, b @ b.T
        return (a.mul(b).sum() / (a.norm() * b.norm())).item()
    return ((b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())).item()
