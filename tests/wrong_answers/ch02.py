"""Chapter 2."""

import torch
import torch.nn.functional as F


def appended(tokens, cls_token):
    return torch.cat([tokens, cls_token.expand(len(tokens), -1, -1)], dim=1)


def added(tokens, cls_token):
    return tokens + cls_token


def without_expand(tokens, cls_token):
    return torch.cat([cls_token, tokens], dim=1)


def joined_to_the_width(tokens, cls_token):
    return torch.cat([cls_token.expand_as(tokens), tokens], dim=2)


def zeros_in_front(tokens, cls_token):
    return F.pad(tokens, (0, 0, 1, 0))


def added_and_in_front(tokens, cls_token):
    cls = cls_token.expand(len(tokens), -1, -1)
    return torch.cat([cls, tokens + cls_token], dim=1)


def maps(vectors, grid):
    return (vectors @ vectors.T).reshape(*grid, *grid)


def dot_product(pos_embed, grid):
    return maps(pos_embed[0, 1:], grid)


def last_row_left_out(pos_embed, grid):
    return maps(F.normalize(pos_embed[0, :-1], dim=-1), grid)


def normalized_across_patches(pos_embed, grid):
    return maps(F.normalize(pos_embed[0, 1:], dim=0), grid)


def one_length_only(pos_embed, grid):
    x = pos_embed[0, 1:]
    return (x @ F.normalize(x, dim=-1).T).reshape(*grid, *grid)


def not_reshaped(pos_embed, grid):
    x = F.normalize(pos_embed[0, 1:], dim=-1)
    return x @ x.T


def with_the_class_token(pos_embed, grid):
    x = F.normalize(pos_embed[0], dim=-1)
    return x @ x.T


def distances(pos_embed, grid):
    x = F.normalize(pos_embed[0, 1:], dim=-1)
    return ((x[:, None] - x[None]) ** 2).sum(-1).reshape(*grid, *grid)


def places(rows, columns, divisor=None):
    number, divisor = torch.arange(rows * columns), divisor or columns
    return torch.stack([number // divisor, number % divisor], dim=-1)


def key_minus_query(rows, columns):
    p = places(rows, columns)
    return p[None] - p[:, None]


def columns_first(rows, columns):
    p = places(rows, columns).flip(-1)
    return p[:, None] - p[None]


def divided_by_rows(rows, columns):
    p = places(rows, columns, rows)
    return p[:, None] - p[None]


def without_sign(rows, columns):
    p = places(rows, columns)
    return (p[:, None] - p[None]).abs()


def pair_first(rows, columns):
    p = places(rows, columns)
    return (p[:, None] - p[None]).permute(2, 0, 1)


def in_floats(rows, columns):
    p = places(rows, columns).float()
    return p[:, None] - p[None]


def distance_in_rows_only(rows, columns):
    p = places(rows, columns)
    return (p[:, None] - p[None]) * torch.tensor([1, 0])


def order_of(tokens):
    return torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(3))


def invariant_instead(layer, tokens):
    return torch.allclose(layer(tokens[:, order_of(tokens)]), layer(tokens), atol=1e-5)


def exact(layer, tokens):
    order = order_of(tokens)
    return torch.equal(layer(tokens[:, order]), layer(tokens)[:, order])


def by_a_flip(layer, tokens):
    return torch.allclose(layer(tokens.flip(1)), layer(tokens).flip(1), atol=1e-5)


def by_a_shift(layer, tokens):
    return torch.allclose(layer(tokens.roll(1, 1)), layer(tokens).roll(1, 1), atol=1e-5)


def same_order(layer, tokens):
    order = torch.arange(tokens.shape[1])
    return torch.allclose(layer(tokens[:, order]), layer(tokens)[:, order], atol=1e-5)


def moves_the_batch(layer, tokens):
    order = torch.tensor([1, 0])
    return torch.allclose(layer(tokens[order]), layer(tokens)[order], atol=1e-5)


def last_two_only(layer, tokens):
    order = torch.tensor([0, 1, 2, 3, 4, 5, 7, 6])
    return torch.allclose(layer(tokens[:, order])[:, :1], layer(tokens)[:, :1], atol=1e-5)


WRONG = {
    "add_class_token": [
        (appended, "stands first, not last"),
        (added, "one more token, it is not added"),
        (without_expand, "cls_token.expand(B, -1, -1)"),
        (joined_to_the_width, "dimension 2 is the width"),
        (zeros_in_front, "index 0 should hold the class token"),
        (added_and_in_front, "the patches changed"),
    ],
    "cosine_maps": [
        (dot_product, "that is the dot product"),
        (last_row_left_out, "the last row was left out instead"),
        (normalized_across_patches, "not over the patches"),
        (one_length_only, "only one of the two vectors"),
        (not_reshaped, "the shape is not"),
        (with_the_class_token, "has no place in the grid"),
        (distances, "a cosine of exactly 1"),
    ],
    "relative_offsets": [
        (key_minus_query, "key minus query"),
        (columns_first, "rows come first"),
        (divided_by_rows, "divide by columns, not by rows"),
        (without_sign, "the sign is missing"),
        (pair_first, "is the last dimension"),
        (in_floats, "whole numbers"),
        (distance_in_rows_only, "the offsets of a grid"),
    ],
    "is_equivariant": [
        (invariant_instead, "compared with layer(x)[:, order]"),
        (exact, "the sums are rounded"),
        (by_a_flip, "take a random order"),
        (by_a_shift, "a shift commutes"),
        (same_order, "really another one"),
        (moves_the_batch, "really another one"),
        (last_two_only, "'x + positions' is not equivariant"),
    ],
}
