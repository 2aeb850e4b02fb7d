"""Chapter 13."""

import math

import torch
import torch.nn.functional as F


def centres(i, old, new):
    return (i + 0.5) * old / new - 0.5


def weights(places=centres, clamp=False, border=lambda j, old: min(max(j, 0), old - 1), own=None):
    def kernel_weights(old, new, kernel):
        kernel = own or kernel
        x = places(torch.arange(new), old, new)
        x = x.clamp(0, old - 1) if clamp else x
        W = torch.zeros(new, old)
        for j in range(-2, old + 2):
            W[:, border(j, old)] += kernel(x - j)
        return W

    return kernel_weights


def linear(x):
    return (1 - x.abs()).clamp(min=0)


def lost(old, new, kernel):
    return kernel(centres(torch.arange(new), old, new)[:, None] - torch.arange(old))


def scaled_up(old, new, kernel):
    W = lost(old, new, kernel)
    return W / W.sum(1, keepdim=True)


def overwritten(old, new, kernel):
    x = centres(torch.arange(new), old, new)
    W = torch.zeros(new, old)
    for i in range(new):
        left = math.floor(x[i])
        for j in range(left - 1, left + 3):
            if kernel(x[i] - j) != 0:
                W[i, min(max(j, 0), old - 1)] = kernel(x[i] - j)
    return W


def not_a_matrix_of_distances(old, new, kernel):
    return kernel(centres(torch.arange(new), old, new) - torch.arange(old))


def no_border(old, new, kernel):
    x = centres(torch.arange(new), old, new)
    W = torch.zeros(new, old)
    for j in range(old + 2):
        W[:, j] += kernel(x - j)
    return W


def by_pytorch(old, new, kernel):
    return F.interpolate(torch.eye(old)[None], new, mode="linear")[0].T


def narrow(old, new, kernel):
    W = weights()(old, new, kernel)
    return torch.cat([W[:1], W[:1], W[2:]])


def round_table(wide=3, high=1, turn=True, take=None, end=None, **how):
    def resize_panorama(table, prefix, old, new):
        tokens, patches = table[:prefix], table[prefix:]
        maps = patches.T.reshape(1, -1, *old) if turn else patches.reshape(1, -1, *old)
        size = (high * new[0], wide * new[1])
        maps = F.interpolate(maps.repeat(1, 1, high, wide), size, **({"mode": "bicubic"} | how))
        y, x = high // 2 * new[0], (wide // 2 if take is None else take) * new[1]
        maps = maps[:, :, y : y + new[0], x : x + new[1]]
        x = maps.flatten(2)[0].T
        return end(tokens, x) if end else torch.cat([tokens, x])

    return resize_panorama


def other_way_round(table, prefix, old, new):
    return round_table()(table, prefix, old[::-1], new[::-1])


def three_copies(table, prefix, old, new):
    maps = table[prefix:].T.reshape(1, -1, *old).repeat(1, 1, 1, 3)
    maps = F.interpolate(maps, (new[0], 3 * new[1]), mode="bicubic")
    return torch.cat([table[:prefix], maps.flatten(2)[0].T])


def one_line(table, prefix, old, new):
    T = prefix + new[0] * new[1]
    return F.interpolate(table.T[None], T, mode="linear")[0].T


def cut_off(table, prefix, old, new):
    return table[: prefix + new[0] * new[1]]


def cut_off_when_smaller(table, prefix, old, new):
    smaller = new[0] * new[1] <= old[0] * old[1]
    return (cut_off if smaller else round_table())(table, prefix, old, new)


def prefix_too(table, prefix, old, new):
    return round_table()(table, 0, old, new)


def one_class_token(table, prefix, old, new):
    return round_table()(table, 1, old, new)


def by_the_root(table, prefix, old, new):
    side = math.isqrt(len(table) - prefix)
    return round_table()(table, prefix, (side, side), new)


def not_back(table, prefix, old, new):
    return round_table(end=lambda tokens, x: torch.cat([tokens, x.T]))(table, prefix, old, new)


def largest(right):
    def least_addition(old, limit):
        works = [k for k in range(1, 21) if all(right(old, n, k) for n in range(1, limit + 1))]
        return max(works)

    return least_addition


def right(old, n, k):
    return math.floor(old * ((n + 10**-k) / old)) == n


def not_the_limit(old, limit):
    return largest(right)(old, limit - 1)


def the_limit_alone(old, limit):
    return max(k for k in range(1, 21) if right(old, limit, k))


def first_that_fails(old, limit):
    return largest(right)(old, limit) + 1


def the_addition_itself(old, limit):
    return 10.0 ** -largest(right)(old, limit)


def unrounded(old, limit):
    works = [k for k in range(1, 21) if old * ((limit + 10**-k) / old) == limit and k < 14]
    return max(works, default=0)


def grid(rule, least=1, turn=False):
    def photo_grid(height, width, patch):
        found = tuple(max(least, rule(side / patch)) for side in (height, width))
        return found[::-1] if turn else found

    return photo_grid


def half_up(x):
    return math.floor(x + 0.5)


def in_pixels(height, width, patch):
    return tuple(patch * n for n in grid(half_up)(height, width, patch))


def square(height, width, patch):
    side = math.isqrt(
        grid(half_up)(height, width, patch)[0] * grid(half_up)(height, width, patch)[1]
    )
    return max(side, 1), max(side, 1)


def in_floats(height, width, patch):
    return height / patch, width / patch


WRONG = {
    "kernel_weights": [
        (weights(lambda i, old, new: i * (old - 1) / max(new - 1, 1)), "aligned corners"),
        (weights(lambda i, old, new: i * old / new), "half a patch is missing"),
        (weights(lambda i, old, new: (i + 0.5) * old / new), "the second half is missing"),
        (weights(lambda i, old, new: (i + 0.5) * new / old - 0.5), "the ratio is turned round"),
        (weights(clamp=True), "do not clamp x"),
        (weights(border=lambda j, old: j % old), "an index of -1"),
        (weights(own=linear), "call the one that is given"),
        (lost, "what falls beyond a border is lost"),
        (scaled_up, "not to all in the row"),
        (overwritten, "add them"),
        (not_a_matrix_of_distances, "a matrix of distances"),
        (no_border, "have no column"),
        (by_pytorch, "write this yourself"),
        (narrow, "the first row is right"),
        (lambda old, new, kernel: weights()(old, new, kernel).T, "transpose it"),
        (lambda old, new, kernel: 0 * weights()(old, new, kernel), "the first new patch expects"),
    ],
    "resize_panorama": [
        (round_table(wide=1), "no panorama"),
        (round_table(high=3), "only the columns"),
        (round_table(wide=1, high=3), "not the rows"),
        (round_table(take=0), "on the left"),
        (round_table(take=2), "on the right"),
        (three_copies, "three copies"),
        (round_table(turn=False), "transpose first"),
        (other_way_round, "rows and columns are exchanged"),
        (round_table(align_corners=True), "aligned corners"),
        (round_table(mode="bilinear"), "that is linear, not bicubic"),
        (round_table(antialias=True), "antialiased"),
        (round_table(end=lambda tokens, x: torch.cat([x, tokens])), "the prefix comes first"),
        (round_table(end=lambda tokens, x: x), "the prefix is missing"),
        (round_table(end=lambda tokens, x: torch.cat([0 * tokens, x])), "passes through"),
        (round_table(end=lambda tokens, x: torch.cat([1.5 * tokens, x])), "the prefix has changed"),
        (round_table(end=lambda tokens, x: torch.cat([tokens, 1.1 * x])), "not those of a bicubic"),
        (one_line, "one long sequence"),
        (cut_off, "mistake three"),
        (cut_off_when_smaller, "mistake three"),
        (prefix_too, "the prefix goes away"),
        (not_back, "wants .T"),
        (one_class_token, "the prefix may be more than 1"),
        (by_the_root, "not the root"),
    ],
    "least_addition": [
        (largest(lambda old, n, k: round(old * ((n + 10**-k) / old)) == n), "divides first"),
        (largest(lambda old, n, k: math.floor((n + 10**-k) * old / old) == n), "divides first"),
        (largest(lambda old, n, k: old * ((n + 10**-k) / old) == n), "math.floor"),
        (
            largest(lambda old, n, k: math.floor(old * (n / old + 10**-k)) == n),
            "before the division",
        ),
        (unrounded, "math.floor"),
        (not_the_limit, "limit is included"),
        (the_limit_alone, "the limit alone"),
        (first_that_fails, "the last k that loses none"),
        (the_addition_itself, "not 10**-k"),
        (lambda old, limit: 1, "asked is the largest"),
        (lambda old, limit: 14, "expected 20"),
        (lambda old, limit: "14", "one whole number"),
    ],
    "photo_grid": [
        (grid(half_up, turn=True), "rows come first"),
        (grid(math.floor), "rounded down"),
        (grid(math.ceil), "rounded up"),
        (grid(round), "the even neighbour"),
        (grid(half_up, 0), "at least one patch"),
        (in_pixels, "not patches"),
        (square, "expected ("),
        (in_floats, "two whole numbers"),
    ],
}
