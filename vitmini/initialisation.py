"""How a ViT's weights are drawn before training: five published schemes.

Chapter: 5 (`notebooks/05-initialisation.ipynb`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def init_weights(model: nn.Module, scheme: str = "deit", zero_head: bool = False) -> None:
    """Draw all parameters of a ViT afresh, in place, by a scheme of `SCHEMES`.

    Norms start at weight 1 and bias 0 under every scheme. Modules are known by their names, which
    are timm's (`attn.qkv`, `attn.proj`, `mlp.fc1`, `mlp.fc2`, `patch_embed.proj`, `head`), so
    timm's models can be given too. `zero_head` starts with all logits at 0; "google" and
    "torchvision" always do.
    Raises: `ValueError` when `scheme` is not one of `SCHEMES`.
    Source: the function of each scheme names its own.
    Chapter: 5
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    for module in model.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset and not isinstance(module, nn.Linear):
            reset()  # norms, and what a scheme leaves as PyTorch draws it
    for token in _tokens(model).values():
        nn.init.trunc_normal_(token, std=0.02)
    SCHEMES[scheme](model)
    if zero_head:
        _zero_heads(model)


def deit(model: nn.Module) -> None:
    """Linear layers from N(0, 0.02²), biases 0; the patch projection as PyTorch draws it.

    Source: Touvron et al. 2021, section 6; their code, which is timm's default.
    Chapter: 5
    """
    for _, linear in _linears(model):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        _zero_bias(linear)


def google(model: nn.Module) -> None:
    """Xavier for queries, keys and values each, LeCun for the patch projection, a zero head.

    Source: `vit_jax/models_vit.py` of google-research/vision_transformer, with Flax's defaults.
    Chapter: 5
    """
    for name, linear in _linears(model):
        for weight in linear.weight.chunk(3 if name.endswith("qkv") else 1):
            nn.init.xavier_uniform_(weight)
        _zero_bias(linear)
    _mlp_biases(model)
    _lecun(model)
    _zero_heads(model)


def torchvision(model: nn.Module) -> None:
    """Xavier on the fused (3D, D) matrix: 1/sqrt(2) of what each of the three would get alone.

    Source: `VisionTransformer` of torchvision, on `torch.nn.MultiheadAttention`.
    Chapter: 5
    """
    for name, linear in _linears(model):
        if name.endswith("attn.proj"):
            linear.reset_parameters()  # MultiheadAttention leaves this one as PyTorch draws it
        else:
            nn.init.xavier_uniform_(linear.weight)
        _zero_bias(linear)
    _mlp_biases(model)
    _lecun(model)
    _zero_heads(model)


def scaled(model: nn.Module) -> None:
    """The scheme "deit", with what writes to the residual stream divided by sqrt(2L).

    Source: Radford et al. 2019 (GPT-2), section 2.3: N residual layers, weights times 1/sqrt(N).
    Chapter: 5
    """
    deit(model)
    writers = [m for name, m in _linears(model) if name.endswith(("attn.proj", "mlp.fc2"))]
    for linear in writers:  # 2L of them
        linear.weight.div_(len(writers) ** 0.5)


def mimetic(model: nn.Module) -> None:
    """The scheme "deit", with attention that starts as trained attention looks.

    For each head W_q^T W_k is close to 0.7 (Z + I), as far as its rank allows, and W_proj W_v is
    close to 0.4 (Z - I), Z uniform of variance 1/D: a token starts by looking at its like, and
    by taking a part of the average away. The authors add sin-cos positions
    (`pos_embed="sincos2d"`). It takes heads + 1 singular value decompositions a layer.
    Source: Trockman & Kolter 2023, section 3.
    Chapter: 5
    """
    deit(model)
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "qkv")]
    for attn in layers:
        q, k, v = attn.qkv.weight.chunk(3)  # each (D, D), views
        rows = q.chunk(attn.num_heads), k.chunk(attn.num_heads)
        for q_head, k_head in zip(*rows, strict=True):
            left, right = _factors(0.7, q)
            d = len(q_head)
            q_head.copy_(left.T[:d])  # the d largest singular values
            k_head.copy_(right[:d])
        left, right = _factors(-0.4, q)
        attn.proj.weight.copy_(left)
        v.copy_(right)


SCHEMES = {
    "deit": deit,
    "google": google,
    "torchvision": torchvision,
    "scaled": scaled,
    "mimetic": mimetic,
}


def _factors(strength: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Draw |strength| Z + strength I, and part it in two: both (D, D), their product is it."""
    D = like.shape[0]
    noise = torch.empty_like(like, dtype=torch.float32).uniform_(-1, 1) * (3 / D) ** 0.5
    eye = torch.eye(D, device=like.device)
    U, S, Vh = torch.linalg.svd(abs(strength) * noise + strength * eye)
    return U * S.sqrt(), S.sqrt()[:, None] * Vh


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))


def _tokens(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(recurse=False))  # cls_token, dist_token, pos_embed


def _zero_bias(linear: nn.Linear) -> None:
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _mlp_biases(model: nn.Module) -> None:
    for name, linear in _linears(model):
        if ".mlp." in name and linear.bias is not None:
            nn.init.normal_(linear.bias, std=1e-6)


def _lecun(model: nn.Module) -> None:
    """Both draw the patch projection so that it keeps the variance; their class token is 0."""
    conv = model.get_submodule("patch_embed.proj")
    assert isinstance(conv, nn.Conv2d)
    nn.init.trunc_normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    if "cls_token" in _tokens(model):
        nn.init.zeros_(_tokens(model)["cls_token"])


def _zero_heads(model: nn.Module) -> None:
    for name, linear in _linears(model):
        if name in ("head", "head_dist"):
            nn.init.zeros_(linear.weight)
            _zero_bias(linear)
