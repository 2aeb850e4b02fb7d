"""Checks of the exercises of chapter 6."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitmini.checks import attempt, confirm, expect, expect_number, expect_tensor, same
from vitmini.encoder import Block
from vitmini.model import ViT, ViTConfig
from vitmini.patches import as_pair
from vitmini.summary import count_flops

_SMALL = ViTConfig(8, 4, 3, 5, 16, 2, 2, 2.0)


def count_parameters(function: Callable[[ViTConfig], Any]) -> None:
    """Exercise 6.1: the parameters of a ViT from its configuration."""
    cases = (
        ViTConfig(),
        ViTConfig(32, 4, num_classes=10, dim=384, depth=6, num_heads=6),
        replace(_SMALL, image_size=(8, 12), in_channels=1, depth=5),
        replace(_SMALL, mlp_ratio=3.0, num_classes=7, image_size=16, patch_size=(2, 4)),
    )
    for config in cases:
        target = _count(config)
        got = expect_number(attempt(function, config), "86567656")
        D, K, missing = config.dim, config.num_classes, target - got
        slips: dict[float, str] = {
            D: "the class token is missing, or a position for it: there are N + 1 positions",
            2 * D: "two vectors are missing: the class token and its position, or the last norm",
            config.depth * 3 * D: "the biases of queries, keys and values are missing: 3 D a block",
            config.depth * 4 * D: "each block has two norms, and each norm a weight and a bias",
            config.depth * D * D: "attention has a fourth matrix D x D, the projection",
            K: "the head has a bias for each class",
            (K + 1) * D: "the head is a matrix (K, D) and a bias (K)",
            -config.depth * 2 * D: "the norms are counted too often: two a block, one at the end",
        }
        for change, words in _OTHERS.items():
            if getattr(config, change) != _DEFAULT[change] and missing:
                other = replace(config, **{change: _DEFAULT[change]})
                expect(got != _count(other), f"{words}: with {_words(config)}")
        expect(
            missing == 0,
            f"expected {target:,} for {_words(config)}, got {got:,.0f}"
            + (
                f": {slips[missing]}"
                if missing in slips
                else f", {abs(missing):,.0f} " + ("too few" if missing > 0 else "too many")
            ),
        )
    confirm("6.1", "every parameter of a ViT, from its configuration")


def forward_flops(function: Callable[[ViTConfig], Any]) -> None:
    """Exercise 6.2: the FLOPs of one image's forward pass."""
    cases = (
        ViTConfig(),
        ViTConfig(image_size=384),
        replace(_SMALL, image_size=(8, 12), in_channels=1, depth=5),
        replace(_SMALL, mlp_ratio=3.0, num_classes=7, image_size=16),
    )
    for config in cases:
        target = count_flops(config)
        got = expect_number(attempt(function, config), "35127656448")
        N = _patches(config)
        T, D, L = N + 1, config.dim, config.depth
        slips = {
            target / 2: "a multiply-add is two FLOPs here",
            target - L * 4 * T * T * D: "the pairs are missing: 4 T^2 D a block",
            target - L * 2 * T * T * D: "the pairs are multiplied twice: q with k, weights with v",
            target - 2 * D * config.num_classes: "the head is missing: one token, 2 D K",
            target + 2 * (T - 1) * D * config.num_classes: "the head reads one token, not all",
            _with_tokens(config, N): "the class token passes through the blocks too: T = N + 1",
        }
        P, Q = as_pair(config.patch_size, "patch_size")
        slips[target + 2 * D * config.in_channels * P * Q] = (
            "the projection meets the N patches, not the class token"
        )
        if config.mlp_ratio != 4.0:
            slips[count_flops(replace(config, mlp_ratio=4.0))] = "is mlp_ratio used?"
        hint = next((words for value, words in slips.items() if abs(got - value) < 0.5), "")
        expect(
            abs(got - target) < 0.5,
            f"expected {target:,} for {_words(config)}, got {got:,.0f}"
            + (f": {hint}" if hint else ""),
        )
    confirm("6.2", "patches, blocks and head, a multiply-add as two")


_DEFAULT: dict[str, Any] = {"mlp_ratio": 4.0, "in_channels": 3}
_OTHERS = {
    "mlp_ratio": "the hidden width is int(dim * mlp_ratio), not always 4 D",
    "in_channels": "in_channels is not always 3",
}


def _count(config: ViTConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ViT(config).parameters())


def _patches(config: ViTConfig) -> int:
    with torch.device("meta"):
        return ViT(config).patch_embed.num_patches


def _with_tokens(config: ViTConfig, T: int) -> int:
    """The FLOPs if T tokens went through the blocks."""
    true = _patches(config) + 1
    D, hidden = config.dim, int(config.dim * config.mlp_ratio)

    def blocks(t: int) -> int:
        return config.depth * (8 * t * D * D + 4 * t * t * D + 4 * t * D * hidden)

    return count_flops(config) - blocks(true) + blocks(T)


def rename_layer(function: Callable[[dict[str, Tensor]], Any]) -> None:
    """Exercise 6.3: a layer of torchvision under the names of a `Block`."""
    from torchvision.models.vision_transformer import EncoderBlock

    for dim, heads, hidden in ((12, 3, 24), (16, 2, 40)):
        generator = torch.Generator().manual_seed(dim)
        theirs = EncoderBlock(heads, dim, hidden, 0.0, 0.0, nn.LayerNorm).eval()
        for p in theirs.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        block = Block(dim, heads, hidden / dim, norm_eps=1e-5).eval()
        given = {k: v.clone() for k, v in theirs.state_dict().items()}
        got = attempt(function, given, slip="the argument is a dictionary of names and tensors")
        expect(
            isinstance(got, dict),
            f"expected a dictionary of names and tensors, got {type(got).__name__}",
        )
        wanted = block.state_dict()
        extra, missing = sorted(set(got) - set(wanted)), sorted(set(wanted) - set(got))
        expect(not extra, f"a Block has no {', '.join(map(str, extra))}")
        expect(not missing, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        for key, value in got.items():
            shape = tuple(getattr(value, "shape", ()))
            expect(
                shape == tuple(wanted[key].shape),
                f"{key} must be {tuple(wanted[key].shape)}, got {shape}",
            )
        expect(
            not torch.equal(got["norm1.weight"], given["ln_2.weight"]),
            "the norms are exchanged: ln_1 stands before the attention, ln_2 before the MLP",
        )
        block.load_state_dict(got)
        x = torch.randn(2, 5, dim, generator=generator)
        with torch.no_grad():
            expect(
                same(block(x), theirs(x), 1e-4),
                "names and shapes are right, but the layer computes something else: "
                "is a weight in another's place, or changed?",
            )
    confirm("6.3", "the same layer under other names")


def flax_to_linear(function: Callable[[Tensor, Tensor], Any]) -> None:
    """Exercise 6.4: a kernel of Flax as the weight and bias of a linear layer."""
    for D, H, d in ((6, 2, 3), (8, 4, 2), (5, 1, 7), (4, 3, 4)):
        generator = torch.Generator().manual_seed(D + H)
        kernel = torch.randn(D, H, d, generator=generator)
        bias = torch.randn(H, d, generator=generator)
        pair = attempt(function, kernel, bias, slip="flatten the heads first, then transpose")
        expect(
            isinstance(pair, (tuple, list)) and len(pair) == 2,
            f"expected weight and bias, two tensors, got {type(pair).__name__}",
        )
        hints: dict[tuple[int, ...], str] = {
            (D, H * d): "PyTorch stores (out, in), Flax (in, out): transpose",
            (H, d, D): "join the heads and their width to one axis",
        }
        weight = expect_tensor(pair[0], (H * d, D), hints)
        flat = expect_tensor(pair[1], (H * d,), {(H, d): "the bias is flat too: (H * d,)"})
        target = kernel.reshape(D, H * d).T
        expect(
            same(weight, target) or not same(weight, kernel.reshape(H * d, D)),
            "a reshape to (H * d, D) shuffles the numbers: flatten the heads, then transpose",
        )
        expect(
            same(weight, target) or not same(weight, kernel.permute(2, 1, 0).reshape(H * d, D)),
            "the numbers of a head must stay together: head 0 first, then head 1",
        )
        expect(
            H * d != D or same(weight, target) or not same(weight, target.T),
            "PyTorch stores (out, in), Flax (in, out): transpose",
        )
        expect(same(weight, target), "x @ weight.T must be einsum('td,dhe->the', x, kernel), flat")
        expect(
            same(flat, bias.reshape(-1)),
            "the bias goes head by head, as the rows of the weight do: bias.reshape(-1)",
        )
    confirm("6.4", "rows of the weight go head by head, and the bias with them")


def _words(config: ViTConfig) -> str:
    return (
        f"image_size={config.image_size}, patch_size={config.patch_size}, "
        f"in_channels={config.in_channels}, dim={config.dim}, depth={config.depth}, "
        f"mlp_ratio={config.mlp_ratio}, num_classes={config.num_classes}"
    )
