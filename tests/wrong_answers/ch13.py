"""Chapter 13."""

import math

import torch
import torch.nn.functional as F


def row(places, clamp=True):
    def resize_row(values, new):
        n = len(values)
        x = places(torch.arange(new), n, new)
        x = x.clamp(0, n - 1) if clamp else x
        left = x.floor().long().clamp(0, max(n - 2, 0))
        right = (left + 1).clamp(max=n - 1)
        share = (x - left)[:, None]
        return (1 - share) * values[left] + share * values[right]

    return resize_row


def centres(i, n, new):
    return (i + 0.5) * n / new - 0.5


def exchanged(values, new):
    n = len(values)
    x = centres(torch.arange(new), n, new).clamp(0, n - 1)
    left = x.floor().long()
    right = (left + 1).clamp(max=n - 1)
    share = (x - left)[:, None]
    return share * values[left] + (1 - share) * values[right]


def no_right_neighbour(values, new):
    x = centres(torch.arange(new), len(values), new).clamp(0, len(values) - 1)
    left = x.floor().long()
    return torch.lerp(values[left], values[left + 1], (x - left)[:, None])


def nearest(values, new):
    return F.interpolate(values.T[None], new, mode="nearest")[0].T


def antialiased(values, new):
    maps = values.T[None, :, None]
    return F.interpolate(maps, (1, new), mode="bilinear", antialias=True)[0, :, 0].T


def not_back(values, new):
    return F.interpolate(values.T[None], new, mode="linear")[0]


def cubic_row(values, new):
    return F.interpolate(values.T[None, :, None], (1, new), mode="bicubic")[0, :, 0].T


def table_of(turn=True, end=lambda tokens, x: torch.cat([tokens, x]), **how):
    def resize_table(table, prefix, old, new):
        patches = table[prefix:]
        maps = patches.T.reshape(1, -1, *old) if turn else patches.reshape(1, -1, *old)
        maps = F.interpolate(maps, new, **({"mode": "bicubic"} | how))
        return end(table[:prefix], maps.flatten(2)[0].T)

    return resize_table


def other_way_round(table, prefix, old, new):
    return table_of()(table, prefix, old[::-1], new[::-1])


def one_line(table, prefix, old, new):
    T = prefix + new[0] * new[1]
    return F.interpolate(table.T[None], T, mode="linear")[0].T


def cut_off(table, prefix, old, new):
    if new[0] * new[1] > old[0] * old[1]:
        return table_of()(table, prefix, old, new)
    return table[: prefix + new[0] * new[1]]


def prefix_too(table, prefix, old, new):
    return table_of()(table, 0, old, new)


def prefix_scaled(table, prefix, old, new):
    return table_of(end=lambda tokens, x: torch.cat([1.5 * tokens, x]))(table, prefix, old, new)


def one_class_token(table, prefix, old, new):
    side = math.isqrt(len(table) - 1)
    return table_of()(table, 1, (side, side), new)


def sharper(table, prefix, old, new):
    return table_of(end=lambda tokens, x: torch.cat([tokens, 1.1 * x]))(table, prefix, old, new)


def lost(rule, first=1, last=1):
    return lambda old, limit: [n for n in range(first, limit + last) if rule(old, n)]


def down(old, n):
    return math.floor(old * (n / old)) != n


def wanted_pixels(old, limit):
    return [16 * n for n in lost(down)(old, limit)]


def what_came(old, limit):
    return [n - 1 for n in lost(down)(old, limit)]


def how_many(old, limit):
    return len(lost(down)(old, limit))


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
    "resize_row": [
        (row(lambda i, n, new: i * (n - 1) / max(new - 1, 1)), "aligned corners"),
        (row(lambda i, n, new: i * n / new), "half a patch is missing"),
        (row(lambda i, n, new: (i + 0.5) * n / new), "the second half is missing"),
        (row(lambda i, n, new: (i + 0.5) * new / n - 0.5), "the ratio is turned round"),
        (row(centres, clamp=False), "beyond the border"),
        (nearest, "the nearest old patch"),
        (exchanged, "the shares are exchanged"),
        (antialiased, "that is antialiased"),
        (no_right_neighbour, "does not exist"),
        (not_back, "transpose it back"),
        (cubic_row, "expected ["),
        (lambda values, new: values, "the old number of patches"),
    ],
    "resize_table": [
        (table_of(turn=False), "transpose first"),
        (other_way_round, "rows and columns are exchanged"),
        (table_of(align_corners=True), "aligned corners"),
        (table_of(mode="bilinear"), "that is linear, not bicubic"),
        (table_of(mode="bilinear", align_corners=True), "linear with aligned corners"),
        (table_of(antialias=True), "as timm does"),
        (table_of(end=lambda tokens, x: torch.cat([x, tokens])), "the prefix comes first"),
        (table_of(end=lambda tokens, x: x), "the prefix is missing"),
        (table_of(end=lambda tokens, x: torch.cat([0 * tokens, x])), "passes through"),
        (prefix_scaled, "the prefix has changed"),
        (one_line, "one long sequence"),
        (cut_off, "cut off, not resized"),
        (prefix_too, "the prefix has to go"),
        (one_class_token, "the prefix has to go"),
        (sharper, "not those of a bicubic resize"),
    ],
    "one_too_few": [
        (lost(lambda old, n: math.floor(n * old / old) != n), "computed first"),
        (lost(lambda old, n: math.floor(old * ((n + 0.1) / old)) != n), "computed first"),
        (lost(lambda old, n: round(old * (n / old)) != n), "computed first"),
        (lost(down, last=0), "limit is included"),
        (lost(lambda old, n: old * (n / old) != n), "rounded down"),
        (lost(lambda old, n: old * (n // old) != n), "not rounded"),
        (lost(lambda old, n: math.floor(n * (old / n)) != old), "not old / n"),
        (lost(lambda old, n: not down(old, n)), "the sizes that work"),
        (wanted_pixels, "those are pixels"),
        (what_came, "the sizes that come out"),
        (how_many, "expected a list of whole numbers"),
        (lost(lambda old, n: n == 61), "expected ["),
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
