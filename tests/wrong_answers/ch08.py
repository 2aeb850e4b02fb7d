"""Chapter 8."""

import itertools
import math

import torch


def sizes(padding=2, last=1, up=False, only=slice(None)):
    def map_size(size, layers):
        for kernel, stride, pad in layers[only]:
            room = size + padding * pad - kernel
            size = (math.ceil(room / stride) if up else room // stride) + last
        return size

    return map_size


def not_rounded(size, layers):
    for kernel, stride, pad in layers:
        size = (size + 2 * pad - kernel) / stride + 1
    return size


def strides_only(size, layers):
    for _, stride, _ in layers:
        size //= stride
    return size


def field(start=1, one=1, own=False, add=False, strides=True):
    def receptive_field(layers):
        seen, step = start, 1
        for kernel, stride in layers:
            after = step + stride - 1 if add else step * stride
            after = after if strides else 1
            seen += (kernel - one) * (after if own else step)
            step = after
        return seen

    return receptive_field


def product_of_kernels(layers):
    return math.prod(kernel for kernel, _ in layers)


def product_of_strides(layers):
    return math.prod(stride for _, stride in layers)


def half_kernels(layers):
    return 1 + sum(kernel // 2 for kernel, _ in layers)


def whole_picture(layers):
    return 32


def refuse(labels, per_class):
    if labels.unique(return_counts=True)[1].min() < per_class:
        raise ValueError("too few")


def choosing(order_of=None, last=False, check=True, classes=None):
    def balanced(labels, per_class):
        if check:
            refuse(labels, per_class)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        order = order_of(labels, per_class) if order_of else order
        own = [order[labels[order] == c] for c in (classes or labels.unique())]
        return torch.cat([ids[-per_class:] if last else ids[:per_class] for ids in own])

    return balanced


def unseeded(labels, per_class):
    return torch.randperm(len(labels))


def places(labels, per_class):
    refuse(labels, per_class)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    own = [(labels[order] == c).nonzero()[:per_class, 0] for c in labels.unique()]
    return torch.cat(own)


def seeded_by_the_count(labels, per_class):
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(per_class))


def another_seed(labels, per_class):
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))


def file_order(labels, per_class):
    return torch.arange(len(labels))


def any_class(labels, per_class):
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return order[: per_class * len(labels.unique())]


def with_putting_back(labels, per_class):
    own = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
    return torch.cat([ids[torch.zeros(per_class, dtype=torch.long)] for ids in own + own])


def as_a_mask(labels, per_class):
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[choosing()(labels, per_class)] = True
    return mask


def as_a_list(labels, per_class):
    return choosing()(labels, per_class).tolist()


def as_a_table(labels, per_class):
    return choosing()(labels, per_class).view(-1, per_class)


def labels_instead(labels, per_class):
    return labels[choosing()(labels, per_class)] + 1000


def needing(straight=False, ends=False, finish=lambda n, sizes: n, outside=None):
    def images_needed(sizes, accuracies, target):
        if ends:
            sizes, accuracies = [sizes[0], sizes[-1]], [accuracies[0], accuracies[-1]]
        points = list(zip(sizes, accuracies, strict=True))
        for (n0, a0), (n1, a1) in itertools.pairwise(points):
            if a0 <= target <= a1:
                t = (target - a0) / (a1 - a0)
                return finish(n0 + t * (n1 - n0) if straight else n0 * (n1 / n0) ** t, sizes)
        return outside(sizes) if outside else None

    return images_needed


def raising(sizes, accuracies, target):
    found = needing()(sizes, accuracies, target)
    if found is None:
        raise ValueError("not measured")
    return found


def open_ends(sizes, accuracies, target):
    for (n0, a0), (n1, a1) in zip(
        zip(sizes, accuracies, strict=True),
        zip(sizes[1:], accuracies[1:], strict=True),
        strict=False,
    ):
        if a0 < target < a1:
            return n0 * (n1 / n0) ** ((target - a0) / (a1 - a0))


def above(n, sizes):
    return min(s for s in sizes if s >= n - 1e-6)


def below(n, sizes):
    return max(s for s in sizes if s <= n + 1e-6)


WRONG = {
    "map_size": [
        (sizes(padding=1), "on both sides"),
        (sizes(padding=0), "the padding is missing"),
        (sizes(last=0), "one is missing"),
        (sizes(up=True), "rounds down"),
        (sizes(only=slice(0, 1)), "after the first layer alone"),
        (sizes(only=slice(-1, None)), "what the one before it gave"),
        (not_rounded, "expected a whole number"),
        (strides_only, "expected 28, got 30"),
    ],
    "receptive_field": [
        (product_of_kernels, "do not multiply"),
        (field(one=0), "kernels overlap"),
        (field(strides=False), "the strides are missing"),
        (field(own=True), "the layers after it"),
        (field(add=True), "strides multiply"),
        (field(start=0), "at least its own pixel"),
        (product_of_strides, "the product of the strides"),
        (whole_picture, "expected 1, got 32"),
        (half_kernels, "a kernel of k adds k - 1"),
    ],
    "balanced": [
        (any_class, "whatever the class"),
        (choosing(file_order), "the first ones of the file"),
        (choosing(last=True), "the last ones in the random order"),
        (choosing(seeded_by_the_count), "must not depend on per_class"),
        (choosing(unseeded), "two calls chose differently"),
        (places, "places in the random order"),
        (choosing(another_seed), "take the first ones of each class in the order"),
        (choosing(check=False), "expected a ValueError, got an answer"),
        (choosing(classes=range(5)), "of each class came"),
        (with_putting_back, "chosen twice"),
        (as_a_mask, "got a mask"),
        (as_a_list, "expected a tensor of indices"),
        (as_a_table, "expected int64 (M,)"),
        (labels_instead, "expected indices from 0"),
    ],
    "images_needed": [
        (needing(straight=True), "not over their logarithm"),
        (needing(ends=True), "the two points around the target"),
        (needing(finish=above), "do not round"),
        (needing(finish=below), "nearest below"),
        (needing(finish=lambda n, _: math.log(n)), "undo it"),
        (needing(finish=lambda n, _: math.log10(n)), "to the base 10"),
        (needing(outside=lambda sizes: sizes[-1]), "nobody measured that"),
        (raising, "return None, got ValueError"),
        (open_ends, "is a measured accuracy: return its size, 2000"),
    ],
}
