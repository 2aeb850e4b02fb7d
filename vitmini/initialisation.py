"""How a signal survives depth, and five ways to draw a ViT's weights.

Chapter: 5 (`notebooks/05-initialisation.ipynb`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("plain", "conv", "residual", "residual_linear")


def length_scales(
    widths: Sequence[int],
    kind: str = "plain",
    factor: float = 2.0,
    scales: float | Sequence[float] = 1.0,
    draws: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw random ReLU stacks, send a random input through each, and measure every layer.

    The length scale of a layer is M_l = ||x_l||^2 / n_l; the input has M_0 = 1. Each draw has its
    own input and its own weights, N(0, factor / fan-in), without biases, in float64.

    * "plain": x_l = ReLU(W x_{l-1}).
    * "conv": the same with a convolution of 3 along a ring of 16 places; `widths` are channels,
      the fan-in is 3 n_{l-1}, and M_l is averaged over the places.
    * "residual": x_l = x_{l-1} + eta_l ReLU(W x_{l-1}).
    * "residual_linear": x_l = x_{l-1} + eta_l V ReLU(W x_{l-1}), V from N(0, 1 / fan-in): a branch
      that ends in a linear layer, as those of a ViT do.

    Shapes: `widths` n_0 to n_L, `scales` eta_1 to eta_L or one for all -> (draws, L + 1).
    Raises: `ValueError` for another `kind`, fewer than two widths, a width or `draws` below 1, a
        `factor` that is not positive, `scales` of another length or where there is no shortcut,
        and for a residual stack whose width changes.
    Source: Hanin & Rolnick 2018.
    Chapter: 5
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be two or more positive numbers, got {list(widths)}")
    if draws < 1:
        raise ValueError(f"draws must be positive, got {draws}")
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}")
    shortcut, depth = kind.startswith("residual"), len(widths) - 1
    if shortcut and len(set(widths)) > 1:
        raise ValueError(f"widths must all be equal around a shortcut, got {list(widths)}")
    if not shortcut and scales != 1.0:
        raise ValueError(f"scales must be 1.0 for kind {kind!r}, which has no shortcut")
    etas = [float(scales)] * depth if isinstance(scales, (int, float)) else list(scales)
    if len(etas) != depth:
        raise ValueError(f"scales must be one number or {depth}, one a layer, got {len(etas)}")

    def matrix(rows: int, columns: int, factor: float) -> Tensor:
        weight = torch.randn(draws, rows, columns, generator=generator, dtype=torch.float64)
        return weight.mul_((factor / columns) ** 0.5)

    places = 16 if kind == "conv" else 1
    x = torch.randn(draws, widths[0], places, generator=generator, dtype=torch.float64)
    x = x / x.square().mean((1, 2), keepdim=True).sqrt()  # M_0 = 1
    lengths = [x.square().mean((1, 2))]
    for width, eta in zip(widths[1:], etas, strict=True):
        seen = torch.cat([x.roll(s, -1) for s in (-1, 0, 1)], dim=1) if kind == "conv" else x
        branch = (matrix(width, seen.shape[1], factor) @ seen).relu()
        if kind == "residual_linear":
            branch = matrix(width, width, 1.0) @ branch
        x = x + eta * branch if shortcut else branch
        lengths.append(x.square().mean((1, 2)))
    return torch.stack(lengths, dim=1)  # (draws, L + 1)


class SignalNorms(NamedTuple):
    """What `signal_norms` measures. Chapter: 5."""

    stream: Tensor
    gradient: Tensor
    first_token: Tensor


def signal_norms(model: nn.Module, images: Tensor, labels: Tensor) -> SignalNorms:
    """Measure how large the residual stream is, and how large each block's gradient.

    `stream` is the root mean square of all tokens before each block and after the last one,
    `first_token` that of the first alone, which is the class token where there is one.
    `gradient` is the norm of the gradient of the mean cross-entropy by all parameters of a block.
    The model is measured in evaluation mode and left as it was.
    Shapes: images (B, C, H, W), labels (B,) -> stream and first_token (L + 1,), gradient (L,).
    Raises: `ValueError` when the model has no `blocks`.
    Chapter: 5
    """
    blocks: list[Any] = list(getattr(model, "blocks", []))
    if not blocks:
        raise ValueError(f"model must have blocks, {type(model).__name__} has none")
    seen: list[Tensor] = []

    def listen(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for tokens in (output,) if seen else (inputs[0], output):
            seen.append(tokens.detach().square().mean(dim=(0, 2)))  # (T,)

    hooks = [block.register_forward_hook(listen) for block in blocks]
    was_training = model.training
    try:
        loss = F.cross_entropy(model.eval()(images), labels)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    parameters = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
    flat = [p for group in parameters for p in group]
    found = iter(torch.autograd.grad(loss, flat, materialize_grads=True) if flat else ())
    zero = loss.new_zeros(())  # the norm of a frozen block
    norms = [sum((next(found).square().sum() for _ in g), zero).sqrt() for g in parameters]
    lengths = torch.stack(seen)  # (L + 1, T)
    return SignalNorms(lengths.mean(1).sqrt(), torch.stack(norms), lengths[:, 0].sqrt())


@torch.no_grad()
def attention_products(attn: nn.Module) -> tuple[Tensor, Tensor]:
    """The two matrices that a layer's attention is made of: who is looked at, what is taken.

    A head's scores are x (W_q^T W_k) x^T / sqrt(d), and a value reaches the stream through
    W_proj W_v; biases are left out.
    Shapes: an attention of H heads of width D -> (H, D, D) and (D, D).
    Source: Trockman & Kolter 2023, section 3.
    Chapter: 5
    """
    layer: Any = attn
    q, k, v = layer.qkv.weight.chunk(3)  # each (D, D)
    q, k = (m.view(layer.num_heads, -1, m.shape[1]) for m in (q, k))  # (H, d, D)
    return q.transpose(1, 2) @ k, layer.proj.weight @ v


@torch.no_grad()
def init_weights(model: nn.Module, scheme: str = "deit", zero_head: bool = False) -> None:
    """Draw all parameters of a ViT afresh, in place, by a scheme of `SCHEMES`.

    Norms start at weight 1 and bias 0 under every scheme. Modules are known by their names, which
    are timm's (`attn.qkv`, `attn.proj`, `mlp.fc1`, `mlp.fc2`, `patch_embed.proj`, `head`), so
    timm's models can be given too. `zero_head` starts with all logits at 0; "google" and
    "torchvision" always do.
    Raises: `ValueError` when `scheme` is not one of `SCHEMES`, or `model` has other names.
    Source: the function of each scheme names its own.
    Chapter: 5
    """
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if not hasattr(getattr(model, "patch_embed", None), "proj"):
        raise ValueError(f"model must have timm's names, {type(model).__name__} has others")
    for module in model.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset and not isinstance(module, nn.Linear):
            reset()  # norms, and what a scheme leaves as PyTorch draws it
    for token in tokens(model).values():
        nn.init.trunc_normal_(token, std=0.02)
    SCHEMES[scheme](model)
    if zero_head:
        zero_heads(model)


def deit(model: nn.Module) -> None:
    """Linear layers from N(0, 0.02²), biases 0; the patch projection as PyTorch draws it.

    `trunc_normal_` cuts at ±2, not at two deviations: with std 0.02 it cuts nothing away.
    Source: Touvron et al. 2021, section 6, and their code. timm draws the class token nearer to 0.
    Chapter: 5
    """
    for _, linear in linears(model):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        zero_bias(linear)


def google(model: nn.Module) -> None:
    """Xavier for queries, keys and values each, LeCun for the patch projection, a zero head.

    Source: `vit_jax/models_vit.py` of google-research/vision_transformer, with Flax's defaults.
    Chapter: 5
    """
    for name, linear in linears(model):
        for weight in linear.weight.chunk(3 if name.endswith("qkv") else 1):
            nn.init.xavier_uniform_(weight)
        zero_bias(linear)
    mlp_biases(model)
    lecun_patches(model)
    zero_heads(model)


def torchvision(model: nn.Module) -> None:
    """Xavier on the fused (3D, D) matrix: 1/sqrt(2) of what each of the three would get alone.

    Source: `VisionTransformer` of torchvision, on `torch.nn.MultiheadAttention`.
    Chapter: 5
    """
    for name, linear in linears(model):
        if name.endswith("attn.proj"):
            linear.reset_parameters()  # MultiheadAttention leaves this one as PyTorch draws it
        else:
            nn.init.xavier_uniform_(linear.weight)
        zero_bias(linear)
    mlp_biases(model)
    lecun_patches(model)
    zero_heads(model)


def scaled(model: nn.Module) -> None:
    """The scheme "deit", with what writes to the residual stream divided by sqrt(2L).

    Source: Radford et al. 2019 (GPT-2), section 2.3: N residual layers, weights times 1/sqrt(N).
    Chapter: 5
    """
    deit(model)
    writers = [m for name, m in linears(model) if name.endswith(("attn.proj", "mlp.fc2"))]
    for linear in writers:  # 2L of them
        linear.weight.div_(len(writers) ** 0.5)


def mimetic(model: nn.Module) -> None:
    """The scheme "deit", with attention that starts as trained attention looks.

    For each head W_q^T W_k is close to 0.7 (Z + I), as far as its rank allows, and W_proj W_v is
    close to 0.4 (Z - I). Z is random of variance 1/D, as in the paper's text; here it is uniform.
    A token starts by looking at its like, and by taking a part of the average away. The authors
    add sin-cos positions (`pos_embed="sincos2d"`). It takes heads + 1 singular value
    decompositions a layer.
    Source: Trockman & Kolter 2023, section 3.
    Chapter: 5
    """
    deit(model)
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "qkv")]
    for attn in layers:
        q, k, v = attn.qkv.weight.chunk(3)  # each (D, D), views
        rows = q.chunk(attn.num_heads), k.chunk(attn.num_heads)
        for q_head, k_head in zip(*rows, strict=True):
            left, right = factors(0.7, q)
            d = len(q_head)
            q_head.copy_(left.T[:d])  # the d largest singular values
            k_head.copy_(right[:d])
        left, right = factors(-0.4, q)
        attn.proj.weight.copy_(left)
        v.copy_(right)


SCHEMES = {
    "deit": deit,
    "google": google,
    "torchvision": torchvision,
    "scaled": scaled,
    "mimetic": mimetic,
}


def factors(strength: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Draw strength I plus noise Z times its size; part it in two (D, D) whose product it is.

    Source: Trockman & Kolter 2023, section 3.
    Chapter: 5
    """
    D = like.shape[0]
    noise = torch.empty_like(like, dtype=torch.float32).uniform_(-1, 1) * (3 / D) ** 0.5
    eye = torch.eye(D, device=like.device)
    U, S, Vh = torch.linalg.svd(abs(strength) * noise + strength * eye)
    return U * S.sqrt(), S.sqrt()[:, None] * Vh


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """All linear layers with their names. Chapter: 5."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))


def tokens(model: nn.Module) -> dict[str, Tensor]:
    """The model's own parameters: class token, distillation token, positions. Chapter: 5."""
    return dict(model.named_parameters(recurse=False))


def zero_bias(linear: nn.Linear) -> None:
    """Set the bias to 0, where there is one. Chapter: 5."""
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def mlp_biases(model: nn.Module) -> None:
    """Draw the biases of the MLPs from N(0, 1e-6²), as Google does. Chapter: 5."""
    for name, linear in linears(model):
        if ".mlp." in name and linear.bias is not None:
            nn.init.normal_(linear.bias, std=1e-6)


def lecun_patches(model: nn.Module) -> None:
    """Draw a patch projection that keeps the variance, and start the class token at 0.

    Source: LeCun et al. 1998, section 4.6.
    Chapter: 5
    """
    conv = model.get_submodule("patch_embed.proj")
    assert isinstance(conv, nn.Conv2d)
    nn.init.trunc_normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    if "cls_token" in tokens(model):
        nn.init.zeros_(tokens(model)["cls_token"])


def zero_heads(model: nn.Module) -> None:
    """Start the classifiers at 0. Chapter: 5."""
    for name, linear in linears(model):
        if name in ("head", "head_dist"):
            nn.init.zeros_(linear.weight)
            zero_bias(linear)
