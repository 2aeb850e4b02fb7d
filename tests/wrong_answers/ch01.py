"""Chapter 1."""

import math

import torch

import vitmini as vm


def cut(images, P):
    B, C, H, W = images.shape
    return images.reshape(B, C, H // P, P, W // P, P)


def joined(x, B, P, C):
    return x.reshape(B, -1, C * P * P)


def reshape_only(images, P):
    return joined(images, images.shape[0], P, images.shape[1])


def channel_last(images, P):
    return joined(cut(images, P).permute(0, 2, 4, 3, 5, 1), images.shape[0], P, images.shape[1])


def column_by_column(images, P):
    return joined(cut(images, P).permute(0, 4, 2, 1, 3, 5), images.shape[0], P, images.shape[1])


def patch_transposed(images, P):
    return joined(cut(images, P).permute(0, 2, 4, 1, 5, 3), images.shape[0], P, images.shape[1])


def not_flattened(images, P):
    return cut(images, P).permute(0, 2, 4, 1, 3, 5)


def unfold_as_it_comes(images, P):
    return torch.nn.functional.unfold(images, P, stride=P)


def kernel_without_transpose(matrix, C, P):
    return matrix.reshape(-1, C, P, P)


def kernel_channel_last(matrix, C, P):
    return matrix.T.reshape(-1, P, P, C).permute(0, 3, 1, 2)


def kernel_left_flat(matrix, C, P):
    return matrix.T


def kernel_as_in_tensorflow(matrix, C, P):
    return matrix.reshape(C, P, P, -1).permute(1, 2, 0, 3)


def kernel_after_spoiling_the_matrix(matrix, C, P):
    matrix.zero_()
    return matrix.T.reshape(-1, C, P, P)


def inverse_order(images, P, order):
    patches = vm.patchify(images, P)[:, order.argsort()]
    return vm.unpatchify(patches, P, tuple(images.shape[2:]), images.shape[1])


def assigns_to_order(images, P, order):
    patches = vm.patchify(images, P)
    moved = patches.clone()
    moved[:, order] = patches
    return vm.unpatchify(moved, P, tuple(images.shape[2:]), images.shape[1])


def left_as_patches(images, P, order):
    return vm.patchify(images, P)[:, order]


def nothing_moves(images, P, order):
    patches = vm.patchify(images, P)
    patches[:, order]
    return vm.unpatchify(patches, P, tuple(images.shape[2:]), images.shape[1])


def indexes_the_batch(images, P, order):
    patches = vm.patchify(images, P)[order]
    return vm.unpatchify(patches, P, tuple(images.shape[2:]), images.shape[1])


def only_the_first_image(images, P, order):
    out = images.clone()
    out[:1] = vm.unpatchify(
        vm.patchify(images[:1], P)[:, order], P, tuple(images.shape[2:]), images.shape[1]
    )
    return out


WRONG = {
    "count_tokens": [
        (lambda s, p: (s[0] // p[0]) ** 2, "need not be square: rows and columns differ"),
        (lambda s, p: s[0] // p[0] + s[1] // p[1], "rows times columns"),
        (lambda s, p: (s[0] // p[0]) * (s[1] // p[1]) + 1, "class token is not a patch"),
        (lambda s, p: s[0] * s[1] / (p[0] * p[1]), "divide with //, not /"),
        (lambda s, p: s[0] * s[1] // p[0] ** 2, "a patch need not be square"),
        (lambda s, p: s[0] // p[0], "one row of the grid"),
        (lambda s, p: (s[0] // p[1]) * (s[1] // p[0]), "rows of the patch divide rows"),
        (lambda s, p: math.prod(s), "number of pixels"),
    ],
    "patchify_by_hand": [
        (reshape_only, "a reshape alone does not cut"),
        (channel_last, "channel last"),
        (column_by_column, "column by column"),
        (patch_transposed, "inside each patch are swapped"),
        (not_flattened, "flatten the grid to N"),
        (unfold_as_it_comes, "F.unfold transposed"),
    ],
    "kernel_from_matrix": [
        (kernel_without_transpose, "reshape does not transpose"),
        (kernel_channel_last, "channel first (c, row, column), not channel last"),
        (kernel_after_spoiling_the_matrix, "changed its argument in place"),
        (kernel_left_flat, "split C*P*P into (C, P, P)"),
        (kernel_as_in_tensorflow, "TensorFlow's order"),
    ],
    "shuffle_patches": [
        (inverse_order, "inverse order"),
        (assigns_to_order, "inverse order"),
        (left_as_patches, "put the patches together again"),
        (nothing_moves, "nothing moved"),
        (indexes_the_batch, "dimension 0 is the batch"),
        (only_the_first_image, "every image of the batch"),
    ],
}
