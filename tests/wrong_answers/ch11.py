"""Chapter 11."""

import torch


def pixels_of(grid, size):
    where = torch.cartesian_prod(*(torch.arange(n) for n in grid)).float() * size
    return torch.cdist(where, where)


def whole_numbers(grid, size):
    where = torch.cartesian_prod(*(torch.arange(n) for n in grid)) * size
    return torch.cdist(where, where)


def rows_plus_columns(grid, size):
    where = torch.cartesian_prod(*(torch.arange(n) for n in grid)).float() * size
    return torch.cdist(where, where, p=1)


def distances(cut=None, share=True, pixels=pixels_of, end=lambda x: x.mean((0, 2))):
    def head_distances(attn, grid, size, prefix):
        N = grid[0] * grid[1]
        patches = attn[..., prefix:, prefix:] if cut is None else cut(attn, N, prefix)
        if share:
            patches = patches / patches.sum(-1, keepdim=True)
        return end((patches * pixels(grid, size)).sum(-1))

    return head_distances


def prefix_last(attn, N, prefix):
    return attn[..., :N, :N]


def by_queries(attn, grid, size, prefix):
    patches = attn[..., prefix:, prefix:]
    weights = patches / patches.sum(-2, keepdim=True)
    return (weights * pixels_of(grid, size)).sum(-2).mean((0, 2))


def over_keys(attn, grid, size, prefix):
    patches = attn[..., prefix:, prefix:]
    return (patches / patches.sum(-1, keepdim=True) * pixels_of(grid, size)).mean((0, 2, 3))


def rolled(identity=True, turn=False, divide=True, softmax=False, transpose=False):
    def rollout(attn):
        T = attn.shape[-1]
        total = torch.eye(T)
        for layer in attn.flip(0) if turn else attn:
            mixed = layer.mean(0) + (torch.eye(T) if identity else 0)
            if softmax:
                mixed = mixed.softmax(-1)
            elif divide:
                mixed = mixed / mixed.sum(-1, keepdim=True)
            total = mixed @ total
        return total.T if transpose else total

    return rollout


def by_columns(attn):
    total = torch.eye(attn.shape[-1])
    for layer in attn:
        mixed = layer.mean(0) + torch.eye(attn.shape[-1])
        total = mixed / mixed.sum(-2, keepdim=True) @ total
    return total


def entries(attn):
    return ((attn.mean(1) + torch.eye(attn.shape[-1])) / 2).prod(0)


def mean_of_layers(attn):
    return ((attn.mean(1) + torch.eye(attn.shape[-1])) / 2).mean(0)


def heads_kept(attn):
    total = torch.eye(attn.shape[-1])
    for layer in attn:
        total = (layer + torch.eye(attn.shape[-1])) / 2 @ total
    return total


def the_mean(weights, pixels):
    return (weights * pixels).sum(-1)


def the_variance(weights, pixels):
    mean = (weights * pixels).sum(-1, keepdim=True)
    return (weights * (pixels - mean) ** 2).sum(-1)


def without_weights(weights, pixels):
    return pixels.std(-1)


def from_zero(weights, pixels):
    return (weights * pixels**2).sum(-1).sqrt()


def of_products(weights, pixels):
    return (weights * pixels).std(-1)


def absolute(weights, pixels):
    mean = (weights * pixels).sum(-1, keepdim=True)
    return (weights * (pixels - mean).abs()).sum(-1)


def one_mean_for_all(weights, pixels):
    mean = (weights * pixels).sum(-1)
    return (weights * (pixels - mean) ** 2).sum(-1).sqrt()


def plain_mean(weights, pixels):
    mean = pixels.mean(-1, keepdim=True)
    return (weights * (pixels - mean) ** 2).sum(-1).sqrt()


def averaged(first, last):
    def distance_spread(weights, pixels):
        products = weights * pixels
        mean = (products.mean if first else products.sum)(-1, keepdim=True)
        squares = weights * (pixels - mean) ** 2
        return (squares.mean if last else squares.sum)(-1).sqrt()

    return distance_spread


def losing_digits(weights, pixels):
    squares = (weights * pixels**2).sum(-1)
    return (squares - (weights * pixels).sum(-1) ** 2).sqrt()


def one_number(weights, pixels):
    return the_variance(weights, pixels).sqrt().mean()


WRONG = {
    "head_distances": [
        (distances(share=False), "do not sum to 1"),
        (distances(cut=prefix_last), "the prefix stands first"),
        (distances(pixels=lambda g, s: pixels_of(g, 1)), "in patches"),
        (distances(pixels=lambda g, s: pixels_of(g, s) ** 2), "take the root"),
        (distances(pixels=lambda g, s: pixels_of(g[::-1], s)), "row by row"),
        (distances(pixels=whole_numbers), "cdist wants floating-point numbers"),
        (distances(pixels=rows_plus_columns), "not rows plus columns"),
        (distances(pixels=lambda g, s: pixels_of(g, s) + 1), "expected ["),
        (by_queries, "sum over the keys"),
        (over_keys, "do not average over them"),
        (distances(end=lambda x: x.mean(2)), "over the images, too"),
        (distances(end=lambda x: x.mean(0)), "over the queries, too"),
        (distances(end=lambda x: x.mean()), "one number a head"),
        (distances(cut=lambda attn, N, prefix: attn), "has N queries and N keys"),
    ],
    "rollout": [
        (rolled(identity=False), "the identity is missing"),
        (rolled(turn=True), "the order is turned round"),
        (rolled(divide=False), "rows should sum to 1"),
        (rolled(softmax=True), "a softmax is no division"),
        (rolled(transpose=True), "that is transposed"),
        (by_columns, "sums of columns"),
        (entries, "with @"),
        (mean_of_layers, "not their product"),
        (heads_kept, "the heads are averaged first"),
    ],
    "distance_spread": [
        (the_mean, "that is the mean"),
        (the_variance, "take the root"),
        (without_weights, "the weights are not used"),
        (one_mean_for_all, "keepdim=True"),
        (plain_mean, "is weighted, too"),
        (averaged(True, False), "in the mean distance"),
        (averaged(False, True), "of the squares"),
        (averaged(True, True), "both times"),
        (from_zero, "not from 0"),
        (of_products, "of the products"),
        (absolute, "an absolute deviation"),
        (losing_digits, "subtract the mean before you square"),
        (one_number, "one number for each query"),
    ],
}
