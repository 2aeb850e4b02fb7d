"""Plausible wrong answers to assignment 1: each loses its question's points and no other's."""

from wrong_answers import swapped

COUNT = """
def tokens_and_parameters(image_size, patch_size, channels, dim, positions, prefix):
    (H, W), (P, Q) = image_size, patch_size
    rows, columns = -(-H // P), -(-W // Q)
    T = prefix + rows * columns
    tables = {"none": 0, "sincos2d": 0, "learned": T * dim,
              "learned2d": (rows + columns) * dim // 2 + prefix * dim}
    if positions not in tables:
        raise ValueError(positions)
    return T, (channels * P * Q + 1) * dim + prefix * dim + tables[positions]
"""
RESIZE = """
def resize_kernel(weight, size):
    D, C, P, Q = weight.shape
    basis = torch.eye(P * Q, dtype=torch.float64).view(P * Q, 1, P, Q)
    B = F.interpolate(basis, size, mode="bilinear").flatten(1).T
    v = torch.linalg.pinv(B.T) @ weight.double().reshape(D * C, P * Q).T
    return v.T.reshape(D, C, *size).to(weight.dtype)
"""

WRONG = {
    "q1": {
        "an image that does not divide loses its rest": swapped(
            COUNT, ("-(-H // P), -(-W // Q)", "H // P, W // Q")
        ),
        "the projection has no bias": swapped(
            COUNT, ("(channels * P * Q + 1) * dim", "channels * P * Q * dim")
        ),
        "prefix tokens without a place in the two-dimensional table": swapped(
            COUNT, ("dim // 2 + prefix * dim", "dim // 2")
        ),
        "an unknown word counts as none": """
def tokens_and_parameters(image_size, patch_size, channels, dim, positions, prefix):
    (H, W), (P, Q) = image_size, patch_size
    rows, columns = -(-H // P), -(-W // Q)
    T = prefix + rows * columns
    tables = {"learned": T * dim, "learned2d": (rows + columns) * dim // 2 + prefix * dim}
    return T, (channels * P * Q + 1) * dim + prefix * dim + tables.get(positions, 0)
""",
        "always one prefix token": swapped(
            COUNT, ("T = prefix", "T = 1"), ("+ prefix * dim", "+ dim")
        ),
        "floats from a division": swapped(COUNT, ("dim // 2", "dim / 2")),
        "a projection for square patches": swapped(COUNT, ("P * Q + 1", "P * P + 1")),
        "a square grid in the two-dimensional table": swapped(
            COUNT, ("(rows + columns) * dim // 2", "max(rows, columns) * dim")
        ),
        "printed, not returned": swapped(
            COUNT,
            (
                "return T, (channels * P * Q + 1) * dim + prefix * dim + tables[positions]",
                "print(T, (channels * P * Q + 1) * dim + prefix * dim + tables[positions])",
            ),
        ),
    },
    "q2": {
        "channel first": """
def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    images = F.pad(images, (0, -W % Q, 0, -H % P))
    rows, columns = images.shape[2] // P, images.shape[3] // Q
    x = images.reshape(B, C, rows, P, columns, Q)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, P * Q * C)

def paste(patches, patch_size, image_size):
    (B, N, length), (P, Q), (H, W) = patches.shape, patch_size, image_size
    rows, columns = -(-H // P), -(-W // Q)
    if length % (P * Q) or N != rows * columns:
        raise ValueError("does not fit")
    x = patches.reshape(B, rows, columns, length // (P * Q), P, Q)
    x = x.permute(0, 3, 1, 4, 2, 5).reshape(B, -1, rows * P, columns * Q)
    return x[:, :, :H, :W]
""",
        "filled up on both sides": """
def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    a, b = -H % P, -W % Q
    images = F.pad(images, (b // 2, b - b // 2, a // 2, a - a // 2))
    rows, columns = images.shape[2] // P, images.shape[3] // Q
    x = images.reshape(B, C, rows, P, columns, Q)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, rows * columns, P * Q * C)

def paste(patches, patch_size, image_size):
    (B, N, length), (P, Q), (H, W) = patches.shape, patch_size, image_size
    rows, columns, a, b = -(-H // P), -(-W // Q), -H % P, -W % Q
    if length % (P * Q) or N != rows * columns:
        raise ValueError("does not fit")
    x = patches.reshape(B, rows, columns, P, Q, length // (P * Q))
    x = x.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, rows * P, columns * Q)
    return x[:, :, a // 2 : a // 2 + H, b // 2 : b // 2 + W]
""",
        "columns before rows": """
def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    images = F.pad(images, (0, -W % Q, 0, -H % P))
    rows, columns = images.shape[2] // P, images.shape[3] // Q
    x = images.reshape(B, C, rows, P, columns, Q)
    return x.permute(0, 4, 2, 3, 5, 1).reshape(B, rows * columns, P * Q * C)

def paste(patches, patch_size, image_size):
    (B, N, length), (P, Q), (H, W) = patches.shape, patch_size, image_size
    rows, columns = -(-H // P), -(-W // Q)
    if length % (P * Q) or N != rows * columns:
        raise ValueError("does not fit")
    x = patches.reshape(B, columns, rows, P, Q, length // (P * Q))
    x = x.permute(0, 5, 2, 3, 1, 4).reshape(B, -1, rows * P, columns * Q)
    return x[:, :, :H, :W]
""",
        "everything becomes a float": """
def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    rows, columns = -(-H // P), -(-W // Q)
    full = torch.zeros(B, C, rows * P, columns * Q)
    full[:, :, :H, :W] = images
    x = full.reshape(B, C, rows, P, columns, Q)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, rows * columns, P * Q * C)

def paste(patches, patch_size, image_size):
    (B, N, length), (P, Q), (H, W) = patches.shape, patch_size, image_size
    rows, columns = -(-H // P), -(-W // Q)
    if length % (P * Q) or N != rows * columns:
        raise ValueError("does not fit")
    x = patches.reshape(B, rows, columns, P, Q, length // (P * Q))
    x = x.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, rows * P, columns * Q)
    return x[:, :, :H, :W].long()
""",
        "patches that do not fit are pasted as far as they go": """
def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    images = F.pad(images, (0, -W % Q, 0, -H % P))
    rows, columns = images.shape[2] // P, images.shape[3] // Q
    x = images.reshape(B, C, rows, P, columns, Q)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, rows * columns, P * Q * C)

def paste(patches, patch_size, image_size):
    (B, N, length), (P, Q), (H, W) = patches.shape, patch_size, image_size
    rows, columns, C = -(-H // P), -(-W // Q), length // (P * Q)
    images = torch.zeros(B, C, rows * P, columns * Q, dtype=patches.dtype)
    for n in range(min(N, rows * columns)):
        y, x = n // columns * P, n % columns * Q
        patch = patches[:, n, : P * Q * C].reshape(B, P, Q, C).permute(0, 3, 1, 2)
        images[:, :, y : y + P, x : x + Q] = patch
    return images[:, :, :H, :W]
""",
        "the library does the work": """
def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    x = vm.patchify(F.pad(images, (0, -W % Q, 0, -H % P)), patch_size)
    return x.unflatten(2, (C, P * Q)).transpose(2, 3).flatten(2)

def paste(patches, patch_size, image_size):
    (P, Q), (H, W) = patch_size, image_size
    x = patches.unflatten(2, (P * Q, -1)).transpose(2, 3)
    full = (H + -H % P, W + -W % Q)
    return vm.unpatchify(x.flatten(2), patch_size, full, x.shape[2])[:, :, :H, :W]
""",
        "pasted channel first": """
def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    images = F.pad(images, (0, -W % Q, 0, -H % P))
    rows, columns = images.shape[2] // P, images.shape[3] // Q
    x = images.reshape(B, C, rows, P, columns, Q)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, rows * columns, P * Q * C)

def paste(patches, patch_size, image_size):
    (B, N, length), (P, Q), (H, W) = patches.shape, patch_size, image_size
    rows, columns = -(-H // P), -(-W // Q)
    if length % (P * Q) or N != rows * columns:
        raise ValueError("does not fit")
    x = patches.reshape(B, rows, columns, length // (P * Q), P, Q)
    x = x.permute(0, 3, 1, 4, 2, 5).reshape(B, -1, rows * P, columns * Q)
    return x[:, :, :H, :W]
""",
        "pasted into floats": """
def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    images = F.pad(images, (0, -W % Q, 0, -H % P))
    rows, columns = images.shape[2] // P, images.shape[3] // Q
    x = images.reshape(B, C, rows, P, columns, Q)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, rows * columns, P * Q * C)

def paste(patches, patch_size, image_size):
    (B, N, length), (P, Q), (H, W) = patches.shape, patch_size, image_size
    rows, columns, C = -(-H // P), -(-W // Q), length // (P * Q)
    if length % (P * Q) or N != rows * columns:
        raise ValueError("does not fit")
    images = torch.zeros(B, C, rows * P, columns * Q)
    for n in range(N):
        y, x = n // columns * P, n % columns * Q
        patch = patches[:, n].reshape(B, P, Q, C).permute(0, 3, 1, 2)
        images[:, :, y : y + P, x : x + Q] = patch
    return images[:, :, :H, :W]
""",
        "einops says what is wrong, in its own error": """
from einops import rearrange

def cut(images, patch_size):
    (B, C, H, W), (P, Q) = images.shape, patch_size
    images = F.pad(images, (0, -W % Q, 0, -H % P))
    rows, columns = images.shape[2] // P, images.shape[3] // Q
    x = images.reshape(B, C, rows, P, columns, Q)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, rows * columns, P * Q * C)

def paste(patches, patch_size, image_size):
    (P, Q), (H, W) = patch_size, image_size
    rows, columns = -(-H // P), -(-W // Q)
    x = rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, w=columns, p=P, q=Q)
    return x[:, :, :H, :W]
""",
    },
    "q3": {
        "the kernel is read channel first": """
def conv_from_linear(linear, patch_size):
    (P, Q), D = patch_size, linear.out_features
    C = linear.in_features // (P * Q)
    bias = linear.bias is not None
    conv = nn.Conv2d(C, D, (P, Q), stride=(P, Q), bias=bias, dtype=linear.weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.view(D, C, P, Q))
        if bias:
            conv.bias.copy_(linear.bias)
    return conv

def on_raw_images(conv, mean, std):
    mean, std = (torch.tensor(v, dtype=conv.weight.dtype).view(-1, 1, 1) for v in (mean, std))
    raw = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                    dtype=conv.weight.dtype)
    with torch.no_grad():
        raw.weight.copy_(conv.weight / std)
        raw.bias.copy_(-(conv.weight * mean / std).sum((1, 2, 3)))
        if conv.bias is not None:
            raw.bias.add_(conv.bias)
    return raw
""",
        "the weight is multiplied by std": """
def conv_from_linear(linear, patch_size):
    (P, Q), D = patch_size, linear.out_features
    C = linear.in_features // (P * Q)
    bias = linear.bias is not None
    conv = nn.Conv2d(C, D, (P, Q), stride=(P, Q), bias=bias, dtype=linear.weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.view(D, P, Q, C).permute(0, 3, 1, 2))
        if bias:
            conv.bias.copy_(linear.bias)
    return conv

def on_raw_images(conv, mean, std):
    mean, std = (torch.tensor(v, dtype=conv.weight.dtype).view(-1, 1, 1) for v in (mean, std))
    raw = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                    dtype=conv.weight.dtype)
    with torch.no_grad():
        raw.weight.copy_(conv.weight * std)
        raw.bias.copy_(-(conv.weight * mean * std).sum((1, 2, 3)))
        if conv.bias is not None:
            raw.bias.add_(conv.bias)
    return raw
""",
        "rows and columns of the patch swapped": """
def conv_from_linear(linear, patch_size):
    (P, Q), D = patch_size, linear.out_features
    C = linear.in_features // (P * Q)
    bias = linear.bias is not None
    conv = nn.Conv2d(C, D, (P, Q), stride=(P, Q), bias=bias, dtype=linear.weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.view(D, Q, P, C).permute(0, 3, 2, 1))
        if bias:
            conv.bias.copy_(linear.bias)
    return conv

def on_raw_images(conv, mean, std):
    mean, std = (torch.tensor(v, dtype=conv.weight.dtype).view(-1, 1, 1) for v in (mean, std))
    raw = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                    dtype=conv.weight.dtype)
    with torch.no_grad():
        raw.weight.copy_(conv.weight / std)
        raw.bias.copy_(-(conv.weight * mean / std).sum((1, 2, 3)))
        if conv.bias is not None:
            raw.bias.add_(conv.bias)
    return raw
""",
        "the mean is subtracted without being divided by std": """
def conv_from_linear(linear, patch_size):
    (P, Q), D = patch_size, linear.out_features
    C = linear.in_features // (P * Q)
    bias = linear.bias is not None
    conv = nn.Conv2d(C, D, (P, Q), stride=(P, Q), bias=bias, dtype=linear.weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.view(D, P, Q, C).permute(0, 3, 1, 2))
        if bias:
            conv.bias.copy_(linear.bias)
    return conv

def on_raw_images(conv, mean, std):
    mean, std = (torch.tensor(v, dtype=conv.weight.dtype).view(-1, 1, 1) for v in (mean, std))
    raw = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                    dtype=conv.weight.dtype)
    with torch.no_grad():
        raw.weight.copy_(conv.weight / std)
        raw.bias.copy_(-(conv.weight * mean).sum((1, 2, 3)))
        if conv.bias is not None:
            raw.bias.add_(conv.bias)
    return raw
""",
        "the old convolution is changed in place": """
def conv_from_linear(linear, patch_size):
    (P, Q), D = patch_size, linear.out_features
    C = linear.in_features // (P * Q)
    bias = linear.bias is not None
    conv = nn.Conv2d(C, D, (P, Q), stride=(P, Q), bias=bias, dtype=linear.weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.view(D, P, Q, C).permute(0, 3, 1, 2))
        if bias:
            conv.bias.copy_(linear.bias)
    return conv

def on_raw_images(conv, mean, std):
    mean, std = (torch.tensor(v, dtype=conv.weight.dtype).view(-1, 1, 1) for v in (mean, std))
    with torch.no_grad():
        shift = -(conv.weight * mean / std).sum((1, 2, 3))
        conv.weight.div_(std)
    conv.bias = nn.Parameter(shift if conv.bias is None else conv.bias.detach() + shift)
    return conv
""",
        "the bias is the linear layer's own": """
def conv_from_linear(linear, patch_size):
    (P, Q), D = patch_size, linear.out_features
    C = linear.in_features // (P * Q)
    conv = nn.Conv2d(C, D, (P, Q), stride=(P, Q), dtype=linear.weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.view(D, P, Q, C).permute(0, 3, 1, 2))
    conv.bias = linear.bias
    return conv

def on_raw_images(conv, mean, std):
    mean, std = (torch.tensor(v, dtype=conv.weight.dtype).view(-1, 1, 1) for v in (mean, std))
    raw = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,
                    dtype=conv.weight.dtype)
    with torch.no_grad():
        raw.weight.copy_(conv.weight / std)
        raw.bias.copy_(-(conv.weight * mean / std).sum((1, 2, 3)))
        if conv.bias is not None:
            raw.bias.add_(conv.bias)
    return raw
""",
    },
    "q4": {
        "corners are aligned, not centres": """
def centres(grid, reference):
    along = [torch.linspace(0, old - 1, new, dtype=torch.float64)
             for new, old in zip(grid, reference)]
    return torch.cartesian_prod(*along)

def sincos_at(places, dim, temperature=10000.0):
    if dim % 4 or dim < 8:
        raise ValueError(dim)
    w = temperature ** (-torch.arange(dim // 4, dtype=places.dtype) / (dim // 4 - 1))
    row, column = (places[:, i : i + 1] * w for i in (0, 1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
""",
        "upper left corners in place of centres": """
def centres(grid, reference):
    along = [torch.arange(new, dtype=torch.float64) * old / new
             for new, old in zip(grid, reference)]
    return torch.cartesian_prod(*along)

def sincos_at(places, dim, temperature=10000.0):
    if dim % 4 or dim < 8:
        raise ValueError(dim)
    w = temperature ** (-torch.arange(dim // 4, dtype=places.dtype) / (dim // 4 - 1))
    row, column = (places[:, i : i + 1] * w for i in (0, 1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
""",
        "the row comes first": """
def centres(grid, reference):
    along = [(torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5
             for new, old in zip(grid, reference)]
    return torch.cartesian_prod(*along)

def sincos_at(places, dim, temperature=10000.0):
    if dim % 4 or dim < 8:
        raise ValueError(dim)
    w = temperature ** (-torch.arange(dim // 4, dtype=places.dtype) / (dim // 4 - 1))
    row, column = (places[:, i : i + 1] * w for i in (0, 1))
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
""",
        "the slowest hand stops one step before (the other spelling)": """
def centres(grid, reference):
    along = [(torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5
             for new, old in zip(grid, reference)]
    return torch.cartesian_prod(*along)

def sincos_at(places, dim, temperature=10000.0):
    if dim % 4 or dim < 8:
        raise ValueError(dim)
    w = temperature ** (-torch.arange(dim // 4, dtype=places.dtype) / (dim // 4))
    row, column = (places[:, i : i + 1] * w for i in (0, 1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
""",
        "float32 whatever came in": """
def centres(grid, reference):
    along = [(torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5
             for new, old in zip(grid, reference)]
    return torch.cartesian_prod(*along)

def sincos_at(places, dim, temperature=10000.0):
    if dim % 4 or dim < 8:
        raise ValueError(dim)
    w = (temperature ** (-torch.arange(dim // 4) / (dim // 4 - 1))).double()
    row, column = (places[:, i : i + 1] * w for i in (0, 1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
""",
        "columns scaled by the ratio of the rows": """
def centres(grid, reference):
    ratio = reference[-1] / grid[-1]
    along = [(torch.arange(new, dtype=torch.float64) + 0.5) * ratio - 0.5 for new in grid]
    return torch.cartesian_prod(*along)

def sincos_at(places, dim, temperature=10000.0):
    if dim % 4 or dim < 8:
        raise ValueError(dim)
    w = temperature ** (-torch.arange(dim // 4, dtype=places.dtype) / (dim // 4 - 1))
    row, column = (places[:, i : i + 1] * w for i in (0, 1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
""",
        "centres in float32": """
def centres(grid, reference):
    along = [(torch.arange(new) + 0.5) * old / new - 0.5 for new, old in zip(grid, reference)]
    return torch.cartesian_prod(*along)

def sincos_at(places, dim, temperature=10000.0):
    if dim % 4 or dim < 8:
        raise ValueError(dim)
    w = temperature ** (-torch.arange(dim // 4, dtype=places.dtype) / (dim // 4 - 1))
    row, column = (places[:, i : i + 1] * w for i in (0, 1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)
""",
    },
    "q5": {
        "judged in training mode": """
def symmetry(model, tokens, prefix=0):
    T, invariant, equivariant = tokens.shape[1], True, True
    with torch.no_grad():
        still = model(tokens)
        for _ in range(8):
            order = torch.cat([torch.arange(prefix), prefix + torch.randperm(T - prefix)])
            moved = model(tokens[:, order])
            size = 1e-4 * still.abs().max()
            invariant &= bool((moved - still).abs().max() <= size)
            equivariant &= still.ndim == 3 and bool((moved - still[:, order]).abs().max() <= size)
    return "invariant" if invariant else "equivariant" if equivariant else "neither"
""",
        "model.train() at the end": """
def symmetry(model, tokens, prefix=0):
    T, invariant, equivariant, mode = tokens.shape[1], True, True, model.training
    model.eval()
    with torch.no_grad():
        still = model(tokens)
        for _ in range(8):
            order = torch.cat([torch.arange(prefix), prefix + torch.randperm(T - prefix)])
            moved = model(tokens[:, order])
            size = 1e-4 * still.abs().max()
            invariant &= bool((moved - still).abs().max() <= size)
            equivariant &= still.ndim == 3 and bool((moved - still[:, order]).abs().max() <= size)
    model.train(mode)
    return "invariant" if invariant else "equivariant" if equivariant else "neither"
""",
        "an absolute tolerance": """
def symmetry(model, tokens, prefix=0):
    modes = {m: m.training for m in model.modules()}
    T, invariant, equivariant = tokens.shape[1], True, True
    model.eval()
    with torch.no_grad():
        still = model(tokens)
        for _ in range(8):
            order = torch.cat([torch.arange(prefix), prefix + torch.randperm(T - prefix)])
            moved = model(tokens[:, order])
            invariant &= torch.allclose(moved, still, atol=1e-5)
            equivariant &= still.ndim == 3 and torch.allclose(moved, still[:, order], atol=1e-5)
    for m, mode in modes.items():
        m.training = mode
    return "invariant" if invariant else "equivariant" if equivariant else "neither"
""",
        "a flip is the only order": """
def symmetry(model, tokens, prefix=0):
    modes = {m: m.training for m in model.modules()}
    T = tokens.shape[1]
    model.eval()
    with torch.no_grad():
        still = model(tokens)
        order = torch.cat([torch.arange(prefix), torch.arange(prefix, T).flip(0)])
        moved = model(tokens[:, order])
        size = 1e-4 * still.abs().max()
        invariant = bool((moved - still).abs().max() <= size)
        equivariant = still.ndim == 3 and bool((moved - still[:, order]).abs().max() <= size)
    for m, mode in modes.items():
        m.training = mode
    return "invariant" if invariant else "equivariant" if equivariant else "neither"
""",
        "the prefix is shuffled too": """
def symmetry(model, tokens, prefix=0):
    modes = {m: m.training for m in model.modules()}
    T, invariant, equivariant = tokens.shape[1], True, True
    model.eval()
    with torch.no_grad():
        still = model(tokens)
        for _ in range(8):
            order = torch.randperm(T)
            moved = model(tokens[:, order])
            size = 1e-4 * still.abs().max()
            invariant &= bool((moved - still).abs().max() <= size)
            equivariant &= still.ndim == 3 and bool((moved - still[:, order]).abs().max() <= size)
    for m, mode in modes.items():
        m.training = mode
    return "invariant" if invariant else "equivariant" if equivariant else "neither"
""",
        "equivariant is asked first": """
def symmetry(model, tokens, prefix=0):
    modes = {m: m.training for m in model.modules()}
    T, invariant, equivariant = tokens.shape[1], True, True
    model.eval()
    with torch.no_grad():
        still = model(tokens)
        for _ in range(8):
            order = torch.cat([torch.arange(prefix), prefix + torch.randperm(T - prefix)])
            moved = model(tokens[:, order])
            size = 1e-4 * still.abs().max()
            invariant &= bool((moved - still).abs().max() <= size)
            equivariant &= still.ndim == 3 and bool((moved - still[:, order]).abs().max() <= size)
    for m, mode in modes.items():
        m.training = mode
    return "equivariant" if equivariant else "invariant" if invariant else "neither"
""",
        "gradients are cleared at the end": """
def symmetry(model, tokens, prefix=0):
    modes = {m: m.training for m in model.modules()}
    T, invariant, equivariant = tokens.shape[1], True, True
    model.eval()
    still = model(tokens)
    for _ in range(8):
        order = torch.cat([torch.arange(prefix), prefix + torch.randperm(T - prefix)])
        moved = model(tokens[:, order])
        size = 1e-4 * still.abs().max()
        invariant &= bool((moved - still).abs().max() <= size)
        equivariant &= still.ndim == 3 and bool((moved - still[:, order]).abs().max() <= size)
    for m, mode in modes.items():
        m.training = mode
    model.zero_grad()
    return "invariant" if invariant else "equivariant" if equivariant else "neither"
""",
    },
    "q6": {
        "judged by the first weights": """
def blind_to_order(build, image_size, patch_size):
    model = build().double().eval()
    images = torch.randn(2, 3, *image_size, dtype=torch.float64)
    patches = vm.patchify(images, patch_size)
    with torch.no_grad():
        for _ in range(5):
            order = torch.randperm(patches.shape[1])
            moved = model(vm.unpatchify(patches[:, order], patch_size, image_size))
            if not torch.allclose(moved, model(images), atol=1e-10):
                return False
    return True

verdicts = {"A": True, "B": False, "C": False, "D": True, "E": True, "F": False}
""",
        "only the head gets new weights": """
def blind_to_order(build, image_size, patch_size):
    model = build().double().eval()
    images = torch.randn(2, 3, *image_size, dtype=torch.float64)
    patches = vm.patchify(images, patch_size)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "head" in name or "gate" in name or "two" in name:
                p.copy_(torch.randn_like(p))
        for _ in range(5):
            order = torch.randperm(patches.shape[1])
            moved = model(vm.unpatchify(patches[:, order], patch_size, image_size))
            if not torch.allclose(moved, model(images), atol=1e-10):
                return False
    return True

verdicts = {"A": True, "B": False, "C": False, "D": True, "E": True, "F": False}
""",
        "left in training mode": """
def blind_to_order(build, image_size, patch_size):
    model = build().double()
    images = torch.randn(2, 3, *image_size, dtype=torch.float64)
    patches = vm.patchify(images, patch_size)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for _ in range(5):
            order = torch.randperm(patches.shape[1])
            moved = model(vm.unpatchify(patches[:, order], patch_size, image_size))
            still = model(images)
            still = still[0] if isinstance(still, tuple) else still
            moved = moved[0] if isinstance(moved, tuple) else moved
            if not torch.allclose(moved, still, atol=1e-10):
                return False
    return True

verdicts = {"A": True, "B": False, "C": False, "D": True, "E": True, "F": False}
""",
        "pixels are shuffled, not patches": """
def blind_to_order(build, image_size, patch_size):
    model = build().double().eval()
    images = torch.randn(2, 3, *image_size, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        order = torch.randperm(image_size[0] * image_size[1])
        moved = model(images.flatten(2)[:, :, order].view_as(images))
        return torch.allclose(moved, model(images), atol=1e-10)

verdicts = {"A": True, "B": False, "C": False, "D": True, "E": True, "F": False}
""",
        "the verdicts of fresh models": """
def blind_to_order(build, image_size, patch_size):
    with torch.no_grad():
        for _ in range(3):
            model = build().double().eval()
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
            images = torch.randn(2, 3, *image_size, dtype=torch.float64)
            patches = vm.patchify(images, patch_size)
            order = torch.randperm(patches.shape[1])
            moved = model(vm.unpatchify(patches[:, order], patch_size, image_size))
            if not torch.allclose(moved, model(images), atol=1e-9):
                return False
    return True

verdicts = {"A": True, "B": True, "C": True, "D": True, "E": True, "F": False}
""",
        "a tensor in place of a bool": """
def blind_to_order(build, image_size, patch_size):
    model = build().double().eval()
    images = torch.randn(2, 3, *image_size, dtype=torch.float64)
    patches = vm.patchify(images, patch_size)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        order = torch.randperm(patches.shape[1])
        moved = model(vm.unpatchify(patches[:, order], patch_size, image_size))
        return ((moved - model(images)).abs() < 1e-8).all()

verdicts = {"A": True, "B": False, "C": False, "D": True, "E": True, "F": False}
""",
        "no verdict on anybody": """
def blind_to_order(build, image_size, patch_size):
    with torch.no_grad():
        for _ in range(3):
            model = build().double().eval()
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
            images = torch.randn(2, 3, *image_size, dtype=torch.float64)
            patches = vm.patchify(images, patch_size)
            order = torch.randperm(patches.shape[1])
            moved = model(vm.unpatchify(patches[:, order], patch_size, image_size))
            if not torch.allclose(moved, model(images), atol=1e-9):
                return False
    return True

verdicts = dict.fromkeys("ABCDEF", False)
""",
    },
    "q7": {
        "the dot product": """
def similarity_by_offset(pos_embed, grid, prefix=1):
    R, C = grid
    table = pos_embed[0, prefix:].float().reshape(R, C, -1)
    result = torch.empty(2 * R - 1, 2 * C - 1)
    for a in range(1 - R, R):
        for b in range(1 - C, C):
            first = table[max(0, -a) : R - max(0, a), max(0, -b) : C - max(0, b)]
            second = table[max(0, a) : R + min(0, a), max(0, b) : C + min(0, b)]
            result[R - 1 + a, C - 1 + b] = (first * second).sum(-1).mean()
    return result
""",
        "a sum in place of the mean": """
def similarity_by_offset(pos_embed, grid, prefix=1):
    R, C = grid
    unit = F.normalize(pos_embed[0, prefix:].float(), dim=-1)
    result = torch.zeros(2 * R - 1, 2 * C - 1)
    for i in range(R * C):
        for j in range(R * C):
            result[R - 1 + j // C - i // C, C - 1 + j % C - i % C] += unit[i] @ unit[j]
    return result / (R * C)
""",
        "the class token counts as a patch": """
def similarity_by_offset(pos_embed, grid, prefix=1):
    R, C = grid
    unit = F.normalize(pos_embed[0, : R * C].float(), dim=-1)
    total, count = torch.zeros(2, 2 * R - 1, 2 * C - 1)
    for i in range(R * C):
        for j in range(R * C):
            at = (R - 1 + j // C - i // C, C - 1 + j % C - i % C)
            total[at] += unit[i] @ unit[j]
            count[at] += 1
    return total / count
""",
        "offsets without their sign": """
def similarity_by_offset(pos_embed, grid, prefix=1):
    R, C = grid
    unit = F.normalize(pos_embed[0, prefix:].float(), dim=-1)
    total, count = torch.zeros(2, R, C)
    for i in range(R * C):
        for j in range(R * C):
            at = (abs(j // C - i // C), abs(j % C - i % C))
            total[at] += unit[i] @ unit[j]
            count[at] += 1
    mean = total / count
    rows = [abs(a) for a in range(1 - R, R)]
    columns = [abs(b) for b in range(1 - C, C)]
    return mean[rows][:, columns]
""",
        "one map, that of the middle patch": """
def similarity_by_offset(pos_embed, grid, prefix=1):
    R, C = grid
    unit = F.normalize(pos_embed[0, prefix:].float(), dim=-1).reshape(R, C, -1)
    result = torch.zeros(2 * R - 1, 2 * C - 1)
    for i in range(R):
        for j in range(C):
            result[R - 1 + i - R // 2, C - 1 + j - C // 2] = unit[R // 2, C // 2] @ unit[i, j]
    return result
""",
        "divided by a length of zero": """
def similarity_by_offset(pos_embed, grid, prefix=1):
    R, C = grid
    table = pos_embed[0, prefix:].float()
    unit = table / table.norm(dim=-1, keepdim=True)
    total, count = torch.zeros(2, 2 * R - 1, 2 * C - 1)
    for i in range(R * C):
        for j in range(R * C):
            at = (R - 1 + j // C - i // C, C - 1 + j % C - i % C)
            total[at] += unit[i] @ unit[j]
            count[at] += 1
    return total / count
""",
    },
    "stretch": {
        "always in double precision": swapped(RESIZE, (".to(weight.dtype)", "")),
        "square patches only": swapped(
            RESIZE,
            ("D, C, P, Q =", "D, C, P, _ ="),
            ("Q", "P"),
            ("D * C, P * P", "D * C, -1"),
            ("basis, size", "basis, (size[0], size[0])"),
        ),
        "the kernel is interpolated like a picture": """
def resize_kernel(weight, size):
    return F.interpolate(weight, size, mode="bilinear", align_corners=False)
""",
        "interpolated, and divided by the growth in area": """
def resize_kernel(weight, size):
    area = weight.shape[2] * weight.shape[3] / (size[0] * size[1])
    return area * F.interpolate(weight, size, mode="bilinear", align_corners=False)
""",
        "B in place of its transpose": """
def resize_kernel(weight, size):
    D, C, P, Q = weight.shape
    basis = torch.eye(P * Q, dtype=torch.float64).view(P * Q, 1, P, Q)
    B = F.interpolate(basis, size, mode="bilinear").flatten(1).T
    v = B @ weight.double().reshape(D * C, P * Q).T
    return v.T.reshape(D, C, *size).to(weight.dtype)
""",
        "the other way round: old patches made from new ones": """
def resize_kernel(weight, size):
    D, C, P, Q = weight.shape
    R, S = size
    basis = torch.eye(R * S, dtype=torch.float64).view(R * S, 1, R, S)
    A = F.interpolate(basis, (P, Q), mode="bilinear").flatten(1).T  # (P*Q, R*S)
    v = A.T @ weight.double().reshape(D * C, P * Q).T
    return v.T.reshape(D, C, R, S).to(weight.dtype)
""",
    },
}
