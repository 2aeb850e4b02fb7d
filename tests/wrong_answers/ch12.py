"""Chapter 12."""

import torch


def offsets(divide=True, by_all=False, turned=False, absolute=False):
    def by_offset(maps):
        rows, columns = maps.shape[:2]
        sums = torch.zeros(2 * rows - 1, 2 * columns - 1)
        counts = torch.zeros_like(sums)
        for i in range(rows):
            for j in range(columns):
                for k in range(rows):
                    for m in range(columns):
                        dy, dx = (i - k, j - m) if turned else (k - i, m - j)
                        signs = (1, -1) if absolute else (1,)
                        for a in signs:
                            for b in signs:
                                sums[rows - 1 + a * dy, columns - 1 + b * dx] += maps[i, j, k, m]
                                counts[rows - 1 + a * dy, columns - 1 + b * dx] += 1
        if by_all:
            return sums / (rows * columns)
        return sums / counts if divide else sums

    return by_offset


def without_signs(maps):
    rows, columns = maps.shape[:2]
    found = torch.zeros(rows, columns)
    for dy in range(rows):
        for dx in range(columns):
            found[dy, dx] = maps[0, 0, dy, dx]
    return found


def columns_first(maps):
    return offsets()(maps).T if maps.shape[0] != maps.shape[1] else offsets()(maps)


def exchanged(maps):
    return offsets()(maps.transpose(0, 1).transpose(2, 3)) if len(set(maps.shape)) == 1 else 0


def of_the_corner(maps):
    rows, columns = maps.shape[:2]
    found = torch.full((2 * rows - 1, 2 * columns - 1), float("nan"))
    found[rows - 1 :, columns - 1 :] = maps[0, 0]
    return found


def of_the_middle(maps):
    rows, columns = maps.shape[:2]
    found = torch.zeros(2 * rows - 1, 2 * columns - 1)
    found[rows - 1 :, columns - 1 :] = maps[0, 0]
    found[:rows, :columns] = maps[-1, -1]
    return found


def beyond_the_table(maps):
    rows, columns = maps.shape[:2]
    sums = torch.zeros(2 * rows - 1, 2 * columns - 1)
    for i in range(rows):
        for j in range(columns):
            sums[i : i + rows, j : j + columns + 1] += maps[i, j]
    return sums


def share(others=True, centre=True, left=False, root=False, key=None, factor=1):
    def offset_share(maps):
        rows, columns = maps.shape[:2]
        groups, every = {}, []
        for i in range(rows):
            for j in range(columns):
                for k in range(rows):
                    for m in range(columns):
                        dy, dx = k - i, m - j
                        if others and dy == dx == 0:
                            continue
                        name = key(dy, dx) if key else (dy, dx)
                        groups.setdefault(name, []).append(maps[i, j, k, m].item())
                        every.append(maps[i, j, k, m].item())
        mean = sum(every) / len(every) if centre else 0
        whole = sum((v - mean) ** 2 for v in every)
        rest = sum(sum((v - sum(g) / len(g)) ** 2 for v in g) for g in groups.values())
        found = rest / whole if left else 1 - rest / whole
        return factor * (found**0.5 if root else found)

    return offset_share


def a_map(maps):
    return maps[0, 0]


def variance_left(maps):
    rest = share(left=True)(maps)
    N = maps.shape[0] * maps.shape[1]
    cosines = maps.reshape(N, N)[~torch.eye(N, dtype=torch.bool)].double()
    return rest * cosines.var(unbiased=False)


def always_one(maps):
    return 1.0


def needed(centre=lambda x: x - x.mean(0), power=2, more=1):
    def components_needed(weight, share):
        values = torch.linalg.svdvals(centre(weight.flatten(1)).double()) ** power
        return int((values.cumsum(0) / values.sum() < share).sum()) + more

    return components_needed


def not_flattened(weight, share):
    squares = torch.linalg.svdvals(weight - weight.mean(0)) ** 2
    return int((squares.cumsum(0) / squares.sum() < share).sum()) + 1


def the_shares(weight, share):
    filters = weight.flatten(1)
    squares = torch.linalg.svdvals(filters - filters.mean(0)) ** 2
    return squares / squares.sum()


def in_a_tensor(weight, share):
    return (the_shares(weight, share).cumsum(0) < share).sum() + 1


def share_reached(weight, share):
    return float(the_shares(weight, share).cumsum(0)[0])


def left_over(weight, share):
    return min(len(weight), weight[0].numel()) - needed()(weight, share)


def each_by_itself(weight, share):
    return int((the_shares(weight, share) >= share).sum())


WRONG = {
    "by_offset": [
        (offsets(divide=False), "those are sums"),
        (offsets(by_all=True), "not by all N patches"),
        (offsets(turned=True), "the other patch minus the first"),
        (offsets(absolute=True), "without their sign"),
        (without_signs, "negative ones included"),
        (columns_first, "rows come first"),
        (exchanged, "rows and columns are exchanged"),
        (of_the_corner, "there is a NaN"),
        (of_the_middle, "For dy = 0, dx = 1"),
        (beyond_the_table, "the window of patch (i, j) begins"),
        (lambda maps: maps.mean((0, 1)), "negative ones included"),
    ],
    "offset_share": [
        (share(others=False), "leave them out"),
        (share(left=True), "the share that is left"),
        (share(root=True), "a correlation"),
        (share(centre=False), "not from 0"),
        (share(key=lambda dy, dx: dy * dy + dx * dx), "that is the distance's share"),
        (share(key=lambda dy, dx: (abs(dy), abs(dx))), "takes dy and -dy for the same"),
        (share(factor=100), "from 0 to 1"),
        (variance_left, "not a share of the whole"),
        (a_map, "expected one number"),
        (always_one, "expected 0."),
    ],
    "components_needed": [
        (needed(centre=lambda x: x), "take the mean filter away"),
        (needed(centre=lambda x: x - x.mean(1, keepdim=True)), "each filter's own mean"),
        (needed(centre=lambda x: x - x.mean()), "one mean of all numbers"),
        (needed(power=1), "the square of a singular value"),
        (needed(more=0), "one too few"),
        (needed(more=2), "one too many"),
        (not_flattened, "components, got"),
        (the_shares, "expected one number"),
        (share_reached, "expected a whole number"),
        (in_a_tensor, "not one in a Tensor"),
        (left_over, "how many are left"),
        (each_by_itself, "components, got"),
    ],
}
