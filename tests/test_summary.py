"""Layers, parameters and FLOPs by formula, against the model and against PyTorch's counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vitmini as vm
from vitmini.__main__ import main

KINDS = {
    "plain": {},
    "rectangular": {"image_size": (32, 48), "patch_size": (4, 8), "in_channels": 1},
    "mean": {"pool": "mean"},
    "distilled": {"distilled": True},
    "layer scale": {"layer_scale": 1e-4, "qkv_bias": False},
    "odd widths": {"mlp_ratio": 2.7, "num_heads": 2, "num_classes": 7},
    "one block": {"depth": 1},
} | {kind: {"pos_embed": kind} for kind in ("learned2d", "sincos2d", "relative", "none")}
each_kind = pytest.mark.parametrize("more", KINDS.values(), ids=KINDS)


def small(**more):
    given = {"image_size": 32, "patch_size": 8, "dim": 48, "depth": 3, "num_heads": 4}
    return vm.ViTConfig(**given | more)


def counted(config):
    """PyTorch counts what is computed; the fused kernel is taken apart into its two products."""
    with torch.device("meta"):
        model = vm.ViT(config).eval()
        images = torch.zeros(1, config.in_channels, *model.patch_embed.image_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


@each_kind
def test_flops_by_formula_are_those_that_pytorch_counts(more):
    assert vm.count_flops(small(**more)) == counted(small(**more))


@pytest.mark.parametrize("name", vm.list_models())
def test_flops_of_every_preset(name):
    assert vm.count_flops(vm.get_config(name)) == counted(vm.get_config(name))


@each_kind
def test_parameters_of_the_rows_are_those_of_the_model(more):
    with torch.device("meta"):
        model = vm.ViT(small(**more))
    rows = vm.describe_layers(small(**more))
    assert sum(r.parameters for r in rows) == sum(p.numel() for p in model.parameters())


@each_kind
def test_shapes_of_the_rows_are_those_of_a_forward_pass(more):
    model, seen = vm.ViT(small(**more)).eval(), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    images = torch.zeros(1, model.config.in_channels, *model.patch_embed.image_size)
    model(images)
    for row in vm.describe_layers(model.config):
        if row.name == "patch_embed.proj":
            assert row.shape == (model.patch_embed.num_patches, 48)
        elif row.name in seen and seen[row.name] is not None:
            assert row.shape == tuple(seen[row.name].shape[1:]), row.name


def test_known_totals():
    """DeiT's paper says 1.3, 4.6 and 17.6 G for Ti, S and B, a multiply-add counted as one."""
    for name, giga in (("deit_tiny", 1.3), ("deit_small", 4.6), ("deit_base", 17.6)):
        flops = vm.count_flops(vm.get_config(f"{name}_patch16_224"))
        assert flops / 2e9 == pytest.approx(giga, abs=0.06)


def test_info_prints_a_table_that_adds_up(capsys):
    assert main(["info", "vit_base_patch16_224"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1:-3]]
    numbers = [(int(r[-2].replace(",", "")), int(r[-1].replace(",", ""))) for r in rows]
    total = lines[-3].split()
    assert [f"{sum(column):,}" for column in zip(*numbers, strict=True)] == total[1:]
    assert total[1] == "86,567,656" and "35.128 GFLOPs" in lines[-1]
    assert max(map(len, lines)) <= 80


def test_info_of_an_unknown_model_is_one_line(capsys):
    assert main(["info", "vit_giant"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "vit_cifar" in err
