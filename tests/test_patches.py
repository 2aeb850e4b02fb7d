"""Chapter 1: cutting, putting together, projecting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vitmini as vm

SHAPES = [  # (B, C, H, W), (P, Q)
    ((2, 3, 32, 32), (4, 4)),
    ((1, 1, 6, 10), (3, 5)),
    ((3, 2, 8, 4), (8, 2)),
    ((1, 5, 7, 7), (1, 1)),
    ((2, 3, 12, 8), (12, 8)),
    ((0, 3, 8, 8), (4, 4)),
]


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_patchify_agrees_with_slicing_patch_by_patch(shape, patch):
    images = torch.randn(shape)
    (B, C, H, W), (P, Q) = shape, patch
    slices = [
        images[:, :, y : y + P, x : x + Q].reshape(B, C * P * Q)
        for y in range(0, H, P)
        for x in range(0, W, Q)
    ]
    assert torch.equal(vm.patchify(images, patch), torch.stack(slices, dim=1))


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64, torch.bool])
def test_unpatchify_is_the_exact_inverse(shape, patch, dtype):
    images = torch.randint(0, 2, shape).to(dtype)
    restored = vm.unpatchify(vm.patchify(images, patch), patch, shape[2:], shape[1])
    assert restored.dtype == dtype and torch.equal(restored, images)


def test_patchify_agrees_with_torch_unfold():
    images = torch.randn(2, 3, 24, 16)
    assert torch.equal(vm.patchify(images, 8), F.unfold(images, 8, stride=8).transpose(1, 2))


@pytest.mark.parametrize(("shape", "patch"), SHAPES[:5])
def test_linear_projection_is_the_strided_convolution(shape, patch):
    images = torch.randn(shape, dtype=torch.float64)
    conv = torch.nn.Conv2d(shape[1], 11, patch, stride=patch).double()
    linear = vm.patchify(images, patch) @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(linear, conv(images).flatten(2).transpose(1, 2), rtol=0, atol=1e-12)


def test_patch_embed_is_patchify_times_its_own_kernel():
    embed = vm.PatchEmbed((12, 8), (4, 2), in_channels=2, dim=7)
    images = torch.randn(3, 2, 12, 8)
    linear = vm.patchify(images, (4, 2)) @ embed.proj.weight.flatten(1).T + embed.proj.bias
    assert embed.grid == (3, 4) and embed.num_patches == 12
    assert torch.allclose(embed(images), linear, atol=1e-6)


def test_gradients_pass_through_cutting_and_putting_together():
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    vm.unpatchify(vm.patchify(images, 4), 4, 8).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vm.patchify(torch.zeros(1, 3, 9, 8), 4), "image_size 9x8 .* 8x8"),
        (lambda: vm.patchify(torch.zeros(1, 3, 8, 9), (4, 4)), "image_size 8x9"),
        (lambda: vm.patchify(torch.zeros(1, 3, 2, 2), 4), "4x4"),
        (lambda: vm.patchify(torch.zeros(3, 8, 8), 4), r"images .*\(3, 8, 8\)"),
        (lambda: vm.patchify([[1]], 4), "images .*list"),
        (lambda: vm.patchify(torch.zeros(1, 3, 8, 8), 0), "patch_size .* got 0"),
        (lambda: vm.patchify(torch.zeros(1, 3, 8, 8), True), "patch_size .* got True"),
        (lambda: vm.patchify(torch.zeros(1, 3, 8, 8), 2.0), "patch_size .* got 2.0"),
        (lambda: vm.patchify(torch.zeros(1, 3, 8, 8), (4, 4, 4)), "patch_size"),
        (lambda: vm.patchify(torch.zeros(1, 3, 8, 8), (4, -4)), "patch_size"),
        (lambda: vm.unpatchify(torch.zeros(1, 4, 48), 4, 9), "image_size 9x9"),
        (lambda: vm.unpatchify(torch.zeros(1, 5, 48), 4, 8), r"patches must be \(B, 4, 48\)"),
        (lambda: vm.unpatchify(torch.zeros(1, 4, 47), 4, 8), r"got \(1, 4, 47\)"),
        (lambda: vm.unpatchify(torch.zeros(4, 48), 4, 8), "patches"),
        (lambda: vm.unpatchify(torch.zeros(1, 4, 48), 4, 8, channels=0), "channels"),
        (lambda: vm.PatchEmbed(30, 4), "image_size 30x30"),
        (lambda: vm.PatchEmbed(8, 4)(torch.zeros(1, 3, 8, 12)), r"\(B, 3, 8, 8\), got"),
        (lambda: vm.PatchEmbed(8, 4)(torch.zeros(1, 1, 8, 8)), r"\(B, 3, 8, 8\), got"),
        (lambda: vm.PatchEmbed(8, 4)(None), r"\(B, 3, 8, 8\), got NoneType"),
        (lambda: vm.PatchEmbed(8, 4)(torch.zeros(1, 3, 8, 8).byte()), "floating point"),
        (lambda: vm.PatchEmbed(8, 4, 0), "in_channels, dim"),
        (lambda: vm.PatchEmbed(8, 4, 3, 4.0), "in_channels, dim"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_that_names_them(call, words):
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
