"""Plausible wrong answers to assignment 5: each loses its question's points and no other's."""


def _layer(**changes: str) -> str:
    """The right answer to question 1, with one part of it replaced."""
    parts = {
        "mode": "model.eval()",
        "bias": "0 if attn.rel_pos is None else attn.rel_pos()",
        "clean": "hook.remove()",
        "modes": "module.training = mode",
        "split": "q, k, _ = qkv.reshape(B, T, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)",
        "weights": "(q @ k.transpose(-2, -1) * attn.scale + bias).softmax(dim=-1)",
        "grad": "torch.no_grad()",
    } | changes
    return f"""
def layer_attention(model, images, layer):
    attn, seen = model.blocks[layer].attn, []
    modes = [(module, module.training) for module in model.modules()]
    hook = attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        {parts["mode"]}
        with {parts["grad"]}:
            model(images)
            bias = {parts["bias"]}
    finally:
        {parts["clean"]}
        for module, mode in modes:
            {parts["modes"]}
    (qkv,) = seen
    B, T, _ = qkv.shape
    {parts["split"]}
    return {parts["weights"]}
"""


def _distance(**changes: str) -> str:
    parts = {
        "scale": "torch.tensor(patch_size)",
        "grid": "grid",
        "cut": "attn[..., num_prefix_tokens:, num_prefix_tokens:].float()",
        "kept": "far.mean((1, 3))",
        "divide": "torch.where(counted, far / mass.clamp(min=1e-30), 0.0)",
        "mean": "far.sum((1, 3)) / counted.sum((1, 3))",
    } | changes
    return f"""
def distance_in(attn, grid, patch_size, num_prefix_tokens, renormalize):
    places = torch.cartesian_prod(*(torch.arange(n) for n in {parts["grid"]})) * {parts["scale"]}
    pixels = torch.cdist(places.float(), places.float())
    patches = {parts["cut"]}
    far = (patches * pixels).sum(-1)
    if not renormalize:
        return {parts["kept"]}
    mass = patches.sum(-1)
    counted = mass > 0
    far = {parts["divide"]}
    return {parts["mean"]}
"""


def _rollout(**changes: str) -> str:
    parts = {
        "heads": "layer.mean(dim=1)",
        "rows": "dim=-1",
        "product": "mixed @ total",
        "cut": "num_prefix_tokens:",
        "grid": "rows, columns",
    } | changes
    return f"""
def rollout_picture(attn, grid, num_prefix_tokens, token):
    rows, columns = grid
    T = attn.shape[-1]
    total = torch.eye(T).expand(attn.shape[1], T, T)
    for layer in attn:
        mixed = {parts["heads"]} + torch.eye(T)
        mixed = mixed / mixed.sum({parts["rows"]}, keepdim=True)
        total = {parts["product"]}
    picture = total[:, token, {parts["cut"]}]
    picture = picture / picture.sum(dim=-1, keepdim=True)
    return picture.reshape(-1, {parts["grid"]})
"""


def _judge(**changes: str) -> str:
    parts = {
        "inputs": "((2, 3), 1), ((3, 2), 2), ((1, 4), 0)",
        "lengths": "torch.rand(prefix + N, 1) + 0.5",
        "failed": "return False",
        "same": "torch.allclose(got.to(target.dtype), target, rtol=0, atol=1e-4)",
        "tensor": "not isinstance(got, Tensor) or got.shape != target.shape",
    } | changes
    return f"""
def is_right(function):
    torch.manual_seed(0)
    for grid, prefix in ({parts["inputs"]},):
        N = grid[0] * grid[1]
        table = F.normalize(torch.randn(1, prefix + N, 5), dim=-1) * ({parts["lengths"]})
        unit = F.normalize(table[0, prefix:], dim=-1)
        target = (unit @ unit.T).reshape(*grid, *grid)
        try:
            got = function(table.clone(), grid, prefix)
        except Exception:
            {parts["failed"]}
        if {parts["tensor"]}:
            return False
        if not {parts["same"]}:
            return False
    return True
"""


def _kernel(**changes: str) -> str:
    parts = {
        "mean": "filters.mean(dim=0)",
        "variance": "s.square()",
        "k": "int((explained < share).sum()) + 1",
        "first": "directions[:k]",
        "rebuilt": "mean + (filters - mean) @ first.T @ first",
    } | changes
    return f"""
def rebuild_kernel(weight, share):
    filters = weight.detach().double().flatten(1)
    mean = {parts["mean"]}
    left, s, directions = torch.linalg.svd(filters - mean, full_matrices=False)
    explained = ({parts["variance"]}).cumsum(0) / ({parts["variance"]}).sum()
    k = {parts["k"]}
    first = {parts["first"]}
    return k, ({parts["rebuilt"]}).reshape(weight.shape).float()
"""


def _table(**changes: str) -> str:
    parts = {
        "check": 'raise ValueError("does not fit")',
        "split": "pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]",
        "picture": "patches.float().transpose(1, 2).unflatten(2, (rows, columns))",
        "corners": 'mode="bilinear", align_corners=True',
        "centres": 'mode="bicubic", antialias=True',
        "back": "picture.flatten(2).transpose(1, 2).to(pos_embed.dtype)",
    } | changes
    return f"""
def resize_table(pos_embed, old_grid, new_grid, num_prefix_tokens, corners):
    rows, columns = old_grid
    if pos_embed.shape[1] != num_prefix_tokens + rows * columns:
        {parts["check"]}
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed.clone()
    prefix, patches = {parts["split"]}
    picture = {parts["picture"]}
    if corners:
        picture = F.interpolate(picture, new_grid, {parts["corners"]})
    else:
        picture = F.interpolate(picture, new_grid, {parts["centres"]})
    patches = {parts["back"]}
    return torch.cat([prefix, patches], dim=1)
"""


def _axis(**changes: str) -> str:
    parts = {
        "a": "-0.5",
        "centres": "(torch.arange(new, dtype=torch.float64) + 0.5) * s - 0.5",
        "width": "max(1.0, s)",
        "back": "weights / weights.sum(dim=1, keepdim=True)",
    } | changes
    return f"""
def axis_weights(old, new):
    a, s = {parts["a"]}, old / new
    centres = {parts["centres"]}
    t = ((torch.arange(old, dtype=torch.float64) - centres[:, None]) / {parts["width"]}).abs()
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    weights = torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))
    return {parts["back"]}
"""


WRONG = {
    "q1": {
        "the library does it": """
def layer_attention(model, images, layer):
    return vm.attention_maps(model, images, layers=layer)[0]
""",
        "scores without the scale": _layer(weights="(q @ k.transpose(-2, -1) + bias).softmax(-1)"),
        "heads before q, k and v": _layer(
            split="q, k, _ = qkv.reshape(B, T, attn.num_heads, 3, -1).permute(3, 0, 2, 1, 4)"
        ),
        "softmax over the queries": _layer(
            weights="(q @ k.transpose(-2, -1) * attn.scale + bias).softmax(dim=-2)"
        ),
        "a scale of its own, not the layer's": _layer(
            weights="(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(dim=-1)"
        ),
        "the relative bias is forgotten": _layer(bias="0"),
        "in whatever mode the model is": _layer(mode="pass"),
        "evaluation mode ever after": _layer(modes="pass"),
        "training mode ever after": _layer(modes="module.training = True"),
        "the hook stays": _layer(clean="pass"),
        "one mode for all modules": _layer(modes="module.training = modes[0][1]"),
        "gradients are kept": _layer(grad="torch.enable_grad()"),
        "clean only if nothing went wrong": """
def layer_attention(model, images, layer):
    attn, seen = model.blocks[layer].attn, []
    modes = [(module, module.training) for module in model.modules()]
    hook = attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.eval()
    with torch.no_grad():
        model(images)
        bias = 0 if attn.rel_pos is None else attn.rel_pos()
    hook.remove()
    for module, mode in modes:
        module.training = mode
    (qkv,) = seen
    B, T, _ = qkv.shape
    q, k, _ = qkv.reshape(B, T, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1) * attn.scale + bias).softmax(dim=-1)
""",
    },
    "q2": {
        "the library does it": """
def distance_in(attn, grid, patch_size, num_prefix_tokens, renormalize):
    return vm.attention_distance(attn, grid, patch_size, num_prefix_tokens, renormalize)
""",
        "always one prefix token": _distance(cut="attn[..., 1:, 1:].float()"),
        "columns before rows": _distance(grid="grid[::-1]"),
        "the height of a patch for both directions": _distance(scale="patch_size[0]"),
        "height and width of a patch exchanged": _distance(scale="torch.tensor(patch_size[::-1])"),
        "nothing divided by nothing": _distance(divide="far / mass", mean="far.mean((1, 3))"),
        "an empty query counts with 0": _distance(mean="far.mean((1, 3))"),
        "always renormalised": _distance(kept="(far / patches.sum(-1)).nanmean((1, 3))"),
        "empty queries left out in both conventions": _distance(
            kept="far.sum((1, 3)) / (patches.sum(-1) > 0).sum((1, 3))"
        ),
        "attn is changed in place": """
def distance_in(attn, grid, patch_size, num_prefix_tokens, renormalize):
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid)) * torch.tensor(patch_size)
    pixels = torch.cdist(places.float(), places.float())
    patches = attn[..., num_prefix_tokens:, num_prefix_tokens:]
    if renormalize:
        patches /= patches.sum(-1, keepdim=True)
        return (patches * pixels).sum(-1).nanmean((1, 3))
    return (patches * pixels).sum(-1).mean((1, 3))
""",
        "distances of whole numbers": _distance(scale="torch.tensor(patch_size)").replace(
            "places.float(), places.float()", "places, places"
        ),
        "a mean over the keys": _distance(kept="(patches * pixels).mean((1, 3, 4))"),
        "a ratio of means": _distance(
            divide="far", mean="far.sum((1, 3)) / patches.sum((1, 3, 4))"
        ),
    },
    "q3": {
        "the library does it": """
def rollout_picture(attn, grid, num_prefix_tokens, token):
    picture = vm.cls_attention(vm.attention_rollout(attn), grid, num_prefix_tokens, token)
    return picture / picture.sum((1, 2), keepdim=True)
""",
        "the heads are summed": _rollout(heads="layer.sum(dim=1)"),
        "columns sum to 1": _rollout(rows="dim=-2"),
        "the layers in the wrong order": _rollout(product="total @ mixed"),
        "one prefix token is dropped": _rollout(cut="1 : 1 + rows * columns"),
        "columns before rows": _rollout(grid="columns, rows"),
        "the shortcut is forgotten": _rollout(heads="layer.mean(dim=1) - torch.eye(T)"),
        "the strongest head": _rollout(heads="layer.amax(dim=1)"),
    },
    "q4": {
        "the library is the judge": """
def is_right(function):
    table = torch.randn(1, 8, 5)
    try:
        got, target = function(table, (2, 3), 2), vm.position_similarity(table, (2, 3), 2)
        return got.shape == target.shape and torch.allclose(got.float(), target, atol=1e-4)
    except (AttributeError, ValueError):
        return False
""",
        "the library is the judge, inside a try": """
def is_right(function):
    try:
        table = torch.randn(1, 8, 5)
        got, target = function(table, (2, 3), 2), vm.position_similarity(table, (2, 3), 2)
        return got.shape == target.shape and torch.allclose(got.float(), target, atol=1e-4)
    except Exception:
        return False
""",
        "a tensor in place of a bool": _judge().replace("return True", "return torch.tensor(True)"),
        "positions of length 1": _judge(lengths="1.0"),
        "square grids, one prefix token": _judge(inputs="((3, 3), 1), ((2, 2), 1)"),
        "one prefix token": _judge(inputs="((2, 3), 1), ((3, 2), 1)"),
        "equal to the last bit": _judge(same="torch.equal(got.to(target.dtype), target)"),
        "an error goes through": _judge(failed="raise"),
        "what is no tensor has a shape, too": _judge(tensor="got.shape != target.shape"),
        "only what is symmetric and 1 on the diagonal": """
def is_right(function):
    table = torch.randn(1, 8, 5)
    try:
        maps = function(table, (2, 3), 2).reshape(6, 6)
    except Exception:
        return False
    ones = torch.ones(6, dtype=maps.dtype)
    return bool(torch.allclose(maps, maps.T) and torch.allclose(maps.diagonal(), ones))
""",
        "float32 only": _judge(same="(got.dtype == target.dtype and torch.allclose(got, target))"),
        "two types in one comparison": _judge(same="torch.allclose(got, target, atol=1e-4)"),
        "positive numbers only": _judge().replace("torch.randn", "torch.rand"),
        "the first tile only": _judge(
            same="torch.allclose(got[0, 0].to(target.dtype), target[0, 0], rtol=0, atol=1e-4)"
        ),
    },
    "q5": {
        "the library does it": """
def rebuild_kernel(weight, share):
    first = vm.patch_filters(weight, 2).flatten(1)
    return 2, (weight.detach().flatten(1) @ first.T @ first).reshape(weight.shape)
""",
        "k is a tensor": _kernel(k="(explained < share).sum() + 1"),
        "weight is changed in place": """
def rebuild_kernel(weight, share):
    filters = weight.detach().flatten(1)
    mean = filters.mean(dim=0)
    filters -= mean
    _, s, directions = torch.linalg.svd(filters.double(), full_matrices=False)
    k = int((s.square().cumsum(0) / s.square().sum() < share).sum()) + 1
    first = directions[:k].float()
    return k, (mean + filters @ first.T @ first).reshape(weight.shape)
""",
        "the mean filter stays": _kernel(mean="0 * filters.mean(dim=0)"),
        "each filter's own mean": _kernel(mean="filters.mean(dim=1, keepdim=True)"),
        "the mean is never added again": _kernel(rebuilt="(filters - mean) @ first.T @ first"),
        "filters with their mean are projected": _kernel(rebuilt="filters @ first.T @ first"),
        "singular values in place of variances": _kernel(variance="s"),
        "one component too few": _kernel(k="max(1, int((explained < share).sum()))"),
        "one component too many": _kernel(k="min(len(s), int((explained < share).sum()) + 2)"),
        "the last component alone": _kernel(first="directions[k - 1 : k]"),
        "columns of V": _kernel(
            rebuilt="mean + (filters - mean) @ directions[:, :k] @ directions[:, :k].T"
            " if directions.shape[0] == directions.shape[1] else filters"
        ),
        "the first k filters": _kernel(first="(filters - mean)[:k]"),
    },
    "q6": {
        "the library does it": """
def resize_table(pos_embed, old_grid, new_grid, num_prefix_tokens, corners):
    mode = "google" if corners else "bicubic"
    return vm.resize_pos_embed(pos_embed, new_grid, old_grid, num_prefix_tokens, mode)
""",
        "places and channels mixed up": _table(
            picture="patches.float().reshape(1, -1, rows, columns)"
        ),
        "columns before rows": _table(
            picture="patches.float().transpose(1, 2).unflatten(2, (columns, rows))"
        ),
        "always one prefix token": _table(split="pos_embed[:, :1], pos_embed[:, 1:]"),
        "no antialiasing": _table(centres='mode="bicubic"'),
        "bicubic with aligned corners": _table(corners='mode="bicubic", align_corners=True'),
        "bilinear without aligned corners": _table(corners='mode="bilinear"'),
        "float32 comes back": _table(back="picture.flatten(2).transpose(1, 2)"),
        "it does not look whether the grid fits": _table(check="pass"),
        "it does not look when the grid stays": _table(
            check='if tuple(old_grid) != tuple(new_grid): raise ValueError("does not fit")'
        ),
        "pos_embed is changed in place": _table(
            split="pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:].mul_(1.001)"
        ),
        "a square by its root": """
def resize_table(pos_embed, old_grid, new_grid, num_prefix_tokens, corners):
    side = int((pos_embed.shape[1] - num_prefix_tokens) ** 0.5)
    if side * side != pos_embed.shape[1] - num_prefix_tokens:
        raise ValueError("no square grid")
    mode = "google" if corners else "bicubic"
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    picture = patches.float().transpose(1, 2).unflatten(2, (side, side))
    if corners:
        picture = F.interpolate(picture, new_grid, mode="bilinear", align_corners=True)
    else:
        picture = F.interpolate(picture, new_grid, mode="bicubic", antialias=True)
    patches = picture.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat([prefix, patches], dim=1)
""",
        "the whole table as one sequence": """
def resize_table(pos_embed, old_grid, new_grid, num_prefix_tokens, corners):
    if pos_embed.shape[1] != num_prefix_tokens + math.prod(old_grid):
        raise ValueError("does not fit")
    T = num_prefix_tokens + math.prod(new_grid)
    line = F.interpolate(pos_embed.float().mT, T, mode="linear", align_corners=corners)
    return line.mT.to(pos_embed.dtype)
""",
    },
    "stretch": {
        "the other cubic": _axis(a="-0.75"),
        "the kernel is never widened": _axis(width="1.0"),
        "corners are aligned": _axis(
            centres="torch.arange(new, dtype=torch.float64) * (old - 1) / max(new - 1, 1)"
        ),
        "rows do not sum to 1": _axis(back="weights"),
        "half a place off": _axis(centres="torch.arange(new, dtype=torch.float64) * s"),
    },
}
